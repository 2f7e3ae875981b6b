//! Full-jitter exponential back-off: the n-th pause is uniform in `0..min(cap, base * 2^n)`, never below `floor`. And the
//! time over which everybody comes back whom one outage has sent away.

use std::time::Duration;

/// Longest time over which work is spread after an outage.
const SPREAD: Duration = Duration::from_secs(10);
/// The spread is the outage divided by this, up to [`SPREAD`].
const SPREAD_SHARE: u32 = 4;

/// The longest time over which to spread the work that an outage of this length has left to everybody at once: a quarter
/// of it, at most 10 s. Scaled, because a short outage has sent few away and is to end soon for them.
#[must_use]
pub fn spread_after(outage: Duration) -> Duration {
    (outage / SPREAD_SHARE).min(SPREAD)
}

/// Pauses between attempts. Fields cannot hold nonsense: a base of zero or above the cap is raised or lowered.
#[derive(Debug, Clone)]
pub struct Backoff {
    base: Duration,
    cap: Duration,
    attempt: u32,
}

impl Backoff {
    /// Pauses from `base` up to `cap`.
    #[must_use]
    pub fn new(base: Duration, cap: Duration) -> Self {
        let base = base.max(Duration::from_millis(1));
        Self {
            base,
            cap: cap.max(base),
            attempt: 0,
        }
    }

    /// The next pause: at least half of `base`, at most `cap`.
    pub fn next(&mut self, rng: &mut fastrand::Rng) -> Duration {
        let ceiling = self
            .base
            .saturating_mul(2u32.saturating_pow(self.attempt))
            .min(self.cap);
        self.attempt = self.attempt.saturating_add(1);
        ceiling.mul_f64(rng.f64()).max(self.base / 2)
    }

    /// Changes the longest pause.
    pub fn set_cap(&mut self, cap: Duration) {
        self.cap = cap.max(self.base);
    }

    /// Begins anew after a success.
    pub fn reset(&mut self) {
        self.attempt = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_spread_is_a_quarter_of_the_outage_and_bounded() {
        let spread = |secs| spread_after(Duration::from_secs(secs)).as_secs();
        assert_eq!([0, 4, 20, 40, 3600].map(spread), [0, 1, 5, 10, 10]);
    }

    #[test]
    fn grows_to_the_cap_and_never_leaves_the_bounds() {
        let (base, cap) = (Duration::from_millis(100), Duration::from_secs(5));
        let mut rng = fastrand::Rng::with_seed(7);
        let mut backoff = Backoff::new(base, cap);
        let pauses: Vec<Duration> = (0..200).map(|_| backoff.next(&mut rng)).collect();
        assert!(pauses.iter().all(|p| *p >= base / 2 && *p <= cap));
        assert!(pauses[0] <= base);
        assert!(pauses[10..].iter().any(|p| *p > cap / 2));
        backoff.reset();
        assert!(backoff.next(&mut rng) <= base);
    }
}
