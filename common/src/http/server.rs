//! The server: one accept loop, and what holds for every connection: their number, and the time for a request's head.

use std::convert::Infallible;
use std::path::Path;
use std::time::Duration;

use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::{TcpListener, UnixListener};
use tokio::task::JoinSet;

use super::{Answer, Bind, Stream};
use crate::shutdown::Shutdown;

/// A request, its body not read yet.
pub type Request = hyper::Request<Incoming>;

/// How long a client may take to send the head of a request.
const HEAD_LIMIT: Duration = Duration::from_secs(10);
/// The pause after an accept that failed.
const PAUSE: Duration = Duration::from_millis(100);
/// The mode of a unix socket: the program's user and group.
const MODE: u32 = 0o660;

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

/// Why there is no listener.
#[derive(Debug, thiserror::Error)]
#[error("cannot listen on `{place}` for {purpose}")]
pub struct BindError {
    place: String,
    purpose: &'static str,
    source: std::io::Error,
}

impl Listener {
    /// Listens at `bind`; the file of a unix socket that nobody answers on is replaced. `purpose` is for the error.
    ///
    /// # Errors
    /// When the address is taken, by a living process, or not ours.
    pub async fn bind(bind: &Bind, purpose: &'static str) -> Result<Self, BindError> {
        Self::at(bind).await.map_err(|source| BindError {
            place: match bind {
                Bind::Tcp(address) => address.clone(),
                Bind::Unix(path) => path.display().to_string(),
            },
            purpose,
            source,
        })
    }

    async fn at(bind: &Bind) -> std::io::Result<Self> {
        match bind {
            Bind::Tcp(address) => {
                let socket = TcpListener::bind(address).await?;
                let address = Bind::Tcp(socket.local_addr()?.to_string());
                Ok(Self {
                    socket: Socket::Tcp(socket),
                    address,
                })
            }
            Bind::Unix(path) => Ok(Self {
                socket: Socket::Unix(bind_unix(path)?),
                address: bind.clone(),
            }),
        }
    }

    /// Answers every request by `answer` until `shutdown`, what is under way is then dropped; `most` connections at a time,
    /// others wait. `name` is for the log.
    pub async fn serve<F>(
        self,
        name: &'static str,
        most: usize,
        answer: impl Fn(Request) -> F + Clone + Send + 'static,
        mut shutdown: Shutdown,
    ) where
        F: Future<Output = Answer> + Send + 'static,
    {
        let mut connections = JoinSet::new();
        let mut fails = false;
        loop {
            // Accepts and joins are cancel-safe; the wait is a watch receive.
            tokio::select! {
                () = shutdown.wait() => return,
                Some(_) = connections.join_next() => {}
                accepted = self.socket.accept(), if connections.len() < most => match accepted {
                    Ok(stream) => {
                        fails = false;
                        connections.spawn(attend(name, stream, answer.clone()));
                    }
                    Err(error) => {
                        if !fails {
                            tracing::warn!(%error, "the {name} takes no connection");
                        }
                        fails = true;
                        tokio::time::sleep(PAUSE).await;
                    }
                },
            }
        }
    }
}

impl Socket {
    async fn accept(&self) -> std::io::Result<Box<dyn Stream>> {
        Ok(match self {
            Socket::Tcp(listener) => Box::new(listener.accept().await?.0),
            Socket::Unix(listener) => Box::new(listener.accept().await?.0),
        })
    }
}

fn bind_unix(path: &Path) -> std::io::Result<UnixListener> {
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
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(MODE))?;
    Ok(listener)
}

async fn attend<F: Future<Output = Answer>>(
    name: &'static str,
    stream: Box<dyn Stream>,
    answer: impl Fn(Request) -> F + Clone,
) {
    let service = service_fn(move |request| {
        let answer = answer(request);
        async move { Ok::<_, Infallible>(answer.await.response()) }
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_LIMIT)
        .serve_connection(TokioIo::new(stream), service);
    if let Err(error) = connection.await {
        tracing::debug!(%error, "connection to the {name}");
    }
}
