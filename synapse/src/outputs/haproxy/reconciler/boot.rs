//! What the reconciler begins with: at the start of the program, and when the configuration changes.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use smartstack_common::report::Chain;
use tokio::sync::watch;
use tokio::time::{Instant, sleep, sleep_until};
use tracing::{error, info, warn};

use super::aim::Aim;
use super::aim::Touched;
use super::fallbacks::Fallbacks;
use super::jobs::Jobs;
use super::marks::{self, Marks};
use super::observed::{Digests, MAINT, OperatorMaint, SILENT_MAINT, file_rows};
use super::publish::Publisher;
use super::socket::Socket;
use super::worker::{Worker, tell_foreign};
use super::{Outputs, Reconciler};
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
use crate::outputs::haproxy::process::binary;
use crate::outputs::haproxy::render::{RenderError, Renderer};
use crate::outputs::haproxy::socket::RuntimeApi;
use crate::outputs::haproxy::version::Version;
use crate::snapshot::Snapshot;
use crate::wanted::keeper::Keeper;
use crate::wanted::service::State;

/// First words of the registry that come within it are taken in together: many sources speak at one moment.
const TOGETHER: Duration = Duration::from_millis(5);
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
        let marks = Marks::read(&marks::path(&config.snapshot_path), file, digests.pid());
        let api = RuntimeApi::new(stats_sockets(&config));
        let mut this = Self {
            circles: RefCell::new(Circles::of_config(&config, &renderer, own_addresses())),
            backends,
            by_backend: BTreeMap::new(),
            host: host_name(),
            machine: snapshot.machine.clone(),
            aim: Aim::new(&config, snapshot.ids.clone()),
            worker: Worker::new(api, digests, marks, operator_maint(snapshot)),
            jobs: Jobs::new(&config, stop_haproxy),
            publisher: Publisher::new(outputs),
            config,
            renderer,
            keeper,
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
            self.aim.good = Good::of_file(text, &services);
            self.aim.good.frame = self.frame_on_disk(text, snapshot);
        }
        let path = self.config.haproxy.state_file_path.as_deref();
        let state = path.and_then(|path| std::fs::read(path).ok());
        for (backend, ids) in ruby_state::ids(&state.unwrap_or_default(), &self.config.services) {
            let known = Arc::make_mut(self.aim.ids.entry(backend).or_default());
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
            let live = self
                .worker
                .observed
                .as_ref()
                .and_then(|o| o.seed_rows(&backend));
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
            let known = Arc::make_mut(self.aim.ids.entry(backend).or_default());
            known.extend(ids);
            self.keeper.plant(index, seed);
        }
        tell_foreign(
            "disabled in a haproxy.cfg that synapse has not written",
            &disabled,
        );
        self.worker.stale = true;
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
            self.aim.good.leave(&name, backend.servers);
            self.publisher.board.remove(&name);
        }
        self.index_services();
        self.aim.configure(&config, Instant::now());
        self.jobs.configure(&config);
        self.worker.api = RuntimeApi::new(stats_sockets(&config));
        if !self.can_ask() && self.worker.observed.take().is_some() {
            // What it was seen to run is not kept true by anybody from now on.
            self.aim.touched = Touched::All;
            self.publisher.unseen.extend(0..self.backends.len());
        }
        self.worker.fallbacks = Fallbacks::default();
        self.worker.socket = Socket::default();
        self.circles = RefCell::new(Circles::of_config(&config, &self.renderer, own_addresses()));
        self.config = config;
        self.worker.stale = true;
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
