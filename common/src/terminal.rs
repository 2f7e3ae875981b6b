//! What both command lines share: printing, complaining, running on one thread, asking a running program.

use std::fmt::Display;
use std::io::{self, Write};
use std::path::PathBuf;
use std::time::Duration;

use clap::Args;
use serde_json::{Value, json};
use tokio::task::LocalSet;

use crate::admin::control;
use crate::config::{self, Environment, Listeners, Report};
use crate::http::{self, Bind};
use crate::report::exit;
use crate::telemetry::{self, LogFormat};

/// How long a running program may take to answer.
const ANSWER_LIMIT: Duration = Duration::from_secs(5);
/// How long it may take to carry a command out.
const ORDER_LIMIT: Duration = Duration::from_secs(20);

/// Which services a command is for.
#[derive(Debug, Args)]
#[group(required = true, multiple = false)]
pub struct Services {
    /// Their names
    #[arg(value_name = "SERVICE")]
    pub services: Vec<String>,
    /// All of them
    #[arg(long)]
    pub all: bool,
}

/// A command to a running program.
#[derive(Debug, Args)]
pub struct Order {
    #[command(flatten)]
    /// Whom it is for
    pub services: Services,
    /// The control socket of the running program, in place of `admin.socket` of its configuration
    #[arg(long, value_name = "PATH")]
    pub socket: Option<PathBuf>,
}

/// A question to a running program.
#[derive(Debug, Args)]
pub struct Question {
    /// Print the JSON of /status
    #[arg(long)]
    pub json: bool,
    /// Where the running program listens, in place of `admin.bind` of its configuration
    #[arg(long, value_name = "HOST:PORT|unix:/PATH", value_parser = parse_bind)]
    pub admin: Option<Bind>,
}

/// Where a configuration says that its program listens, and what is wrong with that configuration.
pub type Found = (Listeners, Option<Report>);

impl Services {
    /// As [`control::Command::services`] reads them.
    #[must_use]
    pub fn body(&self) -> Value {
        match self.all {
            true => json!({"all": true}),
            false => json!({"services": self.services}),
        }
    }
}

/// Prints on stdout. The exit code: a reader that has had enough (`schema | head`) is no failure.
#[must_use]
pub fn print(text: &str) -> u8 {
    match writeln!(io::stdout().lock(), "{}", text.trim_end()) {
        Ok(()) => exit::OK,
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => exit::OK,
        Err(error) => {
            complain(&format!("cannot write to stdout: {error}"));
            exit::START
        }
    }
}

/// Prints on stderr; in a program that logs without waiting for it.
pub fn complain(text: &str) {
    telemetry::complain(text);
}

/// Runs `work` with logs on stderr; the last lines are out when it returns, unless nobody reads them.
pub fn logging(format: LogFormat, work: impl FnOnce() -> u8) -> u8 {
    match telemetry::start(format) {
        Ok(_logs) => work(),
        Err(error) => {
            complain(&format!("cannot start the thread for the log: {error}"));
            exit::START
        }
    }
}

/// Runs to the end on one thread: a sidecar should cost one core at most.
pub fn blocking(work: impl Future<Output = u8>) -> u8 {
    match tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
    {
        Ok(runtime) => {
            let code = LocalSet::new().block_on(&runtime, work);
            // A name server or disk that hangs must not hold up the exit.
            runtime.shutdown_background();
            code
        }
        Err(error) => {
            complain(&format!("cannot start the runtime: {error}"));
            exit::START
        }
    }
}

/// Sends a command to the control socket of a running `program`, and prints the answer; `found` is asked where that is
/// unless the order says it. Returns the exit code: whether it was done.
pub async fn order(
    program: &str,
    order: Order,
    found: impl FnOnce() -> Found,
    command: &str,
) -> u8 {
    let socket = match order.socket {
        Some(socket) => socket,
        None => {
            let (listeners, broken) = found();
            let Some(socket) = listeners.socket else {
                complain(&format!(
                    "the configuration turns the control socket off\nhint: if {program} runs on another one: --socket PATH"
                ));
                return exit::START;
            };
            tell_broken(program, broken, &socket.path.display());
            socket.path
        }
    };
    match control::send(&socket, command, &order.services.body(), ORDER_LIMIT).await {
        Ok(reply) if reply.done => print(&reply.text),
        Ok(reply) => {
            complain(&reply.text);
            exit::START
        }
        Err(error) => {
            let hint = match error.kind() {
                io::ErrorKind::PermissionDenied => format!(
                    "the mode of the socket and of its folder decides who may: root, {program}'s user, or who is in its group (`ls -l {}`)",
                    socket.display()
                ),
                _ => format!(
                    "does {program} run? the path is `admin.socket` of -c FILE, or --socket PATH"
                ),
            };
            complain(&format!(
                "cannot reach {program} at `{}`: {error}\nhint: {hint}",
                socket.display()
            ));
            exit::START
        }
    }
}

/// Prints the `/status` of a running `program`: as JSON, or by `summary`; `found` is asked where it listens unless the
/// question says it. Returns the exit code.
pub async fn show_status(
    program: &str,
    question: Question,
    found: impl FnOnce() -> Found,
    summary: impl Fn(&Value) -> String,
) -> u8 {
    let bind = match question.admin {
        Some(bind) => bind,
        None => {
            let (listeners, broken) = found();
            let Some(admin) = listeners.admin else {
                complain(&format!(
                    "the configuration turns the admin listener off\nhint: if {program} runs with one: --admin HOST:PORT"
                ));
                return exit::START;
            };
            tell_broken(program, broken, &admin.bind);
            admin.bind
        }
    };
    match status(&bind).await {
        Ok(value) if value["program"] != program => {
            let other = value["program"].as_str().unwrap_or("another program");
            complain(&format!(
                "`{bind}` is {other}, not {program}\nhint: the address is `admin.bind` of -c FILE, or --admin HOST:PORT"
            ));
            exit::START
        }
        Ok(value) if question.json => print(&format!("{value:#}")),
        Ok(value) => print(&summary(&value)),
        Err(error) => {
            let hint = match error.kind() {
                io::ErrorKind::PermissionDenied => format!(
                    "the mode of the socket and of its folder decides who may: root, {program}'s user, or who is in its group"
                ),
                _ => format!(
                    "does {program} run? the address is `admin.bind` of -c FILE, or --admin HOST:PORT"
                ),
            };
            complain(&format!("no status from `{bind}`: {error}\nhint: {hint}"));
            exit::START
        }
    }
}

fn parse_bind(text: &str) -> Result<Bind, String> {
    config::parse_bind(text, &Environment::current())
}

fn tell_broken(program: &str, broken: Option<Report>, place: &dyn Display) {
    if let Some(report) = broken {
        complain(&format!(
            "{report}\nthe configuration is broken: {program} is asked at `{place}` all the same"
        ));
    }
}

async fn status(bind: &Bind) -> io::Result<Value> {
    let reply = http::get(bind, "/status", ANSWER_LIMIT).await?;
    serde_json::from_str(&reply.body).map_err(|e| io::Error::other(format!("not JSON: {e}")))
}
