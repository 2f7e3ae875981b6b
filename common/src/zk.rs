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
//! * What waits for a watch of a client leaves with its link value, or panics `held`'s grace later.
//! * A clone of the client that outlives its link value keeps the session open when the supervisor closes it.

mod armed;
mod held;
mod hosts;
mod link;
mod machine;
mod trouble;

#[cfg(test)]
mod tests;

use std::convert::Infallible;
use std::pin::Pin;
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::Instant;
use zookeeper_client::{Client, Connector, Error, SessionInfo, StateWatcher};

pub use self::armed::{Armed, arm};
use self::held::Held;
use self::link::BRAKE_LIMIT;
pub use self::link::{Doubt, Link, LinkStatus, Live, Suspicion, Timeout, call_limit};
use self::machine::{Action, Event, Machine, Phase, Refusal};
pub use self::trouble::{CallError, Trouble, call};
use crate::backoff::Backoff;
use crate::report::Chain;
use crate::units::Ensemble;

/// Pauses between attempts to connect, or to `sync`: full jitter, growing from the first to the second.
const RETRY: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(5));
/// A connection that gives no sign of life for so long is given up, whatever time-out the servers grant. (The client does so
/// after two fifths of a time-out for which this is too long.)
const SILENCE: Duration = Duration::from_secs(4);
/// Once two sessions in a row did not last, the next ones are at least this far apart: each costs its server a session and,
/// of a nerve, a write for each registration.
const BRAKE_LEAST: Duration = Duration::from_secs(1);
/// Pause after a refusal that trying again at once cannot cure.
const FATAL_RETRY: Duration = Duration::from_secs(30);
/// How long a clean close may take. Measured: 1 ms while connected, for ever while not.
const CLOSE_LIMIT: Duration = Duration::from_secs(2);

/// How a session is to be kept.
#[derive(Debug, Clone)]
pub struct Settings {
    /// The ensemble.
    pub ensemble: Ensemble,
    /// Session time-out asked for (default of the configuration: 10 s). The servers may grant another one, and that is the
    /// one that counts ([`Live::timeout`]).
    pub session_timeout: Duration,
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
        never = hosts::report_bad(&hosts) => match never {},
    }
    supervisor.close().await;
}

/// A client beside the supervised one, with a session of its own, for what must not share its connection. One pass over
/// the hosts. Its owner closes it by dropping every clone; nothing is kept alive for it.
///
/// # Errors
/// No server serves us, or it refuses us.
pub async fn open(settings: &Settings) -> Result<Client, Error> {
    connector(settings).connect(settings.ensemble.hosts()).await
}

/// One pass over the hosts at a time: the pauses between passes are ours, and capped.
///
/// Nodes are created with the operation that all servers know (the other one, since 3.5, also answers with the new node's
/// stat, which nobody here needs). In a transaction the client knows the other one only.
fn connector(settings: &Settings) -> Connector {
    Client::connector()
        .with_server_version(3, 4, 0)
        .with_session_timeout(settings.session_timeout)
        .with_connection_timeout(SILENCE)
        .with_fail_eagerly()
}

struct Supervisor {
    settings: Settings,
    link: watch::Sender<Link>,
    machine: Machine,
    /// The client. At most one.
    open: Option<Held>,
    /// The first call of an epoch: when a connection is lost between its handshake and the client's first ping, the client
    /// says that it is connected until a server accepts the next one.
    proof: Option<Proof>,
    /// Number of clients so far.
    generation: u64,
    /// Raised by users of the present client.
    doubt: Doubt,
    /// The time-out that the servers granted last.
    granted: Option<Duration>,
    /// The last client's session.
    session: Option<SessionInfo>,
    backoff: Backoff,
    /// Before a session when the one before did not last.
    brake: Backoff,
    /// Since when there is no connection.
    away: Option<Instant>,
    /// Whether the present run of failures was logged.
    complained: bool,
    /// Whether it was logged that sessions do not last.
    warned: bool,
    rng: fastrand::Rng,
}

impl Supervisor {
    fn new(settings: Settings, link: watch::Sender<Link>) -> Self {
        let backoff = Backoff::new(RETRY.0, retry_cap(settings.session_timeout));
        let machine = Machine::new();
        Self {
            settings,
            link,
            machine,
            open: None,
            proof: None,
            generation: 0,
            doubt: Doubt::default(),
            granted: None,
            session: None,
            backoff,
            brake: Backoff::new(RETRY.0, BRAKE_LIMIT),
            away: Some(Instant::now()),
            complained: false,
            warned: false,
            rng: fastrand::Rng::new(),
        }
    }

    async fn run(&mut self) -> Infallible {
        let mut action = Action::Connect;
        loop {
            let event = match action {
                Action::Attend => self.attend().await,
                Action::Sync => self.sync(Duration::ZERO).await,
                Action::SyncLater => {
                    let pause = self.backoff.next(&mut self.rng);
                    self.sync(pause).await
                }
                Action::Connect => self.connect(Duration::ZERO).await,
                Action::ConnectBraked => {
                    // One that ended early may have been unlucky; a second one in a row is a rule.
                    let least = match self.machine.short_lived {
                        0 | 1 => Duration::ZERO,
                        _ => BRAKE_LEAST,
                    };
                    let pause = self.brake.next(&mut self.rng);
                    self.connect(pause.max(least)).await
                }
                Action::ConnectLater => {
                    let pause = self.backoff.next(&mut self.rng);
                    self.connect(pause).await
                }
                Action::ConnectMuchLater => self.connect(FATAL_RETRY).await,
            };
            let (phase, epoch) = (self.machine.phase.clone(), self.machine.epoch);
            let lasted = event == Event::Lasted;
            action = self.machine.step(event, Instant::now());
            if self.machine.short_lived == 0 {
                self.brake.reset();
                self.warned = false;
            }
            if (&phase, epoch) != (&self.machine.phase, self.machine.epoch) {
                self.publish();
            } else if lasted {
                self.link.send_modify(|link| {
                    if let Link::Live(live) = link {
                        live.short_lived = 0;
                    }
                });
            }
        }
    }

    fn open(&mut self) -> &mut Held {
        self.open
            .as_mut()
            .expect("the machine attends only to an open client")
    }

    /// Waits for the client's next state, for a user's doubt, or for what the machine awaits.
    async fn attend(&mut self) -> Event {
        let doubt = self.doubt.clone();
        let ensemble = self.settings.ensemble.clone();
        let mut proof = self.proof.take();
        let (lasts_at, stalls_at) = (self.machine.lasts_at(), self.machine.stalls_at());
        // Watch receives, deadlines and a future kept outside: all cancel-safe. State first: the end of a session fails its calls as well.
        let event = tokio::select! {
            biased;
            event = next_state(&mut self.open().states) => event,
            answered = answer(&mut proof) => {
                proof = None;
                if !answered {
                    doubt.raise(Suspicion::NoAnswer);
                }
                Event::Proven
            }
            suspicion = doubt.raised() => {
                match suspicion {
                    Suspicion::SessionUnknown => tracing::warn!(
                        %ensemble, "zookeeper does not know the session of a connection that stands"
                    ),
                    Suspicion::NoAnswer => tracing::warn!(
                        %ensemble, "zookeeper does not answer calls on a connection that stands"
                    ),
                }
                Event::Doubted
            }
            () = until(stalls_at) => Event::Stalled,
            () = until(lasts_at) => Event::Lasted,
        };
        if !matches!(event, Event::State(_)) {
            self.proof = proof;
        }
        event
    }

    /// Gives up the present client, if any, and opens the next.
    async fn connect(&mut self, pause: Duration) -> Event {
        self.proof = None;
        if let Some(held) = self.open.take() {
            held.give_up();
        }
        tokio::time::sleep(pause).await;
        let connector = connector(&self.settings);
        let connector = match &self.session {
            Some(session) if self.machine.resumable => connector.with_session(session.clone()),
            _ => connector,
        };
        let hosts = self.settings.ensemble.hosts().to_owned();
        match Held::connect(connector, &hosts).await {
            Ok(held) => {
                self.session = Some(held.client.session().clone());
                self.doubt = Doubt::default();
                self.generation += 1;
                let granted = held.client.session_timeout();
                self.backoff.set_cap(retry_cap(granted));
                self.tell_of(granted);
                self.open = Some(held);
                Event::Opened { granted }
            }
            Err(error) => Event::OpenFailed(self.refused(error)),
        }
    }

    /// One line for each time-out that the servers grant instead of the one that was asked for.
    fn tell_of(&mut self, granted: Duration) {
        let asked = self.settings.session_timeout;
        let other = self.granted.replace(granted) != Some(granted);
        if other && (Timeout { asked, granted }).differs() {
            let ensemble = &self.settings.ensemble;
            tracing::warn!(
                %ensemble, ?asked, ?granted,
                "zookeeper grants another session time-out than was asked for; the granted one counts\n\
                 hint: minSessionTimeout and maxSessionTimeout in the servers' zoo.cfg (by default 2 and 20 times tickTime)"
            );
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

    /// Calls `sync` after a pause; an event of the client comes first.
    async fn sync(&mut self, pause: Duration) -> Event {
        let held = self.open();
        let (client, states) = (&held.client, &mut held.states);
        let limit = call_limit(client.session_timeout());
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
                    match error {
                        CallError::TimedOut(_) => Event::Doubted,
                        CallError::Failed(_) => Event::SyncFailed,
                    }
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
                let held = self.open.as_ref();
                let client = &held
                    .expect("the machine goes live only with a client")
                    .client;
                // Lost and back before anybody looked: away for no time.
                let away = self.away.take().map_or(Duration::ZERO, |at| at.elapsed());
                let live = Live {
                    epoch: self.machine.epoch,
                    session: client.session_id().0,
                    generation: self.generation,
                    timeout: Timeout {
                        asked: self.settings.session_timeout,
                        granted: client.session_timeout(),
                    },
                    since: Instant::now(),
                    away,
                    short_lived: self.machine.short_lived,
                    client: client.clone(),
                    doubt: self.doubt.clone(),
                };
                // The first of a client has its `sync` behind it.
                let again = self.machine.reconnected.then(|| prove(client.clone()));
                let session = client.session_id();
                let timeout = client.session_timeout();
                tracing::info!(%ensemble, %session, epoch = live.epoch, ?timeout, "zookeeper connected");
                self.proof = again;
                self.backoff.reset();
                self.complained = false;
                Link::Live(live)
            }
            Phase::Suspended { since } => {
                tracing::warn!(%ensemble, "zookeeper connection lost");
                self.away = Some(*since);
                Link::Suspended { since: *since }
            }
            Phase::Lost { since } => {
                let short_lived = self.machine.short_lived;
                match link::do_not_last(short_lived).filter(|_| !self.warned) {
                    Some(reason) => {
                        self.warned = true;
                        tracing::error!(%ensemble, reason, "zookeeper sessions do not last");
                    }
                    None => {
                        tracing::warn!(%ensemble, gap = ?since.elapsed(), "zookeeper session given up, trying to resume it")
                    }
                }
                self.away = Some(*since);
                Link::Lost {
                    since: *since,
                    short_lived,
                    generation: self.generation + 1,
                }
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
        self.proof = None;
        let Some(held) = self.open.take() else {
            return;
        };
        let session = held.client.session_id();
        let mut states = held.close();
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

/// Whether a call was answered, in any way, within its limit.
type Proof = Pin<Box<dyn Future<Output = bool> + Send>>;

fn prove(client: Client) -> Proof {
    let limit = call_limit(client.session_timeout());
    Box::pin(async move {
        let answer = call(limit, client.check_stat("/")).await;
        !matches!(answer, Err(CallError::TimedOut(_)))
    })
}

/// The outstanding proof's; none ever when there is none. Cancel-safe: it goes on when polled again.
async fn answer(proof: &mut Option<Proof>) -> bool {
    match proof {
        Some(proof) => proof.await,
        None => std::future::pending().await,
    }
}

/// The longest pause between attempts: a restarted ensemble holds the session for one more time-out, and at least two of them
/// must fall into that.
fn retry_cap(session_timeout: Duration) -> Duration {
    RETRY.1.min(session_timeout / 2)
}

/// Waits for the deadline; for ever when there is none. Cancel-safe.
async fn until(deadline: Option<Instant>) {
    match deadline {
        Some(deadline) => tokio::time::sleep_until(deadline).await,
        None => std::future::pending().await,
    }
}

/// The next state. A terminal one is reported even if it was consumed before: nothing would come after it.
async fn next_state(states: &mut StateWatcher) -> Event {
    let state = states.peek_state();
    Event::State(if state.is_terminated() {
        state
    } else {
        states.changed().await
    })
}
