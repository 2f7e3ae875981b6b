//! What both command lines share: printing, complaining, running on one thread, asking a running program.

use std::io::Write;
use std::path::PathBuf;
use std::time::Duration;

use bytes::Bytes;
use clap::Args;
use http_body_util::{BodyExt, Empty, Limited};
use hyper::Request;
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::task::LocalSet;

use crate::admin::{Bind, control};
use crate::config::Report;
use crate::net;
use crate::report::{Chain, exit};
use crate::telemetry::{self, LogFormat};

/// How long a running program may take to answer.
const ANSWER_LIMIT: Duration = Duration::from_secs(5);
/// How long it may take to carry a command out.
const ORDER_LIMIT: Duration = Duration::from_secs(20);
/// Largest answer that is read.
const ANSWER_BYTES: usize = 64 << 20;

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
    match writeln!(std::io::stdout().lock(), "{}", text.trim_end()) {
        Ok(()) => exit::OK,
        Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => exit::OK,
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

/// Sends a command to the control socket of a running `program`, and prints the answer. `socket` is where its configuration
/// says it listens (`None` = nowhere). Returns the exit code: whether it was done.
pub async fn order(
    program: &str,
    socket: Result<Option<PathBuf>, Report>,
    command: &str,
    body: &Value,
) -> u8 {
    let socket = match socket {
        Ok(Some(socket)) => socket,
        Ok(None) => {
            complain("the configuration turns the control socket off");
            return exit::START;
        }
        Err(report) => {
            complain(&report.to_string());
            return exit::CONFIG;
        }
    };
    match control::send(&socket, command, body, ORDER_LIMIT).await {
        Ok(reply) if reply.done => print(&reply.text),
        Ok(reply) => {
            complain(&reply.text);
            exit::START
        }
        Err(reason) => {
            complain(&format!(
                "nobody carries out `{command}` at `{}`: {reason}\nhint: does {program} run? the path is `admin.socket` of -c FILE",
                socket.display()
            ));
            exit::START
        }
    }
}

/// Prints the `/status` of a running `program`: as JSON, or by `summary`. `bind` is where its configuration says it listens
/// (`None` = nowhere). Returns the exit code.
pub async fn show_status(
    program: &str,
    bind: Result<Option<Bind>, Report>,
    json: bool,
    summary: impl Fn(&Value) -> String,
) -> u8 {
    let bind = match bind {
        Ok(Some(bind)) => bind,
        Ok(None) => {
            complain("the configuration turns the admin listener off");
            return exit::START;
        }
        Err(report) => {
            complain(&report.to_string());
            return exit::CONFIG;
        }
    };
    match status(&bind).await {
        Ok(value) if json => print(&format!("{value:#}")),
        Ok(value) => print(&summary(&value)),
        Err(reason) => {
            complain(&format!(
                "no status from `{bind}`: {reason}\nhint: does {program} run? the address is `admin.bind` of -c FILE"
            ));
            exit::START
        }
    }
}

async fn status(bind: &Bind) -> Result<Value, String> {
    let answer = tokio::time::timeout(ANSWER_LIMIT, fetch(bind, "/status")).await;
    let answer = answer.unwrap_or_else(|_| Err(format!("no answer within {ANSWER_LIMIT:?}")));
    answer.and_then(|text| serde_json::from_slice(&text).map_err(|e| format!("not JSON: {e}")))
}

async fn fetch(bind: &Bind, path: &str) -> Result<Bytes, String> {
    let fail = |error: std::io::Error| error.to_string();
    match bind {
        Bind::Tcp(address) => get(connected(address).await.map_err(fail)?, path).await,
        Bind::Unix(socket) => {
            get(
                tokio::net::UnixStream::connect(socket)
                    .await
                    .map_err(fail)?,
                path,
            )
            .await
        }
    }
}

/// Connects to the first address of `address` that answers.
async fn connected(address: &str) -> std::io::Result<tokio::net::TcpStream> {
    let mut last = std::io::Error::other("it has no address");
    for address in tokio::net::lookup_host(address).await? {
        match net::connect(address).await {
            Ok(stream) => return Ok(stream),
            Err(error) => last = error,
        }
    }
    Err(last)
}

async fn get(
    stream: impl AsyncRead + AsyncWrite + Send + Unpin,
    path: &str,
) -> Result<Bytes, String> {
    let fail = |error: hyper::Error| Chain(&error).to_string();
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await.map_err(fail)?;
    let request = Request::get(path)
        .header("host", "localhost")
        .header("connection", "close");
    let request = request
        .body(Empty::<Bytes>::new())
        .map_err(|error| error.to_string())?;
    let answer = async {
        let response = sender.send_request(request).await.map_err(fail)?;
        let body = Limited::new(response.into_body(), ANSWER_BYTES)
            .collect()
            .await
            .map_err(|e| e.to_string())?;
        Ok(body.to_bytes())
    };
    // The connection's own end says nothing that the answer does not say as well.
    let (answer, _ended) = tokio::join!(answer, connection);
    answer
}
