//! The tcp check: a connection is had within the deadline. Nothing is sent.

use super::connect::connect;
use super::{Names, Outcome, TcpCheck};

pub(super) async fn run(settings: &TcpCheck, names: &Names) -> Outcome {
    match connect(&settings.host, settings.port, settings.timeout, names).await {
        Ok(_stream) => Outcome::Pass,
        Err(outcome) => outcome,
    }
}
