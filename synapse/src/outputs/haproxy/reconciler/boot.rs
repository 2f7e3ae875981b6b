//! What the reconciler begins with: at the start of the program, and when the configuration changes.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use smartstack_common::report::Chain;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, sleep_until};
use tracing::{error, info, warn};

use super::aim::Touched;
use super::fallbacks::Fallbacks;
use super::limiter::Limiter;
use super::lingering::Lingering;
use super::marks::{self, Marks};
use super::observed::{Digests, OperatorMaint, file_rows};
use super::socket::Socket;
use super::states::States;
use super::window::Window;
use super::{Outputs, Reconciler, SETTLE, Tally};
use crate::config::Config;
use crate::model::source::{Resolved, SourceKey};
use crate::outputs::haproxy::backend::Backend;
use crate::outputs::haproxy::backend::circles::Circles;
use crate::outputs::haproxy::backend::ruby_state;
use crate::outputs::haproxy::backend::seed::{self, RowState};
use crate::outputs::haproxy::cfg::effective::Scope;
use crate::outputs::haproxy::cfg::generation::Generation;
use crate::outputs::haproxy::cfg::{Model, Ours, Section};
use crate::outputs::haproxy::disk::File;
use crate::outputs::haproxy::file::good::Good;
use crate::outputs::haproxy::host::{host_name, own_addresses};
use crate::outputs::haproxy::load::Driver;
use crate::outputs::haproxy::process::binary;
use crate::outputs::haproxy::reconciler::apply::Proven;
use crate::outputs::haproxy::render::{RenderError, Renderer};
use crate::outputs::haproxy::socket::RuntimeApi;
use crate::outputs::haproxy::version::Version;
use crate::snapshot::Snapshot;
use crate::wanted::keeper::Keeper;
use crate::wanted::service::State;

/// First words of the registry that come within it are taken in together: many sources speak at one moment.
const TOGETHER: Duration = Duration::from_millis(5);
/// Servers named in one line of the log.
const TOLD: usize = 10;
/// An operator's maint, as the snapshot has it.
pub(super) const MAINT: &str = "maint";
/// The same, its agent not listened to.
pub(super) const SILENT_MAINT: &str = "maint, agent off";

impl Reconciler {
    /// Reads what runs and what is on disk, and chooses what each service begins with. No network, no change.
    ///
    /// # Errors
    /// When a template cannot be read.
    pub async fn start(
        config: Arc<Config>,
        snapshot: &Snapshot,
        keeper: Keeper,
        outputs: Outputs,
        stop_haproxy: bool,
    ) -> Result<Self, RenderError> {
        let renderer = Arc::new(fitting(&config).await?);
        let backends: Vec<Backend> = keeper
            .services()
            .iter()
            .map(|state| Backend::new(Arc::clone(&state.service)))
            .collect();
        let text = File::new(&config.haproxy.config_file_path).read();
        let model = text.as_ref().map(|text| Model::parse(text, Ours::All));
        let file = model.as_ref();
        let mut digests = Digests::of_snapshot(snapshot);
        if let Some(file) = file {
            digests.complete(&Scope::default().read(file));
        }
        let mut this = Self {
            by_backend: BTreeMap::new(),
            unrendered: BTreeSet::new(),
            replaced: BTreeSet::new(),
            show_at: None,
            unseen: BTreeSet::new(),
            window: Window::new(config.coalesce.0, config.coalesce.1),
            wanted: None,
            held: None,
            touched: Touched::All,
            ids: snapshot.ids.clone(),
            operator_maint: operator_maint(snapshot),
            refused_options: BTreeMap::new(),
            quarantined: BTreeMap::new(),
            refused_frame: None,
            frame_problems: Vec::new(),
            unchecked: None,
            good: Good::default(),
            api: RuntimeApi::new(stats_sockets(&config)),
            observed: None,
            worker_end: None,
            looks: 0,
            marks: Marks::read(&marks::path(&config.snapshot_path), file, digests.pid()),
            digests,
            proven: Proven::default(),
            fallbacks: Fallbacks::default(),
            reload_only: BTreeMap::new(),
            awaited: BTreeSet::new(),
            looked_at: None,
            lingering: Lingering::default(),
            retired: BTreeMap::new(),
            stale: true,
            socket: Socket::default(),
            states: States::default(),
            has_served: false,
            file: File::new(&config.haproxy.config_file_path),
            followed: false,
            unconfirmed: None,
            accepted: None,
            write_problem: None,
            reload_problem: None,
            stop_haproxy,
            jobs: JoinSet::new(),
            in_flight: None,
            driver: Some(Driver::new(&config, stop_haproxy)),
            circles: RefCell::new(Circles::of_config(&config, &renderer, own_addresses())),
            limiter: Limiter::new(
                config.haproxy.restart_interval,
                config.haproxy.restart_jitter,
            ),
            retry_at: None,
            settle: None,
            rng: fastrand::Rng::new(),
            host: host_name(),
            machine: snapshot.machine.clone(),
            tally: Tally::default(),
            board: outputs.board,
            view: outputs.view,
            snapshot: outputs.snapshot,
            unsaved: true,
            saves_at_once: true,
            save_at: None,
            saved_at: Instant::now(),
            config,
            renderer,
            keeper,
            backends,
        };
        this.index_services();
        this.observe().await;
        this.plant(snapshot, text.as_deref(), file);
        Ok(this)
    }

    /// What runs, or else what stands in haproxy.cfg, stays until the registry has spoken.
    fn plant(&mut self, snapshot: &Snapshot, text: Option<&str>, file: Option<&Model>) {
        if let Some(text) = text {
            let services: Vec<_> = self
                .backends
                .iter()
                .map(|s| Arc::clone(&s.service))
                .collect();
            self.good = Good::of_file(text, &services);
            self.good.frame = self.frame_on_disk(text, snapshot);
        }
        let path = self.config.haproxy.state_file_path.as_deref();
        let state = path.and_then(|path| std::fs::read(path).ok());
        for (backend, ids) in ruby_state::ids(&state.unwrap_or_default(), &self.config.services) {
            let known = Arc::make_mut(self.ids.entry(backend).or_default());
            ids.into_iter()
                .for_each(|(name, id)| _ = known.entry(name).or_insert(id));
        }
        let is_ours = text.is_some_and(|text| Generation::of_text(text).is_some());
        let mut disabled = Vec::new();
        let resolved = |host: &str| snapshot.resolved.get(host)?.first().copied();
        for index in 0..self.backends.len() {
            let state = &self.backends[index];
            let Some(backend) = state.name().map(str::to_owned) else {
                continue;
            };
            let can_ask = self.can_ask();
            let keeper = &mut self.keeper;
            let remembered = keeper.remembered(index, &self.config, can_ask, &resolved);
            let live = self.observed.as_ref().and_then(|o| o.seed_rows(&backend));
            let file = file.and_then(|model| file_rows(model, &backend, is_ours));
            let unused = file.iter().flatten().filter(|_| !is_ours);
            let unused = unused.filter(|row| row.state == RowState::Retired);
            disabled.extend(unused.map(|row| format!("{backend}/{}", row.name)));
            let inputs = seed::Inputs {
                live: live.as_deref(),
                file: file.as_deref(),
                snapshot: &remembered,
                defaults: &[],
                configured_options: state
                    .service
                    .haproxy
                    .as_ref()
                    .map_or("", |h| &h.server_options),
            };
            let (seed, ids) = seed::seed(&inputs);
            let known = Arc::make_mut(self.ids.entry(backend).or_default());
            known.extend(ids);
            self.keeper.plant(index, seed);
        }
        tell_foreign(
            "disabled in a haproxy.cfg that synapse has not written",
            &disabled,
        );
        self.stale = true;
    }

    /// The frame of a file that an earlier process left: the last good one. The configured one where they are the same.
    fn frame_on_disk(&self, text: &str, snapshot: &Snapshot) -> Option<Arc<Renderer>> {
        let of_a_service = |keyword: &str, name: &str| match keyword {
            "backend" => {
                let disabled = |s: &Backend| {
                    let haproxy = s.service.disabled.as_ref();
                    haproxy.is_some_and(|haproxy| haproxy.backend_name == name)
                };
                snapshot.ids.contains_key(name)
                    || self.by_backend.contains_key(name)
                    || self.backends.iter().any(disabled)
            }
            _ => self.backends.iter().any(|s| s.service.name == name),
        };
        let ours = |section: &Section| match section.keyword.as_str() {
            "backend" => of_a_service("backend", &section.name),
            "frontend" => {
                let mut lines = section.lines.iter();
                of_a_service("frontend", &section.name)
                    || lines.any(|line| {
                        let backend = line.text.strip_prefix("default_backend ");
                        backend.is_some_and(|name| of_a_service("backend", name.trim()))
                    })
            }
            _ => false,
        };
        let kept = self.renderer.of_file(text, ours)?;
        let model = |renderer: &Renderer| {
            let frame = renderer.render_frame("").ok()?;
            let shared = renderer.render_shared([]).ok()?;
            Some(Model::parse(&(frame + &shared), Ours::All))
        };
        let (now, former) = (model(&self.renderer)?, model(&kept)?);
        if now.same_structure(&former) {
            return Some(Arc::clone(&self.renderer));
        }
        Some(Arc::new(kept))
    }

    /// Nothing is there to be served before the registry has been asked: no haproxy of ours has servers, no file, no
    /// snapshot. A file made of that would be replaced at once.
    pub(super) fn begins_with_nothing(&self) -> bool {
        self.keeper.services().iter().all(State::remembers_nothing)
    }

    /// Waits until every source has been read and every host's name looked up, or for as long as the configuration allows.
    pub(super) async fn await_first_words(
        &mut self,
        changes: &mut watch::Receiver<BTreeSet<SourceKey>>,
        resolved: &mut watch::Receiver<Arc<Resolved>>,
    ) {
        let until = Instant::now() + self.config.startup_wait;
        loop {
            changes.mark_unchanged();
            resolved.mark_unchanged();
            self.keeper.sources_changed();
            // Tells which names have to be looked up.
            self.assess();
            if !self.keeper.awaits_words() {
                return;
            }
            // Cancel-safe: watch receives and a deadline kept outside.
            tokio::select! {
                _ = changes.changed() => sleep(TOGETHER).await,
                changed = resolved.changed() => if changed.is_ok() { self.keeper.names_changed() },
                () = sleep_until(until) => {
                    info!(waited = ?self.config.startup_wait, "haproxy is started without what the registry has not said yet");
                    return;
                }
            }
        }
    }

    /// Takes a configuration that has been validated. What is the same stays as it is.
    pub(super) async fn reconfigure(&mut self, config: Arc<Config>) {
        match fitting(&config).await {
            Ok(renderer) => self.renderer = Arc::new(renderer),
            Err(error) => {
                error!(error = %Chain(&error), "the new configuration is not taken: nothing changes");
                return;
            }
        }
        self.keeper.configure(&config);
        let former = std::mem::take(&mut self.backends).into_iter();
        let mut former: BTreeMap<String, Backend> =
            former.map(|b| (b.service.name.clone(), b)).collect();
        for state in self.keeper.services() {
            let service = Arc::clone(&state.service);
            let backend = match former.remove(&service.name) {
                Some(mut backend) => {
                    backend.reconfigure(service);
                    backend
                }
                None => Backend::new(service),
            };
            self.backends.push(backend);
        }
        for (name, backend) in former {
            self.good.leave(&name, backend.servers);
            self.board.remove(&name);
        }
        self.index_services();
        self.window = Window::new(config.coalesce.0, config.coalesce.1);
        self.file.configure(&config.haproxy.config_file_path);
        self.wanted = None;
        self.held = None;
        self.unrendered.clear();
        self.api = RuntimeApi::new(stats_sockets(&config));
        if !self.can_ask() && self.observed.take().is_some() {
            // What it was seen to run is not kept true by anybody from now on.
            self.touched = Touched::All;
            self.unseen.extend(0..self.backends.len());
        }
        self.limiter.configure(
            config.haproxy.restart_interval,
            config.haproxy.restart_jitter,
        );
        if let Some(driver) = &mut self.driver {
            driver.configure(&config);
        }
        self.circles = RefCell::new(Circles::of_config(&config, &self.renderer, own_addresses()));
        self.config = config;
        self.settle = Some(Instant::now() + SETTLE);
        // What was refused is tried again, at once.
        self.quarantined.clear();
        self.refused_options.clear();
        self.fallbacks = Fallbacks::default();
        self.socket = Socket::default();
        self.refused_frame = None;
        self.frame_problems.clear();
        self.limiter.begin_anew();
        self.followed = false;
        self.stale = true;
        info!(services = self.backends.len(), "configuration taken");
    }
}

/// What is rendered fits the haproxy that is installed; what that is too old for is told.
async fn fitting(config: &Config) -> Result<Renderer, RenderError> {
    let version = binary::installed(&config.haproxy.binary).await;
    for words in version.into_iter().flat_map(Version::lacks) {
        warn!("{words}");
    }
    Renderer::fitting(config, version)
}

fn stats_sockets(config: &Config) -> Vec<PathBuf> {
    if config.haproxy.do_socket {
        config.haproxy.socket_file_path.clone()
    } else {
        Vec::new()
    }
}

fn operator_maint(snapshot: &Snapshot) -> OperatorMaint {
    let maint = |(key, state): (&String, &String)| {
        let silent = match state.as_str() {
            MAINT => false,
            SILENT_MAINT => true,
            _ => return None,
        };
        let (backend, name) = key.split_once('/')?;
        Some(((backend.to_owned(), name.to_owned()), silent))
    };
    snapshot.operator.iter().filter_map(maint).collect()
}

/// Says once what is out of use in a haproxy or file that is not ours.
pub(super) fn tell_foreign(what: &str, servers: &[String]) {
    if servers.is_empty() {
        return;
    }
    let named = servers.iter().take(TOLD).map(String::as_str);
    warn!(
        count = servers.len(),
        servers = named.collect::<Vec<_>>().join(" "),
        "servers are {what}: that is no operator's order to synapse, those that the registry has are served"
    );
}
