//! Asking a running program: orders over its control socket, its status over the admin listener.

use std::io;
use std::path::PathBuf;
use std::time::Duration;

use clap::Args;
use serde_json::{Value, json};

use super::{Frame, blocking, complain, print};
use crate::admin::control;
use crate::config::{self, Environment, Listeners};
use crate::exit;
use crate::http::{self, Bind};

/// How long a running program may take to answer.
const ANSWER_LIMIT: Duration = Duration::from_secs(5);
/// How long it may take to carry a command out.
const ORDER_LIMIT: Duration = Duration::from_secs(20);

/// Which services a command is for.
#[derive(Debug, Args)]
#[group(required = true, multiple = false)]
pub struct Services {
    /// Names of services
    #[arg(value_name = "SERVICE")]
    pub services: Vec<String>,
    /// All services
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

impl Services {
    /// As [`control::Command::services`] reads them.
    fn body(&self) -> Value {
        match self.all {
            true => json!({"all": true}),
            false => json!({"services": self.services}),
        }
    }
}

impl Frame {
    /// Sends a command to the control socket of the running program, and prints the answer. Returns the exit code: whether it
    /// was done.
    #[must_use]
    pub fn order(&self, command: &str, order: Order) -> u8 {
        blocking(async {
            let socket = self.place(order.socket, "control socket", "--socket PATH", |found| {
                found
                    .socket
                    .map(|found| (found.path.display().to_string(), found.path))
            })?;
            let shown = socket.display();
            match control::send(&socket, command, &order.services.body(), ORDER_LIMIT).await {
                Ok(reply) if reply.done => Ok(print(&reply.text)),
                Ok(reply) => Err(failed(&reply.text)),
                Err(error) => {
                    let what = format!("cannot reach {} at `{shown}`", self.program.name);
                    let place = "path is `admin.socket` of -c FILE, or --socket PATH";
                    Err(self.unreached(&what, &error, &format!(" (`ls -l {shown}`)"), place))
                }
            }
        })
    }

    /// Prints the `/status` of the running program: as JSON, or by `summary`. Returns the exit code.
    #[must_use]
    pub fn status(&self, question: Question, summary: impl Fn(&Value) -> String) -> u8 {
        blocking(async {
            let name = self.program.name;
            let bind = self.place(
                question.admin,
                "admin listener",
                "--admin HOST:PORT",
                |found| {
                    found
                        .admin
                        .map(|found| (found.bind.to_string(), found.bind))
                },
            )?;
            let place = "address is `admin.bind` of -c FILE, or --admin HOST:PORT";
            let status = status(&bind).await.map_err(|error| {
                self.unreached(&format!("no status from `{bind}`"), &error, "", place)
            })?;
            match status["program"].as_str() {
                Some(program) if program == name => {}
                other => {
                    let other = other.unwrap_or("another program");
                    return Err(failed(&format!(
                        "`{bind}` is {other}, not {name}\nhint: the {place}"
                    )));
                }
            }
            Ok(print(&match question.json {
                true => format!("{status:#}"),
                false => summary(&status),
            }))
        })
    }

    /// Where the program listens: as `given`, or by its configuration, of which nothing else must be right.
    fn place<T>(
        &self,
        given: Option<T>,
        what: &str,
        option: &str,
        of: impl Fn(Listeners) -> Option<(String, T)>,
    ) -> Result<T, u8> {
        let name = self.program.name;
        if let Some(place) = given {
            return Ok(place);
        }
        let (listeners, broken) = match &self.options.config {
            Some(file) => Listeners::read(file, self.program, &self.environment),
            None => (Listeners::of(self.program, &self.environment), None),
        };
        let (shown, place) = of(listeners).ok_or_else(|| {
            failed(&format!(
                "the configuration turns the {what} off\nhint: if {name} runs with one: {option}"
            ))
        })?;
        if let Some(report) = broken {
            complain(&format!(
                "{report}\nthe configuration is broken: {name} is asked at `{shown}` all the same"
            ));
        }
        Ok(place)
    }

    fn unreached(&self, what: &str, error: &io::Error, look: &str, place: &str) -> u8 {
        let name = self.program.name;
        let hint = match error.kind() {
            io::ErrorKind::PermissionDenied => format!(
                "the mode of the socket and of its folder decides who may: root, {name}'s user, or who is in its group{look}"
            ),
            _ => format!("does {name} run? the {place}"),
        };
        failed(&format!("{what}: {error}\nhint: {hint}"))
    }
}

/// Complains; the exit code.
fn failed(text: &str) -> u8 {
    complain(text);
    exit::START
}

fn parse_bind(text: &str) -> Result<Bind, String> {
    config::parse_bind(text, &Environment::current())
}

async fn status(bind: &Bind) -> io::Result<Value> {
    let reply = http::get(bind, "/status", ANSWER_LIMIT).await?;
    serde_json::from_str(&reply.body).map_err(|e| io::Error::other(format!("not JSON: {e}")))
}
