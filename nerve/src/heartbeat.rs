//! Touches `heartbeat_path`, which restarts nerve when it grows old (nerve-tools: after 60 s). Unlike Ruby's it stands
//! still when any service's checks do; a path that cannot be touched is a warning, never an exit.

use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use tokio::time::Instant;

use crate::metrics::Metrics;
use crate::status::Boards;

/// How often `heartbeat_path` is touched; its readers expect 10 s at most.
const HEARTBEAT: Duration = Duration::from_secs(5);

/// Touches the file while every service's checks make progress.
pub(crate) async fn run(path: PathBuf, boards: Boards, metrics: Metrics) {
    let mut failing = false;
    loop {
        let now = Instant::now();
        let stuck = boards.services.borrow().iter().find_map(|(name, report)| {
            let limit = report.window.max(HEARTBEAT * 2);
            let stands = now.saturating_duration_since(report.progress) > limit;
            (stands && !boards.is_disabled(name)).then(|| name.clone())
        });
        let touched = match stuck {
            Some(service) => Err(format!("the checks of `{service}` make no progress")),
            None => {
                let path = path.clone();
                let done = tokio::task::spawn_blocking(move || touch(&path)).await;
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

fn touch(path: &Path) -> std::io::Result<()> {
    let file = std::fs::File::options()
        .create(true)
        .truncate(false)
        .write(true)
        .open(path)?;
    file.set_modified(SystemTime::now())
}
