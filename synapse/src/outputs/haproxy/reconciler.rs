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
use tokio::task::JoinSet;
use tokio::time::{Instant, MissedTickBehavior, interval, sleep_until, timeout_at};
use tracing::{info, warn};

use crate::config::Config;
use crate::model::member::Evidence;
use crate::outputs::haproxy::backend::circles::Circles;
use crate::outputs::haproxy::backend::{Backend, World};
use crate::outputs::haproxy::cfg::generation::Generation;
use crate::outputs::haproxy::disk::File;
use crate::outputs::haproxy::file::Whole;
use crate::outputs::haproxy::file::good::Good;
use crate::outputs::haproxy::load::{Done, Driver, Kept};
use crate::outputs::haproxy::plan::State as ServerState;
use crate::outputs::haproxy::process::end::End;
use crate::outputs::haproxy::render::Renderer;
use crate::outputs::haproxy::socket::RuntimeApi;
use crate::report::status::{Board, ReloadView, View};
use crate::snapshot::{Ids, Snapshot};
use crate::wanted::keeper::{Keeper, Order};
use crate::wanted::service::Circles as _;
use aim::Touched;
use apply::{Proven, Retired};
use blames::Blames;
use fallbacks::Fallbacks;
use limiter::Limiter;
use lingering::Lingering;
use marks::Marks;
use observed::{Digests, Observed, OperatorMaint};
use socket::Socket;
use states::States;
use window::Window;

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

/// Why a service is not rendered as configured.
#[derive(Debug, Clone)]
struct Quarantine {
    /// The refused structure: another one is tried at once.
    structure: Vec<u8>,
    /// haproxy's words.
    reason: String,
    /// What the words are about.
    blames: Blames,
    /// What stands in the file instead.
    kept: Kept,
    /// A worker failed to start with it for a reason that shows at a start alone: a living worker is not asked again.
    until_changed: bool,
    since: Instant,
}

/// A frame that was refused as configured.
#[derive(Clone)]
struct RefusedFrame {
    refused: Arc<Renderer>,
    /// What stands in for it.
    instead: Arc<Renderer>,
    /// When it is tried again; `None` = when the configuration is loaded again.
    until: Option<Instant>,
}

impl Quarantine {
    /// When it is tried again, in words.
    fn again(until_changed: bool) -> &'static str {
        match until_changed {
            true => "when its configuration or what haproxy names changes",
            false => "every 60 s, and when its configuration or what haproxy names changes",
        }
    }

    /// For people: the reason, what is served instead, and when it is tried again.
    fn words(&self) -> String {
        let (stays, again) = (self.kept.words(), Self::again(self.until_changed));
        format!(
            "{} (served instead: {stays}; tried again {again})",
            self.reason
        )
    }
}

/// Counts of what was done, for status and metrics.
#[derive(Debug, Clone, Default)]
struct Tally {
    reloads: u64,
    reload_failures: u64,
    last_reload: Option<ReloadView>,
    runtime_ops: u64,
    foreign_reloads: u64,
    /// Differences that nobody had told of, by kind.
    differences: BTreeMap<&'static str, u64>,
}

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

/// The task's state.
pub struct Reconciler {
    config: Arc<Config>,
    renderer: Arc<Renderer>,
    keeper: Keeper,
    /// Of the keeper's services, in the same order.
    backends: Vec<Backend>,
    circles: RefCell<Circles>,
    by_backend: BTreeMap<String, usize>,
    /// Services that are assessed and not rendered yet.
    unrendered: BTreeSet<usize>,
    /// Services whose place in the file has to be made anew.
    replaced: BTreeSet<usize>,
    /// Services whose view has to be published anew, and when that is due.
    unseen: BTreeSet<usize>,
    show_at: Option<Instant>,
    window: Window,
    /// The file as it should be.
    wanted: Option<Whole>,
    /// The servers in the structure that the worker has loaded, while another one waits; with the names of its services.
    held: Option<(Vec<String>, Whole)>,
    touched: Touched,
    /// haproxy's ids by backend and NAME.
    ids: Ids,
    operator_maint: OperatorMaint,
    refused_options: BTreeMap<(String, String), String>,
    quarantined: BTreeMap<String, Quarantine>,
    refused_frame: Option<RefusedFrame>,
    /// Why the frame is not rendered as configured.
    frame_problems: Vec<String>,
    /// What could not be checked.
    unchecked: Option<String>,
    good: Good,
    api: RuntimeApi,
    observed: Option<Observed>,
    /// The end of the worker, where it is ours to start another one.
    worker_end: Option<End>,
    /// How often the whole table was read.
    looks: u64,
    digests: Digests,
    marks: Marks,
    proven: Proven,
    fallbacks: Fallbacks,
    /// Backends whose own lines keep new servers from being added without a reload, and why.
    reload_only: BTreeMap<String, String>,
    /// Servers of this worker that were added to be admitted by their first passed check.
    awaited: BTreeSet<(String, String)>,
    looked_at: Option<Instant>,
    /// Workers that were replaced and have not ended.
    lingering: Lingering,
    /// Servers taken out that nobody wants.
    retired: BTreeMap<(String, String), Retired>,
    /// The worker has to be read before the next plan.
    stale: bool,
    socket: Socket,
    states: States,
    /// haproxy has served what was wanted, once.
    has_served: bool,
    file: File,
    /// While nobody runs the file and starts back off, the file follows the current servers; it already does.
    followed: bool,
    /// Revision of the text that was loaded as far as an exit status can tell; only without a stats socket.
    unconfirmed: Option<u64>,
    /// What was last taken into [`Good`].
    accepted: Option<(Generation, Arc<Renderer>)>,
    write_problem: Option<String>,
    reload_problem: Option<String>,
    stop_haproxy: bool,
    jobs: JoinSet<Ended>,
    in_flight: Option<InFlight>,
    driver: Option<crate::outputs::haproxy::load::Driver>,
    limiter: Limiter,
    retry_at: Option<Instant>,
    /// Until when a reload waits for sources that the configuration has just named.
    settle: Option<Instant>,
    rng: fastrand::Rng,
    host: String,
    machine: String,
    tally: Tally,
    board: Arc<Board>,
    view: watch::Sender<Arc<View>>,
    snapshot: watch::Sender<Arc<Snapshot>>,
    /// Something in the snapshot has changed; something of it that nobody else knows, such as a hold.
    unsaved: bool,
    saves_at_once: bool,
    /// When the next one is handed over; when the last one was.
    save_at: Option<Instant>,
    saved_at: Instant,
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
        self.settle = Some(Instant::now() + SETTLE);
        let mut poll = interval(POLL);
        poll.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut audit = interval(self.config.audit_interval);
        audit.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            progress.step();
            let retry = self.retry_at;
            let (save, show) = (self.save_at, self.show_at);
            let end = self.worker_end.as_ref();
            // Cancel-safe: watch and channel receives, ticks, joins of sets that keep their tasks, deadlines kept outside, an
            // end that stays one.
            tokio::select! {
                changed = changes.changed() => if changed.is_ok() { self.keeper.sources_changed() },
                changed = resolved.changed() => if changed.is_ok() {
                    resolved.mark_unchanged();
                    self.keeper.names_changed();
                    self.unsaved = true;
                },
                changed = configs.changed() => if changed.is_ok() {
                    let config = configs.borrow_and_update().clone();
                    self.reconfigure(config).await;
                },
                Some(done) = self.jobs.join_next() => self.finish(done),
                Some(order) = orders.recv() => self.keeper.obey(order),
                _ = poll.tick() => if !(self.poll().await | self.step_guards().await) { continue },
                () = reached(end), if end.is_some() => {
                    self.worker_end = None;
                    if !self.poll().await { continue }
                }
                _ = audit.tick() => if self.jobs.is_empty() { self.begin_audit() },
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
        while let Ok(Some(done)) = timeout_at(patience, self.jobs.join_next()).await {
            self.finish(done);
        }
        self.jobs.shutdown().await;
        self.marks.tidy().await;
        self.save();
        let rest = async {
            self.file.close().await;
            self.keeper.close().await;
        };
        let in_time = timeout_at(patience + CLOSING / 3, rest).await;
        if in_time.is_err() {
            warn!("the disk or ZooKeeper does not answer; synapse ends without waiting for them");
        }
        if self.stop_haproxy {
            let driver = self.driver.take();
            let driver = driver.unwrap_or_else(|| Driver::new(&self.config, true));
            driver.close().await;
        }
    }

    /// One pass: assess, take out what has gone, render, plan, apply what can be applied now, start a job for the rest,
    /// publish.
    async fn pass(&mut self) {
        self.retry_at = None;
        let mut looked = self.stale && self.jobs.is_empty();
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
                self.stale = true;
                self.observe().await;
                continue;
            }
            self.accept();
            self.start_job(&next);
            self.delete_retired().await;
            if !self.awaited.is_empty() {
                self.again_at(Instant::now() + LOOK_AT_CHECKS);
            }
            return self.publish(Some(&next));
        }
    }

    /// What is wanted of the services whose inputs have changed, with ids: which those are.
    fn assess(&mut self) -> BTreeSet<usize> {
        let can_ask = self.can_ask();
        let dirty = self.keeper.assess(&self.config, &self.circles, can_ask);
        self.saves_at_once |= self.keeper.take_news();
        if dirty.is_empty() {
            return dirty;
        }
        self.followed = false;
        self.unsaved = true;
        let live = self.observed.as_ref();
        let mut named = self.good.named();
        named.push(self.renderer.named());
        let world = World {
            named: &named,
            operator_maint: &self.operator_maint,
            refused_options: &self.refused_options,
            live: &|backend: &str| live?.running.backends.get(backend),
            looks: self.looks,
            host: &self.host,
        };
        for &index in &dirty {
            let (Some(backend), Some(state)) = (
                self.backends.get_mut(index),
                self.keeper.services().get(index),
            ) else {
                continue;
            };
            let name = backend.name().unwrap_or(&backend.service.name).to_owned();
            let known = self.ids.entry(name).or_default();
            backend.take(state.servers(), &self.config, &world, known);
            self.unrendered.insert(index);
            self.unseen.insert(index);
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
        let Ok(rows) = self.api.servers_of(&names).await else {
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
        let again = self.quarantined.iter().filter(|(_, q)| came(q));
        let again: Vec<String> = again.map(|(service, _)| service.clone()).collect();
        for service in again {
            info!(
                service,
                "what haproxy missed is there: the service is tried again"
            );
            self.quarantined.remove(&service);
            self.replace_piece(&service);
        }
    }

    /// Renders what was assessed, unless a window is open.
    fn render(&mut self) {
        if self.unrendered.is_empty() {
            return;
        }
        let now = Instant::now();
        let mut due = self.window.due(now);
        if let Some(until) = self.settling_until().filter(|_| !self.serves_anybody()) {
            // The first words of the registry go together, or haproxy would begin all their checks at once.
            due = due.max(until);
        }
        // Without a file there is nothing that could be kept as it is for so long.
        if due > now && self.wanted.is_some() {
            return self.again_at(due);
        }
        self.window.taken(now);
        for index in std::mem::take(&mut self.unrendered) {
            if let Some(state) = self.backends.get_mut(index) {
                state.render(&self.renderer);
                self.replaced.insert(index);
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
        self.retry_at = Some(self.retry_at.map_or(at, |earlier| earlier.min(at)));
    }

    /// The form a service has at the moment: as configured, or as last accepted while it is quarantined.
    fn piece(&self, state: &Backend) -> Option<crate::outputs::haproxy::file::Piece> {
        let good = || self.good.piece(&state.service, &state.servers);
        let usable = self.frame().is_whole() == self.renderer.is_whole();
        match (state.piece.as_ref()?, self.quarantine(state)) {
            (_, Some(quarantine)) => quarantine.kept.of(good()),
            (Ok(piece), None) if usable => Some(piece.clone()),
            (Ok(_) | Err(_), None) => good(),
        }
    }

    /// What renders the frame: the configuration, or what stands in for it while it is refused.
    fn frame(&self) -> &Arc<Renderer> {
        match &self.refused_frame {
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
