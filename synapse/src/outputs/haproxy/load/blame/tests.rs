use proptest::prelude::*;

use super::*;

/// haproxy with these bad fragments; `named` of them get complaints with a line.
struct Oracle {
    bad: BTreeSet<usize>,
    named: BTreeSet<usize>,
    /// A bad frame makes haproxy complain about this service instead.
    scapegoat: Option<(usize, usize)>,
    checks: usize,
}

impl Oracle {
    fn check(&mut self, tried: &Selection) -> Result<(), Refused> {
        self.checks += 1;
        let bad: Vec<usize> = tried.intersection(&self.bad).copied().collect();
        if bad.is_empty() {
            return Ok(());
        }
        let named = bad.iter().filter(|i| self.named.contains(i)).copied();
        let scapegoat = self
            .scapegoat
            .filter(|(frame, _)| bad.contains(frame))
            .map(|(_, service)| service);
        let blamed = named
            .chain(scapegoat)
            .map(|i| (i, format!("bad {i}")))
            .collect();
        Err(Refused {
            blamed,
            words: "fatal errors".to_owned(),
        })
    }

    fn search(&mut self, changed: usize, frame: Frame) -> Outcome {
        let all: Selection = (0..changed).collect();
        let refused = self.check(&all).expect_err("something is bad");
        let mut search = Search::new(all, frame, refused);
        loop {
            match search.step() {
                Step::Try(selection) => {
                    let verdict = self.check(&selection);
                    search.feed(verdict);
                }
                Step::Done(outcome) => return outcome,
            }
            assert!(self.checks < 1_000, "the search does not end");
        }
    }
}

fn oracle(bad: &[usize], named: &[usize]) -> Oracle {
    Oracle {
        bad: bad.iter().copied().collect(),
        named: named.iter().copied().collect(),
        scapegoat: None,
        checks: 0,
    }
}

fn accepted(outcome: Outcome) -> (Selection, BTreeMap<usize, String>) {
    match outcome {
        Outcome::Accepted { new, bad } => (new, bad),
        Outcome::Nothing { words } => panic!("{words}"),
    }
}

#[test]
fn a_named_fragment_costs_one_more_check() {
    let mut haproxy = oracle(&[4], &[4]);
    let (new, bad) = accepted(haproxy.search(1_000, Frame::Fixed));
    assert_eq!(
        (new.len(), bad),
        (999, BTreeMap::from([(4, "bad 4".to_owned())]))
    );
    assert_eq!(haproxy.checks, 2);
}

#[test]
fn an_unnamed_fragment_is_found_by_halving() {
    let mut haproxy = oracle(&[700], &[]);
    let (new, bad) = accepted(haproxy.search(1_000, Frame::Fixed));
    assert_eq!(
        (new.len(), bad),
        (999, BTreeMap::from([(700, "fatal errors".to_owned())]))
    );
    assert!(haproxy.checks <= 22, "{}", haproxy.checks);
}

#[test]
fn a_bad_frame_does_not_cost_the_services_it_makes_look_bad() {
    let mut haproxy = Oracle {
        scapegoat: Some((0, 3)),
        ..oracle(&[0], &[])
    };
    let (new, bad) = accepted(haproxy.search(10, Frame::Changed(0)));
    assert_eq!(new, (1..10).collect());
    assert_eq!(bad.keys().collect::<Vec<_>>(), [&0]);
    let mut haproxy = Oracle {
        scapegoat: Some((0, 3)),
        ..oracle(&[0], &[0])
    };
    assert_eq!(
        accepted(haproxy.search(10, Frame::Changed(0))).0,
        (1..10).collect()
    );
}

#[test]
fn without_a_last_good_frame_it_is_checked_alone_at_the_end() {
    let mut haproxy = oracle(&[0, 1], &[0, 1]);
    let (new, bad) = accepted(haproxy.search(2, Frame::Only));
    assert_eq!((new.len(), bad.len()), (0, 2));
    // And when it is the frame: nothing can be accepted.
    let refused = || Refused {
        blamed: BTreeMap::new(),
        words: "unknown keyword in global".to_owned(),
    };
    let mut search = Search::new([0], Frame::Only, refused());
    assert_eq!(search.step(), Step::Try(Selection::new()));
    search.feed(Err(refused()));
    assert_eq!(
        search.step(),
        Step::Done(Outcome::Nothing {
            words: refused().words
        })
    );
}

proptest! {
    #[test]
    fn keeps_all_that_is_good_and_nothing_that_is_bad(
        size in 1..120usize,
        bad in prop::collection::btree_set(0..120usize, 1..6),
        named in prop::collection::btree_set(0..120usize, 0..60),
        frame in any::<bool>(),
    ) {
        let bad: BTreeSet<usize> = bad.into_iter().map(|i| i % size).collect();
        let mut haproxy = Oracle { bad: bad.clone(), named, scapegoat: None, checks: 0 };
        let (new, found) = accepted(haproxy.search(size, if frame { Frame::Changed(0) } else { Frame::Fixed }));
        prop_assert_eq!(new, (0..size).filter(|i| !bad.contains(i)).collect::<Selection>());
        prop_assert_eq!(found.keys().copied().collect::<BTreeSet<_>>(), bad.clone());
        // 2 log2 n + 2 for each bad one.
        prop_assert!(haproxy.checks <= 3 + bad.len() * 18, "{} checks", haproxy.checks);
    }
}
