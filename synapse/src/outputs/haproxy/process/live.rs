//! What the current worker says about itself: pid, version, generation, table. All of one worker, read over one
//! connection.

use std::collections::BTreeMap;

use crate::model::server::Digest;
use crate::outputs::haproxy::cfg::generation::Generation;
use crate::outputs::haproxy::plan::Running;
use crate::outputs::haproxy::socket::{ApiError, Info, RuntimeApi, ServerRow};

/// A worker's answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Live {
    /// The worker's pid: another one after each reload.
    pub pid: u32,
    /// haproxy's version.
    pub version: String,
    /// Seconds since the worker began.
    pub uptime: u64,
    /// It is on its way out.
    pub stopping: bool,
    /// Of the file it has loaded; `None` = not ours.
    pub generation: Option<Generation>,
    /// All servers of the process.
    pub table: Vec<ServerRow>,
}

/// Digests of the options with which servers were loaded: backend, name.
pub type Digests = BTreeMap<String, BTreeMap<String, Digest>>;

impl Live {
    /// Reads pid, generation and the whole table.
    ///
    /// # Errors
    /// As [`RuntimeApi::run`].
    pub async fn read(api: &RuntimeApi) -> Result<Self, ApiError> {
        let (info, table) = api.info_and_servers().await?;
        Ok(Self::of(info, table))
    }

    fn of(info: Info, table: Vec<ServerRow>) -> Self {
        let generation = info.generation();
        Self {
            pid: info.pid,
            version: info.version,
            uptime: info.uptime,
            stopping: info.stopping,
            generation,
            table,
        }
    }

    /// As plans see it. `digests` must be of this very worker (compare the pid); what is missing there is unknown. `ours` =
    /// what is in maint is so by our doing.
    #[must_use]
    pub fn running(&self, digests: &Digests, ours: impl Fn(&ServerRow) -> bool) -> Running {
        let mut running = Running {
            generation: self.generation.clone(),
            ..Running::default()
        };
        for row in &self.table {
            let digest = digests
                .get(&row.backend)
                .and_then(|b| b.get(&row.name))
                .cloned();
            running
                .backends
                .entry(row.backend.clone())
                .or_default()
                .insert(row.name.clone(), row.running(digest, ours(row)));
        }
        running
    }
}
