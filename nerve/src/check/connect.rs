//! Connections of checks: names, families, the limit over all addresses; and what an error of the system says, about the app
//! or about this host.

use std::io;
use std::time::Duration;

use nix::errno::Errno;
use smartstack_common::net;
use tokio::net::TcpStream;
use tokio::time::{Instant, timeout_at};

use super::{Names, Outcome, Step};

/// A connection to the first address that accepts one, resolving anew each time (an address that moved must be seen,
/// a name server that fails costs this attempt only). A literal may stand in brackets.
pub(super) async fn connect(
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
pub(super) fn refused(what: &str, error: &io::Error) -> Outcome {
    match local(error) {
        Some(reason) => Outcome::NotRun(format!("{what}: {reason}")),
        None => Outcome::Fail(format!("{what}: {}", reason(error))),
    }
}

/// What this host is short of, when the error says so.
pub(super) fn local(error: &io::Error) -> Option<&'static str> {
    match Errno::from_raw(error.raw_os_error()?) {
        Errno::EAGAIN => Some("this host has no free port or process for it"),
        _ => net::shortage(error),
    }
}

/// An error of the system without its number.
pub(super) fn reason(error: &io::Error) -> String {
    match error.kind() {
        io::ErrorKind::ConnectionRefused if error.raw_os_error().is_some() => {
            "connection refused".to_owned()
        }
        io::ErrorKind::ConnectionReset => "connection reset".to_owned(),
        _ => error.to_string(),
    }
}
