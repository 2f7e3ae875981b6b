//! Changes over the stats socket: what may go out now, what the answers mean, what is deleted afterwards.
//!
//! A server is added only once the file has it, so that a reload by anybody gives the same servers, and only with options
//! that haproxy has checked under this structure. A refusal that says "only from the file" is remembered; one that says
//! nothing about the table, and silence, leave doubt and never cause a reload.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use tokio::time::Instant;
use tracing::{debug, error, info, warn};

use super::aim::Touched;
use super::fallbacks::Means;
use super::observed::{Notes, Observed};
use super::{InFlight, LOOK_AT_CHECKS, Reconciler};
use crate::model::server::Digest;
use crate::outputs::haproxy::cfg::generation::Generation;
use crate::outputs::haproxy::file::Whole;
use crate::outputs::haproxy::plan::{
    Addition, Admit, Change, MANY, Op, Plan, ReloadReason, Running, State, before_adds, garbage,
};
use crate::outputs::haproxy::socket::{Refusal, ServerRow};

/// From the removal of a server to the first attempt to delete it: haproxy before 2.9 may free what a request still uses.
const GRACE: Duration = Duration::from_secs(2);
/// Between parts of very many additions: their first checks are then spread.
const BETWEEN_MANY: Duration = Duration::from_millis(250);
/// Between attempts to delete a server that has connections, at first and at last.
const DELETE_AGAIN: Duration = Duration::from_millis(1500);
const DELETE_RARELY: Duration = Duration::from_secs(15);

/// A server taken out that nobody wants.
#[derive(Debug, Clone, Copy)]
pub(super) struct Retired {
    /// Of which worker.
    pid: u32,
    since: Instant,
    /// When the next attempt to delete it is due; `None` = this worker does not delete it.
    due: Option<Instant>,
}

/// Options that haproxy has accepted under one structure: digests.
#[derive(Debug, Default)]
pub(super) struct Proven {
    generation: Option<Generation>,
    digests: BTreeSet<Digest>,
}

impl Proven {
    /// The worker runs with these.
    pub(super) fn runs(&mut self, running: &Running) {
        if self.generation != running.generation {
            self.digests.clear();
            self.generation.clone_from(&running.generation);
        }
        let servers = running.backends.values().flat_map(BTreeMap::values);
        for digest in servers.filter_map(|s| s.digest.as_ref()) {
            if !self.digests.contains(digest) {
                self.digests.insert(digest.clone());
            }
        }
    }

    /// A check has accepted these.
    pub(super) fn checked(&mut self, generation: &Generation, digests: BTreeSet<Digest>) {
        if self.generation.as_ref() == Some(generation) {
            self.digests.extend(digests);
        }
    }

    fn has(&self, addition: &Addition) -> bool {
        self.digests.contains(&addition.digest)
    }
}

/// What is left to do after the stats socket has done its part.
pub(super) struct Next {
    /// Towards the wanted file.
    pub(super) wanted: Plan,
    /// Towards the file that is worked towards meanwhile; the same when that is the wanted one.
    pub(super) meanwhile: Plan,
}

impl Reconciler {
    /// Sends what the stats socket can change now, and says what is left.
    pub(super) async fn change(&mut self) -> Next {
        let Some(wanted) = &self.aim.wanted else {
            return Next {
                wanted: Plan::Unchanged,
                meanwhile: Plan::Unchanged,
            };
        };
        let next = self.plan(wanted);
        let waits = matches!(next, Plan::Reload { .. }) && !self.may_reload_now(&next);
        if waits {
            self.hold();
        } else {
            self.aim.held = None;
        }
        let Some(aim) = self.aim() else {
            return Next {
                wanted: next,
                meanwhile: Plan::Unchanged,
            };
        };
        let towards = if self.aim.held.is_some() {
            self.plan(aim)
        } else {
            next.clone()
        };
        let ops = match &towards {
            Plan::Unchanged => Vec::new(),
            Plan::Runtime(ops) if self.may_add(aim, ops) => ops.clone(),
            Plan::Runtime(ops) => self
                .running()
                .map(|running| before_adds(running, ops))
                .unwrap_or_default(),
            Plan::Reload {
                reason,
                first,
                meanwhile,
            } if waits && self.may_add(aim, meanwhile) => {
                [first.clone(), self.meanwhile(reason, meanwhile)].concat()
            }
            Plan::Reload { first, .. } => first.clone(),
        };
        if ops.is_empty() {
            return self.left(next, towards);
        }
        self.apply(&ops).await;
        if let Plan::Reload {
            reason: ReloadReason::ManyAdded { .. },
            ..
        } = &towards
        {
            self.again_at(Instant::now() + BETWEEN_MANY);
        }
        let wanted = self.aim.wanted.as_ref().map(|whole| self.plan(whole));
        let meanwhile = self.aim().map(|whole| self.plan(whole));
        self.left(
            wanted.unwrap_or(Plan::Unchanged),
            meanwhile.unwrap_or(Plan::Unchanged),
        )
    }

    /// What is done while a reload waits. Where that is because of very many servers, they go over the stats socket only
    /// when haproxy has refused to load so many (its limit of descriptors, say), and then some at a time.
    fn meanwhile(&self, reason: &ReloadReason, ops: &[Op]) -> Vec<Op> {
        match reason {
            ReloadReason::ManyAdded { .. } if !self.jobs.limiter.is_backing_off() => Vec::new(),
            ReloadReason::ManyAdded { .. } => ops.iter().take(MANY).cloned().collect(),
            _ => ops.to_vec(),
        }
    }

    /// Forgets what is as it should be.
    fn left(&mut self, wanted: Plan, meanwhile: Plan) -> Next {
        self.gather_retired();
        self.note_reload_only();
        if wanted == Plan::Unchanged && !self.worker.stale {
            let waiting = self.aim.unrendered.iter();
            let waiting = waiting.filter_map(|i| self.backends.get(*i)?.name());
            self.aim.touched = Touched::whole(waiting.map(str::to_owned));
        }
        Next { wanted, meanwhile }
    }

    /// Whether nothing has to come before these: no additions, or the file has them and the worker is known. With a reload
    /// on its way the file is not ours to write: what is added now is looked at again when it has ended.
    fn may_add(&self, whole: &Whole, ops: &[Op]) -> bool {
        let is_add = |op: &Op| matches!(op.change, Change::Add(_));
        if !ops.iter().any(is_add) {
            return true;
        }
        let in_file = match self.jobs.in_flight {
            Some(InFlight::Reload) => true,
            Some(InFlight::Write | InFlight::Check) => false,
            // A file that cannot be written is a divergence, never a stop.
            None => !self.lags(whole) || self.jobs.write_problem.is_some(),
        };
        !self.worker.stale && in_file && !self.is_unproven(ops)
    }

    /// Whether haproxy has to be asked about the options of an addition. Not where the file is another's.
    pub(super) fn is_unproven(&self, ops: &[Op]) -> bool {
        self.config.haproxy.do_writes
            && ops
                .iter()
                .any(|op| matches!(&op.change, Change::Add(addition) if !self.worker.proven.has(addition)))
    }

    pub(super) async fn apply(&mut self, ops: &[Op]) {
        let Some(observed) = &self.worker.observed else {
            return;
        };
        let pid = observed.pid();
        self.worker.marks.intend(observed, ops).await;
        self.see(ops.iter().map(|op| &op.backend));
        // Known before it is sent: should the answer be lost, the server is still known for ours.
        let former: Vec<Option<Digest>> = ops.iter().map(|op| self.note_digest(pid, op)).collect();
        let results = match self.worker.api.apply(ops).await {
            Ok(results) => results,
            Err(error) => {
                self.worker.marks.unanswered(ops);
                ops.iter()
                    .for_each(|op| self.worker.fallbacks.unsure(op, pid));
                self.socket_failed(&error);
                return self.doubt();
            }
        };
        for ((op, result), former) in ops.iter().zip(results).zip(former) {
            match result {
                Ok(()) => {
                    info!(%op, "applied over the stats socket");
                    self.publisher.tally.runtime_ops += 1;
                    self.worker.marks.done(op);
                    self.worker.fallbacks.done(op);
                    if let Some(observed) = &mut self.worker.observed {
                        observed.apply(op);
                    }
                }
                Err(refusal) => {
                    if let Change::Add(_) = op.change {
                        self.worker
                            .digests
                            .note(pid, &op.backend, &op.server, former);
                    }
                    self.note_refusal(op, &refusal, pid);
                    self.doubt();
                }
            }
        }
        self.verify(ops).await;
        // At once: who is killed now must not take an operator's maint, which may follow, for one of these.
        self.worker.marks.tidy().await;
    }

    fn note_digest(&mut self, pid: u32, op: &Op) -> Option<Digest> {
        match &op.change {
            Change::Add(Addition { digest, .. }) => {
                let digest = Some(digest.clone());
                self.worker
                    .digests
                    .note(pid, &op.backend, &op.server, digest)
            }
            _ => None,
        }
    }

    /// What was refused is not asked for again, unless the table explains it.
    pub(super) fn note_refusal(&mut self, op: &Op, refusal: &Refusal, pid: u32) -> Means {
        let means = self.worker.fallbacks.learn(op, refusal, pid);
        match means {
            Means::LookAgain => warn!(%op, %refusal, "haproxy refuses; its state is read again"),
            Means::Lasting => {
                warn!(%op, %refusal, "haproxy refuses; a reload does it instead, and it is not asked for again");
            }
            Means::AllDenied => {
                let problem = self.worker.fallbacks.denied().unwrap_or_default();
                error!(%op, problem, "haproxy refuses every change over its stats socket");
            }
        }
        if let Some(observed) = self.worker.observed.as_mut().filter(|o| o.pid() == pid) {
            self.worker.fallbacks.tell(observed);
        }
        means
    }

    /// Reads the backends in which an added server awaits its first passed check.
    pub(super) async fn look_at_checks(&mut self) {
        let now = Instant::now();
        if self.worker.awaited.servers.is_empty()
            || self.worker.stale
            || self
                .worker
                .awaited
                .looked_at
                .is_some_and(|at| now < at + LOOK_AT_CHECKS)
        {
            return;
        }
        self.worker.awaited.looked_at = Some(now);
        let backends: BTreeSet<String> = self
            .worker
            .awaited
            .servers
            .iter()
            .map(|(b, _)| b.clone())
            .collect();
        let backends: Vec<String> = backends.into_iter().collect();
        match self.worker.api.servers_of(&backends).await {
            Ok(rows) => {
                self.take(&backends, rows);
                self.hear().await;
            }
            Err(error) => _ = self.socket_failed(&error),
        }
    }

    /// Rows of these backends, just read from the same worker.
    pub(super) fn take(&mut self, backends: &[String], rows: Vec<ServerRow>) {
        let notes = Notes {
            digests: &self.worker.digests,
            marks: &self.worker.marks,
            operator_maint: &self.worker.operator_maint,
        };
        let Some(observed) = &mut self.worker.observed else {
            return;
        };
        observed.take(backends, rows, &notes);
        self.worker.marks.settle(observed, Some(backends));
        self.worker.fallbacks.seen(observed, Some(backends));
        for key in observed.await_checks(&self.worker.awaited.servers) {
            self.worker.awaited.servers.remove(&key);
        }
        self.aim
            .touched
            .add(Touched::whole(backends.iter().cloned()));
        self.see(backends);
    }

    /// Additions are believed once the table shows them as they should be.
    async fn verify(&mut self, ops: &[Op]) {
        let added = |op: &&Op| matches!(op.change, Change::Add(_));
        let touched: BTreeSet<&String> = ops.iter().filter(added).map(|op| &op.backend).collect();
        if touched.is_empty() || self.worker.stale {
            return;
        }
        let touched: Vec<String> = touched.into_iter().cloned().collect();
        self.see(&touched);
        let rows = match self.worker.api.servers_of(&touched).await {
            Ok(rows) => rows,
            Err(error) => {
                self.socket_failed(&error);
                return self.doubt();
            }
        };
        let admitted = |op: &&Op| matches!(&op.change, Change::Add(a) if a.admit == Admit::Checked);
        let awaited = ops.iter().filter(admitted);
        self.worker
            .awaited
            .servers
            .extend(awaited.map(|op| (op.backend.clone(), op.server.clone())));
        self.take(&touched, rows);
        self.hear().await;
        let Some(observed) = &self.worker.observed else {
            return;
        };
        let is_there = |op: &&Op| {
            let Change::Add(wanted) = &op.change else {
                return true;
            };
            observed
                .server(&op.backend, &op.server)
                .is_some_and(|found| {
                    found.address == Some(wanted.address)
                        && found.id == wanted.id
                        && (wanted.admit != Admit::Ready || found.state == State::Ready)
                })
        };
        if let Some(op) = ops.iter().find(|op| !is_there(op)) {
            warn!(%op, "haproxy said yes, and its table says otherwise; it is read again");
            self.doubt();
        }
    }

    fn note_reload_only(&mut self) {
        let (Some(whole), Some(running)) = (&self.aim.wanted, self.running()) else {
            return self.worker.fallbacks.reload_only.clear();
        };
        let backends = &whole.desired().backends;
        let found: Vec<(String, Option<String>)> = self
            .planned(whole)
            .into_iter()
            .map(|name| {
                let backend = backends.get(&name);
                let why = backend.and_then(|b| running.refuses.reason(&name, b).cloned());
                (name, why)
            })
            .collect();
        for (name, why) in found {
            match why {
                Some(why) => _ = self.worker.fallbacks.reload_only.insert(name, why),
                None => _ = self.worker.fallbacks.reload_only.remove(&name),
            }
        }
    }

    /// Notes the servers that were taken out and that nobody wants: they are deleted a while later.
    fn gather_retired(&mut self) {
        let (Some(observed), Some(whole)) = (&self.worker.observed, self.aim()) else {
            return self.worker.retired.clear();
        };
        let (now, pid) = (Instant::now(), observed.pid());
        let planned = self.planned(whole);
        let found: BTreeSet<(String, String)> =
            garbage(&observed.running, whole.desired(), &planned)
                .into_iter()
                .map(|op| (op.backend, op.server))
                .collect();
        self.worker.retired.retain(|(backend, server), retired| {
            // A worker that loads the file has none of them.
            let known = planned.binary_search(backend).is_err();
            retired.pid == pid && (known || found.contains(&(backend.clone(), server.clone())))
        });
        for key in found {
            let due = Some(now + GRACE);
            let retired = Retired {
                pid,
                since: now,
                due,
            };
            self.worker.retired.entry(key).or_insert(retired);
        }
    }

    /// Deletes them, once their connections have ended.
    pub(super) async fn delete_retired(&mut self) {
        if self.worker.stale || !matches!(self.jobs.in_flight, None | Some(InFlight::Write)) {
            return;
        }
        // What cannot add at runtime cannot delete.
        let able = self.worker.observed.as_ref();
        let able = able.filter(|observed| observed.info.refuses_adds().is_none());
        let Some(pid) = able.map(Observed::pid) else {
            return;
        };
        let now = Instant::now();
        let due: Vec<Op> = self
            .worker
            .retired
            .iter()
            .filter(|(_, retired)| retired.due.is_some_and(|at| at <= now))
            .map(|((backend, server), _)| Op {
                backend: backend.clone(),
                server: server.clone(),
                change: Change::Delete,
            })
            .collect();
        if !due.is_empty() {
            match self.worker.api.apply(&due).await {
                Ok(results) => {
                    for (op, result) in due.iter().zip(results) {
                        self.note_deletion(op, result, pid, now);
                    }
                }
                Err(error) => {
                    self.socket_failed(&error);
                    return self.doubt();
                }
            }
        }
        if let Some(next) = self.worker.retired.values().filter_map(|r| r.due).min() {
            self.again_at(next);
        }
    }

    fn note_deletion(&mut self, op: &Op, result: Result<(), Refusal>, pid: u32, now: Instant) {
        let key = (op.backend.clone(), op.server.clone());
        let means = match &result {
            Ok(()) => {
                self.worker.fallbacks.done(op);
                None
            }
            Err(Refusal::HasConnections) => Some(Means::LookAgain),
            Err(refusal) => Some(self.note_refusal(op, refusal, pid)),
        };
        match (result, means) {
            // A second time: its table says otherwise.
            (Ok(()), _) | (Err(Refusal::NoSuchServer), Some(Means::LookAgain)) => {
                info!(%op, "a server taken out has no connections any more");
                self.worker.retired.remove(&key);
                self.see([&op.backend]);
                self.worker.digests.note(pid, &op.backend, &op.server, None);
                self.worker.marks.done(op);
                if let Some(observed) = &mut self.worker.observed {
                    observed.apply(op);
                }
            }
            (_, means) => {
                debug!(%op, "not deleted yet");
                if let Some(retired) = self.worker.retired.get_mut(&key) {
                    // Rarer the longer it has connections; where it is refused, a later reload does it.
                    let age = now.duration_since(retired.since);
                    let pause = age.clamp(DELETE_AGAIN, DELETE_RARELY);
                    retired.due = (means == Some(Means::LookAgain)).then(|| now + pause);
                }
            }
        }
    }
}
