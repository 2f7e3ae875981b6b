//! HTTP/1.1, once for both programs and the harness: one exchange as a client ([`Connection`]), one accept loop as a
//! server ([`Listener`]). What is asked and answered is up to the callers.

mod client;
mod server;
#[cfg(test)]
mod tests;

use std::path::PathBuf;

use bytes::Bytes;
use http_body_util::Full;
use hyper::header::{CONTENT_TYPE, HeaderValue};
use tokio::io::{AsyncRead, AsyncWrite};

pub use self::client::{Connection, Failure, Reply, get, post};
pub use self::server::{BindError, Listener, Request};
pub use hyper::{Method, StatusCode};

/// Where to listen, or whom to ask.
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

/// A connection of either kind.
trait Stream: AsyncRead + AsyncWrite + Unpin + Send {}
impl<T: AsyncRead + AsyncWrite + Unpin + Send> Stream for T {}

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
            content_type: "application/json",
            ..Self::text(format!("{value:#}\n"))
        }
    }

    /// 200 with a page.
    #[must_use]
    pub fn html(page: &str) -> Self {
        Self {
            content_type: "text/html; charset=utf-8",
            ..Self::text(page)
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
        Self {
            content_type: "application/openmetrics-text; version=1.0.0; charset=utf-8",
            ..Self::text(body)
        }
    }

    /// 200 `ok`, or 503 with what is still missing.
    #[must_use]
    pub fn ready(missing: Option<String>) -> Self {
        match missing {
            None => Self::text("ok\n"),
            Some(missing) => Self::refusal(StatusCode::SERVICE_UNAVAILABLE, missing),
        }
    }

    fn response(self) -> hyper::Response<Full<Bytes>> {
        let mut response = hyper::Response::new(Full::new(Bytes::from(self.body)));
        *response.status_mut() = self.status;
        let headers = response.headers_mut();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static(self.content_type));
        response
    }
}
