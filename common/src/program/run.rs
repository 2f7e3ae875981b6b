//! The frame of a running program: signals, log and configuration before, the configuration again on HUP, the listeners.

use std::error::Error;
use std::path::Path;
use std::pin::Pin;

use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::registry::Registry;

use super::output::{blocking, complain, logging};
use super::{Exit, Frame, refused};
use crate::admin::control::{self, Commands};
use crate::admin::{self, Routes};
use crate::config::{Admin, Listeners, Loaded, Report, Socket};
use crate::http::{BindError, Listener};
use crate::report::Chain;
use crate::shutdown::{Shutdown, Signals};
use crate::{descriptors, exit};

/// Why a program ends by itself.
pub trait Fatal: Error {
    /// See [`exit`].
    fn exit_code(&self) -> u8;
}

impl Frame {
    /// Runs the program: `run` has the configuration, the signals (with USR2 when it `leaves`) and the way to read the
    /// configuration again.
    ///
    /// # Errors
    /// The exit code, when no configuration is named.
    pub fn run<C, E: Fatal>(
        &self,
        leaves: bool,
        load: impl Fn(&Path) -> Result<Loaded<C>, Report> + Send + Sync,
        run: impl AsyncFnOnce(C, Signals, Reload<'_, C>) -> Result<(), E>,
    ) -> Exit {
        let (file, name) = (self.file()?, self.program.name);
        let load = || load(file);
        let work = async {
            // First of all: an early signal must not kill the process.
            let signals = Signals::install(leaves).map_err(|error| {
                complain(&format!("cannot install signal handlers: {error}"));
                exit::START
            })?;
            let loaded = load().map_err(refused)?;
            tracing::info!(version = crate::BUILD, config = %file.display(), "{name} starts");
            descriptors::raise();
            tell(&loaded.warnings);
            let reload = Reload::new(load, loaded.files);
            let ended = run(loaded.config, signals, reload).await;
            ended.map(|()| exit::OK).map_err(|error| {
                tracing::error!(error = %Chain(&error), "{name} ends");
                error.exit_code()
            })
        };
        Ok(logging(self.options.log_format, || blocking(work)))
    }
}

fn tell(warnings: &Report) {
    for finding in &warnings.findings {
        tracing::warn!("{finding}");
    }
}

/// How often the configuration was read again, by result.
#[derive(Debug, Clone, Default)]
pub struct Results(Family<Vec<(&'static str, &'static str)>, Counter>);

impl Results {
    /// Shows them in `/metrics`.
    pub fn register(&self, registry: &mut Registry) {
        let help = "Re-reads of the configuration by result";
        registry.register("config_reloads", help, self.0.clone());
    }
}

/// Reads the configuration again.
pub struct Reload<'a, C> {
    load: Box<dyn Fn() -> Result<Loaded<C>, Report> + Send + Sync + 'a>,
    /// How many services of the running one have a file in `service_conf_dir`.
    files: usize,
    /// What came of it.
    pub results: Results,
}

impl<'a, C> Reload<'a, C> {
    /// By `load`; see [`Loaded::files`].
    #[must_use]
    pub fn new(
        load: impl Fn() -> Result<Loaded<C>, Report> + Send + Sync + 'a,
        files: usize,
    ) -> Self {
        Self {
            load: Box::new(load),
            files,
            results: Results::default(),
        }
    }

    /// The configuration as it is now, once `take` has accepted it. A bad one changes nothing and says so.
    pub fn read<T>(&mut self, take: impl FnOnce(C) -> Result<T, String>) -> Option<T> {
        let read = (self.load)().map_err(|report| report.to_string());
        let read = read.and_then(|loaded| {
            tell(&loaded.warnings);
            not_emptied(self.files, loaded.files)?;
            let taken = take(loaded.config)?;
            self.files = loaded.files;
            Ok(taken)
        });
        let result = if read.is_ok() { "ok" } else { "failed" };
        self.results
            .0
            .get_or_create(&vec![("result", result)])
            .inc();
        let keep = |problem| {
            tracing::error!("reload failed, keeping the running configuration:\n{problem}");
        };
        read.map_err(keep).ok()
    }
}

/// A folder of services that was not empty is not emptied.
fn not_emptied(before: usize, now: usize) -> Result<(), String> {
    if before == 0 || now > 0 {
        return Ok(());
    }
    Err(format!(
        "`service_conf_dir`: no service is there any more, and {before} were\nhint: a folder that is not mounted or not filled yet looks so; to remove \
         the last service, restart the program"
    ))
}

type Task = Pin<Box<dyn Future<Output = ()> + Send>>;

/// The listeners of a running program, bound and not served yet.
#[derive(Debug, Default)]
pub struct Listening {
    admin: Option<Listener>,
    control: Option<Listener>,
}

/// Binds what `listeners` asks for; `commands` names what the control socket is for.
///
/// # Errors
/// When one that the configuration names cannot be bound; what is lost without another one is told.
pub async fn listen(listeners: &Listeners, commands: &str) -> Result<Listening, BindError> {
    let or_told =
        |bound: Result<Listener, BindError>, configured, lost: &str, hint: &str| match bound {
            Ok(listener) => {
                tracing::info!(address = %listener.address, "listening for {lost}");
                Ok(Some(listener))
            }
            Err(error) if configured => Err(error),
            Err(error) => {
                tracing::warn!("no {lost}: {}\nhint: {hint}", Chain(&error));
                Ok(None)
            }
        };
    let mut listening = Listening::default();
    if let Some(Admin { bind, configured }) = &listeners.admin {
        let hint = "set `admin.bind`, or `admin: false`";
        let bound = admin::bind(bind).await;
        listening.admin = or_told(bound, *configured, "/status and /metrics", hint)?;
    }
    if let Some(Socket { path, configured }) = &listeners.socket {
        let hint = "make its folder, or set `admin.socket`, or `admin: {socket: false}`";
        let bound = control::bind(path).await;
        listening.control = or_told(bound, *configured, commands, hint)?;
    }
    Ok(listening)
}

impl Listening {
    /// What serves them until `shutdown`, each with its name; none may end before.
    pub fn serve(
        self,
        pages: Routes,
        commands: Commands,
        shutdown: &Shutdown,
    ) -> Vec<(&'static str, Task)> {
        let mut tasks: Vec<(_, Task)> = Vec::new();
        if let Some(listener) = self.admin {
            let serve = admin::serve(listener, pages, shutdown.clone());
            tasks.push(("admin listener", Box::pin(serve)));
        }
        if let Some(listener) = self.control {
            let serve = control::serve(listener, commands, shutdown.clone());
            tasks.push(("control socket", Box::pin(serve)));
        }
        tasks
    }
}
