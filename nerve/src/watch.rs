//! One service's task: runs its checks round by round and publishes what follows. The decisions are the machine's.
//!
//! The first round is at once: registration and readiness wait for it, and so does the swap of a predecessor's nodes. The
//! second comes earlier, at a time of its own for each service of the host, which spreads the later ones. From then on a
//! round begins `check_interval` after the last one ended (as Ruby), so checks never overlap themselves; within a round
//! they run at the same time. Results never wait for the registry.

use std::sync::Arc;
use std::time::Duration;

use smartstack_common::clock::Moment;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::Instant;

use crate::boards::{CheckReport, Entry, ServiceReport};
use crate::check::{self, Finding, Names, Outcome};
use crate::config::Service;
use crate::health::{Health, Machine, Verdict};
use crate::report::metrics::{Metrics, of_check, of_service};
use crate::wanted::{Holds, disables};

/// The same complaint of a service comes at most this often.
const COMPLAINT: Duration = Duration::from_secs(60);

/// Where a service's task publishes.
#[derive(Debug)]
pub(crate) struct Outputs {
    /// The service's own.
    pub(crate) report: Entry<ServiceReport>,
    pub(crate) holds: watch::Receiver<Holds>,
    pub(crate) metrics: Metrics,
    pub(crate) names: Names,
}

/// One check's attempt.
struct Attempt {
    outcome: Outcome,
    took: Duration,
}

/// How the rounds of a service begin.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Start {
    /// Before the first: zero, but after a defect.
    pub(crate) first: Duration,
    /// Between the first and the second.
    pub(crate) second: Duration,
}

impl Start {
    /// Of the service that is `index`th of `count`: at once, and then so that the second rounds of all of them are spread
    /// over the interval, none later than it.
    pub(crate) fn at_once(interval: Duration, index: usize, count: usize) -> Self {
        let number = |count: usize| u32::try_from(count.max(1)).unwrap_or(u32::MAX);
        let before = number(count.saturating_sub(index));
        Self {
            first: Duration::ZERO,
            second: interval / number(count) * before,
        }
    }
}

/// Checks for ever.
pub(crate) async fn run(service: Arc<Service>, start: Start, outputs: Outputs) {
    tokio::time::sleep(start.first).await;
    let mut pause = start.second;
    let mut machine = Machine::new(&service);
    let mut complained = None;
    loop {
        if disables(&outputs.holds.borrow(), &service.name) {
            rest(&service.name, &outputs).await;
            // What was found before says nothing about now.
            machine = Machine::new(&service);
        }
        let begin = Instant::now();
        let attempts = if service.check_mocked {
            Vec::new()
        } else {
            round(&service, &outputs.names).await
        };
        let findings = attempts.iter().map(|attempt| attempt.outcome.finding());
        let findings: Vec<Finding> = findings.collect();
        let verdict = machine.round(&findings, Instant::now());
        publish(&service, &machine, (verdict, begin), &attempts, &outputs);
        complain(&service, &attempts, &mut complained);
        tokio::time::sleep(pause).await;
        pause = service.check_interval;
    }
}

/// Returns when the service is not disabled any more.
async fn rest(service: &str, outputs: &Outputs) {
    outputs.report.change(|report| {
        report.health = None;
        report.checked = false;
        report.checks.clear();
        report.since = Moment::now();
        true
    });
    outputs
        .metrics
        .service_up
        .get_or_create(&of_service(service))
        .set(0);
    let mut holds = outputs.holds.clone();
    let enabled = holds.wait_for(|holds| !disables(holds, service));
    if enabled.await.is_err() {
        // Nobody can enable it: nerve ends.
        std::future::pending::<()>().await;
    }
    outputs.report.change(|report| {
        report.progress = Instant::now();
        true
    });
}

async fn round(service: &Arc<Service>, names: &Names) -> Vec<Attempt> {
    let mut running = JoinSet::new();
    for index in 0..service.checks.len() {
        let (service, names) = (Arc::clone(service), names.clone());
        running.spawn(async move {
            let begin = Instant::now();
            let outcome = check::run(&service.checks[index], &names).await;
            (
                index,
                Attempt {
                    outcome,
                    took: begin.elapsed(),
                },
            )
        });
    }
    let mut attempts = running.join_all().await;
    attempts.sort_by_key(|(index, _)| *index);
    attempts.into_iter().map(|(_, attempt)| attempt).collect()
}

fn publish(
    service: &Service,
    machine: &Machine,
    (verdict, begin): (Verdict, Instant),
    attempts: &[Attempt],
    outputs: &Outputs,
) {
    let health = machine.health();
    let now = Moment::now();
    let checks: Vec<CheckReport> = service
        .checks
        .iter()
        .zip(attempts)
        .zip(machine.checks())
        .map(|((check, attempt), known)| CheckReport {
            name: check.name.clone(),
            health: known.health(),
            not_run_since: known.not_run_since().map(|at| Moment::ago(at.elapsed())),
            at: Some(now),
            ms: Some((attempt.took.as_secs_f64() * 1e5).round() / 100.0),
            error: attempt.outcome.error(),
        })
        .collect();
    let metrics = &outputs.metrics;
    for (check, attempt) in service.checks.iter().zip(attempts) {
        let labels = of_check(&service.name, &check.name, attempt.outcome.finding());
        metrics.checks.get_or_create(&labels).inc();
        metrics
            .check_seconds
            .get_or_create(&of_service(&service.name))
            .observe(attempt.took.as_secs_f64());
    }
    metrics
        .service_up
        .get_or_create(&of_service(&service.name))
        .set(i64::from(health == Some(Health::Up)));
    outputs.report.change(|report| {
        let first = !std::mem::replace(&mut report.checked, true);
        if report.health != health {
            if let Some(health) = health {
                tell(service, health, &checks);
            }
            report.health = health;
            report.since = now;
        }
        report.checks = checks;
        report.progress = Instant::now();
        conclude(report, verdict, begin) || first
    });
}

/// Takes a verdict in, and tells whether its readers have to act: a younger result alone wakes nobody.
fn conclude(report: &mut ServiceReport, verdict: Verdict, as_of: Instant) -> bool {
    let age = report.progress.saturating_duration_since(report.as_of);
    let was_fresh = report.verdict != Verdict::Unknown && age <= report.window;
    report.as_of = as_of;
    std::mem::replace(&mut report.verdict, verdict) != verdict || !was_fresh
}

/// Names what could not run: at once, then once in [`COMPLAINT`] while that goes on, as it may come and go with every round.
fn complain(service: &Service, attempts: &[Attempt], last: &mut Option<Instant>) {
    let checks = service.checks.iter().zip(attempts);
    let mut not_run = checks.filter_map(|(check, attempt)| match &attempt.outcome {
        Outcome::NotRun(reason) => Some((check, reason)),
        _ => None,
    });
    let Some((check, reason)) = not_run.next() else {
        return;
    };
    let now = Instant::now();
    if last.is_none_or(|last| now.saturating_duration_since(last) >= COMPLAINT) {
        *last = Some(now);
        let grace = service.check_grace;
        tracing::warn!(
            service = service.name,
            check = check.name,
            reason,
            "check could not run: the service is left as it is, for at most {grace:?}"
        );
    }
}

fn tell(service: &Service, health: Health, checks: &[CheckReport]) {
    let failing: Vec<String> = checks
        .iter()
        .filter_map(|check| Some(format!("{}: {}", check.name, check.error.as_ref()?)))
        .collect();
    match health {
        Health::Up => tracing::info!(service = service.name, "service is up"),
        Health::Down => tracing::warn!(
            service = service.name,
            checks = failing.join("; "),
            "service is down"
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn second_rounds_are_spread_over_the_interval() {
        let interval = Duration::from_secs(30);
        for count in [1, 2, 20, 1000] {
            let starts = (0..count).map(|index| Start::at_once(interval, index, count));
            let mut seconds: Vec<f64> = starts
                .inspect(|start| assert_eq!(start.first, Duration::ZERO))
                .map(|start| start.second.as_secs_f64())
                .collect();
            seconds.sort_by(f64::total_cmp);
            let step = 30.0 / count as f64;
            for (index, second) in seconds.iter().enumerate() {
                let expected = step * (index + 1) as f64;
                assert!((second - expected).abs() < 1e-6, "{count}: {second}");
            }
        }
        let longest = Start::at_once(Duration::MAX, 0, 7).second;
        assert!(longest <= Duration::MAX);
    }
}
