//! Ruby's measured table, and its ring read again naively.

use proptest::prelude::*;

use super::*;

/// Ruby's `check?` line by line: a ring, filled with the first result (or, for a start over an old node, with
/// successes), and two `all?` over its tail.
struct Ring {
    rise: usize,
    fall: usize,
    buffer: Vec<bool>,
    up: bool,
}

impl Ring {
    fn new(rise: usize, fall: usize, first: bool) -> Self {
        Self {
            rise,
            fall,
            buffer: vec![first; rise.max(fall)],
            up: first,
        }
    }

    fn record(&mut self, passed: bool) -> bool {
        self.buffer.remove(0);
        self.buffer.push(passed);
        let tail = |n: usize| &self.buffer[self.buffer.len() - n..];
        if tail(self.fall).iter().all(|r| !r) {
            self.up = false;
        }
        if tail(self.rise).iter().all(|r| *r) {
            self.up = true;
        }
        self.up
    }
}

fn states(rise: u32, fall: u32, results: &str) -> String {
    let mut hysteresis = Hysteresis::new(rise, fall);
    let state = |r| {
        if hysteresis.record(r == '1') == Health::Up {
            '1'
        } else {
            '0'
        }
    };
    results.chars().map(state).collect()
}

#[test]
fn rubys_measured_sequences() {
    for (rise, fall, results, expected) in [
        (1, 1, "10100", "10100"),
        (3, 2, "10100110111", "11110000001"),
        (3, 2, "01110100", "00011110"),
        (1, 3, "010010001", "011111101"),
    ] {
        assert_eq!(
            states(rise, fall, results),
            expected,
            "{rise}/{fall} {results}"
        );
    }
}

#[test]
fn nothing_is_known_before_the_first_result() {
    assert_eq!(Hysteresis::new(2, 2).health(), None);
    assert!(!Hysteresis::new(2, 2).is_unproven_down());
}

/// Every sequence of nine results for every rise and fall up to four.
#[test]
fn equals_the_ring_for_all_short_sequences() {
    for (rise, fall) in (1..=4u32).flat_map(|r| (1..=4u32).map(move |f| (r, f))) {
        for bits in 0u32..512 {
            compare(
                rise,
                fall,
                &(0..9).map(|i| bits >> i & 1 == 1).collect::<Vec<_>>(),
            );
        }
    }
}

fn compare(rise: u32, fall: u32, results: &[bool]) {
    let mut ours = Hysteresis::new(rise, fall);
    let mut rubys = Ring::new(rise as usize, fall as usize, results[0]);
    let mut begun_up = Ring::new(rise as usize, fall as usize, true);
    for (i, passed) in results.iter().enumerate() {
        let health = ours.record(*passed);
        assert_eq!(
            health == Health::Up,
            rubys.record(*passed),
            "{rise}/{fall} at {i} of {results:?}"
        );
        let kept = health == Health::Up || ours.is_unproven_down();
        assert_eq!(
            kept,
            begun_up.record(*passed),
            "begun up: {rise}/{fall} at {i} of {results:?}"
        );
    }
}

proptest! {
    #[test]
    fn equals_the_ring(rise in 1u32..9, fall in 1u32..9, results in proptest::collection::vec(any::<bool>(), 1..80)) {
        compare(rise, fall, &results);
    }
}
