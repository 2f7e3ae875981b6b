//! One HTTP/1.1 exchange over any stream: what the harness's clients have in common. Never retries.

use std::io;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, Empty, Limited};
use hyper::client::conn::http1::{SendRequest, handshake};
use hyper::header::{CONNECTION, HOST};
use hyper::{Request, Version};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpStream, UnixStream};
use tokio::task::JoinSet;

use crate::admin::Bind;

/// A status and a body.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reply {
    /// HTTP status code.
    pub status: u16,
    /// The body, as text.
    pub body: String,
}

/// A client connection; closed when dropped.
pub(super) struct Connection {
    sender: SendRequest<Empty<Bytes>>,
    _driver: JoinSet<()>,
}

impl Connection {
    pub(super) async fn open<S>(stream: S) -> hyper::Result<Self>
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let (sender, connection) = handshake(TokioIo::new(stream)).await?;
        let mut driver = JoinSet::new();
        // Its error is also the exchange's.
        driver.spawn(async move { connection.await.unwrap_or(()) });
        Ok(Self {
            sender,
            _driver: driver,
        })
    }

    /// Whether another request may be sent; false once the server has closed it.
    pub(super) async fn is_usable(&mut self) -> bool {
        self.sender.ready().await.is_ok()
    }

    pub(super) async fn get(
        &mut self,
        host: &str,
        path: &str,
        keep_alive: bool,
    ) -> Result<Reply, Box<dyn std::error::Error + Send + Sync>> {
        let request = Request::get(path)
            .version(Version::HTTP_11)
            .header(HOST, host);
        let request = if keep_alive {
            request
        } else {
            request.header(CONNECTION, "close")
        };
        let response = self
            .sender
            .send_request(request.body(Empty::new())?)
            .await?;
        let status = response.status().as_u16();
        let body = Limited::new(response.into_body(), 64 << 20)
            .collect()
            .await?
            .to_bytes();
        Ok(Reply {
            status,
            body: String::from_utf8_lossy(&body).into_owned(),
        })
    }
}

/// GET `path` from an admin listener (or any other), on a connection of its own, within 10 s.
///
/// # Errors
/// Nobody listens, no answer in time, or not HTTP.
pub async fn get(bind: &Bind, path: &str) -> io::Result<Reply> {
    let exchange = async {
        let (mut connection, host) = match bind {
            Bind::Tcp(address) => {
                let stream = TcpStream::connect(address).await?;
                (
                    Connection::open(stream).await.map_err(io::Error::other)?,
                    address.as_str(),
                )
            }
            Bind::Unix(socket) => {
                let stream = UnixStream::connect(socket).await?;
                (
                    Connection::open(stream).await.map_err(io::Error::other)?,
                    "localhost",
                )
            }
        };
        connection
            .get(host, path, false)
            .await
            .map_err(io::Error::other)
    };
    tokio::time::timeout(Duration::from_secs(10), exchange).await?
}
