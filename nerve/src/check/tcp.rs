//! The tcp check: a connection is had within the deadline. Nothing is sent.

use std::time::Duration;

use super::connect::connect;
use super::names::Names;
use super::outcome::Outcome;

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

pub(super) async fn run(settings: &TcpCheck, names: &Names) -> Outcome {
    match connect(&settings.host, settings.port, settings.timeout, names).await {
        Ok(_stream) => Outcome::Pass,
        Err(outcome) => outcome,
    }
}
