//! The client: a connection that is driven by whoever waits for the answer. Never retries, never follows, keeps no pool.

use std::future::poll_fn;
use std::io;
use std::pin::{Pin, pin};
use std::task::Poll;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::{Body, Incoming};
use hyper::client::conn::http1::{self, SendRequest, handshake};
use hyper::header::{CONNECTION, CONTENT_TYPE, HOST};
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use serde_json::Value;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::UnixStream;
use tokio::time::timeout;

use super::{Bind, Stream};
use crate::net;

/// Largest body that is kept.
const BODY_BYTES: usize = 64 << 20;

/// A client's connection, closed when dropped. It moves only while something is waited for.
#[derive(Debug)]
pub struct Connection<S, B>
where
    S: AsyncRead + AsyncWrite + Unpin,
    B: Body + 'static,
{
    sender: SendRequest<B>,
    driver: http1::Connection<TokioIo<S>, B>,
    over: bool,
}

/// Why there is no answer, or not all of it.
#[derive(Debug, thiserror::Error)]
pub enum Failure {
    /// What came was not HTTP, or the connection broke.
    #[error(transparent)]
    Http(#[from] hyper::Error),
    /// The other side has closed it.
    #[error("connection closed before the answer was complete")]
    Closed,
}

impl<S, B> Connection<S, B>
where
    S: AsyncRead + AsyncWrite + Unpin + Send,
    B: Body + Unpin + Send + 'static,
    B::Data: Send,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    /// HTTP over `stream`; nothing is sent yet.
    ///
    /// # Errors
    /// hyper's.
    pub async fn open(stream: S) -> Result<Self, Failure> {
        let (sender, driver) = handshake(TokioIo::new(stream)).await?;
        Ok(Self {
            sender,
            driver,
            over: false,
        })
    }

    /// Sends `request` and reads the answer by `read`, from the head on. The deadline is up to the caller: it may drop this.
    ///
    /// # Errors
    /// When there is no head of an answer; what the body is like, `read` says.
    pub async fn exchange<T>(
        &mut self,
        request: Request<B>,
        read: impl AsyncFnOnce(Response<Incoming>) -> T,
    ) -> Result<T, Failure> {
        let head = self.sender.send_request(request);
        let mut answer = pin!(async { Ok(read(head.await?).await) });
        let (driver, over) = (&mut self.driver, &mut self.over);
        // With `Connection: close` the connection often ends in the same poll in which the answer becomes complete, and
        // its failure reaches the answer as well: so the answer alone decides, and is polled after the connection.
        poll_fn(|context| {
            *over = *over || Pin::new(&mut *driver).poll(context).is_ready();
            match answer.as_mut().poll(context) {
                // One more look: the end of the connection may have woken the answer within this very poll.
                Poll::Pending if *over => match answer.as_mut().poll(context) {
                    Poll::Pending => Poll::Ready(Err(Failure::Closed)),
                    ready @ Poll::Ready(_) => ready,
                },
                other => other,
            }
        })
        .await
    }

    /// Whether another request may be sent; false once the other side has closed it.
    pub async fn is_usable(&mut self) -> bool {
        poll_fn(|context| {
            self.over = self.over || Pin::new(&mut self.driver).poll(context).is_ready();
            match self.over {
                true => Poll::Ready(false),
                false => self.sender.poll_ready(context).map(|ready| ready.is_ok()),
            }
        })
        .await
    }
}

/// A status and a body.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reply {
    /// HTTP status code.
    pub status: u16,
    /// The body, as text.
    pub body: String,
}

impl Reply {
    /// All of an answer.
    ///
    /// # Errors
    /// The connection's, or more than 64 MiB.
    pub async fn read(
        answer: Response<Incoming>,
    ) -> Result<Self, Box<dyn std::error::Error + Send + Sync>> {
        let status = answer.status().as_u16();
        let body = Limited::new(answer.into_body(), BODY_BYTES);
        let body = body.collect().await?.to_bytes();
        Ok(Self {
            status,
            body: String::from_utf8_lossy(&body).into_owned(),
        })
    }
}

/// GET `path` from whoever listens at `bind`, on a connection of its own, all of it within `limit`.
///
/// # Errors
/// Nobody listens, no whole answer in time, or not HTTP.
pub async fn get(bind: &Bind, path: &str, limit: Duration) -> io::Result<Reply> {
    ask(bind, Request::get(path), "", limit).await
}

/// The same as a POST of `body`.
///
/// # Errors
/// As [`get`].
pub async fn post(bind: &Bind, path: &str, body: &Value, limit: Duration) -> io::Result<Reply> {
    let request = Request::post(path).header(CONTENT_TYPE, "application/json");
    ask(bind, request, &body.to_string(), limit).await
}

async fn ask(
    bind: &Bind,
    request: hyper::http::request::Builder,
    body: &str,
    limit: Duration,
) -> io::Result<Reply> {
    let host = match bind {
        Bind::Tcp(address) => address,
        Bind::Unix(_) => "localhost",
    };
    let request = request
        .header(HOST, host)
        .header(CONNECTION, "close")
        .body(Full::new(Bytes::copy_from_slice(body.as_bytes())))
        .map_err(io::Error::other)?;
    let exchange = async {
        let fail = |failure: Failure| io::Error::other(crate::report::Chain(&failure).to_string());
        let mut connection = Connection::open(connect(bind).await?).await.map_err(fail)?;
        let read = connection.exchange(request, Reply::read).await;
        read.map_err(fail)?.map_err(io::Error::other)
    };
    timeout(limit, exchange).await.unwrap_or_else(|_| {
        let late = format!("no answer within {limit:?}");
        Err(io::Error::new(io::ErrorKind::TimedOut, late))
    })
}

/// Connects to the socket, or to the first address that answers.
async fn connect(bind: &Bind) -> io::Result<Box<dyn Stream>> {
    let address = match bind {
        Bind::Tcp(address) => address,
        Bind::Unix(socket) => return Ok(Box::new(UnixStream::connect(socket).await?)),
    };
    let mut last = io::Error::other("it has no address");
    for address in tokio::net::lookup_host(address).await? {
        match net::connect(address).await {
            Ok(stream) => return Ok(Box::new(stream) as Box<dyn Stream>),
            Err(error) => last = error,
        }
    }
    Err(last)
}
