//! PURE. When the next reload may start: `restart_interval`, `restart_jitter` and the back-off after failures
//! (SPEC: the first after a quiet interval goes at once; only a postponed reload is jittered; a failed attempt waits
//! for the longer of the interval and a back-off of 1 to 60 s). A haproxy that has died is started at once, whatever was
//! reloaded before, but for one that was started in the same way and did not last: then the interval and a back-off hold.

use std::time::Duration;

use tokio::time::Instant;

const FIRST_BACKOFF: Duration = Duration::from_secs(1);
const LONGEST_BACKOFF: Duration = Duration::from_secs(60);
/// A start lasts when haproxy lives for the interval, at least for this.
const LASTING: Duration = Duration::from_secs(1);
/// More starts in vain than this do not make the next one wait longer (4 s): nobody serves meanwhile.
const MOST_IN_VAIN: u32 = 3;

/// Spaces the starts of reloads.
#[derive(Debug, Clone)]
pub struct Limiter {
    interval: Duration,
    /// At least this between starts, too.
    floor: Duration,
    jitter: f64,
    last_start: Option<Instant>,
    /// The last start where none ran, until it has lasted; how many before it did not.
    revived: Option<Instant>,
    in_vain: u32,
    failures: u32,
    postponed_by: Option<Duration>,
}

impl Limiter {
    /// `interval` is the least time between starts; `jitter` J adds uniform 0..J x interval to a postponed one.
    #[must_use]
    pub fn new(interval: Duration, jitter: f64) -> Self {
        Self {
            interval,
            floor: Duration::ZERO,
            jitter,
            last_start: None,
            revived: None,
            in_vain: 0,
            failures: 0,
            postponed_by: None,
        }
    }

    /// Takes other settings; what was measured stays.
    pub fn configure(&mut self, interval: Duration, jitter: f64) {
        self.interval = interval;
        self.jitter = jitter;
    }

    /// Least time between starts while many replaced workers go on: each reload leaves one more.
    pub fn spread(&mut self, at_least: Duration) {
        self.floor = at_least;
    }

    /// When a reload wanted at `now` may start; `now` itself when nothing holds it. The jitter of a postponed reload
    /// is drawn once, so that asking again gives the same answer.
    pub fn due(&mut self, now: Instant, rng: &mut fastrand::Rng) -> Instant {
        let Some(last) = self.last_start else {
            return now;
        };
        let earliest = last + self.interval.max(self.backoff()).max(self.floor);
        if earliest <= now && self.postponed_by.is_none() {
            return now;
        }
        let spread = self.interval.mul_f64(self.jitter.max(0.0));
        let jitter = *self
            .postponed_by
            .get_or_insert_with(|| spread.mul_f64(rng.f64()));
        (earliest + jitter).max(now)
    }

    /// The last attempt failed.
    #[must_use]
    pub fn is_backing_off(&self) -> bool {
        self.failures > 0
    }

    /// A reload starts.
    pub fn started(&mut self, now: Instant) {
        self.last_start = Some(now);
        self.postponed_by = None;
    }

    /// haproxy is started where none runs.
    pub fn revives(&mut self, now: Instant) {
        self.started(now);
        self.in_vain = match self.revived.replace(now) {
            Some(_) => self.in_vain.saturating_add(1),
            None => 0,
        };
    }

    /// haproxy has died: what holds reloads back does not hold its start.
    pub fn died(&mut self, now: Instant) {
        let lasting = self.interval.max(LASTING);
        if self.revived.is_none_or(|at| now >= at + lasting) {
            self.begin_anew();
            self.last_start = None;
            self.postponed_by = None;
        }
    }

    /// What was started has ended, a reload or a start.
    pub fn ended(&mut self, succeeded: bool) {
        self.failures = if succeeded {
            0
        } else {
            self.failures.saturating_add(1)
        };
    }

    /// The former failures say nothing about the next attempt.
    pub fn forgive(&mut self) {
        self.failures = 0;
    }

    /// Everything was changed: neither failures nor starts in vain say anything.
    pub fn begin_anew(&mut self) {
        self.forgive();
        self.revived = None;
        self.in_vain = 0;
    }

    fn backoff(&self) -> Duration {
        match self.failures.max(self.in_vain.min(MOST_IN_VAIN)) {
            0 => Duration::ZERO,
            n => FIRST_BACKOFF
                .saturating_mul(2u32.saturating_pow(n - 1))
                .min(LONGEST_BACKOFF),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn first_goes_at_once_and_the_next_waits_the_interval() {
        let (mut rng, now) = (fastrand::Rng::with_seed(1), Instant::now());
        let mut limiter = Limiter::new(2 * SECOND, 0.0);
        assert_eq!(limiter.due(now, &mut rng), now);
        limiter.started(now);
        limiter.ended(true);
        assert_eq!(limiter.due(now + SECOND, &mut rng), now + 2 * SECOND);
        assert_eq!(limiter.due(now + 5 * SECOND, &mut rng), now + 5 * SECOND);
    }

    #[test]
    fn jitter_only_on_a_postponed_one_and_drawn_once() {
        let (mut rng, now) = (fastrand::Rng::with_seed(1), Instant::now());
        let mut limiter = Limiter::new(10 * SECOND, 0.5);
        limiter.started(now);
        limiter.ended(true);
        let due = limiter.due(now + SECOND, &mut rng);
        assert!(due >= now + 10 * SECOND && due <= now + 15 * SECOND);
        assert_eq!(limiter.due(now + 2 * SECOND, &mut rng), due);
        limiter.started(due);
        assert_eq!(limiter.due(due + 60 * SECOND, &mut rng), due + 60 * SECOND);
    }

    #[test]
    fn a_dead_haproxy_is_started_at_once_whatever_was_reloaded() {
        let (mut rng, start) = (fastrand::Rng::with_seed(1), Instant::now());
        let mut limiter = Limiter::new(2 * SECOND, 0.5);
        limiter.started(start);
        limiter.ended(false);
        let now = start + SECOND;
        assert!(limiter.due(now, &mut rng) >= start + 2 * SECOND);
        limiter.died(now);
        assert_eq!(limiter.due(now, &mut rng), now);
        limiter.revives(now);
        limiter.ended(true);
        limiter.forgive();
        let now = now + 2 * SECOND;
        limiter.started(now);
        limiter.ended(true);
        limiter.died(now);
        assert_eq!(limiter.due(now, &mut rng), now, "that start had lasted");
    }

    #[test]
    fn one_that_does_not_last_waits_but_not_for_long() {
        let (mut rng, mut now) = (fastrand::Rng::with_seed(1), Instant::now());
        let mut limiter = Limiter::new(Duration::ZERO, 0.0);
        let mut waits = Vec::new();
        for _ in 0..9 {
            limiter.died(now);
            let due = limiter.due(now, &mut rng);
            waits.push((due - now).as_secs());
            now = due;
            limiter.revives(now);
            limiter.ended(true);
            limiter.forgive();
        }
        assert_eq!(waits, [0, 0, 1, 2, 4, 4, 4, 4, 4]);
        limiter.begin_anew();
        assert_eq!(limiter.due(now, &mut rng), now);
        limiter.revives(now);
        let now = now + SECOND;
        limiter.died(now);
        assert_eq!(limiter.due(now, &mut rng), now);
    }

    #[test]
    fn failures_back_off_to_a_minute_and_a_success_ends_it() {
        let (mut rng, now) = (fastrand::Rng::with_seed(1), Instant::now());
        let mut limiter = Limiter::new(2 * SECOND, 0.0);
        for (failures, wait) in [
            (1, 2),
            (2, 2),
            (3, 4),
            (4, 8),
            (5, 16),
            (6, 32),
            (7, 60),
            (8, 60),
        ] {
            limiter.started(now);
            limiter.ended(false);
            assert_eq!(
                limiter.due(now, &mut rng),
                now + wait * SECOND,
                "after {failures} failures"
            );
        }
        limiter.started(now);
        limiter.ended(true);
        assert_eq!(limiter.due(now, &mut rng), now + 2 * SECOND);
    }
}
