//! The ZooKeeper session supervisor: one task owns the client of an ensemble, everybody else watches a [`Link`].

use std::time::Duration;

use tokio::sync::watch;
use tokio::time::Instant;
use zookeeper_client::Client;

use crate::units::Ensemble;

/// How a session is to be kept.
#[derive(Debug, Clone)]
pub struct Settings {
    /// The ensemble.
    pub ensemble: Ensemble,
    /// Session time-out asked for (default of the configuration: 10 s; the servers clamp it).
    pub session_timeout: Duration,
}

/// The session as its users see it.
#[derive(Debug, Clone)]
pub enum Link {
    /// No session yet.
    Connecting,
    /// Connected: calls are allowed.
    Live(Live),
    /// Connection lost; the session may live on. No calls (they would queue, trap T7).
    Suspended {
        /// When the connection was lost.
        since: Instant,
    },
    /// The client gave the session up (perhaps wrongly, trap T3); a resume, then a new session is tried.
    Lost {
        /// When the connection was lost.
        since: Instant,
    },
    /// Refused for good (authentication, arguments): retried slowly; nobody waits for it.
    Fatal(String),
    /// Closed by us.
    Closed,
}

/// A connected session.
#[derive(Clone)]
pub struct Live {
    /// Rises with every (re)connection, same session or not. Starts at 1.
    pub epoch: u64,
    /// The session's id, as in `Stat::ephemeral_owner`.
    pub session: i64,
    /// The client. Do not keep a clone beyond this link value.
    pub client: Client,
}

impl std::fmt::Debug for Live {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Live").field("epoch", &self.epoch).field("session", &self.session).finish_non_exhaustive()
    }
}

/// Keeps a session to the ensemble until `shutdown` fires, then closes it (2 s cap) and returns.
///
/// The receiver of `link` is what every user of the ensemble holds.
pub async fn supervise(settings: Settings, link: watch::Sender<Link>, shutdown: impl Future<Output = ()>) {
    let _: (Settings, watch::Sender<Link>) = (settings, link);
    shutdown.await;
    todo!()
}
