//! The health checks: one attempt, one connection of its own, one deadline over everything.
//!
//! No decision about health is taken here and nothing is retried: a request that had to be repeated is a failed one. What
//! only this host is to blame for (no descriptor, no port, no memory, a resolver that does not answer) is no failure of
//! the app: the attempt could not run. Called by `watch.rs` once a round.

use std::fmt;
use std::io;
use std::time::Duration;

use nix::errno::Errno;
use smartstack_common::net;
use tokio::net::TcpStream;
use tokio::time::{Instant, timeout_at};

use crate::config::{Check, CheckKind};
use crate::hysteresis::Finding;

mod http;
mod names;
mod tcp;

pub use self::names::Names;

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
    /// This host could not run it, for the reason in words: it says nothing about the app.
    NotRun(String),
}

/// A part of an attempt.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// Waiting for the connection.
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

    /// What it says about the app.
    #[must_use]
    pub fn finding(&self) -> Finding {
        match self {
            Outcome::Pass => Finding::Passed,
            Outcome::Fail(_) | Outcome::Timeout { .. } => Finding::Failed,
            Outcome::NotRun(_) => Finding::NotRun,
        }
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
            Outcome::NotRun(reason) => Some(format!("could not run: {reason}")),
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
pub async fn run(check: &Check, names: &Names) -> Outcome {
    match &check.kind {
        CheckKind::Http(settings) => http::run(settings, names).await,
        CheckKind::Tcp(settings) => tcp::run(settings, names).await,
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
async fn connect(
    host: &str,
    port: u16,
    limit: Duration,
    names: &Names,
) -> Result<TcpStream, Outcome> {
    let until = Instant::now() + limit;
    let bare = host
        .strip_prefix('[')
        .and_then(|h| h.strip_suffix(']'))
        .unwrap_or(host);
    let unanswered = |_| {
        let limit = limit.as_millis();
        Outcome::NotRun(format!(
            "the resolver did not answer for `{host}` within {limit} ms"
        ))
    };
    let addresses = timeout_at(until, names.addresses(bare))
        .await
        .map_err(unanswered)??;
    let mut last = Outcome::Fail(format!("`{host}` has no address"));
    for (tried, mut address) in addresses.iter().copied().enumerate() {
        address.set_port(port);
        // An address that swallows packets must leave the later ones their share of the time.
        let left = until.saturating_duration_since(Instant::now());
        let share = left / u32::try_from(addresses.len() - tried).unwrap_or(u32::MAX);
        let outcome = match timeout_at(Instant::now() + share, net::connect(address)).await {
            Ok(Ok(stream)) => return Ok(stream),
            Ok(Err(error)) => refused(&format!("cannot connect to `{address}`"), &error),
            Err(_elapsed) => Outcome::Timeout {
                step: Step::Connect,
                after: limit,
            },
        };
        last = match (last, outcome) {
            // The app may be at the address that could not be tried.
            (Outcome::NotRun(reason), _) => Outcome::NotRun(reason),
            (_, outcome) => outcome,
        };
    }
    Err(last)
}

/// What an error of the system says, about the app or about this host.
fn refused(what: &str, error: &io::Error) -> Outcome {
    match local(error) {
        Some(reason) => Outcome::NotRun(format!("{what}: {reason}")),
        None => Outcome::Fail(format!("{what}: {}", reason(error))),
    }
}

/// What this host is short of, when the error says so.
fn local(error: &io::Error) -> Option<&'static str> {
    match Errno::from_raw(error.raw_os_error()?) {
        Errno::EAGAIN => Some("this host has no free port or process for it"),
        _ => net::shortage(error),
    }
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
