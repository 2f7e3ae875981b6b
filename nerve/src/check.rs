//! The health checks: one attempt, one connection of its own, one deadline over everything.
//!
//! No decision about health is taken here and nothing is retried: a request that had to be repeated is a failed one.
//! Called by `watch.rs` once a round.

use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use smartstack_common::net;
use tokio::net::TcpStream;
use tokio::time::{Instant, timeout_at};

use crate::config::{Check, CheckKind};

mod http;
mod tcp;

/// What one attempt found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// As it should be.
    Pass,
    /// The reason in words, never the body of an answer.
    Fail(String),
    /// The deadline passed during this step.
    Timeout {
        /// What was going on.
        step: Step,
        /// The limit that was hit.
        after: Duration,
    },
}

/// A part of an attempt.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// Resolving the name, or waiting for the connection.
    Connect,
    /// Waiting for the head of the answer.
    Head,
    /// Reading the body.
    Body,
}

impl Outcome {
    /// Whether the check passed.
    #[must_use]
    pub fn passed(&self) -> bool {
        *self == Outcome::Pass
    }

    /// Why not, if it did not.
    #[must_use]
    pub fn error(&self) -> Option<String> {
        match self {
            Outcome::Pass => None,
            Outcome::Fail(reason) => Some(reason.clone()),
            Outcome::Timeout { step, after } => {
                Some(format!("{step} within {} ms", after.as_millis()))
            }
        }
    }
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Step::Connect => "no connection",
            Step::Head => "no answer",
            Step::Body => "no complete body",
        })
    }
}

/// Runs one attempt of the check.
pub async fn run(check: &Check) -> Outcome {
    match &check.kind {
        CheckKind::Http(settings) => http::run(settings).await,
        CheckKind::Tcp(settings) => tcp::run(settings).await,
        CheckKind::Noop => Outcome::Pass,
    }
}

/// The longest one attempt can take.
#[must_use]
pub fn deadline(check: &Check) -> Duration {
    match &check.kind {
        CheckKind::Http(http) => http.open_timeout.saturating_add(http.read_timeout),
        CheckKind::Tcp(tcp) => tcp.timeout,
        CheckKind::Noop => Duration::ZERO,
    }
}

/// A connection to the first address that accepts one, resolving anew each time (an address that moved must be seen,
/// a name server that fails costs this attempt only). A literal may stand in brackets.
async fn connect(host: &str, port: u16, limit: Duration) -> Result<TcpStream, Outcome> {
    let until = Instant::now() + limit;
    let late = |_| Outcome::Timeout {
        step: Step::Connect,
        after: limit,
    };
    let bare = host
        .strip_prefix('[')
        .and_then(|h| h.strip_suffix(']'))
        .unwrap_or(host);
    let lookup = timeout_at(until, tokio::net::lookup_host((bare, port)))
        .await
        .map_err(late)?;
    let addresses: Vec<SocketAddr> = lookup
        .map_err(|error| Outcome::Fail(format!("cannot resolve `{host}`: {error}")))?
        .collect();
    let mut last = Outcome::Fail(format!("`{host}` has no address"));
    for (tried, address) in addresses.iter().enumerate() {
        // An address that swallows packets must leave the later ones their share of the time.
        let left = until.saturating_duration_since(Instant::now());
        let share = left / u32::try_from(addresses.len() - tried).unwrap_or(u32::MAX);
        last = match timeout_at(Instant::now() + share, net::connect(*address)).await {
            Ok(Ok(stream)) => return Ok(stream),
            Ok(Err(error)) => {
                Outcome::Fail(format!("cannot connect to `{address}`: {}", reason(&error)))
            }
            Err(elapsed) => late(elapsed),
        };
    }
    Err(last)
}

/// An error of the system without its number.
fn reason(error: &io::Error) -> String {
    match error.kind() {
        io::ErrorKind::ConnectionRefused if error.raw_os_error().is_some() => {
            "connection refused".to_owned()
        }
        io::ErrorKind::ConnectionReset => "connection reset".to_owned(),
        _ => error.to_string(),
    }
}

#[cfg(test)]
mod tests;
