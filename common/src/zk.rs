//! The ZooKeeper session supervisor: one task owns the client of an ensemble, everybody else watches a [`Link`].
//!
//! It resumes a session before it asks for a new one, never has two clients at once, calls `sync` on every new client
//! before showing it, and never gives up. It does not know nodes, watches or payloads. Both programs run one
//! [`supervise`] per ensemble; what to do next is decided in `zk/machine.rs`, this file only carries it out.
//!
//! What a user of the link must know of the client (zookeeper-client 0.11.2, measured):
//! * Persistent watches are silently dead after a reconnect. A new [`Live::epoch`] means: call `watch()` again, then
//!   read everything. The watcher itself also receives `Session` events, in order with the node events.
//! * A call made while disconnected hangs and is carried out later: call only while the link is [`Link::Live`], under
//!   [`call`]'s time limit, and take a time-out for what it is, an unknown outcome ([`Trouble::Lost`]).
//! * A clone of the client that outlives its link value keeps the session open when the supervisor closes it.

mod machine;
mod trouble;

#[cfg(test)]
mod tests;

use std::collections::BTreeSet;
use std::convert::Infallible;
use std::time::{Duration, SystemTime};

use serde::Serialize;
use tokio::sync::watch;
use tokio::time::Instant;
use zookeeper_client::{Client, Error, SessionInfo, StateWatcher};

use self::machine::{Action, Event, Machine, Phase, Refusal};
pub use self::trouble::{CallError, Trouble, call};
use crate::backoff::Backoff;
use crate::report::Chain;
use crate::units::Ensemble;

/// Pauses between attempts to connect, or to `sync`: full jitter from the first to the second.
const RETRY: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(5));
/// Pause after a refusal that trying again at once cannot cure.
const FATAL_RETRY: Duration = Duration::from_secs(30);
/// How long a clean close may take. Measured: 1 ms while connected, for ever while not.
const CLOSE_LIMIT: Duration = Duration::from_secs(2);
/// How often names that did not resolve are tried again, for the log only.
const NAME_RETRY: Duration = Duration::from_secs(60);

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
    /// When this epoch began.
    pub since: Instant,
    /// The client. Do not keep a clone beyond this link value.
    pub client: Client,
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
    /// Since when, in seconds since 1970: live for this epoch, or without a connection. Unknown before the first one.
    pub since: Option<f64>,
    /// Why, when the state is `fatal`.
    pub error: Option<String>,
}

impl LinkStatus {
    /// The view of a link as it is now.
    #[must_use]
    pub fn of(ensemble: &Ensemble, link: &Link) -> Self {
        let (live, since) = match link {
            Link::Live(live) => (Some(live), Some(live.since)),
            Link::Suspended { since } | Link::Lost { since } => (None, Some(*since)),
            Link::Connecting | Link::Fatal(_) | Link::Closed => (None, None),
        };
        Self {
            hosts: ensemble.to_string(),
            state: link.state(),
            session: live.map(|live| format!("{:#x}", live.session)),
            epoch: live.map(|live| live.epoch),
            since: since.and_then(|since| {
                let began = SystemTime::now().checked_sub(since.elapsed())?;
                Some(
                    began
                        .duration_since(SystemTime::UNIX_EPOCH)
                        .ok()?
                        .as_secs_f64(),
                )
            }),
            error: match link {
                Link::Fatal(reason) => Some(reason.clone()),
                _ => None,
            },
        }
    }
}

/// Keeps a session to the ensemble until `shutdown` fires, then closes it (2 s cap) and returns.
///
/// The receiver of `link` is what every user of the ensemble holds. The servers remove the session's ephemeral nodes
/// within milliseconds of the close, provided that nobody kept a clone of the client; otherwise, or when the cap is
/// reached because no server answers, they go when the session times out.
pub async fn supervise(
    settings: Settings,
    link: watch::Sender<Link>,
    shutdown: impl Future<Output = ()>,
) {
    let mut supervisor = Supervisor::new(settings, link);
    let hosts = supervisor.settings.ensemble.hosts().to_owned();
    // Both losers may be dropped anywhere: the client, if any, is a field of the supervisor, not of the future.
    tokio::select! {
        () = shutdown => {}
        never = supervisor.run() => match never {},
        never = report_bad_names(&hosts) => match never {},
    }
    supervisor.close().await;
}

struct Supervisor {
    settings: Settings,
    link: watch::Sender<Link>,
    machine: Machine,
    /// The client and the watcher of its state. At most one, and never dropped but in a terminal state or at the end.
    open: Option<(Client, StateWatcher)>,
    /// The last client's session.
    session: Option<SessionInfo>,
    backoff: Backoff,
    /// Whether the present run of failures was logged.
    complained: bool,
    rng: fastrand::Rng,
}

impl Supervisor {
    fn new(settings: Settings, link: watch::Sender<Link>) -> Self {
        let backoff = Backoff::new(RETRY.0, RETRY.1);
        let machine = Machine::new();
        Self {
            settings,
            link,
            machine,
            open: None,
            session: None,
            backoff,
            complained: false,
            rng: fastrand::Rng::new(),
        }
    }

    async fn run(&mut self) -> Infallible {
        let mut action = Action::Connect;
        loop {
            let event = match action {
                Action::Attend | Action::Sync | Action::SyncLater => self.attend(action).await,
                Action::Connect | Action::ConnectLater | Action::ConnectMuchLater => {
                    self.open = None;
                    self.pause(action).await;
                    self.connect().await
                }
            };
            let (phase, epoch) = (self.machine.phase.clone(), self.machine.epoch);
            action = self.machine.step(event, Instant::now());
            if (&phase, epoch) != (&self.machine.phase, self.machine.epoch) {
                self.publish();
            }
        }
    }

    async fn pause(&mut self, action: Action) {
        match action {
            Action::ConnectLater | Action::SyncLater => {
                tokio::time::sleep(self.backoff.next(&mut self.rng)).await
            }
            Action::ConnectMuchLater => tokio::time::sleep(FATAL_RETRY).await,
            Action::Attend | Action::Sync | Action::Connect => {}
        }
    }

    async fn connect(&mut self) -> Event {
        let hosts = usable_hosts(self.settings.ensemble.hosts());
        // One pass over the hosts at a time: the pauses between passes are ours, and capped.
        let mut connector = Client::connector()
            .with_session_timeout(self.settings.session_timeout)
            .with_fail_eagerly();
        let resumed =
            self.session.take_if(|_| !self.machine.resumable).is_none() && self.session.is_some();
        if let Some(session) = &self.session {
            connector = connector.with_session(session.clone());
        }
        match connector.connect(&hosts).await {
            Ok(client) => {
                tracing::debug!(hosts, session = %client.session_id(), resumed, "zookeeper client");
                self.session = Some(client.session().clone());
                let states = client.state_watcher();
                self.open = Some((client, states));
                Event::Opened
            }
            Err(error) => Event::OpenFailed(self.refused(error)),
        }
    }

    fn refused(&mut self, error: Error) -> Refusal {
        let ensemble = &self.settings.ensemble;
        match error {
            Error::SessionExpired => {
                tracing::warn!(%ensemble, "zookeeper session expired on the servers: its ephemeral nodes are gone");
                Refusal::Expired
            }
            Error::AuthFailed | Error::BadArguments(_) => Refusal::Fatal(error.to_string()),
            _ => {
                if !std::mem::replace(&mut self.complained, true) {
                    tracing::warn!(%ensemble, error = %Chain(&error), "no zookeeper server serves us, trying on");
                }
                Refusal::Unreachable
            }
        }
    }

    /// The client's next event, or the outcome of a `sync`.
    async fn attend(&mut self, action: Action) -> Event {
        if action == Action::SyncLater {
            let pause = self.backoff.next(&mut self.rng);
            tracing::debug!(?pause, "zookeeper sync again");
            return self.sync(pause).await;
        }
        if action == Action::Sync {
            return self.sync(Duration::ZERO).await;
        }
        let (_, states) = self.open.as_mut().expect(ATTENDED);
        next_state(states).await
    }

    async fn sync(&mut self, pause: Duration) -> Event {
        let (client, states) = self.open.as_mut().expect(ATTENDED);
        let limit = self.settings.session_timeout;
        let sync = async {
            tokio::time::sleep(pause).await;
            call(limit, client.sync("/")).await
        };
        // The state watcher is a watch receive; a dropped sync only discards its reply. State first: a client that lost
        // its connection is not to be called synced.
        tokio::select! {
            biased;
            event = next_state(states) => event,
            synced = sync => match synced {
                Ok(()) => Event::Synced,
                Err(error) => {
                    tracing::warn!(error = %Chain(&error), "zookeeper sync failed, trying again");
                    Event::SyncFailed
                }
            },
        }
    }

    /// Shows the machine's phase to the users, with one log line.
    fn publish(&mut self) {
        let ensemble = &self.settings.ensemble;
        let link = match &self.machine.phase {
            Phase::Connecting => Link::Connecting,
            Phase::Live => {
                let (client, _) = self
                    .open
                    .as_ref()
                    .expect("the machine goes live only with a client");
                let live = Live {
                    epoch: self.machine.epoch,
                    session: client.session_id().0,
                    since: Instant::now(),
                    client: client.clone(),
                };
                let session = client.session_id();
                let timeout = client.session_timeout();
                tracing::info!(%ensemble, %session, epoch = live.epoch, ?timeout, "zookeeper connected");
                self.backoff.reset();
                self.complained = false;
                Link::Live(live)
            }
            Phase::Suspended { since } => {
                tracing::warn!(%ensemble, "zookeeper connection lost");
                Link::Suspended { since: *since }
            }
            Phase::Lost { since } => {
                tracing::warn!(%ensemble, gap = ?since.elapsed(), "zookeeper session given up, trying to resume it");
                Link::Lost { since: *since }
            }
            Phase::Fatal(reason) => {
                tracing::error!(%ensemble, reason, "zookeeper refuses us, trying again every {FATAL_RETRY:?}");
                Link::Fatal(reason.clone())
            }
        };
        self.link.send_replace(link);
    }

    /// Gives up the clone in the link and our own client, and waits until the session is closed.
    async fn close(mut self) {
        self.link.send_replace(Link::Closed);
        let Some((client, mut states)) = self.open.take() else {
            return;
        };
        let session = client.session_id();
        drop(client);
        let closed = async {
            while !states.peek_state().is_terminated() {
                states.changed().await;
            }
        };
        let ensemble = &self.settings.ensemble;
        if tokio::time::timeout(CLOSE_LIMIT, closed).await.is_ok() {
            tracing::info!(%ensemble, %session, "zookeeper session closed");
        } else {
            tracing::warn!(%ensemble, %session, "zookeeper session not closed within {CLOSE_LIMIT:?}: it will time out");
        }
    }
}

const ATTENDED: &str = "the machine attends only to an open client";

/// The next state. A terminal one is reported even if it was consumed before: nothing would come after it.
async fn next_state(states: &mut StateWatcher) -> Event {
    let state = states.peek_state();
    Event::State(if state.is_terminated() {
        state
    } else {
        states.changed().await
    })
}

/// The connect string without entries that the client would refuse as a whole. All of them when none is left, so that
/// the client says what is wrong.
fn usable_hosts(hosts: &str) -> String {
    let usable: Vec<&str> = hosts
        .split(',')
        .filter(|host| is_well_formed(host))
        .collect();
    if usable.is_empty() {
        hosts.to_owned()
    } else {
        usable.join(",")
    }
}

/// What the client parses: `name:port`, `v4:port` or `[v6]:port`. (That there is a port is `Ensemble`'s promise.)
fn is_well_formed(host: &str) -> bool {
    match host.strip_prefix('[') {
        None => !host.starts_with(':') && !host.contains([']', '/']),
        Some(rest) => rest
            .split_once("]:")
            .is_some_and(|(v6, _)| v6.parse::<std::net::Ipv6Addr>().is_ok()),
    }
}

/// Names the hosts that are skipped, once each time that changes. The client itself passes over them in silence.
async fn report_bad_names(hosts: &str) -> Infallible {
    let (good, malformed): (Vec<&str>, Vec<&str>) =
        hosts.split(',').partition(|host| is_well_formed(host));
    for host in malformed {
        tracing::warn!(
            host,
            "zookeeper host skipped: not `name:port` or `[v6]:port`"
        );
    }
    let mut bad = BTreeSet::new();
    loop {
        for host in &good {
            match tokio::net::lookup_host(host).await {
                Ok(_) if bad.remove(host) => tracing::info!(host, "zookeeper host resolves again"),
                Err(error) if bad.insert(host) => {
                    tracing::warn!(host, %error, "zookeeper host does not resolve: skipped")
                }
                _ => {}
            }
        }
        if bad.is_empty() {
            std::future::pending::<()>().await;
        }
        tokio::time::sleep(NAME_RETRY).await;
    }
}
