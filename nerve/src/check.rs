//! The health checks: one attempt, one connection of its own, one deadline over everything.
//!
//! No decision about health is taken here and nothing is retried: a request that had to be repeated is a failed one. What
//! only this host is to blame for (no descriptor, no port, no memory, a resolver that does not answer) is no failure of
//! the app: the attempt could not run. Called by `watch` once a round.

mod connect;
mod http;
mod names;
mod tcp;
#[cfg(test)]
mod tests;

use std::fmt;
use std::time::Duration;

pub(crate) use self::names::Names;

/// One health check.
#[derive(Debug, Clone, PartialEq)]
pub struct Check {
    /// As Ruby names it: `http-<host>:<port><uri>`, or `<service> <type>-<host>:<port>`.
    pub name: String,
    /// Consecutive passes to go up, at least 1.
    pub rise: u32,
    /// Consecutive failures to go down, at least 1.
    pub fall: u32,
    /// What is done.
    pub kind: CheckKind,
}

/// What a check does.
#[derive(Debug, Clone, PartialEq)]
pub enum CheckKind {
    /// A GET answered by 200..399, the body holding `expect`.
    Http(HttpCheck),
    /// A connection.
    Tcp(TcpCheck),
    /// Always passes.
    Noop,
}

/// Settings of an http check.
#[derive(Debug, Clone, PartialEq)]
pub struct HttpCheck {
    /// Where to connect: a literal of either family or a name.
    pub host: String,
    /// Where to connect.
    pub port: u16,
    /// Request target, sent verbatim.
    pub uri: String,
    /// Cap of the connect; default 0.2 s. The check's deadline is `open_timeout + read_timeout`.
    pub open_timeout: Duration,
    /// Default: the check's `timeout`, 0.1 s.
    pub read_timeout: Duration,
    /// Text the body must hold.
    pub expect: Option<String>,
    /// Sent after, and instead of, the default ones of the same name.
    pub headers: Vec<(String, String)>,
}

/// Settings of a tcp check.
#[derive(Debug, Clone, PartialEq)]
pub struct TcpCheck {
    /// A literal of either family or a name.
    pub host: String,
    /// Port.
    pub port: u16,
    /// Deadline; default 0.1 s.
    pub timeout: Duration,
}

/// What one attempt found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Outcome {
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

/// What one attempt says about the app.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Finding {
    /// As it should be.
    Passed,
    /// Not as it should be.
    Failed,
    /// Nothing: this host could not run the check.
    NotRun,
}

/// A part of an attempt.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Step {
    /// Waiting for the connection.
    Connect,
    /// Waiting for the head of the answer.
    Head,
    /// Reading the body.
    Body,
}

impl Outcome {
    /// What it says about the app.
    #[must_use]
    pub(crate) fn finding(&self) -> Finding {
        match self {
            Outcome::Pass => Finding::Passed,
            Outcome::Fail(_) | Outcome::Timeout { .. } => Finding::Failed,
            Outcome::NotRun(_) => Finding::NotRun,
        }
    }

    /// Why not, if it did not.
    #[must_use]
    pub(crate) fn error(&self) -> Option<String> {
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
pub(crate) async fn run(check: &Check, names: &Names) -> Outcome {
    match &check.kind {
        CheckKind::Http(settings) => http::run(settings, names).await,
        CheckKind::Tcp(settings) => tcp::run(settings, names).await,
        CheckKind::Noop => Outcome::Pass,
    }
}

/// The longest one attempt can take.
#[must_use]
pub(crate) fn deadline(check: &Check) -> Duration {
    match &check.kind {
        CheckKind::Http(http) => http.open_timeout.saturating_add(http.read_timeout),
        CheckKind::Tcp(tcp) => tcp.timeout,
        CheckKind::Noop => Duration::ZERO,
    }
}
