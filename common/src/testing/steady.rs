//! A client that sends requests at a steady rate, never retries, and counts what came of each: how a fault test knows
//! whether traffic was hurt.

use std::collections::BTreeMap;
use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use http_body_util::Empty;
use hyper::Request;
use hyper::header::{CONNECTION, HOST};
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio::time::MissedTickBehavior;

use super::eventually;
use crate::http::{Connection, Failure, Reply};

/// What to send, where, how often.
#[derive(Debug, Clone)]
pub struct Load {
    /// The server, e.g. a local haproxy port.
    pub target: SocketAddr,
    /// The path, by default `/`.
    pub path: String,
    /// `Host`, by default the target.
    pub host: String,
    /// Requests per second, of all clients together.
    pub rate: f64,
    /// Clients, each with at most one request in flight.
    pub clients: usize,
    /// Whether a client keeps its connection, or opens one per request.
    pub keep_alive: bool,
    /// Time limit of one request, connect included.
    pub timeout: Duration,
}

impl Load {
    /// 100 requests per second by 4 clients, a connection each, 5 s time-out.
    #[must_use]
    pub fn new(target: SocketAddr) -> Self {
        let timeout = Duration::from_secs(5);
        Self {
            target,
            path: "/".to_owned(),
            host: target.to_string(),
            rate: 100.0,
            clients: 4,
            keep_alive: false,
            timeout,
        }
    }
}

/// What came of the requests.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Tally {
    /// Answers with 200, per body (an [`super::App`] answers with its name).
    pub answers: BTreeMap<String, u64>,
    /// Everything else, by kind: `status 503`, `refused`, `reset`, `closed`, `timeout`, or another error's text.
    pub failures: BTreeMap<String, u64>,
}

impl Tally {
    /// Answers with 200.
    #[must_use]
    pub fn ok(&self) -> u64 {
        self.answers.values().sum()
    }

    /// Requests without.
    #[must_use]
    pub fn failed(&self) -> u64 {
        self.failures.values().sum()
    }
}

impl fmt::Display for Tally {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} ok {:?}, {} failed {:?}",
            self.ok(),
            self.answers,
            self.failed(),
            self.failures
        )
    }
}

/// The running load; stops when dropped.
#[derive(Debug)]
pub struct SteadyClient {
    tally: Arc<Mutex<Tally>>,
    _clients: JoinSet<()>,
}

impl SteadyClient {
    /// Starts sending.
    #[must_use]
    pub fn start(load: Load) -> Self {
        let tally = Arc::new(Mutex::new(Tally::default()));
        let mut clients = JoinSet::new();
        for _ in 0..load.clients {
            clients.spawn(send(load.clone(), Arc::clone(&tally)));
        }
        Self {
            tally,
            _clients: clients,
        }
    }

    /// The counts since the start or the last [`SteadyClient::reset`].
    #[must_use]
    pub fn snapshot(&self) -> Tally {
        self.lock().clone()
    }

    /// Ends a phase: its counts, which begin anew. A request in flight counts in the next one.
    #[must_use]
    pub fn reset(&self) -> Tally {
        std::mem::take(&mut *self.lock())
    }

    /// Waits until at least `requests` more have ended, and returns the counts of the phase so far.
    ///
    /// # Panics
    /// When that takes longer than `deadline`.
    pub async fn more(&self, requests: u64, deadline: Duration) -> Tally {
        let sum = |tally: &Tally| tally.ok() + tally.failed();
        let wanted = sum(&self.snapshot()) + requests;
        eventually(
            &format!("{requests} more requests end"),
            deadline,
            async || {
                let now = self.snapshot();
                if sum(&now) >= wanted {
                    Ok(now)
                } else {
                    Err(format!("{now}"))
                }
            },
        )
        .await
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Tally> {
        self.tally.lock().expect("nothing panics under it")
    }
}

async fn send(load: Load, tally: Arc<Mutex<Tally>>) {
    let mut ticks = tokio::time::interval(Duration::from_secs_f64(load.clients as f64 / load.rate));
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut kept = None;
    loop {
        ticks.tick().await;
        let outcome = match tokio::time::timeout(load.timeout, request(&load, &mut kept)).await {
            Ok(outcome) => outcome,
            Err(_) => Err("timeout".to_owned()),
        };
        if outcome.is_err() || !load.keep_alive {
            kept = None;
        }
        let mut tally = tally.lock().expect("nothing panics under it");
        let count = match outcome {
            Ok(body) => tally.answers.entry(body).or_default(),
            Err(kind) => tally.failures.entry(kind).or_default(),
        };
        *count += 1;
    }
}

/// A client's connection; requests have no body.
type Kept = Connection<TcpStream, Empty<Bytes>>;

/// One request. A kept connection that is known to be closed before anything was sent is replaced: that is no retry.
async fn request(load: &Load, kept: &mut Option<Kept>) -> Result<String, String> {
    let usable = match kept {
        Some(connection) => connection.is_usable().await,
        None => false,
    };
    if !usable {
        *kept = None;
        let stream = TcpStream::connect(load.target)
            .await
            .map_err(|e| kind(&e))?;
        *kept = Some(Connection::open(stream).await.map_err(of)?);
    }
    let connection = kept.as_mut().expect("opened above");
    let mut request = Request::get(&load.path).header(HOST, &load.host);
    if !load.keep_alive {
        request = request.header(CONNECTION, "close");
    }
    let request = request.body(Empty::new()).map_err(|e| kind(&e))?;
    let reply = connection.exchange(request, Reply::read).await;
    let reply = reply.map_err(of)?.map_err(|e| kind(&*e))?;
    match reply.status {
        200 => Ok(reply.body.trim().to_owned()),
        status => Err(format!("status {status}")),
    }
}

fn of(failure: Failure) -> String {
    match failure {
        Failure::Http(error) => kind(&error),
        Failure::Closed => "closed".to_owned(),
    }
}

/// A short name for what went wrong.
fn kind(error: &(dyn std::error::Error + 'static)) -> String {
    let mut cause = Some(error);
    while let Some(error) = cause {
        if let Some(io) = error.downcast_ref::<io::Error>() {
            match io.kind() {
                io::ErrorKind::ConnectionRefused => return "refused".to_owned(),
                io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe => {
                    return "reset".to_owned();
                }
                io::ErrorKind::UnexpectedEof => return "closed".to_owned(),
                _ => {}
            }
        }
        if error
            .downcast_ref::<hyper::Error>()
            .is_some_and(hyper::Error::is_incomplete_message)
        {
            return "closed".to_owned();
        }
        cause = error.source();
    }
    error.to_string()
}
