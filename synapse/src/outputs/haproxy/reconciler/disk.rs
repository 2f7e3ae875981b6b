//! haproxy.cfg between reloads: what is on disk, and writing the current servers into it.
//!
//! The file is replaced (by renaming where that can be, see [`smartstack_common::atomic`]) and synchronised behind, at most
//! once a second: a crash of the program leaves the old text or the new one, only a power cut may leave an older one.
//! Before a reload a job writes it with everything synchronised.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use smartstack_common::atomic::{self, Durability, Mode, replace, sync};
use smartstack_common::report::Chain;
use tokio::task::{JoinSet, spawn_blocking};
use tokio::time::Instant;
use tracing::{info, warn};

use super::{Ended, InFlight, Reconciler};
use crate::outputs::haproxy::file::Whole;

/// Mode of a new haproxy.cfg: it may hold `stats auth` and `userlist` passwords. One that is there keeps its own.
pub(crate) const MODE: Mode = Mode::Kept(0o640);
/// Least time between two synchronisations.
const SYNC_PAUSE: Duration = Duration::from_secs(1);
/// A file that cannot be written is tried again after this time.
const AGAIN: Duration = Duration::from_secs(1);

/// The file on disk.
pub(crate) struct File {
    path: PathBuf,
    /// Which [`Whole`] it holds, by revision; `None` = another text.
    revision: Option<u64>,
    /// It is not known to be on the disk itself yet.
    unsynced: bool,
    synced_at: Option<Instant>,
    syncing: JoinSet<()>,
    failed_at: Option<Instant>,
}

impl File {
    pub(crate) fn new(path: &Path) -> Self {
        Self {
            path: path.to_owned(),
            revision: None,
            unsynced: false,
            synced_at: None,
            syncing: JoinSet::new(),
            failed_at: None,
        }
    }

    /// Another configuration may name another file.
    pub(crate) fn configure(&mut self, path: &Path) {
        if self.path != path {
            *self = Self::new(path);
        }
    }

    /// Its text; `None` = there is none that can be read.
    pub(crate) fn read(&self) -> Option<String> {
        read_text(&self.path)
    }

    /// Whether it is this.
    pub(crate) fn holds(&self, whole: &Whole) -> bool {
        self.revision == Some(whole.revision())
    }

    /// Takes note of a text that was seen in it, or written to it.
    pub(crate) fn saw(&mut self, text: Option<&str>, whole: Option<&Whole>) {
        let same = whole.filter(|whole| text.is_some_and(|text| whole.is(text)));
        self.revision = same.map(Whole::revision);
    }

    /// Synchronises what was written, if that is due.
    pub(crate) fn sync(&mut self, now: Instant) {
        while self.syncing.try_join_next().is_some() {}
        let due = self.synced_at.is_none_or(|at| now >= at + SYNC_PAUSE);
        if !self.unsynced || !due || !self.syncing.is_empty() {
            return;
        }
        self.unsynced = false;
        self.synced_at = Some(now);
        let path = self.path.clone();
        self.syncing.spawn_blocking(move || {
            if let Err(error) = sync(&path) {
                warn!(error = %Chain(&error), "haproxy.cfg cannot be synchronised");
            }
        });
    }

    /// The end of the program: what was written stays, whatever happens to the machine.
    pub(crate) async fn close(&mut self) {
        self.synced_at = None;
        while self.syncing.join_next().await.is_some() {}
        self.sync(Instant::now());
        while self.syncing.join_next().await.is_some() {}
    }
}

/// The text of a haproxy.cfg; `None` = there is none that can be read, or writing it in place was cut off.
pub(crate) fn read_text(path: &Path) -> Option<String> {
    String::from_utf8(atomic::read(path).ok()??).ok()
}

impl Reconciler {
    /// Whether the file has to be written before anything else.
    pub(crate) fn lags(&self, whole: &Whole) -> bool {
        self.config.haproxy.do_writes && !self.file.holds(whole)
    }

    /// Writes what is worked towards, beside the reconciler. Only servers differ from what haproxy has accepted.
    pub(crate) fn write(&mut self) {
        let now = Instant::now();
        if let Some(again) = self.file.failed_at.map(|at| at + AGAIN)
            && now < again
        {
            return self.again_at(again);
        }
        let Some(whole) = self.aim() else {
            return;
        };
        let (revision, parts) = (whole.revision(), whole.parts());
        let path = self.file.path.clone();
        self.in_flight = Some(InFlight::Write);
        // Begun at once: what is left of this pass needs no file.
        let written = spawn_blocking(move || {
            let parts = parts.iter().map(|part| part.as_bytes());
            replace(&path, parts, MODE, Durability::Rename)
        });
        self.jobs.spawn_local(async move {
            let result = match written.await {
                Ok(result) => result.map_err(|e| Chain(&e).to_string()),
                Err(error) => Err(error.to_string()),
            };
            Ended::Write(revision, result)
        });
    }

    pub(crate) fn wrote(&mut self, revision: u64, result: Result<(), String>) {
        match result {
            Ok(()) => {
                self.file.revision = Some(revision);
                self.file.unsynced = true;
                self.file.failed_at = None;
                if self.write_problem.take().is_some() {
                    info!(path = %self.file.path.display(), "haproxy.cfg is written again");
                }
            }
            Err(problem) => {
                self.file.failed_at = Some(Instant::now());
                // The words name another temporary file each time.
                if self.write_problem.is_none() {
                    warn!(
                        problem,
                        "haproxy.cfg cannot be written; servers go on changing over the stats socket"
                    );
                }
                self.write_problem = Some(problem);
            }
        }
    }

    /// What is on disk now; others may have replaced it. Returns its text.
    pub(crate) fn read_disk(&mut self) -> Option<Arc<str>> {
        let text = self.file.read();
        let held = self.held.as_ref().map(|(_, whole)| whole);
        let whole = held.or(self.wanted.as_ref());
        self.file.saw(text.as_deref(), whole);
        text.map(Arc::from)
    }
}
