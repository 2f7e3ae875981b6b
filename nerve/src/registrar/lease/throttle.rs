//! Limits how many registrations are written per second: a token bucket that starts full. Pure; the registrar asks it
//! before each creation, but never for a removal (Ruby's limiter starts nearly empty and holds removals back as well) and never
//! for the swap of a former session's node, which would be gone before its turn.

use std::time::Duration;

use tokio::time::Instant;

/// The bucket: `rate` tokens, refilled at `rate` per second.
#[derive(Debug, Clone)]
pub(crate) struct Throttle {
    rate: f64,
    tokens: f64,
    at: Instant,
}

impl Throttle {
    /// A full bucket. A rate of zero counts as one.
    #[must_use]
    pub(crate) fn new(rate: u32, now: Instant) -> Self {
        let rate = f64::from(rate.max(1));
        Self {
            rate,
            tokens: rate,
            at: now,
        }
    }

    /// Takes one token, or tells when there will be one.
    ///
    /// # Errors
    /// The moment to ask again.
    pub(crate) fn take(&mut self, now: Instant) -> Result<(), Instant> {
        let elapsed = now.saturating_duration_since(self.at).as_secs_f64();
        self.tokens = (self.tokens + elapsed * self.rate).min(self.rate);
        self.at = self.at.max(now);
        if self.tokens >= 1.0 {
            self.tokens -= 1.0;
            return Ok(());
        }
        // A millisecond more than needed, so that rounding cannot ask twice.
        Err(now
            + Duration::from_secs_f64((1.0 - self.tokens) / self.rate)
            + Duration::from_millis(1))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn starts_full_and_refills_at_its_rate() {
        let begin = Instant::now();
        let mut throttle = Throttle::new(10, begin);
        assert!((0..10).all(|_| throttle.take(begin).is_ok()));
        let next = throttle.take(begin).unwrap_err();
        assert!(next > begin && next <= begin + Duration::from_millis(102));
        assert!(throttle.take(next).is_ok());
        assert!(throttle.take(next).is_err());
        let hour = begin + Duration::from_secs(3600);
        assert_eq!((0..20).filter(|_| throttle.take(hour).is_ok()).count(), 10);
    }
}
