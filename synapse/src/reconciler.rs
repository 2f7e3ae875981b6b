//! Keeps haproxy in step with what the sources say: one task, level-triggered. Runs inside a `LocalSet`.
//!
//! A pass recomputes the services whose inputs changed, plans against what the worker was last seen to run, sends what the
//! stats socket can change (removals never wait), and leaves everything that needs the file to one job at a
//! time: check, quarantine, write, reload, proof ([`job`]). It acts on the latest whole state, never on an event; after a job,
//! another pid or a doubtful answer it reads the worker again and plans anew. Decisions are in the pure modules
//! ([`crate::services`], [`crate::assembly`], [`crate::plan`], [`limiter`]); this one moves data between them.

mod boot;
mod dispatch;
pub mod job;
pub mod limiter;
mod observed;
mod runtime;
mod view;
mod worker;

pub(crate) use boot::host_name;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use smartstack_common::report::Chain;
use smartstack_common::shutdown::Shutdown;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::{Instant, MissedTickBehavior, interval, sleep_until};
use tracing::error;

use crate::assembly::{Assembly, EffectiveCache, Piece, assemble};
use crate::config::Config;
use crate::generation::Generation;
use crate::good::Good;
use crate::render::Renderer;
use crate::runtime_api::RuntimeApi;
use crate::services::{State, World, source_key};
use crate::snapshot::Snapshot;
use crate::source::SourceKey;
use crate::sources::Sources;
use crate::status::{ReloadView, View};
use job::{Done, Kept};
use limiter::Limiter;
use observed::{Digests, Observed};
use runtime::{Fallbacks, Proven};

/// The worker's pid and generation are looked at this often.
const POLL: Duration = Duration::from_secs(1);
/// A quarantined service is tried again this often, although nothing of it changed: what haproxy missed (a certificate,
/// a free port) may be there by now.
const RETRY_QUARANTINED: Duration = Duration::from_secs(60);

/// How long a reload waits for sources that the configuration has just named.
const SETTLE: Duration = Duration::from_millis(500);
/// Pause after an answer that leaves the worker's state in doubt.
const RETRY_DOUBT: Duration = Duration::from_millis(200);

/// Why a service is not rendered as configured.
#[derive(Debug, Clone)]
struct Quarantine {
    /// The refused structure: another one is tried at once.
    structure: Vec<u8>,
    /// haproxy's words.
    reason: String,
    /// What stands in the file instead.
    kept: Kept,
    since: Instant,
}

/// Counts of what was done, for status and metrics.
#[derive(Debug, Clone, Default)]
struct Tally {
    reloads: u64,
    reload_failures: u64,
    last_reload: Option<ReloadView>,
    runtime_ops: u64,
    foreign_reloads: u64,
}

/// The task's state.
pub struct Reconciler {
    config: Arc<Config>,
    renderer: Arc<Renderer>,
    sources: Sources,
    services: Vec<State>,
    /// Services whose inputs changed.
    dirty: BTreeSet<usize>,
    /// haproxy's ids by backend and NAME.
    ids: BTreeMap<String, BTreeMap<String, u32>>,
    operator_maint: BTreeSet<(String, String)>,
    refused_options: BTreeMap<(String, String), String>,
    quarantined: BTreeMap<String, Quarantine>,
    /// The frame that was refused, until when it is not tried again.
    refused_frame: Option<(Arc<Renderer>, Instant)>,
    /// Why the frame is not rendered as configured.
    frame_problem: Option<String>,
    good: Good,
    cache: EffectiveCache,
    api: RuntimeApi,
    observed: Option<Observed>,
    digests: Digests,
    proven: Proven,
    fallbacks: Fallbacks,
    /// Servers taken out that nobody wants: of which worker, and when the next attempt to delete them is due.
    retired: BTreeMap<(String, String), (u32, Instant)>,
    /// The worker has to be read before the next plan.
    stale: bool,
    /// Why the stats socket cannot be used.
    socket_problem: Option<String>,
    /// Text of the config file as last read or written.
    disk: Option<Arc<str>>,
    /// While reloads back off, the file follows the current servers; it already does.
    held: bool,
    /// Text that was loaded as far as an exit status can tell; only without a stats socket.
    unconfirmed: Option<Arc<str>>,
    /// What was last taken into [`Good`].
    accepted: Option<(Generation, Arc<Renderer>)>,
    write_problem: Option<String>,
    reload_problem: Option<String>,
    stop_haproxy: bool,
    jobs: JoinSet<Done>,
    driver: Option<job::Driver>,
    limiter: Limiter,
    retry_at: Option<Instant>,
    /// Until when a reload waits for sources that the configuration has just named.
    settle: Option<Instant>,
    rng: fastrand::Rng,
    host: String,
    machine: String,
    tally: Tally,
    view: watch::Sender<Arc<View>>,
    snapshot: watch::Sender<Arc<Snapshot>>,
}

/// What the reconciler publishes to.
pub struct Outputs {
    /// For `/status` and `/metrics`.
    pub view: watch::Sender<Arc<View>>,
    /// For the snapshot's writer.
    pub snapshot: watch::Sender<Arc<Snapshot>>,
}

impl Reconciler {
    /// The sources and their tasks.
    #[must_use]
    pub fn sources(&self) -> &Sources {
        &self.sources
    }

    /// Runs until `shutdown`. The first pass is made before any session is opened.
    pub async fn run(mut self, mut configs: watch::Receiver<Arc<Config>>, mut shutdown: Shutdown) {
        self.pass().await;
        let config = Arc::clone(&self.config);
        self.sources.follow(&config);
        let mut changes = self.sources.changes();
        let mut resolved = self.sources.resolved();
        let mut poll = interval(POLL);
        poll.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut audit = interval(self.config.audit_interval);
        audit.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            let retry = self.retry_at;
            // Cancel-safe: watch receives, ticks, a join of a set that keeps its tasks, a deadline kept outside.
            tokio::select! {
                () = shutdown.wait() => break,
                changed = changes.changed() => if changed.is_ok() { self.sources_changed() },
                changed = resolved.changed() => if changed.is_ok() {
                    resolved.mark_unchanged();
                    self.dirty.extend(0..self.services.len());
                },
                changed = configs.changed() => if changed.is_ok() {
                    let config = configs.borrow_and_update().clone();
                    self.reconfigure(config);
                },
                Some(done) = self.jobs.join_next() => self.finish(done),
                _ = poll.tick() => if !self.poll().await { continue },
                _ = audit.tick() => if self.jobs.is_empty() {
                    self.read_disk();
                    self.stale = true;
                },
                () = sleep_until(retry.unwrap_or_else(Instant::now)), if retry.is_some() => {}
            }
            self.pass().await;
        }
        self.close().await;
    }

    async fn close(mut self) {
        // A job in flight may hold haproxy between two files: it is short and bounded, so it is awaited.
        while let Some(done) = self.jobs.join_next().await {
            self.finish(done);
        }
        if let Some(driver) = self.driver.take() {
            driver.close().await;
        }
        self.sources.close().await;
    }

    fn sources_changed(&mut self) {
        let changed = self.sources.take_changed();
        let dirty = self
            .indexes(|state| source_key(&state.service).is_some_and(|key| changed.contains(&key)));
        self.dirty.extend(dirty);
    }

    /// One pass: recompute, plan, apply what can be applied now, start a job for the rest, publish.
    async fn pass(&mut self) {
        let mut looked = self.stale && self.jobs.is_empty();
        if looked {
            self.observe().await;
        }
        loop {
            self.recompute();
            self.retry_at = None;
            let assembly = match self.assemble_some() {
                Ok(assembly) => assembly,
                Err(problem) => return self.cannot_render(problem),
            };
            let next = self.change(&assembly).await;
            if !looked && self.may_reload(&assembly, &next) {
                // The next worker knows of an operator's maint only what its file says: the last look may be too old.
                looked = true;
                self.stale = true;
                self.observe().await;
                continue;
            }
            self.accept(&assembly);
            if self.jobs.is_empty() {
                self.start_job(&assembly, &next);
            }
            self.delete_retired(&assembly).await;
            return self.publish(Some((&assembly, &next)));
        }
    }

    fn cannot_render(&mut self, problem: String) {
        if self.frame_problem.as_ref() != Some(&problem) {
            error!(
                problem,
                "haproxy.cfg cannot be rendered: the running one stays as it is"
            );
            self.frame_problem = Some(problem);
        }
        self.publish(None);
    }

    fn recompute(&mut self) {
        let dirty = std::mem::take(&mut self.dirty);
        if dirty.is_empty() {
            return;
        }
        self.held = false;
        let resolved = self.sources.resolved().borrow().clone();
        let world = World {
            view: &|key: &SourceKey| self.sources.view(key),
            resolved: &|host: &str| resolved.get(host).and_then(|a| a.first()).copied(),
            operator_maint: &self.operator_maint,
            refused_options: &self.refused_options,
            live_ids: &|backend: &str| {
                self.observed
                    .as_ref()
                    .map(|o| o.ids(backend))
                    .unwrap_or_default()
            },
            host: &self.host,
        };
        for index in dirty {
            let Some(state) = self.services.get_mut(index) else {
                continue;
            };
            let backend = state.backend().unwrap_or(&state.service.name).to_owned();
            let known = self.ids.entry(backend).or_default();
            state.recompute(&self.config, &self.renderer, &world, known);
        }
        self.sources.want_names(
            self.services
                .iter()
                .flat_map(|s| s.names.iter().cloned())
                .collect(),
        );
    }

    /// The form each service has at the moment: as configured, or as last accepted while it is quarantined.
    fn pieces(&self) -> Vec<Piece> {
        self.services
            .iter()
            .filter_map(|state| self.piece(state))
            .collect()
    }

    fn piece(&self, state: &State) -> Option<Piece> {
        let good = || self.good.piece(&state.service, &state.servers);
        let usable = self.frame().is_whole() == self.renderer.is_whole();
        match (state.piece.as_ref()?, self.quarantine(state)) {
            (_, Some(quarantine)) => quarantine.kept.of(good()),
            (Ok(piece), None) if usable => Some(piece.clone()),
            (Ok(_) | Err(_), None) => good(),
        }
    }

    /// What renders the frame: the configuration, or the last good one while this one is refused.
    fn frame(&self) -> &Arc<Renderer> {
        match (&self.refused_frame, &self.good.frame) {
            (Some((refused, until)), Some(good))
                if Arc::ptr_eq(refused, &self.renderer) && Instant::now() < *until =>
            {
                good
            }
            _ => &self.renderer,
        }
    }

    /// When a template of the frame fails, the last good frame holds the services meanwhile.
    fn assemble_some(&mut self) -> Result<Assembly, String> {
        self.assemble().or_else(|problem| {
            let refused = Arc::clone(self.frame());
            if self.good.frame.is_none() || !Arc::ptr_eq(&refused, &self.renderer) {
                return Err(problem);
            }
            error!(
                problem,
                "haproxy.cfg cannot be rendered: its last good frame stays"
            );
            self.refuse_frame(refused, problem);
            self.assemble()
        })
    }

    fn assemble(&mut self) -> Result<Assembly, String> {
        let pieces = self.pieces();
        let pieces: Vec<&Piece> = pieces.iter().collect();
        let frame = Arc::clone(self.frame());
        assemble(&frame, &pieces, &mut self.cache).map_err(|e| Chain(&e).to_string())
    }
}
