//! The tcp check: a connection is established before the deadline. Nothing is sent.

use std::time::Duration;

use super::connect::connect;
use super::names::Names;
use super::outcome::Outcome;
use super::target::Given;

/// Settings of a tcp check.
#[derive(Debug, Clone, PartialEq)]
pub struct TcpCheck {
    /// A literal of either family or a name.
    pub host: String,
    /// Port.
    pub port: u16,
    /// Deadline.
    pub timeout: Duration,
}

pub(super) fn read(given: &Given<'_>) -> Option<TcpCheck> {
    let (host, port) = given.target.clone()?;
    Some(TcpCheck {
        host,
        port,
        timeout: given.timeout,
    })
}

/// For a check that is not built.
pub(super) fn read_instead(given: &Given<'_>) -> Option<TcpCheck> {
    let key = given.map.key("type");
    key.warn("not built yet: the port is checked by a tcp connect instead");
    read(given)
}

pub(super) async fn run(settings: &TcpCheck, names: &Names) -> Outcome {
    match connect(&settings.host, settings.port, settings.timeout, names).await {
        Ok(_stream) => Outcome::Pass,
        Err(outcome) => outcome,
    }
}
