//! Keeps haproxy in step with what the sources say: one task, level-triggered. Runs inside a `LocalSet`.
//!
//! A pass assesses the services whose inputs changed, sends their removals at once, writes the file and sends what else
//! the stats socket can change as soon as the [`window`] lets it, and leaves everything that needs haproxy's judgement to
//! one job at a time: check, quarantine, write, reload, proof ([`load`](super::load)). It acts on the latest whole state, never on an
//! event; after such a job, another pid or a doubtful answer it reads the worker again and plans anew. A change costs its
//! service: what is kept of the others (the file, the table, the published views) is not looked at. Decisions are in
//! the pure modules ([`crate::wanted::service`], [`crate::outputs::haproxy::file`], [`crate::outputs::haproxy::plan`], [`limiter`], [`window`]); this one moves
//! data between them.
//!
//! While a reload has to wait, or is on its way, the worker keeps the structure it has: the servers go into that one
//! (`aim`), in the file and over the stats socket, so that nobody waits for a structure.

mod aim;
mod apply;
mod blames;
mod boot;
mod fallbacks;
mod jobs;
pub mod limiter;
mod lingering;
mod marks;
mod observed;
mod publish;
#[cfg(test)]
mod simulation;
mod socket;
mod states;
pub mod window;
mod worker;
mod writing;

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use smartstack_common::clock::Clock;
use smartstack_common::shutdown::Shutdown;
use smartstack_common::watchdog::Progress;
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, MissedTickBehavior, interval, sleep_until, timeout_at};
use tracing::{info, warn};

use crate::config::Config;
use crate::model::member::Evidence;
use crate::outputs::haproxy::backend::circles::Circles;
use crate::outputs::haproxy::backend::{Backend, World};
use crate::outputs::haproxy::load::{Done, Driver};
use crate::outputs::haproxy::plan::State as ServerState;
use crate::outputs::haproxy::process::end::End;
use crate::outputs::haproxy::render::Renderer;
use crate::report::status::{Board, View};
use crate::snapshot::Snapshot;
use crate::wanted::keeper::{Keeper, Order};
use crate::wanted::service::Circles as _;
use aim::{Aim, Quarantine, RefusedFrame};
use jobs::Jobs;
use publish::Publisher;
use worker::Worker;

/// The worker's pid and generation are looked at this often: a reload by somebody else is repaired within 1.5 s.
const POLL: Duration = Duration::from_millis(500);
/// A quarantined service is tried again this often, although nothing of it changed: what haproxy missed (a certificate,
/// a free port) may be there by now.
const RETRY_QUARANTINED: Duration = Duration::from_secs(60);
/// How long a reload, and at the start the first servers, wait for sources that the configuration has just named.
const SETTLE: Duration = Duration::from_millis(500);
/// Pause after an answer that leaves the worker's state in doubt.
const RETRY_DOUBT: Duration = Duration::from_millis(200);
/// How often a server that awaits its first passed check is looked at.
const LOOK_AT_CHECKS: Duration = Duration::from_millis(100);
/// The view of a large service follows its change after this time: nothing that has to be fast waits for it, and several
/// steps of a change make one view.
const SHOW_PAUSE: Duration = Duration::from_millis(500);
/// The steps of one change make one state for the snapshot's writer.
const SAVE_PAUSE: Duration = Duration::from_millis(100);
/// Least time between two states handed to the snapshot's writer, which costs as much as everything there is. What they may
/// lack, the registry, haproxy and its file know; what only we know does not wait for it.
const SNAPSHOT_PAUSE: Duration = Duration::from_secs(15);

/// From the request to end until everything is put away: what is under way by then is left.
const CLOSING: Duration = Duration::from_millis(900);

/// What came to its end beside the reconciler.
enum Ended {
    /// The file was written, or not; of which revision.
    Write(u64, Result<(), String>),
    /// A job.
    Job(Box<Done>),
}

/// What is on its way beside the reconciler.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum InFlight {
    /// The file alone.
    Write,
    /// A check, perhaps a search for what haproxy refuses.
    Check,
    /// A reload, after its check.
    Reload,
}

/// The task's state: what it knows of the services, and its four owners.
pub struct Reconciler {
    config: Arc<Config>,
    renderer: Arc<Renderer>,
    keeper: Keeper,
    /// Of the keeper's services, in the same order.
    backends: Vec<Backend>,
    by_backend: BTreeMap<String, usize>,
    circles: RefCell<Circles>,
    /// This host's name.
    host: String,
    machine: String,
    aim: Aim,
    worker: Worker,
    jobs: Jobs,
    publisher: Publisher,
}

/// What the reconciler publishes to.
pub struct Outputs {
    /// The services, for `/status` and `/metrics`.
    pub board: Arc<Board>,
    /// Everything else for them.
    pub view: watch::Sender<Arc<View>>,
    /// For the snapshot's writer.
    pub snapshot: watch::Sender<Arc<Snapshot>>,
}

impl Reconciler {
    /// Runs until `shutdown`, wherever it waits for haproxy then: what was sent is read back at the next start.
    pub async fn run(
        mut self,
        configs: watch::Receiver<Arc<Config>>,
        orders: mpsc::Receiver<Order>,
        progress: Progress,
        mut shutdown: Shutdown,
    ) {
        // Cancel-safe: a watch receive. The work is not, and is not taken up again.
        tokio::select! {
            () = shutdown.wait() => {}
            () = self.work(configs, orders, progress) => {}
        }
        self.close().await;
    }

    /// Passes without end. The first is made before any session is opened, unless nothing is there to be served.
    async fn work(
        &mut self,
        mut configs: watch::Receiver<Arc<Config>>,
        mut orders: mpsc::Receiver<Order>,
        progress: Progress,
    ) {
        let mut changes = self.keeper.changes();
        let mut resolved = self.keeper.resolved();
        let config = Arc::clone(&self.config);
        if self.begins_with_nothing() {
            self.keeper.follow(&config);
            self.await_first_words(&mut changes, &mut resolved).await;
        }
        self.pass().await;
        self.keeper.follow(&config);
        self.aim.settle = Some(Instant::now() + SETTLE);
        let mut poll = interval(POLL);
        poll.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut audit = interval(self.config.audit_interval);
        audit.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            progress.step();
            let retry = self.jobs.retry_at;
            let (save, show) = (self.publisher.save_at, self.publisher.show_at);
            let end = self.worker.end.as_ref();
            // Cancel-safe: watch and channel receives, ticks, joins of sets that keep their tasks, deadlines kept outside, an
            // end that stays one.
            tokio::select! {
                changed = changes.changed() => if changed.is_ok() { self.keeper.sources_changed() },
                changed = resolved.changed() => if changed.is_ok() {
                    resolved.mark_unchanged();
                    self.keeper.names_changed();
                    self.publisher.unsaved = true;
                },
                changed = configs.changed() => if changed.is_ok() {
                    let config = configs.borrow_and_update().clone();
                    self.reconfigure(config).await;
                },
                Some(done) = self.jobs.running.join_next() => self.finish(done),
                Some(order) = orders.recv() => self.keeper.obey(order),
                _ = poll.tick() => if !(self.poll().await | self.step_guards().await) { continue },
                () = reached(end), if end.is_some() => {
                    self.worker.end = None;
                    if !self.poll().await { continue }
                }
                _ = audit.tick() => if self.jobs.running.is_empty() { self.begin_audit() },
                () = sleep_until(save.unwrap_or_else(Instant::now)), if save.is_some() => {
                    self.save();
                    continue;
                }
                () = sleep_until(show.unwrap_or_else(Instant::now)), if show.is_some() => {
                    self.show(&BTreeSet::new());
                    continue;
                }
                () = sleep_until(retry.unwrap_or_else(Instant::now)), if retry.is_some() => {}
            }
            self.pass().await;
        }
    }

    /// Within [`CLOSING`], but for a haproxy that is to be stopped.
    async fn close(mut self) {
        // A job in flight may be about to end. One that is not is left where it is: haproxy accepts the file on disk, the
        // master or the command that was asked goes on, and the next start looks at what runs.
        let patience = Instant::now() + CLOSING / 3;
        while let Ok(Some(done)) = timeout_at(patience, self.jobs.running.join_next()).await {
            self.finish(done);
        }
        self.jobs.running.shutdown().await;
        self.worker.marks.tidy().await;
        self.save();
        let rest = async {
            self.jobs.file.close().await;
            self.keeper.close().await;
        };
        let in_time = timeout_at(patience + CLOSING / 3, rest).await;
        if in_time.is_err() {
            warn!("the disk or ZooKeeper does not answer; synapse ends without waiting for them");
        }
        if self.jobs.stop_haproxy {
            let driver = self.jobs.driver.take();
            let driver = driver.unwrap_or_else(|| Driver::new(&self.config, true));
            driver.close().await;
        }
    }

    /// One pass: assess, take out what has gone, render, plan, apply what can be applied now, start a job for the rest,
    /// publish.
    async fn pass(&mut self) {
        self.jobs.retry_at = None;
        let mut looked = self.worker.stale && self.jobs.running.is_empty();
        if looked {
            self.observe().await;
        }
        loop {
            self.look_at_checks().await;
            let mut assessed = self.assess();
            if self.doubt_restored().await {
                assessed.extend(self.assess());
            }
            self.remove_at_once(&assessed).await;
            self.render();
            if let Err(problem) = self.refresh() {
                return self.cannot_render(problem);
            }
            let next = self.change().await;
            if !looked && self.may_reload(&next) {
                // The next worker knows of an operator's maint only what its file says: the last look may be too old.
                looked = true;
                self.worker.stale = true;
                self.observe().await;
                continue;
            }
            self.accept();
            self.start_job(&next);
            self.delete_retired().await;
            if !self.worker.awaited.servers.is_empty() {
                self.again_at(Instant::now() + LOOK_AT_CHECKS);
            }
            return self.publish(Some(&next));
        }
    }

    /// What is wanted of the services whose inputs have changed, with ids: which those are.
    fn assess(&mut self) -> BTreeSet<usize> {
        let can_ask = self.can_ask();
        let dirty = self.keeper.assess(&self.config, &self.circles, can_ask);
        self.publisher.saves_at_once |= self.keeper.take_news();
        if dirty.is_empty() {
            return dirty;
        }
        self.aim.followed = false;
        self.publisher.unsaved = true;
        let live = self.worker.observed.as_ref();
        let mut named = self.aim.good.named();
        named.push(self.renderer.named());
        let world = World {
            named: &named,
            operator_maint: &self.worker.operator_maint,
            refused_options: &self.aim.refused_options,
            live: &|backend: &str| live?.running.backends.get(backend),
            looks: self.worker.looks,
            host: &self.host,
        };
        for &index in &dirty {
            let (Some(backend), Some(state)) = (
                self.backends.get_mut(index),
                self.keeper.services().get(index),
            ) else {
                continue;
            };
            let name = backend.place().to_owned();
            let known = self.aim.ids.entry(name).or_default();
            backend.take(state.servers(), &self.config, &world, known);
            self.aim.unrendered.insert(index);
            self.publisher.unseen.insert(index);
        }
        self.try_blamed_again(&dirty);
        if self.circles.get_mut().take_freed() && self.keeper.touch_circled() {
            self.again_at(Instant::now());
        }
        dirty
    }

    /// Lets the guards that wait look again. Returns whether a pass is needed.
    async fn step_guards(&mut self) -> bool {
        let waiting = self.keeper.waiting();
        self.read_checks(&waiting).await;
        let can_ask = self.can_ask();
        self.keeper.look_again(waiting, &self.config, can_ask)
    }

    /// Lets go of what haproxy's checks had taken down before it was taken out: a server that comes back from maint counts as
    /// up until its next check. Returns whether anything has to be assessed again.
    async fn doubt_restored(&mut self) -> bool {
        if !self.keeper.has_restored() {
            return false;
        }
        let waiting = self.keeper.waiting();
        self.read_checks(&waiting).await;
        let restored = self.keeper.take_restored();
        let can_ask = self.can_ask();
        self.keeper.look_again(restored, &self.config, can_ask)
    }

    /// Tells the guards that ask what haproxy's checks say. What cannot be read stays as old as it is: `problems` tell of it.
    async fn read_checks(&mut self, waiting: &[usize]) {
        let asking = self.keeper.asking(waiting);
        let asking = asking.filter_map(|index| Some((self.backends.get(index)?.name()?, index)));
        let mut asking: BTreeMap<String, usize> = asking
            .map(|(name, index)| (name.to_owned(), index))
            .collect();
        if !self.can_ask() || asking.is_empty() {
            return;
        }
        let now = Clock::now();
        let names: Vec<String> = asking.keys().cloned().collect();
        let Ok(rows) = self.worker.api.servers_of(&names).await else {
            return;
        };
        let mut tables: BTreeMap<String, BTreeMap<String, Evidence>> = BTreeMap::new();
        for row in rows {
            let evidence = row.evidence();
            let table = tables.entry(row.backend).or_default();
            table.insert(row.name, evidence);
        }
        for (backend, table) in tables {
            if let Some(index) = asking.remove(&backend) {
                self.keeper.checked(index, now, table);
            }
        }
    }

    /// A server has come that something was refused for the want of: that is tried again.
    fn try_blamed_again(&mut self, assessed: &BTreeSet<usize>) {
        let came = |quarantine: &Quarantine| {
            let states = assessed.iter().filter_map(|i| self.backends.get(*i));
            let mut servers = states.flat_map(|state| &state.servers);
            servers.any(|s| !s.server.is_parked() && quarantine.blames.waits_for(&s.server.name))
        };
        let again = self.aim.quarantined.iter().filter(|(_, q)| came(q));
        let again: Vec<String> = again.map(|(service, _)| service.clone()).collect();
        for service in again {
            info!(
                service,
                "what haproxy missed is there: the service is tried again"
            );
            self.aim.quarantined.remove(&service);
            self.replace_piece(&service);
        }
    }

    /// Renders what was assessed, unless a window is open.
    fn render(&mut self) {
        if self.aim.unrendered.is_empty() {
            return;
        }
        let now = Instant::now();
        let mut due = self.aim.window.due(now);
        if let Some(until) = self.settling_until().filter(|_| !self.serves_anybody()) {
            // The first words of the registry go together, or haproxy would begin all their checks at once.
            due = due.max(until);
        }
        // Without a file there is nothing that could be kept as it is for so long.
        if due > now && self.aim.wanted.is_some() {
            return self.again_at(due);
        }
        self.aim.window.taken(now);
        for index in std::mem::take(&mut self.aim.unrendered) {
            if let Some(state) = self.backends.get_mut(index) {
                state.render(&self.renderer);
                self.aim.replaced.insert(index);
            }
        }
    }

    fn serves_anybody(&self) -> bool {
        let backends = self.running().into_iter().flat_map(|r| r.backends.values());
        backends
            .flat_map(BTreeMap::values)
            .any(|server| server.is_serving())
    }

    /// Another pass is due then, at the latest.
    fn again_at(&mut self, at: Instant) {
        self.jobs.retry_at = Some(self.jobs.retry_at.map_or(at, |earlier| earlier.min(at)));
    }

    /// The form a service has at the moment: as configured, or as last accepted while it is quarantined.
    fn piece(&self, state: &Backend) -> Option<crate::outputs::haproxy::file::Piece> {
        let good = || self.aim.good.piece(&state.service, &state.servers);
        let usable = self.frame().is_whole() == self.renderer.is_whole();
        match (state.piece.as_ref()?, self.quarantine(state)) {
            (_, Some(quarantine)) => quarantine.kept.of(good()),
            (Ok(piece), None) if usable => Some(piece.clone()),
            (Ok(_) | Err(_), None) => good(),
        }
    }

    /// What renders the frame: the configuration, or what stands in for it while it is refused.
    fn frame(&self) -> &Arc<Renderer> {
        match &self.aim.refused_frame {
            Some(RefusedFrame {
                refused,
                instead,
                until,
            }) if Arc::ptr_eq(refused, &self.renderer)
                && until.is_none_or(|until| Instant::now() < until) =>
            {
                instead
            }
            _ => &self.renderer,
        }
    }
}

/// Only to be awaited where there is one.
async fn reached(end: Option<&End>) {
    match end {
        Some(end) => end.reached().await,
        None => std::future::pending().await,
    }
}
