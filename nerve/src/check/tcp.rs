//! The tcp check: a connection is had within the deadline. Nothing is sent.

use super::{Outcome, connect};
use crate::config::TcpCheck;

pub(super) async fn run(settings: &TcpCheck) -> Outcome {
    match connect(&settings.host, settings.port, settings.timeout).await {
        Ok(_stream) => Outcome::Pass,
        Err(outcome) => outcome,
    }
}
