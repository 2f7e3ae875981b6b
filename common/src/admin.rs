//! The read-only HTTP listener of both programs: `/live /ready /metrics /status /` and what a program adds; and, in
//! [`control`], the socket for commands.

pub mod control;

use std::convert::Infallible;
use std::path::PathBuf;
use std::sync::Arc;

use bytes::Bytes;
use http_body_util::Full;
use hyper::header::CONTENT_TYPE;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, UnixListener};
use tokio::task::JoinSet;

use crate::shutdown::Shutdown;

/// Where to listen. Never anything but loopback by default: it names every server of the host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Bind {
    /// `host:port`, port 0 for any free one.
    Tcp(String),
    /// `unix:/path`, mode 0660.
    Unix(PathBuf),
}

impl std::fmt::Display for Bind {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Bind::Tcp(address) => f.write_str(address),
            Bind::Unix(path) => write!(f, "unix:{}", path.display()),
        }
    }
}

/// One answer.
#[derive(Debug)]
pub struct Answer {
    /// HTTP status.
    pub status: StatusCode,
    /// `Content-Type`.
    pub content_type: &'static str,
    /// The body.
    pub body: String,
}

impl Answer {
    /// 200 with a line of text.
    #[must_use]
    pub fn text(body: impl Into<String>) -> Self {
        Self {
            status: StatusCode::OK,
            content_type: "text/plain; charset=utf-8",
            body: body.into(),
        }
    }

    /// 200 with JSON.
    #[must_use]
    pub fn json(value: &serde_json::Value) -> Self {
        Self {
            status: StatusCode::OK,
            content_type: "application/json",
            body: format!("{value:#}\n"),
        }
    }

    /// Another status than 200, with a line of text.
    #[must_use]
    pub fn refusal(status: StatusCode, why: impl std::fmt::Display) -> Self {
        Self {
            status,
            ..Self::text(format!("{why}\n"))
        }
    }

    /// Prometheus text.
    #[must_use]
    pub fn metrics(body: String) -> Self {
        let content_type = "application/openmetrics-text; version=1.0.0; charset=utf-8";
        Self {
            status: StatusCode::OK,
            content_type,
            body,
        }
    }

    /// 200 `ok`, or 503 with what is still missing.
    #[must_use]
    pub fn ready(missing: Option<String>) -> Self {
        match missing {
            None => Self::text("ok\n"),
            Some(missing) => Self {
                status: StatusCode::SERVICE_UNAVAILABLE,
                ..Self::text(format!("{missing}\n"))
            },
        }
    }
}

/// What a program answers for a path (`/live` is answered here). `None` is 404.
pub type Routes = Arc<dyn Fn(&str) -> Option<Answer> + Send + Sync>;

/// A bound listener.
#[derive(Debug)]
pub struct Listener {
    socket: Socket,
    /// Where it listens, with the port the system chose.
    pub address: Bind,
}

#[derive(Debug)]
enum Socket {
    Tcp(TcpListener),
    Unix(UnixListener),
}

/// Why the listener could not be had.
#[derive(Debug, thiserror::Error)]
#[error("cannot listen on `{bind}` for /status and /metrics")]
pub struct BindError {
    bind: Bind,
    source: std::io::Error,
}

impl Listener {
    /// # Errors
    /// When the address is taken or not ours.
    pub async fn bind(bind: &Bind) -> Result<Self, BindError> {
        let fail = |source| BindError {
            bind: bind.clone(),
            source,
        };
        match bind {
            Bind::Tcp(address) => {
                let socket = TcpListener::bind(address).await.map_err(fail)?;
                let address = Bind::Tcp(socket.local_addr().map_err(fail)?.to_string());
                Ok(Self {
                    socket: Socket::Tcp(socket),
                    address,
                })
            }
            Bind::Unix(path) => {
                let socket = bind_unix(path, 0o660).map_err(fail)?;
                Ok(Self {
                    socket: Socket::Unix(socket),
                    address: bind.clone(),
                })
            }
        }
    }

    /// Serves until `shutdown`.
    pub async fn serve(self, routes: Routes, mut shutdown: Shutdown) {
        let mut connections = JoinSet::new();
        let mut fails = false;
        loop {
            // Accepts and joins are cancel-safe; the wait is a watch receive.
            tokio::select! {
                () = shutdown.wait() => return,
                Some(_) = connections.join_next() => {}
                accepted = self.socket.accept() => match (accepted, std::mem::take(&mut fails)) {
                    (Ok(stream), _) if connections.len() < 64 => {
                        connections.spawn(answer(stream, Arc::clone(&routes)));
                    }
                    (Ok(_), _) => tracing::debug!("64 connections on the admin listener: one more refused"),
                    (Err(error), failed) => {
                        if !failed {
                            tracing::warn!(%error, "the admin listener takes no connection");
                        }
                        fails = true;
                        tokio::time::sleep(std::time::Duration::from_millis(100)).await;
                    }
                },
            }
        }
    }
}

/// A unix listener at `path`, replacing a socket nobody answers on.
///
/// # Errors
/// When the path cannot be bound, or somebody answers there.
pub fn bind_unix(path: &std::path::Path, mode: u32) -> std::io::Result<UnixListener> {
    use std::os::unix::fs::{FileTypeExt, PermissionsExt};
    if std::fs::symlink_metadata(path).is_ok_and(|m| m.file_type().is_socket()) {
        if std::os::unix::net::UnixStream::connect(path).is_ok() {
            return Err(std::io::Error::new(
                std::io::ErrorKind::AddrInUse,
                "another process answers there",
            ));
        }
        std::fs::remove_file(path)?;
    }
    let listener = UnixListener::bind(path)?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode))?;
    Ok(listener)
}

trait Stream: AsyncRead + AsyncWrite + Unpin + Send {}
impl<T: AsyncRead + AsyncWrite + Unpin + Send> Stream for T {}

impl Socket {
    async fn accept(&self) -> std::io::Result<Box<dyn Stream>> {
        match self {
            Socket::Tcp(listener) => listener
                .accept()
                .await
                .map(|(s, _)| Box::new(s) as Box<dyn Stream>),
            Socket::Unix(listener) => listener
                .accept()
                .await
                .map(|(s, _)| Box::new(s) as Box<dyn Stream>),
        }
    }
}

async fn answer(stream: Box<dyn Stream>, routes: Routes) {
    let service = service_fn(move |request: Request<hyper::body::Incoming>| {
        let routes = Arc::clone(&routes);
        async move {
            let answer = choose(request.method(), request.uri().path(), &routes);
            Ok::<_, Infallible>(respond(answer))
        }
    });
    let connection = hyper::server::conn::http1::Builder::new()
        .timer(hyper_util::rt::TokioTimer::new())
        .header_read_timeout(std::time::Duration::from_secs(10))
        .serve_connection(TokioIo::new(stream), service);
    if let Err(error) = connection.await {
        tracing::debug!(%error, "admin connection");
    }
}

fn choose(method: &Method, path: &str, routes: &Routes) -> Answer {
    if !matches!(*method, Method::GET | Method::HEAD) {
        Answer::refusal(StatusCode::METHOD_NOT_ALLOWED, "read only: GET")
    } else if path == "/live" {
        Answer::text("ok\n")
    } else {
        routes(path).unwrap_or_else(|| Answer::refusal(StatusCode::NOT_FOUND, "no such page"))
    }
}

fn respond(answer: Answer) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(Bytes::from(answer.body)));
    *response.status_mut() = answer.status;
    response.headers_mut().insert(
        CONTENT_TYPE,
        hyper::header::HeaderValue::from_static(answer.content_type),
    );
    response
}
