//! What the worker was last seen to run, and the little about it that only we know.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use super::marks::Marks;
use crate::model::server::Digest;
use crate::model::server::NOWHERE;
use crate::outputs::haproxy::backend::seed::{Row, RowState};
use crate::outputs::haproxy::cfg::Model;
use crate::outputs::haproxy::cfg::effective::Backend;
use crate::outputs::haproxy::plan::{Desired, Op, Refuses, Running, RunningServer, State};
use crate::outputs::haproxy::socket::{ApiError, Info, RuntimeApi, ServerRow};
use crate::snapshot::{self, Snapshot, Worker};

/// An operator's maint, as the snapshot has it.
pub(super) const MAINT: &str = "maint";
/// The same, its agent not listened to.
pub(super) const SILENT_MAINT: &str = "maint, agent off";

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
    pub(super) async fn read(api: &mut RuntimeApi, notes: &Notes<'_>) -> Result<Self, ApiError> {
        api.tell_apart().await;
        let mut info = api.info().await?;
        loop {
            let servers = api.servers(None).await?;
            let again = api.info().await?;
            if again.pid == info.pid {
                return Ok(Self::new(again, servers, notes));
            }
            info = again;
        }
    }

    fn new(info: Info, servers: Vec<ServerRow>, notes: &Notes<'_>) -> Self {
        let generation = info.generation();
        let mut rows: BTreeMap<String, BTreeMap<String, ServerRow>> = BTreeMap::new();
        for row in servers {
            rows.entry(row.backend.clone())
                .or_default()
                .insert(row.name.clone(), row);
        }
        let running = |rows: &BTreeMap<String, ServerRow>| {
            let server = |row: &ServerRow| notes.running(&info, row);
            rows.iter()
                .map(|(name, row)| (name.clone(), server(row)))
                .collect()
        };
        let backends = rows
            .iter()
            .map(|(backend, rows)| (backend.clone(), running(rows)))
            .collect();
        Self {
            running: Running {
                generation,
                backends,
                refuses: Refuses {
                    all: info.refuses_adds(),
                    cookie: info.refuses_cookies(),
                    ..Refuses::default()
                },
            },
            rows,
            info,
        }
    }

    /// How a later look at the same worker differs from what was believed, by kind. Another worker has another table.
    pub(super) fn differences(&self, later: &Self) -> BTreeMap<&'static str, u64> {
        let mut found = BTreeMap::new();
        if self.pid() != later.pid() {
            return found;
        }
        if self.running.generation != later.running.generation {
            found.insert("generation", 1);
        }
        let backends = [&self.running.backends, &later.running.backends];
        let names: BTreeSet<&String> = backends.into_iter().flat_map(BTreeMap::keys).collect();
        for name in names {
            for (kind, count) in later.differs(name, self.running.backends.get(name)) {
                *found.entry(kind).or_default() += count;
            }
        }
        found
    }

    /// How a backend differs from what it was before, by kind.
    pub(super) fn differs(
        &self,
        backend: &str,
        before: Option<&BTreeMap<String, RunningServer>>,
    ) -> BTreeMap<&'static str, u64> {
        let mut found = BTreeMap::new();
        let mut count = |kind, differs: bool| {
            if differs {
                *found.entry(kind).or_default() += 1;
            }
        };
        let nothing = BTreeMap::new();
        let before = before.unwrap_or(&nothing);
        let now = self.running.backends.get(backend).unwrap_or(&nothing);
        for (name, now) in now {
            let Some(before) = before.get(name) else {
                count("extra", true);
                continue;
            };
            count("address", before.address != now.address);
            count("id", before.id != now.id);
            count("weight", before.weight != now.weight);
            count("state", before.state != now.state);
        }
        before
            .keys()
            .for_each(|name| count("missing", !now.contains_key(name)));
        found
    }

    /// Of these backends, as just read from the same worker, those that are not as they are believed to be.
    pub(super) fn changed(
        &self,
        backends: &[String],
        rows: &[ServerRow],
        notes: &Notes<'_>,
    ) -> Vec<String> {
        let mut read: BTreeMap<&str, usize> = BTreeMap::new();
        let mut changed: BTreeSet<&str> = BTreeSet::new();
        for row in rows {
            let backend = row.backend.as_str();
            *read.entry(backend).or_default() += 1;
            let known = self.rows.get(backend).and_then(|rows| rows.get(&row.name));
            let same = |found: &RunningServer| {
                let now = notes.running(&self.info, row);
                (
                    found.address,
                    found.id,
                    found.weight,
                    found.agent,
                    found.state,
                ) == (now.address, now.id, now.weight, now.agent, now.state)
            };
            let found = self.server(backend, &row.name);
            if !found.is_some_and(same) || known.is_none_or(|k| k.op_state != row.op_state) {
                changed.insert(backend);
            }
        }
        let other_size = |name: &&String| {
            let now = read.get(name.as_str()).copied().unwrap_or_default();
            now != self.names(name).count()
        };
        backends
            .iter()
            .filter(|name| changed.contains(name.as_str()) || other_size(name))
            .cloned()
            .collect()
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
    pub(super) fn take(&mut self, backends: &[String], rows: Vec<ServerRow>, notes: &Notes<'_>) {
        for backend in backends {
            self.rows.remove(backend);
            self.running.backends.remove(backend);
        }
        for row in rows {
            let found = notes.running(&self.info, &row);
            let running = &mut self.running.backends;
            running
                .entry(row.backend.clone())
                .or_default()
                .insert(row.name.clone(), found);
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

    /// Whether a server was in maint when it was last read, whoever put it there.
    pub(super) fn is_in_maint(&self, backend: &str, name: &str) -> bool {
        let row = self.rows.get(backend).and_then(|rows| rows.get(name));
        row.is_some_and(ServerRow::is_in_maint)
    }

    /// Whether the worker has loaded a file of ours. Of one that has not, no maint is an operator's word to us: Ruby's synapse
    /// disables what has vanished.
    pub(super) fn is_ours(&self) -> bool {
        self.running.generation.is_some()
    }

    /// Servers in maint, by our doing or as found in a worker of somebody else.
    pub(super) fn retired(&self) -> impl Iterator<Item = (&String, &String)> {
        self.of_state(State::Retired)
    }

    /// It is known whose maint it is.
    pub(super) fn owned(&mut self, backend: &str, name: &str, state: State) {
        let servers = self.running.backends.get_mut(backend);
        if let Some(server) = servers.and_then(|servers| servers.get_mut(name)) {
            server.state = state;
        }
    }

    fn of_state(&self, state: State) -> impl Iterator<Item = (&String, &String)> {
        let backends = self.running.backends.iter();
        backends.flat_map(move |(backend, servers)| {
            let found = servers.iter().filter(move |(_, s)| s.state == state);
            found.map(move |(name, _)| (backend, name))
        })
    }

    /// Servers an operator has put in maint, and whether each has an agent that is not listened to.
    pub(super) fn operator_maint(&self) -> OperatorMaint {
        let of = |(backend, servers): (&String, &BTreeMap<String, RunningServer>)| {
            let maint = servers
                .iter()
                .filter(|(_, server)| server.state == State::OperatorMaint);
            maint
                .map(|(name, server)| {
                    let silent = server.agent == Some(false);
                    ((backend.clone(), name.clone()), silent)
                })
                .collect::<Vec<_>>()
        };
        self.running.backends.iter().flat_map(of).collect()
    }

    /// These servers are to be admitted by their checks: those that have not passed one yet await it. Returns the others.
    pub(super) fn await_checks(
        &mut self,
        added: &BTreeSet<(String, String)>,
    ) -> Vec<(String, String)> {
        let mut over = Vec::new();
        for (backend, name) in added {
            let row = self.rows.get(backend).and_then(|rows| rows.get(name));
            let waits = row.is_some_and(|row| !row.passed);
            let server = self.running.backends.get_mut(backend);
            match server.and_then(|servers| servers.get_mut(name)) {
                Some(server) if waits && server.state == State::Retired => {
                    server.awaits_check = true;
                }
                _ => over.push((backend.clone(), name.clone())),
            }
        }
        over
    }

    /// It takes requests, has checks, and they are off.
    pub(super) fn lacks_checks(&self, backend: &str, name: &str) -> bool {
        let row = self.rows.get(backend).and_then(|rows| rows.get(name));
        row.is_some_and(|row| row.state(false) == State::Ready && row.checks_are_off())
    }

    /// Its line in the loaded file says `disabled`: should it be ready, an operator has made it so.
    pub(super) fn was_disabled(&self, backend: &str, name: &str) -> bool {
        let row = self.rows.get(backend).and_then(|rows| rows.get(name));
        row.is_some_and(ServerRow::was_disabled)
    }

    /// The weight of a server that somebody else has set; one that we have taken out has none that matters.
    pub(super) fn other_weight(&self, backend: &str, name: &str) -> Option<u16> {
        let found = self.server(backend, name)?;
        let other = found.weight != found.given && found.state != State::Retired;
        other.then_some(found.weight)
    }

    /// The word for a server in `/status`.
    pub(super) fn word(&self, backend: &str, name: &str) -> Option<&'static str> {
        Some(match self.server(backend, name)?.state {
            State::Retired if self.server(backend, name)?.awaits_check => "checking",
            State::Retired => "retired",
            State::OperatorMaint => "maint",
            State::OperatorDrain => "drain",
            // A row from before it was made ready says nothing about its checks.
            State::Ready
                if self
                    .rows
                    .get(backend)
                    .and_then(|rows| rows.get(name))
                    .is_some_and(|row| row.op_state == 0 && !row.is_in_maint()) =>
            {
                "down"
            }
            State::Ready => "up",
        })
    }

    /// The rows of a backend for the seed; `None` = the worker has no servers there.
    pub(super) fn seed_rows(&self, backend: &str) -> Option<Vec<Row>> {
        let row = |(name, server): (&String, &RunningServer)| Row {
            name: name.clone(),
            address: server.address.map(|a| a.ip()),
            port: server.address.map_or(0, |a| a.port()),
            id: Some(server.id),
            weight: Some(server.weight),
            state: match server.state {
                State::Ready => RowState::Ready,
                State::Retired => RowState::Retired,
                State::OperatorMaint => RowState::Maint,
                State::OperatorDrain => RowState::Drain,
            },
            options: None,
        };
        let servers = self.running.backends.get(backend)?;
        Some(servers.iter().map(row).collect())
    }
}

/// Servers that an operator has put in maint, by backend and NAME, and whether their agent was not listened to then: it is
/// not later either.
pub(crate) type OperatorMaint = BTreeMap<(String, String), bool>;

/// What only we know of a worker's servers.
pub(super) struct Notes<'a> {
    pub(super) digests: &'a Digests,
    pub(super) marks: &'a Marks,
    /// In a worker of somebody else's these are the only maints that are an operator's.
    pub(super) operator_maint: &'a OperatorMaint,
}

impl Notes<'_> {
    /// A row, and what does not stand in it.
    fn running(&self, info: &Info, row: &ServerRow) -> RunningServer {
        let (pid, backend, name) = (info.pid, &row.backend, &row.name);
        // At no address because a line names it: no operator has done that.
        let is_parked = row.address.is_some_and(|at| at.ip() == NOWHERE);
        let is_remembered = || {
            let key = (backend.clone(), name.clone());
            self.operator_maint.contains_key(&key)
        };
        let is_foreign = info.generation().is_none() && !is_remembered();
        let ours = is_foreign || is_parked || self.marks.has(pid, backend, name);
        let mut found = row.running(self.digests.of(pid, backend, name), ours);
        found.given = self.marks.given(pid, backend, name).unwrap_or(found.given);
        found
    }
}

/// The rows of a backend in haproxy.cfg for the seed. In a file that is not `ours`, `disabled` is no operator's word to us.
pub(super) fn file_rows(model: &Model, backend: &str, ours: bool) -> Option<Vec<Row>> {
    let servers = model.servers.get(backend)?;
    let row = |(name, line): (&String, &crate::outputs::haproxy::cfg::ServerLine)| {
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
                "disabled" if ours => row.state = RowState::Maint,
                "disabled" => row.state = RowState::Retired,
                other => options.push(other),
            }
        }
        row.options = Some(options.join(" "));
        if row.state == RowState::Maint && row.address == Some(NOWHERE) {
            row.state = RowState::Retired;
        }
        row
    };
    Some(servers.iter().map(row).collect())
}

/// Digests of the options each server was loaded with, which haproxy does not show. Valid for one worker.
#[derive(Debug, Default)]
pub(super) struct Digests {
    pid: Option<u32>,
    servers: snapshot::Digests,
}

impl Digests {
    /// As the snapshot remembers them.
    pub(super) fn of_snapshot(snapshot: &Snapshot) -> Self {
        let Some(worker) = &snapshot.worker else {
            return Self::default();
        };
        Self {
            pid: Some(worker.pid),
            servers: worker.options.clone(),
        }
    }

    /// The worker has loaded this.
    pub(super) fn loaded(pid: u32, desired: &Desired) -> Self {
        Self::of_file(pid, &desired.backends)
    }

    /// A worker that we did not start, or forgot: the file says what it has loaded. File and reload are one step of ours,
    /// so that they differ in options only when we died between the two.
    pub(super) fn of_file(pid: u32, written: &BTreeMap<String, Arc<Backend>>) -> Self {
        let servers = of_backends(written).map(|(name, servers)| (name, Arc::new(servers)));
        Self {
            pid: Some(pid),
            servers: servers.collect(),
        }
    }

    /// What is not known of the same worker stands in the file: servers are written before they are added.
    pub(super) fn complete(&mut self, written: &BTreeMap<String, Arc<Backend>>) {
        for (backend, servers) in of_backends(written) {
            let known = Arc::make_mut(self.servers.entry(backend).or_default());
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
        digest: Option<Digest>,
    ) -> Option<Digest> {
        if self.pid != Some(pid) {
            *self = Self {
                pid: Some(pid),
                servers: BTreeMap::new(),
            };
        }
        let servers = Arc::make_mut(self.servers.entry(backend.to_owned()).or_default());
        match digest {
            Some(digest) => servers.insert(name.to_owned(), digest),
            None => servers.remove(name),
        }
    }

    /// The worker they are valid for.
    pub(super) fn pid(&self) -> Option<u32> {
        self.pid
    }

    fn of(&self, pid: u32, backend: &str, name: &str) -> Option<Digest> {
        if self.pid != Some(pid) {
            return None;
        }
        self.servers.get(backend)?.get(name).cloned()
    }

    /// For the snapshot.
    pub(super) fn worker(&self) -> Option<Worker> {
        self.pid.map(|pid| Worker {
            pid,
            start: smartstack_common::process::start_time(pid),
            options: self.servers.clone(),
        })
    }
}

fn of_backends(
    backends: &BTreeMap<String, Arc<Backend>>,
) -> impl Iterator<Item = (String, BTreeMap<String, Digest>)> {
    let digests = |backend: &Backend| {
        let servers = backend.servers.iter();
        servers
            .map(|(name, server)| (name.clone(), Arc::clone(&server.digest)))
            .collect()
    };
    backends
        .iter()
        .map(move |(name, backend)| (name.clone(), digests(backend)))
}
