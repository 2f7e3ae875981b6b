//! Owns all tasks: starts them, starts a service's task again when it ends, applies a re-read configuration by its
//! differences, and ends in order (`run/stop.rs`). It decides nothing about health or registrations.

mod change;
mod ensembles;
mod restarts;
mod stop;

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use smartstack_common::http::BindError;
use smartstack_common::program::{Fatal, Reload, Results, listen};
use smartstack_common::shutdown::{Request, Shutdown, Signals};
use smartstack_common::telemetry::{Notice, notify};
use smartstack_common::watchdog;
use smartstack_common::{descriptors, exit};
use tokio::sync::{Mutex, oneshot, watch};
use tokio::task::{AbortHandle, Id, JoinSet};
use tokio::time::Instant;

use self::change::{confirmed, replace, warn_of_restart_keys};
use self::restarts::Restarts;
use crate::boards::{Boards, ServiceReport};
use crate::check::Names;
use crate::config::{Config, Place, Service};
use crate::health::freshness;
use crate::operator::control::Controls;
use crate::operator::recall;
use crate::report::heartbeat;
use crate::report::metrics::{Metrics, of_service};
use crate::report::status::routes;
use crate::wanted::{Holds, Intent, PlaceKey, Placed, Places, Registration};
use crate::watch::{Outputs, Start, run as watch_service};

/// Why nerve ended by itself.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// The configured admin listener or control socket could not be had.
    #[error(transparent)]
    Listen(#[from] BindError),
    /// A task that must run for ever ended; its panic, if any, is in the log.
    #[error("the task `{0}` ended, a defect of nerve")]
    Ended(String),
}

impl Fatal for RunError {
    fn exit_code(&self) -> u8 {
        match self {
            RunError::Listen(_) => exit::START,
            RunError::Ended(_) => exit::INTERNAL,
        }
    }
}

/// What a task is for.
#[derive(Debug, Clone)]
enum Task {
    Service(String),
    /// Must not end.
    Core(String),
    /// Of the ensemble of these hosts. Ends by itself when it is of no more use.
    Registrar(String),
    /// Ends by itself; gives the places that it lets go.
    Handover(Vec<PlaceKey>),
}

/// Runs until TERM, INT or QUIT, which withdraw everything, or until USR2, which leaves everything to a successor.
///
/// # Errors
/// When the configured admin listener cannot be had, or a core task ends.
pub async fn run(
    config: Config,
    mut signals: Signals,
    mut reload: Reload<'_, Config>,
) -> Result<(), RunError> {
    let mut app = App::start(config, &reload.results).await?;
    let feeder = tokio::spawn(heartbeat::feed(app.boards.clone()));
    loop {
        // Signals and joins are cancel-safe receives; readiness is a watch receive.
        tokio::select! {
            request = signals.next() => match request {
                // A bad file changes nothing.
                Request::Reload => if let Some(config) = reload.read(Ok) {
                    app.apply(config);
                },
                Request::Stop => break,
                Request::Leave => {
                    notify(&Notice::Stopping);
                    app.leave().await;
                    return Ok(());
                }
            },
            Some(ended) = app.sessions.join_next_with_id() => app.session_ended(ended.map(|(id, ())| id))?,
            Some(ended) = app.tasks.join_next_with_id() => match ended {
                Ok((id, ())) => app.ended(id, false)?,
                Err(error) if error.is_cancelled() => {}
                Err(error) => app.ended(error.id(), true)?,
            },
            () = ready(&app.boards, app.ready) => {
                app.ready = true;
                tracing::info!("every check has run once");
                notify(&Notice::Ready);
            }
        }
    }
    // Checks end now.
    watchdog::stopping(&feeder);
    app.stop().await;
    Ok(())
}

async fn ready(boards: &Boards, already: bool) {
    let mut services = boards.services.subscribe();
    if already {
        std::future::pending::<()>().await;
    }
    while boards.missing().is_some() {
        if services.changed().await.is_err() {
            std::future::pending::<()>().await;
        }
    }
}

struct App {
    config: Config,
    places: watch::Sender<Places>,
    holds: Arc<watch::Sender<Holds>>,
    boards: Boards,
    metrics: Metrics,
    names: Names,
    tasks: JoinSet<()>,
    roles: HashMap<Id, Task>,
    /// The sessions' supervisors, which end last, by `closing`.
    sessions: JoinSet<()>,
    closing: (watch::Sender<bool>, Shutdown),
    services: BTreeMap<String, Running>,
    /// By their connect strings, without chroot.
    ensembles: BTreeMap<String, Connected>,
    ready: bool,
    /// Held while the holds are changed.
    writing: Arc<Mutex<()>>,
    rng: fastrand::Rng,
}

struct Running {
    service: Arc<Service>,
    task: AbortHandle,
    restarts: Restarts,
}

/// An ensemble that has a session.
struct Connected {
    place: Place,
    /// Whether a service of the configuration names it.
    named: watch::Sender<bool>,
    /// Closes the session.
    leave: watch::Sender<bool>,
    /// The session's supervisor.
    session: Id,
}

impl App {
    async fn start(config: Config, reloads: &Results) -> Result<Self, RunError> {
        let (metrics, mut registry) = Metrics::new();
        reloads.register(&mut registry);
        let (boards, senders) = Boards::new();
        let mut app = Self {
            boards,
            places: senders.places,
            holds: Arc::new(senders.holds),
            metrics,
            names: Names::default(),
            tasks: JoinSet::new(),
            roles: HashMap::new(),
            services: BTreeMap::new(),
            sessions: JoinSet::new(),
            closing: Shutdown::channel(),
            ensembles: BTreeMap::new(),
            ready: false,
            writing: Arc::default(),
            rng: fastrand::Rng::new(),
            config: Config {
                services: BTreeMap::new(),
                ..config.clone()
            },
        };
        app.recall_holds(config.services.keys().cloned().collect())
            .await;
        let listening = listen(&config.listeners, "drain, enable, disable").await?;
        // Nothing is awaited between this and the services: `/ready` must not answer before it knows them.
        let pages = routes(app.boards.clone(), registry);
        let commands = app.controls().commands();
        for (name, task) in listening.serve(pages, commands, &app.closing.1) {
            app.spawn(Task::Core(name.to_owned()), task);
        }
        if let Some(path) = config.heartbeat_path.clone() {
            let task = heartbeat::run(path, app.boards.clone(), app.metrics.clone());
            app.spawn(Task::Core("heartbeat".to_owned()), task);
        }
        app.apply(config);
        Ok(app)
    }

    /// What was held out when nerve last ran is held out again, before anything is registered.
    async fn recall_holds(&mut self, services: Vec<String>) {
        let (first, known) = oneshot::channel();
        let controls = self.controls();
        let task = recall::run(controls.clone(), services.clone(), first);
        self.spawn(Task::Core("holds".to_owned()), task);
        if tokio::time::timeout(recall::PATIENCE, known).await.is_err() {
            tracing::error!(
                path = %self.config.state_path.display(),
                "state file does not answer: until it does, no service is registered, unless it is already"
            );
            recall::doubt(&controls, &services);
        }
    }

    fn controls(&self) -> Controls {
        Controls {
            boards: self.boards.clone(),
            holds: Arc::clone(&self.holds),
            metrics: self.metrics.clone(),
            state_path: self.config.state_path.clone(),
            instance_id: self.config.instance_id.clone(),
            writing: Arc::clone(&self.writing),
        }
    }

    fn spawn(
        &mut self,
        role: Task,
        task: impl Future<Output = ()> + Send + 'static,
    ) -> AbortHandle {
        let handle = self.tasks.spawn(task);
        self.roles.insert(handle.id(), role);
        handle
    }

    /// Makes the services as `config` says, touching only those that differ.
    fn apply(&mut self, config: Config) {
        warn_of_restart_keys(&self.config, &config);
        let renamed = config.instance_id != self.config.instance_id;
        let gone: Vec<String> = self
            .services
            .keys()
            .filter(|n| !config.services.contains_key(*n))
            .cloned()
            .collect();
        for name in &gone {
            self.remove(name);
        }
        let (mut added, mut changed) = (0u32, 0u32);
        let count = config.services.len();
        for (index, service) in config.services.values().enumerate() {
            let running = self
                .services
                .get(&service.name)
                .map(|running| Arc::clone(&running.service));
            if !renamed && running.as_deref() == Some(service) {
                continue;
            }
            match &running {
                Some(_) => changed += 1,
                None => added += 1,
            }
            let start = Start::at_once(service.check_interval, index, count);
            self.take_in(service, running.as_deref(), &config.instance_id, start);
        }
        self.tell_named();
        let checks = config.services.values().map(|s| s.checks.len()).sum();
        descriptors::must_suffice(checks, "all checks at once");
        self.config = Config {
            services: BTreeMap::new(),
            ..config
        };
        tracing::info!(
            services = self.services.len(),
            added,
            changed,
            removed = gone.len(),
            "configuration applied"
        );
    }

    fn remove(&mut self, name: &str) {
        if let Some(running) = self.services.remove(name) {
            running.task.abort();
            self.metrics.forget(name, &running.service.checks);
        }
        self.places
            .send_modify(|places| places.retain(|key, _| key.service != name));
        self.boards.services.remove(name);
    }

    /// Sets up a new service, or a changed one. What its checks remember survives a change of anything else.
    fn take_in(
        &mut self,
        service: &Service,
        before: Option<&Service>,
        instance_id: &str,
        start: Start,
    ) {
        let name = service.name.clone();
        for place in &service.places {
            self.connect(place);
        }
        let same_checks = before.is_some_and(|before| {
            let of = |s: &Service| (s.check_mocked, s.check_interval, s.check_grace);
            before.checks == service.checks && of(before) == of(service)
        });
        if !same_checks {
            if let Some(running) = self.services.remove(&name) {
                running.task.abort();
                self.metrics.forget(&name, &running.service.checks);
            }
            let report = ServiceReport::new(freshness(service));
            self.boards.services.entry(&name).post(report);
        }
        let placed = |registration: Registration| {
            let intent = Intent::Follow;
            let key = PlaceKey::new(&name, &registration);
            (
                key,
                Placed {
                    registration,
                    intent,
                },
            )
        };
        let places = Registration::all(service, instance_id)
            .into_iter()
            .map(placed);
        let places: Places = places.collect();
        let successors: Vec<PlaceKey> = places.keys().cloned().collect();
        let mut former = Vec::new();
        self.places
            .send_modify(|all| former = replace(all, &name, places));
        if !former.is_empty() {
            let task = confirmed(name.clone(), successors, self.boards.clone());
            self.spawn(Task::Handover(former), task);
        }
        let service = Arc::new(service.clone());
        if let Some(running) = self.services.get_mut(&name) {
            running.service = service;
            return;
        }
        let running = Running {
            task: self.watch(&service, start),
            service,
            restarts: Restarts::new(Instant::now()),
        };
        self.services.insert(name, running);
    }

    fn watch(&mut self, service: &Arc<Service>, start: Start) -> AbortHandle {
        let outputs = Outputs {
            report: self.boards.services.entry(&service.name),
            holds: self.boards.holds.clone(),
            metrics: self.metrics.clone(),
            names: self.names.clone(),
        };
        self.spawn(
            Task::Service(service.name.clone()),
            watch_service(Arc::clone(service), start, outputs),
        )
    }

    fn ended(&mut self, id: Id, panicked: bool) -> Result<(), RunError> {
        match self.roles.remove(&id) {
            None => Ok(()),
            Some(Task::Core(name)) => Err(RunError::Ended(name)),
            Some(Task::Registrar(hosts)) if panicked => {
                Err(RunError::Ended(format!("registrar of {hosts}")))
            }
            Some(Task::Registrar(hosts)) => {
                self.left(&hosts);
                Ok(())
            }
            Some(Task::Handover(former)) => {
                self.places.send_modify(|places| {
                    // One that is wanted again meanwhile stays.
                    let is_over = |placed: &Placed| placed.intent == Intent::Moving;
                    places.retain(|key, placed| !(former.contains(key) && is_over(placed)));
                });
                Ok(())
            }
            Some(Task::Service(name)) => {
                let Some(running) = self
                    .services
                    .get_mut(&name)
                    .filter(|running| running.task.id() == id)
                else {
                    return Ok(());
                };
                let delay = running.restarts.ended(Instant::now(), &mut self.rng);
                let service = Arc::clone(&running.service);
                tracing::error!(
                    service = name,
                    ?delay,
                    "the service's task ended, a defect of nerve: started again"
                );
                self.metrics
                    .restarts
                    .get_or_create(&of_service(&name))
                    .inc();
                let start = Start {
                    first: delay,
                    second: service.check_interval,
                };
                let task = self.watch(&service, start);
                if let Some(running) = self.services.get_mut(&name) {
                    running.task = task;
                }
                Ok(())
            }
        }
    }
}
