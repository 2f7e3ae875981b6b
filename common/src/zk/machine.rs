//! The supervisor's decisions: what a client event means for the link, and what to do next. Pure: no client, no
//! socket, no clock (`now` is passed in). Called by the shell in `zk.rs` only.
//!
//! | trap (measured with zookeeper-client 0.11.2) | rule here |
//! |---|---|
//! | `Expired` is often only the client's guess: the servers may still hold the session | it leads to a resume; only the servers' own refusal leads to a new session |
//! | two clients on one session kick each other out for ever | a connect is ordered only after a terminal state, or when there is no client |
//! | the state channel keeps the latest value only, so a loss and a recovery may merge | `SyncConnected` while connected *is* such a pair: a new epoch |
//! | a resumed session may land on a server that lags behind | no client goes live before its `sync` was answered |
//! | a client without a connection tries again in steps that double, up to 1.4 times the time-out | after [`TAKE_OVER`] it is given up and the session resumed by another, whose pauses are ours |
//! | servers may accept sessions that they do not know when something is written | a session that ends before it is as old as its time-out did not work: the next is opened after a pause, which grows until one has lasted |

use std::time::Duration;

use tokio::time::Instant;
use zookeeper_client::SessionState;

/// A client that is without a connection for so long is given up.
const TAKE_OVER: Duration = Duration::from_secs(10);

/// What the users of the link may know.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Phase {
    /// No session yet.
    Connecting,
    /// Connected, synced.
    Live,
    /// Connection lost, the client is trying.
    Suspended { since: Instant },
    /// The client gave up.
    Lost { since: Instant },
    /// Refused for good.
    Fatal(String),
}

/// What happened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Event {
    /// There is a client, connected a moment ago.
    Opened {
        /// The session time-out that the servers granted.
        granted: Duration,
    },
    /// There is no client: the attempt failed.
    OpenFailed(Refusal),
    /// The client's state changed (at least once) and is now this.
    State(SessionState),
    /// A call was answered with "session expired" on a connection that stands, or not at all.
    Doubted,
    /// The call of [`Machine::reconnected`] is over.
    Proven,
    /// The client has been without a connection for [`TAKE_OVER`].
    Stalled,
    /// The present session has been used for as long as its time-out.
    Lasted,
    /// `sync` was answered.
    Synced,
    /// `sync` failed or was not answered in time.
    SyncFailed,
}

/// Why there is no client.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Refusal {
    /// A server says that the session to resume is gone.
    Expired,
    /// Nobody answered, or nobody who can serve.
    Unreachable,
    /// Trying again at once cannot help.
    Fatal(String),
}

/// What to do next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Action {
    /// Wait for the client's next state.
    Attend,
    /// Call `sync`, and attend to the client meanwhile.
    Sync,
    /// Call `sync` again after a back-off pause, and attend to the client meanwhile.
    SyncLater,
    /// Drop the client, if any, and connect at once.
    Connect,
    /// Drop the client, if any, and connect after a pause that grows with [`Machine::short_lived`].
    ConnectBraked,
    /// Connect after a back-off pause.
    ConnectLater,
    /// Drop the client, if any, and connect after the long pause.
    ConnectMuchLater,
}

/// Everything that decisions depend on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Machine {
    pub(super) phase: Phase,
    /// Number of times the link went live.
    pub(super) epoch: u64,
    /// Whether the session of the last client may still exist.
    pub(super) resumable: bool,
    /// Sessions in a row that went live and ended before they were as old as their time-out.
    pub(super) short_lived: u32,
    /// The present epoch is not the first of its client.
    pub(super) reconnected: bool,
    /// Whether the present client was synced once.
    synced: bool,
    /// Since when the present client has no connection.
    disconnected: Option<Instant>,
    /// When the present client went live first.
    live_since: Option<Instant>,
    /// The time-out of the present client's session.
    granted: Duration,
}

impl Machine {
    pub(super) fn new() -> Self {
        Self {
            phase: Phase::Connecting,
            epoch: 0,
            resumable: false,
            short_lived: 0,
            reconnected: false,
            synced: false,
            disconnected: None,
            live_since: None,
            granted: Duration::ZERO,
        }
    }

    /// When to say [`Event::Stalled`], if at all.
    pub(super) fn stalls_at(&self) -> Option<Instant> {
        self.disconnected.map(|since| since + TAKE_OVER)
    }

    /// When to say [`Event::Lasted`], if at all.
    pub(super) fn lasts_at(&self) -> Option<Instant> {
        let since = self.live_since.filter(|_| self.short_lived > 0)?;
        (self.phase == Phase::Live).then_some(since + self.granted)
    }

    /// Takes in what happened and says what to do.
    pub(super) fn step(&mut self, event: Event, now: Instant) -> Action {
        match event {
            Event::State(SessionState::Disconnected | SessionState::ConnectedReadOnly) => {
                self.disconnected.get_or_insert(now);
            }
            Event::Synced | Event::SyncFailed | Event::Lasted | Event::Proven => {}
            _ => self.disconnected = None,
        }
        match event {
            Event::Opened { granted } => {
                self.resumable = true;
                self.synced = false;
                self.granted = granted;
                self.live_since = None;
                Action::Sync
            }
            Event::Synced => {
                self.synced = true;
                self.go_live(now)
            }
            Event::Lasted => {
                self.short_lived = 0;
                Action::Attend
            }
            Event::Proven => Action::Attend,
            Event::State(SessionState::SyncConnected) if self.synced => self.go_live(now),
            Event::State(SessionState::SyncConnected) => Action::Sync,
            Event::SyncFailed => Action::SyncLater,
            // A read-only server is not one to work with; we never ask for one.
            Event::State(SessionState::Disconnected | SessionState::ConnectedReadOnly) => {
                if self.phase == Phase::Live {
                    self.phase = Phase::Suspended { since: now };
                }
                Action::Attend
            }
            // Resumed rather than replaced: the servers' refusal is the proof.
            Event::State(SessionState::Expired | SessionState::Closed)
            | Event::Doubted
            | Event::Stalled => self.lose(now),
            Event::State(SessionState::AuthFailed) => {
                self.phase = Phase::Fatal("the servers refuse the credentials".to_owned());
                Action::ConnectMuchLater
            }
            Event::OpenFailed(Refusal::Expired) if self.resumable => {
                self.resumable = false;
                Action::Connect
            }
            Event::OpenFailed(Refusal::Expired | Refusal::Unreachable) => Action::ConnectLater,
            Event::OpenFailed(Refusal::Fatal(reason)) => {
                self.phase = Phase::Fatal(reason);
                Action::ConnectMuchLater
            }
        }
    }

    fn go_live(&mut self, now: Instant) -> Action {
        self.phase = Phase::Live;
        self.reconnected = self.live_since.is_some();
        self.live_since.get_or_insert(now);
        self.epoch += 1;
        Action::Attend
    }

    /// A client that was live for as long as its session's time-out is replaced at once. One that was live for less is
    /// not, and neither is one that never got there, or servers that accept us and drop us would be called in a tight loop.
    fn lose(&mut self, now: Instant) -> Action {
        let since = match self.phase {
            Phase::Live => now,
            Phase::Suspended { since } => since,
            Phase::Connecting | Phase::Lost { .. } | Phase::Fatal(_) => {
                return Action::ConnectLater;
            }
        };
        self.phase = Phase::Lost { since };
        let lasted = |live| since.saturating_duration_since(live) >= self.granted;
        if self.live_since.is_some_and(lasted) {
            self.short_lived = 0;
            Action::Connect
        } else {
            self.short_lived = self.short_lived.saturating_add(1);
            Action::ConnectBraked
        }
    }
}
