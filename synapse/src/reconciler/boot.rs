//! What the reconciler begins with: at the start of the program, and when the configuration changes.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::Arc;

use smartstack_common::report::Chain;
use smartstack_common::shutdown::Shutdown;
use tokio::task::JoinSet;
use tokio::time::Instant;
use tracing::{error, info};

use super::job::Driver;
use super::limiter::Limiter;
use super::observed::{Digests, file_rows};
use super::runtime::{Fallbacks, Proven};
use super::{Outputs, Reconciler, SETTLE, Tally};
use crate::assembly::EffectiveCache;
use crate::cfg::{Model, Ours};
use crate::config::{Config, Service};
use crate::desired::Previous;
use crate::effective::Scope;
use crate::good::Good;
use crate::render::{RenderError, Renderer};
use crate::ruby_state;
use crate::runtime_api::RuntimeApi;
use crate::seed;
use crate::services::{State, source_key};
use crate::snapshot::Snapshot;
use crate::sources::Sources;

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
            api: RuntimeApi::new(stats_sockets(&config)),
            observed: None,
            digests: Digests::of_snapshot(snapshot),
            proven: Proven::default(),
            fallbacks: Fallbacks::default(),
            retired: BTreeMap::new(),
            stale: true,
            socket_problem: None,
            held: false,
            unconfirmed: None,
            accepted: None,
            write_problem: None,
            reload_problem: None,
            stop_haproxy,
            jobs: JoinSet::new(),
            driver: Some(Driver::new(&config, stop_haproxy)),
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
            view: outputs.view,
            snapshot: outputs.snapshot,
            config,
            renderer,
            sources,
            services,
            disk,
        };
        if let Some(text) = &this.disk {
            let written = Scope::default().read(&Model::parse(text, Ours::All));
            this.digests.complete(&written);
        }
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
            let file = file.as_ref().and_then(|model| file_rows(model, &backend));
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

    /// Takes a configuration that has been validated. What is the same stays as it is.
    pub(super) fn reconfigure(&mut self, config: Arc<Config>) {
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
        self.api = RuntimeApi::new(stats_sockets(&config));
        self.limiter.configure(
            config.haproxy.restart_interval,
            config.haproxy.restart_jitter,
        );
        if let Some(driver) = &mut self.driver {
            driver.configure(&config);
        }
        self.config = config;
        self.settle = Some(Instant::now() + SETTLE);
        // What was refused is tried again, at once.
        self.quarantined.clear();
        self.refused_options.clear();
        self.refused_frame = None;
        self.frame_problem = None;
        self.limiter.forgive();
        self.held = false;
        self.dirty = (0..self.services.len()).collect();
        self.stale = true;
        info!(services = self.services.len(), "configuration taken");
    }
}

fn stats_sockets(config: &Config) -> Vec<PathBuf> {
    if config.haproxy.do_socket {
        config.haproxy.socket_file_path.clone()
    } else {
        Vec::new()
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
