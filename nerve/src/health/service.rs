//! One service's state machine: results of a round of checks in, a verdict over them out. Pure; `watch` drives it.

use std::time::Duration;

use tokio::time::Instant;

use super::hysteresis::{Health, Hysteresis};
use crate::check::Finding;
use crate::config::Service;

/// What the checks say about a registration.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// No round has ended yet.
    Unknown,
    /// All checks are up.
    Up,
    /// Down by first results alone, or up and failing for fewer than `fall` times, or a check could not run: nothing is
    /// registered, but what is registered already is kept until `fall` failures (so that neither one lost request takes
    /// anybody out, nor an app is registered that died while nerve had no session or could not look).
    Unproven,
    /// A check is down.
    Down,
}

/// The checks' memory and the verdict over them.
#[derive(Debug, Clone)]
pub(crate) struct Machine {
    checks: Vec<Memory>,
    grace: Duration,
}

/// What is known of one check.
#[derive(Debug, Clone)]
pub(crate) struct Memory {
    results: Hysteresis,
    /// Since when it cannot run, without a break.
    not_run_since: Option<Instant>,
}

impl Memory {
    /// `None` before the first result.
    #[must_use]
    pub(crate) fn health(&self) -> Option<Health> {
        self.results.health()
    }

    /// Since when it cannot run, without a break.
    #[must_use]
    pub(crate) fn not_run_since(&self) -> Option<Instant> {
        self.not_run_since
    }

    /// A check that cannot run says nothing, neither a pass nor a failure, for `grace`. After that nobody has looked at the
    /// app for too long to send it traffic: each attempt counts as a failure.
    fn take(&mut self, finding: Finding, now: Instant, grace: Duration) {
        let passed = match finding {
            Finding::NotRun => {
                let since = *self.not_run_since.get_or_insert(now);
                if now.saturating_duration_since(since) < grace {
                    return;
                }
                false
            }
            Finding::Passed | Finding::Failed => {
                self.not_run_since = None;
                finding == Finding::Passed
            }
        };
        self.results.record(passed);
    }

    fn is_up(&self) -> bool {
        self.health() == Some(Health::Up)
    }

    /// Not up by any rule of `fall`: without a result, or by its first one alone.
    fn is_unproven(&self) -> bool {
        self.health().is_none() || self.results.is_unproven_down()
    }
}

impl Machine {
    /// Of a service that has not been checked yet. Without checks, or with mocked ones, it is up from the first round
    /// (as Ruby).
    #[must_use]
    pub(crate) fn new(service: &Service) -> Self {
        let checks = if service.check_mocked {
            &[][..]
        } else {
            &service.checks[..]
        };
        Self::of(checks.iter().map(|c| (c.rise, c.fall)), service.check_grace)
    }

    pub(crate) fn of(rise_fall: impl Iterator<Item = (u32, u32)>, grace: Duration) -> Self {
        let checks = rise_fall.map(|(rise, fall)| Memory {
            results: Hysteresis::new(rise, fall),
            not_run_since: None,
        });
        Self {
            checks: checks.collect(),
            grace,
        }
    }

    /// Takes one round that ended at `now`: what each check found, in the order of the configuration.
    ///
    /// Unlike Ruby, which skips the checks after the first one that is down, every check runs and remembers.
    pub(crate) fn round(&mut self, findings: &[Finding], now: Instant) -> Verdict {
        debug_assert_eq!(findings.len(), self.checks.len());
        for (check, finding) in self.checks.iter_mut().zip(findings) {
            check.take(*finding, now, self.grace);
        }
        let is_clear =
            |c: &Memory| c.is_up() && !c.results.is_failing() && c.not_run_since.is_none();
        if self.checks.iter().any(|c| !c.is_up() && !c.is_unproven()) {
            Verdict::Down
        } else if self.checks.iter().all(is_clear) {
            Verdict::Up
        } else {
            Verdict::Unproven
        }
    }

    /// What is known of each check, in the order of the configuration.
    #[must_use]
    pub(crate) fn checks(&self) -> &[Memory] {
        &self.checks
    }

    /// Over all checks: down when any is, `None` while one has no result yet.
    #[must_use]
    pub(crate) fn health(&self) -> Option<Health> {
        let mut healths = self.checks.iter().map(Memory::health);
        if self.checks.iter().any(|c| c.health() == Some(Health::Down)) {
            return Some(Health::Down);
        }
        healths.all(|health| health.is_some()).then_some(Health::Up)
    }
}

/// How long a result of the service is fresh: three rounds at their longest, at least a second (below that a busy host
/// would look like a stopped one).
#[must_use]
pub(crate) fn freshness(service: &Service) -> Duration {
    let longest = service
        .checks
        .iter()
        .map(crate::check::deadline)
        .max()
        .unwrap_or_default();
    (service.check_interval.saturating_add(longest))
        .saturating_mul(3)
        .max(Duration::from_secs(1))
}

#[cfg(test)]
mod tests {
    use super::*;

    const GRACE: Duration = Duration::from_secs(60);

    fn machine(rise_fall: &[(u32, u32)]) -> Machine {
        Machine::of(rise_fall.iter().copied(), GRACE)
    }

    impl Machine {
        /// A round in which every check could run.
        fn ran(&mut self, passed: &[bool]) -> Verdict {
            let finding = |passed: &bool| match passed {
                true => Finding::Passed,
                false => Finding::Failed,
            };
            let findings: Vec<Finding> = passed.iter().map(finding).collect();
            self.round(&findings, Instant::now())
        }
    }

    /// Neither a pass nor a failure for `GRACE`, whatever came before; then a failure each time.
    #[test]
    fn a_check_that_cannot_run_leaves_the_health_as_it_is_for_a_time() {
        let begin = Instant::now();
        let at = |seconds| begin + Duration::from_secs(seconds);
        let cannot = [Finding::NotRun];
        let of = |results: &[bool]| {
            let mut machine = machine(&[(2, 2)]);
            for passed in results {
                machine.ran(&[*passed]);
            }
            machine
        };
        let health = |machine: &Machine| machine.checks()[0].health();
        for (before, verdict, kept, later) in [
            (
                &[true][..],
                Verdict::Unproven,
                Some(Health::Up),
                Verdict::Unproven,
            ),
            (
                &[true, false],
                Verdict::Unproven,
                Some(Health::Up),
                Verdict::Down,
            ),
            (
                &[true, false, false],
                Verdict::Down,
                Some(Health::Down),
                Verdict::Down,
            ),
            (
                &[false],
                Verdict::Unproven,
                Some(Health::Down),
                Verdict::Down,
            ),
            (&[], Verdict::Unproven, None, Verdict::Unproven),
        ] {
            let mut machine = of(before);
            for second in [0, 1, 30, 59] {
                assert_eq!(machine.round(&cannot, at(second)), verdict, "{before:?}");
                assert_eq!(health(&machine), kept, "{before:?}");
            }
            assert_eq!(machine.round(&cannot, at(60)), later, "{before:?}");
            assert_eq!(machine.round(&cannot, at(61)), Verdict::Down, "{before:?}");
            assert_eq!(health(&machine), Some(Health::Down), "{before:?}");
        }
        // A result in between begins the time anew, and is all that counts.
        let mut machine = of(&[true]);
        for second in [0, 50, 100, 150] {
            assert_eq!(machine.round(&cannot, at(second)), Verdict::Unproven);
            assert_eq!(
                machine.round(&[Finding::Passed], at(second + 1)),
                Verdict::Up
            );
        }
        machine.round(&[Finding::Failed], at(200));
        machine.round(&cannot, at(201));
        assert_eq!(machine.round(&[Finding::Failed], at(202)), Verdict::Down);
    }

    #[test]
    fn one_check_that_cannot_run_hides_no_other_that_fails() {
        let mut machine = machine(&[(1, 1), (1, 1)]);
        machine.ran(&[true, true]);
        let now = Instant::now();
        let findings = [Finding::NotRun, Finding::Failed];
        assert_eq!(machine.round(&findings, now), Verdict::Down);
        assert_eq!(machine.health(), Some(Health::Down));
        let findings = [Finding::NotRun, Finding::Passed];
        assert_eq!(machine.round(&findings, now), Verdict::Unproven);
        assert_eq!(machine.health(), Some(Health::Up));
    }

    #[test]
    fn without_a_grace_it_fails_at_once() {
        let mut machine = Machine::of([(1, 1)].into_iter(), Duration::ZERO);
        machine.ran(&[true]);
        assert_eq!(
            machine.round(&[Finding::NotRun], Instant::now()),
            Verdict::Down
        );
    }

    #[test]
    fn all_checks_must_pass() {
        let mut machine = machine(&[(1, 1), (2, 2)]);
        assert_eq!(machine.ran(&[true, true]), Verdict::Up);
        assert_eq!(machine.ran(&[true, false]), Verdict::Unproven);
        assert_eq!(machine.ran(&[true, false]), Verdict::Down);
        assert_eq!(machine.ran(&[false, true]), Verdict::Down);
        assert_eq!(machine.ran(&[true, true]), Verdict::Up);
    }

    #[test]
    fn first_failures_are_unproven_until_fall() {
        let mut machine = machine(&[(1, 3), (1, 1)]);
        assert_eq!(machine.ran(&[false, true]), Verdict::Unproven);
        assert_eq!(machine.ran(&[false, true]), Verdict::Unproven);
        assert_eq!(machine.ran(&[false, true]), Verdict::Down);
        assert_eq!(machine.ran(&[true, true]), Verdict::Up);
        assert_eq!(machine.ran(&[true, false]), Verdict::Down);
    }

    #[test]
    fn a_failing_check_registers_nothing_and_withdraws_nothing() {
        let mut machine = machine(&[(1, 3), (2, 2)]);
        assert_eq!(machine.ran(&[true, true]), Verdict::Up);
        for passed in [[false, true], [false, false]] {
            assert_eq!(machine.ran(&passed), Verdict::Unproven);
            assert!(machine.checks().iter().all(Memory::is_up));
        }
        assert_eq!(machine.ran(&[true, true]), Verdict::Up);
    }

    #[test]
    fn no_checks_is_up() {
        assert_eq!(machine(&[]).ran(&[]), Verdict::Up);
    }
}
