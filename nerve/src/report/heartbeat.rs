//! Whether nerve makes progress, for whoever restarts it: systemd's watchdog, and `heartbeat_path`, which restarts nerve when it grows old (nerve-tools: after 60 s). Unlike Ruby's it stands
//! still when any service's checks do; a path that cannot be touched is a warning, never an exit.

use std::path::PathBuf;
use std::time::Duration;

use smartstack_common::atomic;
use smartstack_common::watchdog::{self, is_stuck};
use tokio::time::Instant;

use super::metrics::Metrics;
use crate::boards::Boards;

/// How often `heartbeat_path` is touched; its readers expect 10 s at most.
const HEARTBEAT: Duration = Duration::from_secs(5);

/// A registrar comes round at least every 60 s, to verify; a call may take as long as the session lives.
const REGISTRAR: Duration = Duration::from_secs(180);

/// A service whose checks stand still: no round for longer than its own window and `least`.
fn stuck_checks(boards: &Boards, now: Instant, least: Duration) -> Option<String> {
    let services = boards.services.borrow();
    let stuck = services.iter().find(|(name, report)| {
        is_stuck(report.progress, now, report.window.max(least)) && !boards.is_disabled(name)
    });
    stuck.map(|(name, _)| format!("the checks of `{name}` make no progress"))
}

/// A registrar that stands still.
fn stuck_registrar(boards: &Boards, now: Instant) -> Option<String> {
    let rounds = boards.rounds.borrow();
    let stuck = rounds
        .iter()
        .find(|(_, last)| is_stuck(**last, now, REGISTRAR));
    stuck.map(|(hosts, _)| format!("the registrar of `{hosts}` makes no progress"))
}

/// Feeds systemd's watchdog while checks and registrars make progress.
pub(crate) async fn feed(boards: Boards) {
    watchdog::feed(|now, limit| {
        stuck_checks(&boards, now, limit).or_else(|| stuck_registrar(&boards, now))
    })
    .await;
}

/// Touches the file while every service's checks make progress.
pub(crate) async fn run(path: PathBuf, boards: Boards, metrics: Metrics) {
    let mut failing = false;
    loop {
        let now = Instant::now();
        let touched = match stuck_checks(&boards, now, HEARTBEAT * 2) {
            Some(reason) => Err(reason),
            None => {
                let path = path.clone();
                let done = tokio::task::spawn_blocking(move || atomic::touch(&path)).await;
                done.map_err(|e| e.to_string())
                    .and_then(|touched| touched.map_err(|e| e.to_string()))
            }
        };
        if let Err(reason) = &touched {
            metrics.heartbeat_failures.inc();
            if !failing {
                tracing::warn!(path = %path.display(), reason, "heartbeat_path not touched");
            }
        }
        failing = touched.is_err();
        tokio::time::sleep(HEARTBEAT).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::boards::ServiceReport;
    use crate::wanted::{Held, Hold, Holds};

    #[test]
    fn progress_is_that_of_every_service_that_is_checked_and_of_every_registrar() {
        let (boards, senders) = Boards::new();
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        for (service, window) in [("slow", 100), ("web", 1)] {
            let report = ServiceReport {
                progress: start,
                ..ServiceReport::new(Duration::from_secs(window))
            };
            boards.services.entry(service).post(report);
        }
        let stuck = |seconds| stuck_checks(&boards, at(seconds), Duration::from_secs(30));
        assert_eq!(stuck(30), None);
        assert!(stuck(31).is_some_and(|reason| reason.contains("`web`")));
        let held = Held {
            by: Hold::Disable,
            since: 0.0,
        };
        let held = Holds::from([("web".to_owned(), held)]);
        senders.holds.send_replace(held);
        assert_eq!(stuck(100), None, "its checks rest");
        assert!(stuck(101).is_some_and(|reason| reason.contains("`slow`")));
        boards.rounds.entry("z:1").post(start);
        assert_eq!(stuck_registrar(&boards, at(180)), None);
        assert!(stuck_registrar(&boards, at(181)).is_some_and(|reason| reason.contains("z:1")));
    }
}
