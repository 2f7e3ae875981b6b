//! Keeps haproxy in step with what the sources say: one task, level-triggered. Runs inside a `LocalSet`.
//!
//! A pass recomputes the services whose inputs changed, plans against what the worker was last seen to run, sends what the
//! stats socket can change at once (removals never wait), and leaves everything that needs the file to one job at a time:
//! check, quarantine, write, reload, proof ([`job`]). It acts on the latest whole state, never on an event; after a job,
//! another pid or a doubtful answer it reads the worker again and plans anew. Decisions are in the pure modules
//! ([`crate::services`], [`crate::assembly`], [`crate::plan`], [`limiter`]); this one moves data between them.

pub mod job;
pub mod limiter;
mod observed;
mod view;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use smartstack_common::report::Chain;
use smartstack_common::shutdown::Shutdown;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::{Instant, MissedTickBehavior, interval, sleep_until};
use tracing::{error, info, warn};

use crate::assembly::{Assembly, EffectiveCache, Piece, assemble};
use crate::cfg::{Model, Ours};
use crate::config::{Config, Reload, Service};
use crate::desired::Previous;
use crate::effective::Scope;
use crate::generation::Generation;
use crate::good::Good;
use crate::plan::{Plan, plan};
use crate::render::{RenderError, Renderer};
use crate::ruby_state;
use crate::runtime_api::RuntimeApi;
use crate::seed;
use crate::services::{State, World, source_key};
use crate::snapshot::Snapshot;
use crate::source::SourceKey;
use crate::sources::Sources;
use crate::status::{ReloadView, View, seconds};
use job::{Candidate, Done, Job, Outcome};
use limiter::Limiter;
use observed::{Digests, Observed};

/// The worker's pid and generation are looked at this often.
const POLL: Duration = Duration::from_secs(1);
/// A quarantined service is tried again this often, although nothing of it changed: what haproxy missed (a certificate,
/// a free port) may be there by now.
const RETRY_QUARANTINED: Duration = Duration::from_secs(60);

/// Pause after an answer that leaves the worker's state in doubt.
const RETRY_DOUBT: Duration = Duration::from_millis(200);

/// Why a service is not rendered as configured.
#[derive(Debug, Clone)]
struct Quarantine {
    /// The refused structure: another one is tried at once.
    structure: Vec<u8>,
    /// haproxy's words.
    reason: String,
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
    /// The worker has to be read before the next plan.
    stale: bool,
    /// Why the stats socket cannot be used.
    socket_problem: Option<String>,
    /// Text of the config file as last read or written.
    disk: Option<Arc<str>>,
    /// Text that was loaded as far as an exit status can tell; only without a stats socket.
    unconfirmed: Option<Arc<str>>,
    /// The generation that was last taken into [`Good`].
    accepted: Option<Generation>,
    write_problem: Option<String>,
    reload_problem: Option<String>,
    stop_haproxy: bool,
    jobs: JoinSet<Done>,
    driver: Option<job::Driver>,
    limiter: Limiter,
    retry_at: Option<Instant>,
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
    /// Reads what runs and what is on disk, and chooses what each service begins with. No network, no change.
    ///
    /// # Errors
    /// When a template cannot be read.
    pub async fn start(
        config: Arc<Config>,
        snapshot: &Snapshot,
        shutdown: Shutdown,
        outputs: Outputs,
        stop_haproxy: bool,
    ) -> Result<Self, RenderError> {
        let renderer = Arc::new(Renderer::new(&config)?);
        let mut sources = Sources::new(snapshot, shutdown);
        sources.configure(&config, snapshot);
        let services: Vec<State> = config
            .services
            .iter()
            .map(|s| State::new(Arc::new(s.clone()), held(snapshot, s)))
            .collect();
        let sockets = if config.haproxy.do_socket {
            config.haproxy.socket_file_path.clone()
        } else {
            Vec::new()
        };
        let disk = std::fs::read_to_string(&config.haproxy.config_file_path)
            .ok()
            .map(Arc::from);
        let mut this = Self {
            dirty: (0..services.len()).collect(),
            ids: snapshot.ids.as_ref().clone(),
            operator_maint: operator_maint(snapshot),
            refused_options: BTreeMap::new(),
            quarantined: BTreeMap::new(),
            refused_frame: None,
            frame_problem: None,
            good: Good::default(),
            cache: EffectiveCache::default(),
            api: RuntimeApi::new(sockets),
            observed: None,
            digests: Digests::of_snapshot(snapshot),
            stale: true,
            socket_problem: None,
            unconfirmed: None,
            accepted: None,
            write_problem: None,
            reload_problem: None,
            stop_haproxy,
            jobs: JoinSet::new(),
            driver: Some(job::Driver::new(&config, stop_haproxy)),
            limiter: Limiter::new(
                config.haproxy.restart_interval,
                config.haproxy.restart_jitter,
            ),
            retry_at: None,
            rng: fastrand::Rng::new(),
            host: host_name(),
            machine: snapshot.machine.clone(),
            tally: Tally::default(),
            view: outputs.view,
            snapshot: outputs.snapshot,
            config,
            renderer,
            sources,
            services,
            disk,
        };
        this.observe().await;
        this.plant(snapshot);
        Ok(this)
    }

    /// What runs, or else what stands in haproxy.cfg, stays until the registry has spoken.
    fn plant(&mut self, snapshot: &Snapshot) {
        let file = self.disk.clone().map(|text| Model::parse(&text, Ours::All));
        if let Some(text) = &self.disk {
            let services: Vec<_> = self
                .services
                .iter()
                .map(|s| Arc::clone(&s.service))
                .collect();
            self.good = Good::of_file(text, &services);
        }
        for (backend, ids) in ruby_state::ids(
            self.config.haproxy.state_file_path.as_deref(),
            &self.config.services,
        ) {
            let known = self.ids.entry(backend).or_default();
            ids.into_iter()
                .for_each(|(name, id)| _ = known.entry(name).or_insert(id));
        }
        let resolved = |host: &str| snapshot.resolved.get(host)?.first().copied();
        for state in &mut self.services {
            let Some(backend) = state.backend().map(str::to_owned) else {
                continue;
            };
            let live = self.observed.as_ref().and_then(|o| o.seed_rows(&backend));
            let file = file
                .as_ref()
                .and_then(|model| observed::file_rows(model, &backend));
            let view = source_key(&state.service)
                .map(|key| self.sources.view(&key))
                .unwrap_or_default();
            let inputs = seed::Inputs {
                live: live.as_deref(),
                file: file.as_deref(),
                snapshot: &state.remembered(&self.config, &view, &resolved),
                defaults: &[],
                configured_options: state
                    .service
                    .haproxy
                    .as_ref()
                    .map_or("", |h| &h.server_options),
            };
            let seed = seed::seed(&inputs);
            let known = self.ids.entry(backend).or_default();
            known.extend(seed.ids.iter().map(|(name, id)| (name.clone(), *id)));
            state.plant(seed);
        }
        self.stale = true;
    }

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
                _ = audit.tick() => self.stale = self.jobs.is_empty(),
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

    /// Takes a configuration that has been validated. What is the same stays as it is.
    fn reconfigure(&mut self, config: Arc<Config>) {
        match Renderer::new(&config) {
            Ok(renderer) => self.renderer = Arc::new(renderer),
            Err(error) => {
                error!(error = %Chain(&error), "the new configuration is not taken: nothing changes");
                return;
            }
        }
        let empty = Snapshot::default();
        self.sources.configure(&config, &empty);
        self.sources.follow(&config);
        let mut former: BTreeMap<String, State> = std::mem::take(&mut self.services)
            .into_iter()
            .map(|s| (s.service.name.clone(), s))
            .collect();
        for service in &config.services {
            let service = Arc::new(service.clone());
            let state = match former.remove(&service.name) {
                Some(mut state) => {
                    state.reconfigure(service);
                    state
                }
                None => State::new(service, Previous::None),
            };
            self.services.push(state);
        }
        let sockets = if config.haproxy.do_socket {
            config.haproxy.socket_file_path.clone()
        } else {
            Vec::new()
        };
        self.api = RuntimeApi::new(sockets);
        self.limiter.configure(
            config.haproxy.restart_interval,
            config.haproxy.restart_jitter,
        );
        if let Some(driver) = &mut self.driver {
            driver.configure(&config);
        }
        self.config = config;
        self.quarantined.clear();
        self.refused_options.clear();
        self.dirty = (0..self.services.len()).collect();
        self.stale = true;
        info!(services = self.services.len(), "configuration taken");
    }

    /// Looks at the worker's pid and generation. Returns whether a pass is needed.
    async fn poll(&mut self) -> bool {
        let now = Instant::now();
        let before = self.quarantined.len();
        self.quarantined
            .retain(|_, q| now.duration_since(q.since) < RETRY_QUARANTINED);
        let retry = self.quarantined.len() != before;
        if !self.jobs.is_empty() || !self.api.is_configured() {
            return retry;
        }
        match self.api.info().await {
            Ok(info) => {
                let same = self.observed.as_ref().is_some_and(|o| o.is(&info));
                if !same {
                    if let Some(observed) = &self.observed {
                        self.tally.foreign_reloads += 1;
                        warn!(
                            former = observed.pid(),
                            pid = info.pid,
                            "haproxy runs another worker that we did not start"
                        );
                    }
                    self.stale = true;
                }
                !same || retry
            }
            Err(error) if error.is_absent() => {
                let lost = self.observed.is_some();
                self.stale = true;
                lost || retry
            }
            Err(error) => {
                self.socket_failed(&Chain(&error).to_string());
                retry
            }
        }
    }

    fn socket_failed(&mut self, problem: &str) {
        if self.socket_problem.as_deref() != Some(problem) {
            warn!(
                problem,
                "the stats socket gives no answer; nothing is reloaded for that"
            );
            self.socket_problem = Some(problem.to_owned());
        }
    }

    /// Reads the whole state of the worker.
    async fn observe(&mut self) {
        if !self.api.is_configured() {
            self.stale = false;
            return;
        }
        let read = match Observed::read(&self.api, &self.digests).await {
            Ok(observed) if self.digests.pid() == Some(observed.pid()) => Ok(observed),
            Ok(observed) => {
                self.adopt_worker(observed.pid());
                Observed::read(&self.api, &self.digests).await
            }
            Err(error) => Err(error),
        };
        match read {
            Ok(observed) => {
                self.stale = false;
                if self.socket_problem.take().is_some() {
                    info!("the stats socket answers again");
                }
                self.note_operator(&observed);
                self.observed = Some(observed);
            }
            Err(error) if error.is_absent() => {
                self.stale = false;
                if self.observed.take().is_some() {
                    error!(error = %Chain(&error), "haproxy does not run any more, or not with this stats socket");
                }
            }
            Err(error) => self.socket_failed(&Chain(&error).to_string()),
        }
    }

    /// A worker that we did not start has loaded the file as it stands now, which may not be the one we wrote.
    fn adopt_worker(&mut self, pid: u32) {
        self.disk = std::fs::read_to_string(&self.config.haproxy.config_file_path)
            .ok()
            .map(Arc::from);
        if let Some(text) = &self.disk {
            let written = Scope::default().read(&Model::parse(text, Ours::All));
            self.digests = Digests::of_file(pid, &written);
        }
    }

    /// Servers that an operator disabled are rendered so, and servers made ready again are not.
    fn note_operator(&mut self, observed: &Observed) {
        let maint = observed.operator_maint();
        if maint == self.operator_maint {
            return;
        }
        let touched: BTreeSet<&str> = maint
            .symmetric_difference(&self.operator_maint)
            .map(|(backend, _)| backend.as_str())
            .collect();
        let dirty = self.indexes(|state| {
            state
                .backend()
                .is_some_and(|backend| touched.contains(backend))
        });
        self.dirty.extend(dirty);
        self.operator_maint = maint;
    }

    /// One pass: recompute, plan, apply what can be applied now, start a job for the rest, publish.
    async fn pass(&mut self) {
        if self.stale && self.jobs.is_empty() {
            self.observe().await;
        }
        self.recompute();
        self.retry_at = None;
        match self.assemble() {
            Ok(assembly) => self.reconcile(assembly).await,
            Err(problem) => {
                if self.frame_problem.as_ref() != Some(&problem) {
                    error!(
                        problem,
                        "haproxy.cfg cannot be rendered: the running one stays as it is"
                    );
                    self.frame_problem = Some(problem);
                }
                self.publish(None);
            }
        }
    }

    fn recompute(&mut self) {
        let dirty = std::mem::take(&mut self.dirty);
        if dirty.is_empty() {
            return;
        }
        let resolved = self.sources.resolved().borrow().clone();
        let live_ids = self
            .observed
            .as_ref()
            .map(Observed::ids)
            .unwrap_or_default();
        let world = World {
            view: &|key: &SourceKey| self.sources.view(key),
            resolved: &|host: &str| resolved.get(host).and_then(|a| a.first()).copied(),
            operator_maint: &self.operator_maint,
            refused_options: &self.refused_options,
            live_ids: &live_ids,
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
        match state.piece.as_ref()? {
            Err(_) => good(),
            Ok(_) if self.is_quarantined(state) => good(),
            Ok(piece) => Some(piece.clone()),
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

    fn assemble(&mut self) -> Result<Assembly, String> {
        let pieces = self.pieces();
        let pieces: Vec<&Piece> = pieces.iter().collect();
        let frame = Arc::clone(self.frame());
        assemble(&frame, &pieces, &mut self.cache).map_err(|e| Chain(&e).to_string())
    }

    async fn reconcile(&mut self, assembly: Assembly) {
        let mut next = self.plan(&assembly);
        if let Plan::Runtime(ops) | Plan::Reload { first: ops, .. } = &next
            && !ops.is_empty()
        {
            let ops = ops.clone();
            self.apply(&ops).await;
            next = self.plan(&assembly);
        }
        self.accept(&assembly);
        if self.jobs.is_empty() {
            self.start_job(&assembly, &next);
        }
        self.publish(Some((&assembly, &next)));
    }

    fn plan(&self, assembly: &Assembly) -> Plan {
        match &self.observed {
            Some(observed) => plan(&observed.running, &assembly.desired),
            None => plan(&crate::plan::Running::default(), &assembly.desired),
        }
    }

    /// Starts the job that brings file and worker to `assembly`, when one is needed and may start now.
    fn start_job(&mut self, assembly: &Assembly, next: &Plan) {
        let now = Instant::now();
        let reload = self.reload_reason(assembly, next);
        let other_text =
            self.config.haproxy.do_writes && self.disk.as_deref() != Some(&*assembly.text);
        if reload.is_none() && !other_text {
            return;
        }
        let mut hold = false;
        if reload.is_some() || self.write_problem.is_some() {
            let due = self.limiter.due(now, &mut self.rng);
            if due > now {
                self.retry_at = Some(due);
                // After a failure the wait may be long: the file then follows the servers in its last good structure.
                hold = self.limiter.is_backing_off()
                    && self.good.frame.is_some()
                    && self.write_problem.is_none();
                if !hold {
                    return;
                }
            }
        }
        let job = Job {
            candidates: self.candidates(hold),
            frame: if hold { self.good.frame.clone() } else { None }
                .unwrap_or_else(|| Arc::clone(&self.renderer)),
            good_frame: self.good.frame.clone(),
            reload: reload.filter(|_| !hold),
            running: self.observed.as_ref().map(|o| o.running.clone()),
            disk: self.disk.clone(),
        };
        if let Some(driver) = self.driver.take() {
            self.jobs.spawn_local(driver.run(job));
        }
    }

    fn candidates(&self, hold: bool) -> Vec<Candidate> {
        let rendered = self.services.iter().filter(|s| s.service.haproxy.is_some());
        rendered
            .map(|state| {
                let good = self.good.piece(&state.service, &state.servers);
                let quarantined = self.is_quarantined(state);
                let new = state
                    .piece
                    .as_ref()
                    .and_then(|p| p.as_ref().ok())
                    .filter(|_| !quarantined);
                Candidate {
                    name: state.service.name.clone(),
                    new: if hold { good.clone() } else { new.cloned() },
                    good,
                }
            })
            .collect()
    }

    fn is_quarantined(&self, state: &State) -> bool {
        let Some(Ok(piece)) = &state.piece else {
            return false;
        };
        self.quarantined
            .get(&state.service.name)
            .is_some_and(|q| q.structure == piece.structure())
    }

    /// Why a reload is needed; `None` = it is not, or it must not be.
    fn reload_reason(&self, assembly: &Assembly, next: &Plan) -> Option<String> {
        if self.config.haproxy.reload == Reload::Never {
            return None;
        }
        if !self.api.is_configured() {
            let other = self.unconfirmed.as_deref() != Some(&*assembly.text);
            return other
                .then(|| "there is no stats socket, so that every change is a reload".to_owned());
        }
        if self.stale {
            // The worker could not be read. Only a proven difference is worth a reload.
            return None;
        }
        match (&self.observed, next) {
            (None, _) => Some("haproxy is not running".to_owned()),
            (Some(_), Plan::Reload { reason, .. }) => Some(reason.to_string()),
            (Some(_), Plan::Unchanged | Plan::Runtime(_)) => None,
        }
    }

    /// Takes the result of a job.
    fn finish(&mut self, done: Result<Done, tokio::task::JoinError>) {
        self.stale = true;
        let done = match done {
            Ok(done) => done,
            Err(error) => {
                error!(%error, "a job ended by a defect; another one is made");
                self.driver = Some(job::Driver::new(&self.config, self.stop_haproxy));
                return;
            }
        };
        let now = Instant::now();
        self.driver = Some(done.driver);
        if let Some(driver) = &mut self.driver {
            driver.configure(&self.config);
        }
        self.disk = done.disk.or(self.disk.take());
        self.note_refusals(done.bad, done.bad_frame, done.refused_options);
        let took = now.duration_since(done.started);
        let ok = !matches!(done.outcome, Outcome::Failed(_));
        self.write_problem = None;
        let error = match done.outcome {
            Outcome::Unneeded | Outcome::Written => None,
            Outcome::Reloaded { pid, assembly } => {
                self.digests = Digests::loaded(pid, &assembly.desired);
                self.tally.reloads += 1;
                info!(pid, generation = %assembly.desired.generation, ?took, reason = done.reason, "haproxy reloaded");
                None
            }
            Outcome::Unconfirmed { assembly } => {
                self.unconfirmed = Some(assembly.text);
                self.tally.reloads += 1;
                info!(
                    ?took,
                    reason = done.reason,
                    "haproxy reloaded; nobody can be asked whether it took"
                );
                None
            }
            Outcome::Failed(error) => Some(error),
        };
        if let Some(error) = &error {
            error!(
                error,
                reason = done.reason,
                "haproxy was not brought to the new state; what runs goes on"
            );
            if done.reason.is_none() {
                self.write_problem = Some(error.clone());
            }
        }
        if done.reason.is_some() || !ok {
            self.limiter.started(done.started);
            self.limiter.ended(ok);
        }
        self.reload_problem.clone_from(&error);
        if let Some(reason) = done.reason {
            self.tally.reload_failures += u64::from(!ok);
            let ms = u64::try_from(took.as_millis()).unwrap_or(u64::MAX);
            self.tally.last_reload = Some(ReloadView {
                at: seconds(SystemTime::now() - took),
                reason,
                ok,
                ms,
                error,
            });
        }
    }

    fn note_refusals(
        &mut self,
        bad: BTreeMap<String, String>,
        bad_frame: Option<String>,
        refused_options: BTreeMap<(String, String), String>,
    ) {
        for (service, reason) in bad {
            let state = self.services.iter().find(|s| s.service.name == service);
            let Some(Ok(piece)) = state.and_then(|s| s.piece.as_ref()) else {
                continue;
            };
            error!(
                service,
                reason,
                "haproxy refuses this service as configured: its last good form stays, others proceed"
            );
            let structure = piece.structure();
            self.quarantined.insert(
                service,
                Quarantine {
                    structure,
                    reason,
                    since: Instant::now(),
                },
            );
        }
        if let Some(problem) = &bad_frame {
            error!(
                problem,
                "haproxy refuses global, defaults or extra sections: their last good form stays"
            );
        }
        self.refused_frame = bad_frame.as_ref().map(|_| {
            (
                Arc::clone(&self.renderer),
                Instant::now() + RETRY_QUARANTINED,
            )
        });
        self.frame_problem = bad_frame;
        for ((backend, options), reason) in refused_options {
            warn!(
                backend,
                options, reason, "haproxy refuses these server options: their servers are left out"
            );
            let dirty: Vec<usize> = self.indexes(|s| s.backend() == Some(backend.as_str()));
            self.dirty.extend(dirty);
            self.refused_options.insert((backend, options), reason);
        }
    }

    fn indexes(&self, of: impl Fn(&State) -> bool) -> Vec<usize> {
        self.services
            .iter()
            .enumerate()
            .filter(|(_, s)| of(s))
            .map(|(i, _)| i)
            .collect()
    }

    /// The worker serves what was assembled: every form in it is good.
    fn accept(&mut self, assembly: &Assembly) {
        let serves = self
            .observed
            .as_ref()
            .is_some_and(|o| o.running.generation.as_ref() == Some(&assembly.desired.generation));
        if !serves || self.accepted.as_ref() == Some(&assembly.desired.generation) {
            return;
        }
        self.accepted = Some(assembly.desired.generation.clone());
        if self.frame_problem.is_none() {
            self.good.frame = Some(Arc::clone(&self.renderer));
        }
        for state in &self.services {
            if matches!(state.piece, Some(Ok(_))) && !self.is_quarantined(state) {
                self.good.accept(&self.renderer, &state.service);
            }
        }
    }

    async fn apply(&mut self, ops: &[crate::plan::Op]) {
        match self.api.apply(ops).await {
            Ok(results) => {
                for (op, result) in ops.iter().zip(results) {
                    match result {
                        Ok(()) => {
                            info!(%op, "applied over the stats socket");
                            self.tally.runtime_ops += 1;
                            if let Some(observed) = &mut self.observed {
                                observed.apply(op);
                            }
                        }
                        Err(refusal) => {
                            warn!(%op, %refusal, "haproxy refuses; its state is read again");
                            self.doubt();
                        }
                    }
                }
            }
            Err(error) => {
                self.socket_failed(&Chain(&error).to_string());
                self.doubt();
            }
        }
    }

    /// The worker has to be read again before anything is believed.
    fn doubt(&mut self) {
        self.stale = true;
        self.retry_at = Some(Instant::now() + RETRY_DOUBT);
    }
}

/// What is held for a service since before this process.
fn held(snapshot: &Snapshot, service: &Service) -> Previous {
    let hold = source_key(service).and_then(|key| snapshot.hold(&service.name, &key).cloned());
    hold.map_or(Previous::None, Previous::Children)
}

fn operator_maint(snapshot: &Snapshot) -> BTreeSet<(String, String)> {
    let maint = snapshot
        .operator
        .iter()
        .filter(|(_, state)| *state == "maint");
    maint
        .filter_map(|(key, _)| key.split_once('/'))
        .map(|(b, n)| (b.to_owned(), n.to_owned()))
        .collect()
}

/// The host's name: the default seed of the shuffle.
pub(crate) fn host_name() -> String {
    std::fs::read_to_string("/proc/sys/kernel/hostname")
        .map(|name| name.trim().to_owned())
        .unwrap_or_default()
}
