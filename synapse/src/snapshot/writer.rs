//! Writes the snapshot behind: the latest complete state wins, seldom enough to cost little, and at the end whatever is
//! newest. A hold, or an operator's word, that is not on disk yet does not wait: nobody else knows it.
//! The work is done on a blocking thread; a failure is a warning and a counter, never more, and is tried again.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use smartstack_common::atomic::{Durability, Mode, ReplaceError, replace};
use smartstack_common::clock::Moment;
use smartstack_common::report::Chain;
use smartstack_common::shutdown::Shutdown;
use tokio::sync::watch;
use tokio::time::{Instant, sleep, sleep_until};
use tracing::{info, warn};

use super::Snapshot;
use super::file::Cache;
use smartstack_common::clock::Clock;

/// Least pause between two writes. Longer after slow ones, so that writing takes at most a hundredth of the time.
const PAUSE: Duration = Duration::from_secs(1);
/// But never longer than this.
const MAX_PAUSE: Duration = Duration::from_secs(30);
/// What could not be written is tried again after this time, also when nothing changes.
const RETRY: Duration = Duration::from_secs(5);
/// The file is written anew after this time even if nothing changed: "agreed now" ages on disk.
const REFRESH: Duration = Duration::from_secs(300);

/// What the writer has done. For `/metrics`.
#[derive(Debug, Default)]
pub struct Counters {
    /// Files written.
    pub writes: AtomicU64,
    /// Writes that failed.
    pub failures: AtomicU64,
    /// Bytes of the last file.
    pub bytes: AtomicU64,
}

/// Writes `state` to `path` (mode 0600) until `shutdown`, then once more whatever is newest, and returns. What the channel
/// was made with is never written: only what has been published since (a stop right after the start keeps the old file).
pub async fn write_behind(
    path: PathBuf,
    mut state: watch::Receiver<Arc<Snapshot>>,
    counters: Arc<Counters>,
    mut shutdown: Shutdown,
) {
    let mut cache = Cache::default();
    let mut failing: Option<String> = None;
    let mut earliest = Instant::now();
    let mut published = false;
    let mut written = Arc::default();
    loop {
        // Cancel-safe: a watch that marks nothing as seen until it returns, and a flag. Time-outs lose nothing. In this
        // order, so that the last state before the stop is seen.
        let due = tokio::select! {
            biased;
            changed = state.changed() => {
                published |= changed.is_ok();
                changed.is_ok()
            }
            () = sleep(if failing.is_some() { RETRY } else { REFRESH }), if published => true,
            () = shutdown.wait() => false,
        };
        if !due && !published {
            return;
        }
        while due && !is_urgent(&written, &state.borrow_and_update()) {
            // Cancel-safe: as above.
            tokio::select! {
                () = sleep_until(earliest) => break,
                () = shutdown.wait() => break,
                changed = state.changed() => if changed.is_err() { break },
            }
        }
        // Nobody left to change it is the end as well.
        let last = !due || shutdown.is_stopping();
        let began = Instant::now();
        let snapshot = state.borrow_and_update().clone();
        let (work_path, work_snapshot) = (path.clone(), Arc::clone(&snapshot));
        let work = tokio::task::spawn_blocking(move || {
            let result = write(&work_path, &work_snapshot, &mut cache);
            (cache, result)
        });
        let result;
        (cache, result) = match work.await {
            Ok(done) => done,
            // Only a panic gets here: begin with an empty cache, the next write is complete again.
            Err(_) => (Cache::default(), Err(None)),
        };
        match result {
            Ok(bytes) => {
                written = snapshot;
                counters.writes.fetch_add(1, Ordering::Relaxed);
                counters.bytes.store(bytes, Ordering::Relaxed);
                if failing.take().is_some() {
                    info!(path = %path.display(), "the snapshot is written again");
                }
            }
            Err(error) => {
                counters.failures.fetch_add(1, Ordering::Relaxed);
                let error = error.map_or_else(
                    || "the writer panicked".to_owned(),
                    |e| Chain(&e).to_string(),
                );
                // Another cause is told as well.
                if failing.as_ref() != Some(&error) {
                    warn!(
                        error,
                        "the snapshot cannot be written; a restart would begin without it; trying again"
                    );
                }
                failing = Some(error);
            }
        }
        earliest = Instant::now() + (began.elapsed() * 100).clamp(PAUSE, MAX_PAUSE);
        if last {
            return;
        }
    }
}

/// Whether this has something in it that neither the registry nor haproxy knows, and that is not on disk.
fn is_urgent(written: &Snapshot, new: &Snapshot) -> bool {
    written.guards != new.guards
        || written.holds.keys().ne(new.holds.keys())
        || written.operator != new.operator
}

fn write(path: &Path, snapshot: &Snapshot, cache: &mut Cache) -> Result<u64, Option<ReplaceError>> {
    let now = (Moment::now().wall(), Clock::now());
    let text = cache.render(snapshot, now);
    replace(path, [&text], Mode::Private(0o600), Durability::Synced)?;
    Ok(u64::try_from(text.len()).unwrap_or(u64::MAX))
}
