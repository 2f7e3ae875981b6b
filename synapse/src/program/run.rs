//! The running program: locks, snapshot, reconciler, admin listener, signals. It owns all tasks and decides nothing.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use smartstack_common::admin::control::{Command, Commands};
use smartstack_common::admin::{Answer, Routes};
use smartstack_common::atomic;
use smartstack_common::clock::Moment;
use smartstack_common::http::{BindError, StatusCode};
use smartstack_common::process::machine_id;
use smartstack_common::program::{Fatal, Reload, Results, listen};
use smartstack_common::report::Chain;
use smartstack_common::shutdown::{Request, Shutdown, Signals};
use smartstack_common::telemetry::{Notice, notify};
use smartstack_common::watchdog::{self, Progress, is_stuck};
use smartstack_common::{descriptors, exit};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::{JoinHandle, JoinSet, spawn_blocking};
use tracing::{error, info, warn};

use crate::config::Config;
use crate::outputs::haproxy::reconciler::{Outputs, Reconciler};
use crate::outputs::haproxy::render::RenderError;
use crate::report::metrics;
use crate::report::status::{self, Board, View};
use crate::snapshot::{self, Lock, Snapshot};
use crate::sources::zookeeper;
use crate::sources::{Links, Sources, link_status};
use crate::wanted::keeper::{Keeper, Order, validity};

/// Why synapse could not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The admin listener or the control socket that the configuration names.
    #[error(transparent)]
    Listen(#[from] BindError),
    /// Another synapse drives the same files.
    #[error(transparent)]
    Lock(#[from] snapshot::lock::LockError),
    /// A template.
    #[error(transparent)]
    Template(#[from] RenderError),
    /// A folder that must be there.
    #[error("cannot create `{path}`")]
    Folder {
        /// Which.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A core task ended by itself.
    #[error("`{0}` ended by itself")]
    Ended(&'static str),
}

impl Fatal for StartError {
    fn exit_code(&self) -> u8 {
        match self {
            StartError::Template(_) => exit::CONFIG,
            StartError::Ended(_) => exit::INTERNAL,
            StartError::Listen(_) | StartError::Lock(_) | StartError::Folder { .. } => exit::START,
        }
    }
}

/// Runs until TERM, INT or QUIT.
///
/// # Errors
/// See [`StartError`].
pub async fn run(
    config: Config,
    mut signals: Signals,
    mut reload: Reload<'_, Config>,
    stop_haproxy: bool,
) -> Result<(), StartError> {
    descriptors::must_suffice(0, "synapse");
    let started = Moment::now();
    let config = Arc::new(config);
    let locks = Arc::new(Mutex::new(locks(&config)?));
    sweep(&config);
    let loaded = snapshot::read(&config.snapshot_path, &machine_id());
    if let Some(problem) = &loaded.problem {
        warn!(problem = %Chain(problem), "the snapshot cannot be used");
    }
    let remembered = loaded.snapshot.unwrap_or_else(|| Snapshot {
        machine: machine_id(),
        ..Snapshot::default()
    });
    let (stop, shutdown) = Shutdown::channel();

    let (view_sender, view) = watch::channel(Arc::new(View::default()));
    let (snapshot_sender, snapshots) = watch::channel(Arc::new(Snapshot::default()));
    let board = Arc::new(Board::default());
    let outputs = Outputs {
        board: Arc::clone(&board),
        view: view_sender,
        snapshot: snapshot_sender,
    };
    let sources = Sources::new(&remembered, shutdown.clone(), Some(validity));
    let counters = Counters {
        discovery: Arc::clone(&sources.counters),
        snapshot: Arc::default(),
        reloads: reload.results.clone(),
    };
    let links = sources.links();
    let start = Reconciler::start(
        Arc::clone(&config),
        &remembered,
        Keeper::new(&config, &remembered, sources),
        outputs,
        stop_haproxy,
    );
    // Cancel-safe: a signal's receive. A start that is given up has changed nothing.
    let reconciler = tokio::select! {
        started = start => started?,
        () = signals.stop() => return Ok(()),
    };
    drop(remembered);

    let mut tasks: JoinSet<&'static str> = JoinSet::new();
    let (orders, orders_taken) = mpsc::channel(16);
    let listening = listen(&config.listeners, "release").await?;
    let pages = routes(
        view.clone(),
        Arc::clone(&board),
        links,
        started,
        counters.clone(),
    );
    for (name, task) in listening.serve(pages, commands(board, orders), &shutdown) {
        tasks.spawn(async move {
            task.await;
            name
        });
    }
    // The writer outlives the reconciler: it ends when the last state has been written.
    let (writer_stop, writer_shutdown) = Shutdown::channel();
    let write = snapshot::write_behind(
        config.snapshot_path.clone(),
        snapshots,
        counters.snapshot,
        writer_shutdown,
    );
    let mut writer = JoinSet::new();
    writer.spawn(write);
    tasks.spawn(tell_systemd(view, shutdown.clone()));
    let progress = Progress::new();
    let reconciler_stands = {
        let progress = progress.clone();
        move |now, limit| {
            is_stuck(progress.last(), now, limit).then(|| "the reconciler stands".to_owned())
        }
    };
    let feeder = tokio::spawn(watchdog::feed(reconciler_stands));
    let (configs, config_changes) = watch::channel(Arc::clone(&config));
    tasks.spawn_local(async move {
        reconciler
            .run(config_changes, orders_taken, progress, shutdown)
            .await;
        "reconciler"
    });

    let mut look = tokio::time::interval(FOLLOW);
    let mut following = None;
    let result = loop {
        // Cancel-safe: signal receives, ticks, and a join of a set that keeps its tasks.
        tokio::select! {
            _ = look.tick() => follow(&locks, &mut following),
            request = signals.next() => match request {
                Request::Stop | Request::Leave => break Ok(()),
                Request::Reload => {
                    if let Some(config) = reload.read(|config| of(&locks).change(config)) {
                        configs.send_replace(Arc::new(config));
                    }
                }
            },
            Some(ended) = tasks.join_next() => break Err(StartError::Ended(ended.unwrap_or("a task"))),
        }
    };
    info!("stopping; haproxy goes on as it is; a second signal ends synapse at once");
    watchdog::stopping(&feeder);
    stop.send_replace(true);
    let ended = async {
        while tasks.join_next().await.is_some() {}
        writer_stop.send_replace(true);
        while writer.join_next().await.is_some() {}
    };
    ended.await;
    result
}

/// How often the locks look whether their files were replaced.
const FOLLOW: Duration = Duration::from_secs(1);

/// Only one synapse may drive a file.
struct Locks {
    /// haproxy.cfg; `None` = it is not ours to write.
    file: Option<Lock>,
    snapshot: Option<Lock>,
    told: bool,
}

impl Locks {
    /// Takes those of another configuration first: one that another synapse has is refused.
    fn change(&mut self, config: Config) -> Result<Config, String> {
        let path = &config.haproxy.config_file_path;
        if !config.haproxy.do_writes {
            self.file = None;
        } else if !self.file.as_ref().is_some_and(|lock| lock.is_of(path)) {
            let lock = lock_file(path).map_err(|error| Chain(&error).to_string())?;
            self.file = Some(lock);
        }
        Ok(config)
    }

    fn follow(&mut self) {
        let locks = [&mut self.file, &mut self.snapshot].into_iter().flatten();
        let failed = locks.map(Lock::follow).filter_map(Result::err).last();
        if let Some(error) = &failed
            && !self.told
        {
            error!("two synapses write one file, each undoes what the other does: {error}");
        }
        self.told = failed.is_some();
    }
}

fn of(locks: &Mutex<Locks>) -> MutexGuard<'_, Locks> {
    locks.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Lets the locks look, beside everything else: a disk may never answer. The next look begins after the one before.
fn follow(locks: &Arc<Mutex<Locks>>, before: &mut Option<JoinHandle<()>>) {
    if before.as_ref().is_none_or(JoinHandle::is_finished) {
        let locks = Arc::clone(locks);
        *before = Some(spawn_blocking(move || of(&locks).follow()));
    }
}

/// The lock of haproxy.cfg; its folder is made.
fn lock_file(file: &Path) -> Result<Lock, StartError> {
    if let Some(folder) = file.parent().filter(|f| !f.as_os_str().is_empty()) {
        std::fs::create_dir_all(folder).map_err(|source| StartError::Folder {
            path: folder.to_owned(),
            source,
        })?;
    }
    Ok(Lock::acquire(file)?)
}

/// The snapshot's lock is a warning where its folder cannot be used.
fn locks(config: &Config) -> Result<Locks, StartError> {
    let haproxy = &config.haproxy;
    let file = haproxy
        .do_writes
        .then(|| lock_file(&haproxy.config_file_path))
        .transpose()?;
    if let Some(folder) = config.snapshot_path.parent() {
        // A folder that cannot be made is reported by the snapshot's writer.
        let _made = std::fs::create_dir_all(folder).is_ok();
    }
    let snapshot = match Lock::acquire(&config.snapshot_path) {
        Ok(lock) => Some(lock),
        Err(error @ snapshot::lock::LockError::Held { .. }) => return Err(error.into()),
        Err(error) => {
            let error = Chain(&error);
            warn!(
                "the snapshot cannot be locked, nor probably written: {error}\nhint: synapse needs a folder it may write in for `snapshot_path`"
            );
            None
        }
    };
    Ok(Locks {
        file,
        snapshot,
        told: false,
    })
}

/// What a former process has left half written, if it was killed. The locks are ours.
fn sweep(config: &Config) {
    let haproxy = &config.haproxy;
    if haproxy.do_writes {
        atomic::sweep(&haproxy.config_file_path);
        atomic::sweep(&haproxy.candidate_config_file_path);
    }
    atomic::sweep(&config.snapshot_path);
}

/// What the control socket carries out.
fn commands(board: Arc<Board>, orders: mpsc::Sender<Order>) -> Commands {
    Arc::new(move |command: Command| {
        let (board, orders) = (Arc::clone(&board), orders.clone());
        Box::pin(async move {
            if command.name != "release" {
                let why = "no such command; there is release";
                return Answer::refusal(StatusCode::NOT_FOUND, why);
            }
            let known = board.services().into_keys().collect();
            let services = match command.services(known) {
                Ok(services) => services,
                Err(answer) => return answer,
            };
            let (answer, answered) = oneshot::channel();
            let order = Order::Release { services, answer };
            match (orders.send(order).await, answered.await) {
                (Ok(()), Ok(text)) => Answer::text(text),
                _ => Answer::refusal(StatusCode::SERVICE_UNAVAILABLE, "synapse is stopping"),
            }
        })
    })
}

#[derive(Clone)]
struct Counters {
    discovery: Arc<zookeeper::Counters>,
    snapshot: Arc<snapshot::Counters>,
    reloads: Results,
}

fn routes(
    view: watch::Receiver<Arc<View>>,
    board: Arc<Board>,
    links: watch::Receiver<Links>,
    started: Moment,
    counters: Counters,
) -> Routes {
    Arc::new(move |path| {
        let view = view.borrow().clone();
        let links = || link_status(&links.borrow());
        Some(match path {
            "/ready" => Answer::ready((!view.ready).then(|| {
                let early = || "haproxy does not serve our generation yet".to_owned();
                view.not_ready.clone().unwrap_or_else(early)
            })),
            "/status" => {
                let zookeeper = serde_json::to_value(links()).unwrap_or_default();
                Answer::json(&status::document(
                    &view,
                    &board.services(),
                    started,
                    zookeeper,
                ))
            }
            "/metrics" => Answer::metrics(metrics::encode(
                &view,
                &board.services(),
                &links(),
                &counters.discovery,
                &counters.snapshot,
                &counters.reloads,
            )),
            "/" => Answer::html(include_str!("status.html")),
            _ => return None,
        })
    })
}

/// Ready is told once, when haproxy serves our generation; ZooKeeper is not waited for.
async fn tell_systemd(
    mut view: watch::Receiver<Arc<View>>,
    mut shutdown: Shutdown,
) -> &'static str {
    // Cancel-safe: watch receives.
    tokio::select! {
        () = shutdown.wait() => {}
        ready = view.wait_for(|view| view.has_served) => {
            if ready.is_ok() {
                notify(&Notice::Ready);
            }
        }
    }
    shutdown.wait().await;
    "systemd notifier"
}
