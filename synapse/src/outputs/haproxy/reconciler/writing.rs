//! Writing the current servers into haproxy.cfg between reloads.

use std::sync::Arc;

use tokio::time::Instant;
use tracing::{info, warn};

use super::{Ended, InFlight, Reconciler};
use crate::outputs::haproxy::file::Whole;

impl Reconciler {
    /// Whether the file has to be written before anything else.
    pub(crate) fn lags(&self, whole: &Whole) -> bool {
        self.config.haproxy.do_writes && !self.jobs.file.holds(whole)
    }

    /// Writes what is worked towards, beside the reconciler. Only servers differ from what haproxy has accepted.
    pub(crate) fn write(&mut self) {
        let now = Instant::now();
        if let Some(again) = self.jobs.file.again_at().filter(|again| now < *again) {
            return self.again_at(again);
        }
        let Some(whole) = self.aim() else {
            return;
        };
        let revision = whole.revision();
        // What is left of this pass needs no file.
        let written = self.jobs.file.write(whole);
        self.jobs.in_flight = Some(InFlight::Write);
        self.jobs
            .running
            .spawn_local(async move { Ended::Write(revision, written.await) });
    }

    pub(crate) fn wrote(&mut self, revision: u64, result: Result<(), String>) {
        self.jobs.file.wrote(revision, result.is_ok());
        match result {
            Ok(()) => {
                if self.jobs.write_problem.take().is_some() {
                    info!(path = %self.jobs.file.path().display(), "haproxy.cfg is written again");
                }
            }
            Err(problem) => {
                // The words name another temporary file each time.
                if self.jobs.write_problem.is_none() {
                    warn!(
                        problem,
                        "haproxy.cfg cannot be written; servers go on changing over the stats socket"
                    );
                }
                self.jobs.write_problem = Some(problem);
            }
        }
    }

    /// What is on disk now; others may have replaced it. Returns its text.
    pub(crate) fn read_disk(&mut self) -> Option<Arc<str>> {
        let text = self.jobs.file.read();
        let held = self.aim.held.as_ref().map(|(_, whole)| whole);
        let whole = held.or(self.aim.wanted.as_ref());
        self.jobs.file.saw(text.as_deref(), whole);
        text.map(Arc::from)
    }
}
