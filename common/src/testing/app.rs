//! A tiny HTTP app: answers `/` with its name and `/health` with its health, counts, and can misbehave on demand.

use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use http_body_util::Either;
use http_body_util::Full;
use hyper::body::{Frame, Incoming};
use hyper::service::service_fn;
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::{Instant, Sleep};

use super::free_port;

/// How the app answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Behaviour {
    /// 200 everywhere.
    Healthy,
    /// 503 on `/health`, 200 everywhere else: what a failing instance does to its checker while it still serves.
    Unhealthy,
    /// Takes every request and never answers.
    Hang,
    /// Answers one byte at a time, with this pause before each.
    Drip(Duration),
    /// Closes the connection instead of answering.
    Close,
}

/// The app's switch and counters, shared with whoever drives it.
#[derive(Debug, Clone)]
pub struct AppState(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    behaviour: watch::Sender<Behaviour>,
    requests: AtomicU64,
    checks: AtomicU64,
    connections: AtomicU64,
}

impl Default for AppState {
    fn default() -> Self {
        Self(Arc::new(Shared {
            behaviour: watch::Sender::new(Behaviour::Healthy),
            requests: AtomicU64::new(0),
            checks: AtomicU64::new(0),
            connections: AtomicU64::new(0),
        }))
    }
}

impl AppState {
    /// Changes how requests are answered from now on; one that hangs is answered then.
    pub fn set(&self, behaviour: Behaviour) {
        self.0.behaviour.send_replace(behaviour);
    }

    /// Requests so far, except to `/health`.
    #[must_use]
    pub fn requests(&self) -> u64 {
        self.0.requests.load(Ordering::Acquire)
    }

    /// Requests to `/health` so far.
    #[must_use]
    pub fn checks(&self) -> u64 {
        self.0.checks.load(Ordering::Acquire)
    }

    /// Connections so far.
    #[must_use]
    pub fn connections(&self) -> u64 {
        self.0.connections.load(Ordering::Acquire)
    }
}

/// An app running in this process; its listener and connections close when it is dropped.
#[derive(Debug)]
pub struct App {
    /// What `/` answers.
    pub name: String,
    /// Where it listens.
    pub address: SocketAddr,
    /// Its switch and counters.
    pub state: AppState,
    task: JoinHandle<()>,
}

impl App {
    /// An app on a free port of `127.0.0.1`.
    pub async fn start(name: &str) -> Self {
        Self::start_on(name, SocketAddr::from(([127, 0, 0, 1], free_port()))).await
    }

    /// An app on a given address, e.g. another one of `127.0.0.0/8`, or where one was before.
    ///
    /// # Panics
    /// When the address cannot be bound.
    pub async fn start_on(name: &str, address: SocketAddr) -> Self {
        let listener = TcpListener::bind(address)
            .await
            .unwrap_or_else(|e| panic!("app {name} on {address}: {e}"));
        let state = AppState::default();
        let task = tokio::spawn(serve_app(listener, name.to_owned(), state.clone()));
        Self {
            name: name.to_owned(),
            address,
            state,
            task,
        }
    }

    /// Changes how it answers.
    pub fn set(&self, behaviour: Behaviour) {
        self.state.set(behaviour);
    }
}

impl Drop for App {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Serves the app on `listener` until dropped. Also what a stand-alone app process runs.
pub async fn serve_app(listener: TcpListener, name: String, state: AppState) {
    let mut connections = JoinSet::new();
    loop {
        // An accept and a join: both cancel-safe.
        tokio::select! {
            Some(_) = connections.join_next() => {}
            accepted = listener.accept() => {
                // Out of file descriptors and the like: the next accept tells.
                let Ok((stream, _)) = accepted else { continue };
                state.0.connections.fetch_add(1, Ordering::AcqRel);
                let (name, state) = (name.clone(), state.clone());
                let service = service_fn(move |request| answer(request, name.clone(), state.clone()));
                let served = hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), service);
                connections.spawn(async move { served.await.is_ok() });
            }
        }
    }
}

/// The connection is to be closed without an answer.
#[derive(Debug, thiserror::Error)]
#[error("closed on purpose")]
struct Closed;

async fn answer(
    request: Request<Incoming>,
    name: String,
    state: AppState,
) -> Result<Response<Either<Full<Bytes>, Drip>>, Closed> {
    let is_check = request.uri().path() == "/health";
    let counter = if is_check {
        &state.0.checks
    } else {
        &state.0.requests
    };
    counter.fetch_add(1, Ordering::AcqRel);
    let mut behaviours = state.0.behaviour.subscribe();
    let behaviour = match behaviours.wait_for(|b| *b != Behaviour::Hang).await {
        Ok(behaviour) => *behaviour,
        Err(_) => return Err(Closed),
    };
    let (status, text) = match (behaviour, is_check) {
        (Behaviour::Close, _) => return Err(Closed),
        (Behaviour::Unhealthy, true) => (StatusCode::SERVICE_UNAVAILABLE, "unhealthy\n".to_owned()),
        (_, true) => (StatusCode::OK, "ok\n".to_owned()),
        (_, false) => (StatusCode::OK, format!("{name}\n")),
    };
    let body = match behaviour {
        Behaviour::Drip(pause) => Either::Right(Drip::new(text, pause)),
        _ => Either::Left(Full::new(Bytes::from(text))),
    };
    let mut response = Response::new(body);
    *response.status_mut() = status;
    Ok(response)
}

/// A body that comes byte by byte.
struct Drip {
    rest: Bytes,
    pause: Duration,
    wait: Pin<Box<Sleep>>,
}

impl Drip {
    fn new(text: String, pause: Duration) -> Self {
        Self {
            rest: Bytes::from(text),
            pause,
            wait: Box::pin(tokio::time::sleep(pause)),
        }
    }
}

impl hyper::body::Body for Drip {
    type Data = Bytes;
    type Error = std::convert::Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        if self.rest.is_empty() {
            return Poll::Ready(None);
        }
        ready!(self.wait.as_mut().poll(context));
        let next = Instant::now() + self.pause;
        self.wait.as_mut().reset(next);
        Poll::Ready(Some(Ok(Frame::data(self.rest.split_to(1)))))
    }
}
