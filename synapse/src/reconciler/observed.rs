//! What the worker was last seen to run, and the little about it that only we know.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use crate::cfg::Model;
use crate::effective::Backend;
use crate::plan::{Desired, Op, Refuses, Running, RunningServer, State};
use crate::runtime_api::{ApiError, Info, RuntimeApi, ServerRow};
use crate::seed::{Row, RowState};
use crate::snapshot::{Snapshot, Worker};

/// One worker's answer to `show info` and `show servers state`.
pub(super) struct Observed {
    /// `show info`.
    pub(super) info: Info,
    /// What plans compare with; brought up to date by our own commands.
    pub(super) running: Running,
    rows: BTreeMap<String, BTreeMap<String, ServerRow>>,
}

impl Observed {
    /// Reads both; the worker that answers may change in between, so the pid is asked for again.
    pub(super) async fn read(api: &RuntimeApi, digests: &Digests) -> Result<Self, ApiError> {
        let mut info = api.info().await?;
        loop {
            let servers = api.servers(None).await?;
            let again = api.info().await?;
            if again.pid == info.pid {
                return Ok(Self::new(again, servers, digests));
            }
            info = again;
        }
    }

    fn new(info: Info, servers: Vec<ServerRow>, digests: &Digests) -> Self {
        let mut rows: BTreeMap<String, BTreeMap<String, ServerRow>> = BTreeMap::new();
        for row in servers {
            rows.entry(row.backend.clone())
                .or_default()
                .insert(row.name.clone(), row);
        }
        let running = |backend: &String, rows: &BTreeMap<String, ServerRow>| {
            let server = |row: &ServerRow| row.running(digests.of(info.pid, backend, &row.name));
            rows.iter()
                .map(|(name, row)| (name.clone(), server(row)))
                .collect()
        };
        let backends = rows
            .iter()
            .map(|(backend, rows)| (backend.clone(), running(backend, rows)))
            .collect();
        Self {
            running: Running {
                generation: info.generation(),
                backends,
                refuses: Refuses {
                    all: info.refuses_adds(),
                    ..Refuses::default()
                },
            },
            rows,
            info,
        }
    }

    /// Whether this is still the worker and the file it has loaded.
    pub(super) fn is(&self, info: &Info) -> bool {
        self.info.pid == info.pid && self.info.description == info.description
    }

    pub(super) fn pid(&self) -> u32 {
        self.info.pid
    }

    /// One of our commands has been confirmed.
    pub(super) fn apply(&mut self, op: &Op) {
        self.running.apply(op);
    }

    /// Takes the rows of these backends as just read from the same worker.
    pub(super) fn take(&mut self, backends: &[String], rows: Vec<ServerRow>, digests: &Digests) {
        for backend in backends {
            self.rows.remove(backend);
            self.running.backends.remove(backend);
        }
        for row in rows {
            let digest = digests.of(self.info.pid, &row.backend, &row.name);
            let running = &mut self.running.backends;
            running
                .entry(row.backend.clone())
                .or_default()
                .insert(row.name.clone(), row.running(digest));
            let rows = self.rows.entry(row.backend.clone()).or_default();
            rows.insert(row.name.clone(), row);
        }
    }

    pub(super) fn server(&self, backend: &str, name: &str) -> Option<&RunningServer> {
        self.running.backends.get(backend)?.get(name)
    }

    /// Names of the servers in a backend.
    pub(super) fn names(&self, backend: &str) -> impl Iterator<Item = &String> {
        self.running
            .backends
            .get(backend)
            .into_iter()
            .flat_map(BTreeMap::keys)
    }

    /// Ids in use in a backend, by name.
    pub(super) fn ids(&self, backend: &str) -> BTreeMap<String, u32> {
        let servers = self.running.backends.get(backend).into_iter().flatten();
        servers
            .map(|(name, server)| (name.clone(), server.id))
            .collect()
    }

    /// Servers an operator has put in maint.
    pub(super) fn operator_maint(&self) -> BTreeSet<(String, String)> {
        let of = |(backend, servers): (&String, &BTreeMap<String, RunningServer>)| {
            let maint = servers
                .iter()
                .filter(|(_, server)| server.state == State::OperatorMaint);
            maint
                .map(|(name, _)| (backend.clone(), name.clone()))
                .collect::<Vec<_>>()
        };
        self.running.backends.iter().flat_map(of).collect()
    }

    /// The word for a server in `/status`.
    pub(super) fn word(&self, backend: &str, name: &str) -> Option<&'static str> {
        Some(match self.server(backend, name)?.state {
            State::Retired => "retired",
            State::OperatorMaint => "maint",
            State::OperatorDrain => "drain",
            State::Ready if self.rows.get(backend)?.get(name)?.op_state == 0 => "down",
            State::Ready => "up",
        })
    }

    /// The rows of a backend for the seed; `None` = the worker has no servers there.
    pub(super) fn seed_rows(&self, backend: &str) -> Option<Vec<Row>> {
        let row = |(name, row): (&String, &ServerRow)| Row {
            name: name.clone(),
            address: row.address.map(|a| a.ip()),
            port: row.address.map_or(0, |a| a.port()),
            id: Some(row.id),
            weight: Some(row.weight),
            state: match row.state() {
                State::Ready => RowState::Ready,
                State::Retired => RowState::Retired,
                State::OperatorMaint => RowState::Maint,
                State::OperatorDrain => RowState::Drain,
            },
            options: None,
        };
        Some(self.rows.get(backend)?.iter().map(row).collect())
    }
}

/// The rows of a backend in haproxy.cfg for the seed.
pub(super) fn file_rows(model: &Model, backend: &str) -> Option<Vec<Row>> {
    let servers = model.servers.get(backend)?;
    let row = |(name, line): (&String, &crate::cfg::ServerLine)| {
        let mut row = Row {
            name: name.clone(),
            address: Some(line.address.ip()),
            port: line.address.port(),
            id: None,
            weight: None,
            state: RowState::Ready,
            options: None,
        };
        let mut options = Vec::new();
        let mut words = line.options.split_ascii_whitespace();
        while let Some(word) = words.next() {
            match word {
                "id" => row.id = words.next().and_then(|w| w.parse().ok()),
                "weight" => row.weight = words.next().and_then(|w| w.parse().ok()),
                "cookie" => _ = words.next(),
                "disabled" => row.state = RowState::Maint,
                other => options.push(other),
            }
        }
        row.options = Some(options.join(" "));
        row
    };
    Some(servers.iter().map(row).collect())
}

/// Digests of the options each server was loaded with, which haproxy does not show. Valid for one worker.
#[derive(Debug, Default)]
pub(super) struct Digests {
    pid: Option<u32>,
    servers: BTreeMap<String, BTreeMap<String, String>>,
}

impl Digests {
    /// As the snapshot remembers them.
    pub(super) fn of_snapshot(snapshot: &Snapshot) -> Self {
        let mut digests = Self::default();
        let Some(worker) = &snapshot.worker else {
            return digests;
        };
        digests.pid = Some(worker.pid);
        for (key, digest) in &worker.options {
            if let Some((backend, name)) = key.split_once('/') {
                digests
                    .servers
                    .entry(backend.to_owned())
                    .or_default()
                    .insert(name.to_owned(), digest.clone());
            }
        }
        digests
    }

    /// The worker has loaded this.
    pub(super) fn loaded(pid: u32, desired: &Desired) -> Self {
        Self {
            pid: Some(pid),
            servers: of_backends(&desired.backends),
        }
    }

    /// A worker that we did not start, or forgot: the file says what it has loaded. File and reload are one step of ours,
    /// so that they differ in options only when we died between the two.
    pub(super) fn of_file(pid: u32, written: &BTreeMap<String, Arc<Backend>>) -> Self {
        Self {
            pid: Some(pid),
            servers: of_backends(written),
        }
    }

    /// What is not known of the same worker stands in the file: servers are written before they are added.
    pub(super) fn complete(&mut self, written: &BTreeMap<String, Arc<Backend>>) {
        for (backend, servers) in of_backends(written) {
            let known = self.servers.entry(backend).or_default();
            for (name, digest) in servers {
                known.entry(name).or_insert(digest);
            }
        }
    }

    /// Notes what a server of this worker is added with; `None` = it is gone, or nothing is known. Returns what was known.
    pub(super) fn note(
        &mut self,
        pid: u32,
        backend: &str,
        name: &str,
        digest: Option<String>,
    ) -> Option<String> {
        if self.pid != Some(pid) {
            *self = Self {
                pid: Some(pid),
                servers: BTreeMap::new(),
            };
        }
        let servers = self.servers.entry(backend.to_owned()).or_default();
        match digest {
            Some(digest) => servers.insert(name.to_owned(), digest),
            None => servers.remove(name),
        }
    }

    /// The worker they are valid for.
    pub(super) fn pid(&self) -> Option<u32> {
        self.pid
    }

    fn of(&self, pid: u32, backend: &str, name: &str) -> Option<String> {
        if self.pid != Some(pid) {
            return None;
        }
        self.servers.get(backend)?.get(name).cloned()
    }

    /// For the snapshot.
    pub(super) fn worker(&self) -> Option<Worker> {
        let servers = self.servers.iter();
        let options = servers.flat_map(|(backend, servers)| {
            servers
                .iter()
                .map(move |(name, digest)| (format!("{backend}/{name}"), digest.clone()))
        });
        self.pid.map(|pid| Worker {
            pid,
            start: smartstack_common::process::start_time(pid),
            options: options.collect(),
        })
    }
}

fn of_backends(
    backends: &BTreeMap<String, Arc<Backend>>,
) -> BTreeMap<String, BTreeMap<String, String>> {
    let digests = |backend: &Backend| {
        backend
            .servers
            .iter()
            .map(|(n, s)| (n.clone(), s.digest.clone()))
            .collect()
    };
    backends
        .iter()
        .map(|(name, backend)| (name.clone(), digests(backend)))
        .collect()
}
