//! The health checks: one attempt, one connection of its own, one deadline over everything.
//!
//! No decision about health is taken here and nothing is retried: a request that had to be repeated is a failed one. What
//! only this host is to blame for (no descriptor, no port, no memory, a resolver that does not answer) is no failure of
//! the app: the attempt could not run. Called by `watch` once a round.

mod connect;
mod http;
mod names;
mod outcome;
mod tcp;
#[cfg(test)]
mod tests;

use std::time::Duration;

pub use self::http::HttpCheck;
pub(crate) use self::names::Names;
pub(crate) use self::outcome::{Finding, Outcome};
pub use self::tcp::TcpCheck;

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
