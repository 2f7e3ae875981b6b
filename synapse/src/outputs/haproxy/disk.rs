//! haproxy.cfg on disk.
//!
//! The file is replaced (by renaming where that can be, see [`smartstack_common::atomic`]) and synchronised behind, at most
//! once a second: a crash of the program leaves the old text or the new one, only a power cut may leave an older one.
//! Before a reload a job writes it with everything synchronised.

use std::path::{Path, PathBuf};
use std::time::Duration;

use smartstack_common::atomic::{self, Durability, Mode, replace, sync};
use smartstack_common::report::Chain;
use tokio::task::{JoinSet, spawn_blocking};
use tokio::time::Instant;
use tracing::warn;

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

    /// When it may be written again, after it could not be.
    pub(crate) fn again_at(&self) -> Option<Instant> {
        self.failed_at.map(|at| at + AGAIN)
    }

    /// Writes this text, beside everything else: it is begun at once.
    pub(crate) fn write(&self, whole: &Whole) -> impl Future<Output = Result<(), String>> + use<> {
        let (path, parts) = (self.path.clone(), whole.parts());
        let written = spawn_blocking(move || {
            let parts = parts.iter().map(|part| part.as_bytes());
            replace(&path, parts, MODE, Durability::Rename)
        });
        async move {
            match written.await {
                Ok(result) => result.map_err(|e| Chain(&e).to_string()),
                Err(error) => Err(error.to_string()),
            }
        }
    }

    /// It was written, as of this revision, or it could not be.
    pub(crate) fn wrote(&mut self, revision: u64, done: bool) {
        if done {
            self.revision = Some(revision);
            self.unsynced = true;
            self.failed_at = None;
        } else {
            self.failed_at = Some(Instant::now());
        }
    }

    /// Where it is.
    pub(crate) fn path(&self) -> &Path {
        &self.path
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
