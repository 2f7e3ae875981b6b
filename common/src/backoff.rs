//! Full-jitter exponential back-off: the n-th pause is uniform in `0..min(cap, base * 2^n)`, never below `floor`.

use std::time::Duration;

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

    /// Begins anew after a success.
    pub fn reset(&mut self) {
        self.attempt = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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
