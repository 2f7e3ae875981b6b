//! When a service's task that has ended by a defect is started again. Pure.

use std::time::Duration;

use smartstack_common::backoff::Backoff;
use tokio::time::Instant;

/// Pauses before a start, from the first to the longest.
const PAUSES: (Duration, Duration) = (Duration::from_millis(500), Duration::from_secs(30));
/// A task that has run for longer than this had no defect that comes back at once: the next pause is a first one.
const QUIET: Duration = Duration::from_secs(300);

/// The starts of one service's task.
#[derive(Debug)]
pub(super) struct Restarts {
    backoff: Backoff,
    /// When it was, or is to be, last started.
    started: Instant,
}

impl Restarts {
    /// Of a task that is started now.
    pub(super) fn new(now: Instant) -> Self {
        Self {
            backoff: Backoff::new(PAUSES.0, PAUSES.1),
            started: now,
        }
    }

    /// The task has ended: returns the pause before it is to be started again, as which it counts from now on.
    pub(super) fn ended(&mut self, now: Instant, rng: &mut fastrand::Rng) -> Duration {
        if now.saturating_duration_since(self.started) > QUIET {
            self.backoff.reset();
        }
        let pause = self.backoff.next(rng);
        self.started = now + pause;
        pause
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Many services whose tasks end `ran` after each start: the longest of each one's next pauses.
    fn longest(tasks: &mut [(Restarts, Instant)], ran: Duration, times: u32) -> Duration {
        let mut rng = fastrand::Rng::with_seed(3);
        let mut longest = Duration::ZERO;
        for (restarts, now) in tasks {
            for _ in 0..times {
                *now += ran;
                let pause = restarts.ended(*now, &mut rng);
                *now += pause;
                longest = longest.max(pause);
            }
        }
        longest
    }

    #[test]
    fn pauses_grow_while_the_task_ends_again_and_begin_anew_after_quiet_time() {
        let begin = Instant::now();
        let mut tasks: Vec<_> = (0..100).map(|_| (Restarts::new(begin), begin)).collect();
        let (soon, quiet) = (Duration::from_secs(1), QUIET + Duration::from_millis(1));
        assert!(longest(&mut tasks, soon, 1) <= PAUSES.0);
        assert!(longest(&mut tasks, soon, 20) > PAUSES.1 / 2);
        assert!(
            longest(&mut tasks, QUIET, 1) > PAUSES.1 / 2,
            "just not quiet"
        );
        assert!(longest(&mut tasks, quiet, 5) <= PAUSES.0, "each was quiet");
        assert!(
            longest(&mut tasks, soon, 1) <= PAUSES.0 * 2,
            "grows from there"
        );
        assert!(longest(&mut tasks, soon, 20) > PAUSES.1 / 2);
    }

    /// The pause is no run: one of 30 s and ends at once do not add up to quiet time.
    #[test]
    fn pauses_are_not_quiet_time() {
        let begin = Instant::now();
        let mut tasks: Vec<_> = (0..20).map(|_| (Restarts::new(begin), begin)).collect();
        longest(&mut tasks, Duration::ZERO, 10);
        let all = longest(&mut tasks, Duration::ZERO, 100);
        assert!(all > PAUSES.1 / 2, "{all:?}");
    }
}
