//! The session as its users see it, and as `/status` shows it. Written by the supervisor only.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use serde::Serialize;
use serde::ser::SerializeStruct;
use tokio::sync::watch;
use tokio::time::Instant;
use zookeeper_client::Client;

use crate::units::Ensemble;

/// A call takes at most this, however long the session's time-out is.
const CALL_LIMIT: Duration = Duration::from_secs(10);

/// The longest pause before a session is opened when those before did not last.
pub(super) const BRAKE_LIMIT: Duration = Duration::from_secs(30);

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
        /// As [`Live::short_lived`].
        short_lived: u32,
        /// [`Live::generation`] of the next client.
        generation: u64,
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
    /// Number of the client, from 1: what was asked of another one has no answer.
    pub generation: u64,
    /// How long the session lasts without a connection.
    pub timeout: Timeout,
    /// When this epoch began.
    pub since: Instant,
    /// How long there was no connection before it; before the first one, since the start.
    pub away: Duration,
    /// Sessions in a row, up to the one before this, that ended before they were as old as their time-out. 0 once this
    /// one is.
    pub short_lived: u32,
    /// The client. Do not keep a clone beyond this link value.
    pub client: Client,
    /// Where to tell that the connection is of no use although it stands.
    pub doubt: Doubt,
}

impl Live {
    /// The limit of a call: for longer than its time-out nobody has a session.
    #[must_use]
    pub fn call_limit(&self) -> Duration {
        call_limit(self.timeout.granted)
    }
}

/// [`Live::call_limit`] of a session with that time-out.
#[must_use]
pub fn call_limit(granted: Duration) -> Duration {
    granted.min(CALL_LIMIT)
}

/// A session's time-out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Timeout {
    /// As it was asked for.
    pub asked: Duration,
    /// As the servers granted it: the one in force.
    pub granted: Duration,
}

impl Timeout {
    /// Whether they differ by more than half.
    #[must_use]
    pub fn differs(&self) -> bool {
        2 * self.asked.min(self.granted) < self.asked.max(self.granted)
    }
}

impl Serialize for Timeout {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_struct("Timeout", 2)?;
        map.serialize_field("asked", &self.asked.as_secs_f64())?;
        map.serialize_field("granted", &self.granted.as_secs_f64())?;
        map.end()
    }
}

/// Why a connection is of no use although it stands, as far as the client can tell.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Suspicion {
    /// A call was answered with "session expired", which the client does not take for an end. (A client that comes back at
    /// the very moment of its session's close can be left with a connection that reads and cannot write; seen on a 3.8
    /// ensemble.)
    SessionUnknown,
    /// A call was not answered within its limit, although there are signs of life (or the client would have noticed).
    NoAnswer,
}

/// Tells the supervisor of a connection that is of no use: the session is resumed over another one, or replaced if the
/// servers refuse it.
#[derive(Debug, Clone, Default)]
pub struct Doubt(Arc<watch::Sender<Option<Suspicion>>>);

impl Doubt {
    /// The first suspicion counts.
    pub fn raise(&self, suspicion: Suspicion) {
        self.0.send_if_modified(|raised| {
            let first = raised.is_none();
            raised.get_or_insert(suspicion);
            first
        });
    }

    /// Waits until it is raised. Cancel-safe.
    pub(super) async fn raised(&self) -> Suspicion {
        let mut raised = self.0.subscribe();
        let raised = raised.wait_for(Option::is_some).await;
        // The sender is ours.
        raised
            .ok()
            .and_then(|raised| *raised)
            .unwrap_or(Suspicion::NoAnswer)
    }
}

impl std::fmt::Debug for Live {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Live")
            .field("epoch", &self.epoch)
            .field("session", &self.session)
            .finish_non_exhaustive()
    }
}

impl Link {
    /// The state in one lower-case word, for status and metrics.
    #[must_use]
    pub fn state(&self) -> &'static str {
        match self {
            Self::Connecting => "connecting",
            Self::Live(_) => "live",
            Self::Suspended { .. } => "suspended",
            Self::Lost { .. } => "lost",
            Self::Fatal(_) => "fatal",
            Self::Closed => "closed",
        }
    }

    /// The number of the client whose watches may still tell something, as far as the link says.
    #[must_use]
    pub fn generation(&self) -> Option<u64> {
        match self {
            Self::Live(Live { generation, .. }) | Self::Lost { generation, .. } => {
                Some(*generation)
            }
            _ => None,
        }
    }

    /// What an operator is to be told about it.
    #[must_use]
    pub fn error(&self) -> Option<String> {
        match self {
            Self::Fatal(reason) => Some(reason.clone()),
            Self::Live(Live { short_lived, .. }) | Self::Lost { short_lived, .. } => {
                do_not_last(*short_lived)
            }
            Self::Connecting | Self::Suspended { .. } | Self::Closed => None,
        }
    }
}

/// One entry of `zookeeper` in `/status`, schema 1.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct LinkStatus {
    /// The ensemble's hosts and chroot.
    pub hosts: String,
    /// [`Link::state`].
    pub state: &'static str,
    /// The live session's id, as the servers print it.
    pub session: Option<String>,
    /// The live epoch.
    pub epoch: Option<u64>,
    /// The live session's time-out in seconds, `asked` and `granted`.
    pub session_timeout: Option<Timeout>,
    /// Since when, in seconds since 1970: live for this epoch, or without a connection. Unknown before the first one.
    pub since: Option<f64>,
    /// [`Link::error`].
    pub error: Option<String>,
}

impl LinkStatus {
    /// The view of a link as it is now.
    #[must_use]
    pub fn of(ensemble: &Ensemble, link: &Link) -> Self {
        let (live, since) = match link {
            Link::Live(live) => (Some(live), Some(live.since)),
            Link::Suspended { since } | Link::Lost { since, .. } => (None, Some(*since)),
            Link::Connecting | Link::Fatal(_) | Link::Closed => (None, None),
        };
        Self {
            hosts: ensemble.to_string(),
            state: link.state(),
            session: live.map(|live| format!("{:#x}", live.session)),
            epoch: live.map(|live| live.epoch),
            session_timeout: live.map(|live| live.timeout),
            since: since.and_then(|since| {
                let began = SystemTime::now().checked_sub(since.elapsed())?;
                Some(
                    began
                        .duration_since(SystemTime::UNIX_EPOCH)
                        .ok()?
                        .as_secs_f64(),
                )
            }),
            error: link.error(),
        }
    }
}

/// So many sessions in a row that did not last are no accident.
const SHORT_LIVED: u32 = 3;

/// What an operator reads about sessions that do not last; nothing below [`SHORT_LIVED`].
pub(super) fn do_not_last(short_lived: u32) -> Option<String> {
    (short_lived >= SHORT_LIVED).then(|| {
        format!(
            "{short_lived} sessions in a row ended before they were as old as their time-out: the servers accept a session and \
             do not know it when it is used; the next is opened after a pause of up to {BRAKE_LIMIT:?}. Likely \
             `localSessionsEnabled=true` without `localSessionsUpgradingEnabled=true` in the servers' zoo.cfg, or members of \
             different ensembles in one list of hosts"
        )
    })
}
