//! The health checks: one attempt, one connection, one deadline. No decision about health is taken here.

use std::time::Duration;

use crate::config::{Check, CheckKind};

/// The longest one attempt can take.
#[must_use]
pub fn deadline(check: &Check) -> Duration {
    match &check.kind {
        CheckKind::Http(http) => http.open_timeout.saturating_add(http.read_timeout),
        CheckKind::Tcp(tcp) => tcp.timeout,
        CheckKind::Noop => Duration::ZERO,
    }
}
