//! Connections of checks: names, families, the limit over all addresses.

use std::time::Duration;

use smartstack_common::net;
use tokio::net::TcpStream;
use tokio::time::{Instant, timeout_at};

use super::names::Names;
use super::outcome::{Outcome, Step, refused};

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
