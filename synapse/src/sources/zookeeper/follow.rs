//! The task that follows one source: arms the recursive watch, reads the list and what is new in it, follows events,
//! reads everything now and then, and begins again after every interruption of the connection (the client re-arms recursive watches in a way the server ignores, and events
//! during an interruption are lost by design, ZOOKEEPER-4698).
//!
//! Thin: what may be published is [`super::tree`]'s. Never calls the server from the arm that receives events, never
//! calls it while the link is down (requests would queue without bound), never publishes a half-read set, and keeps the
//! old set through every failure.

use std::convert::Infallible;
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use smartstack_common::clock::Moment;

use smartstack_common::backoff::Backoff;
use smartstack_common::zk::{Armed, Link, Live};
use tokio::sync::watch;
use tokio::time::{Instant, sleep, sleep_until};
use tracing::{debug, info, warn};
use zookeeper_client::{Error, EventType, PersistentWatcher, SessionState, WatchedEvent};

use super::reads::{Caution, Full, Reader};
use super::shared::Shared;
use super::suspects::Ask;
use super::tree::{Event, Read, Stale, Tree, Trust, Validity};
use super::{Counters, Pace, Settings, Watch};
use crate::model::source::{Farewell, Removals, SourceKey, SourceView};

mod proving;

use proving::{Testing, tested};

/// Events that are queued are noted before any is acted on, but for no longer than this: what one transaction did comes
/// together, and a timer of milliseconds would cost every change that much.
const DRAIN: Duration = Duration::from_millis(2);

/// A read may take so many times as long as another call: a long answer may come over a slow line. Of silence the client
/// tells much sooner.
const READ_LIMIT: u32 = 3;

/// With old servers everything is read so many times as often: it is the only way to see a change in place.
const OLD_COMPARES: u32 = 10;

/// A path to follow.
#[derive(Clone)]
pub struct Source {
    /// Which.
    pub key: SourceKey,
    /// Which payloads are usable.
    pub valid: Validity,
}

/// Follows `source` until the link's sender is gone; run it beside a shutdown signal and drop it to stop. `shared` is the
/// same for all that follow over this link. `view` holds at first what the snapshot knows ([`SourceView::seeded`]) or nothing, afterwards the latest state of the registry.
///
/// While the view is `fresh` the set agrees *now*; `agreed_at` is then the time of the last change. When freshness is
/// lost, `agreed_at` becomes that moment and stays.
pub async fn follow(
    source: Source,
    settings: Settings,
    mut link: watch::Receiver<Link>,
    shared: Arc<Shared>,
    view: watch::Sender<SourceView>,
    counters: Arc<Counters>,
) {
    let path = source.key.ensemble.absolute(&source.key.path);
    let seed = view.borrow().children.clone();
    let mut follower = Follower {
        name: source.key.to_string(),
        tree: Tree::new(&path, source.valid, seed),
        path: path.into(),
        caution: Arc::default(),
        shared,
        settings,
        view,
        counters,
        parent_data: 0,
        parent_config: Arc::default(),
        rng: fastrand::Rng::new(),
        backoff: Backoff::new(Duration::from_millis(100), Duration::from_secs(5)),
        paced: None,
        interrupted: false,
        suspect: false,
        watcher: None,
        children: None,
    };
    while let Some(live) = next_live(&mut link).await {
        let epoch = live.epoch;
        // Cancel-safe: an abandoned attempt only leaves requests whose answers nobody wants, and a watch that goes when
        // its watcher is dropped. The tree is restarted by the next attempt.
        tokio::select! {
            end = follower.attempt(live) => {
                let Err(end) = end;
                let pause = follower.failed(end);
                tokio::select! {
                    () = sleep(pause) => {}
                    () = link_left(&mut link, epoch) => {}
                }
            }
            () = link_left(&mut link, epoch) => follower.lost(None),
        }
    }
    follower.lost(Some("the session's supervisor has ended".to_owned()));
}

/// The connection to use, or `None` when there will never be one. Cancel-safe.
async fn next_live(link: &mut watch::Receiver<Link>) -> Option<Live> {
    let link = link
        .wait_for(|link| matches!(link, Link::Live(_)))
        .await
        .ok()?;
    match &*link {
        Link::Live(live) => Some(live.clone()),
        _ => None,
    }
}

/// Returns once the link is anything but live with this epoch. Cancel-safe.
async fn link_left(link: &mut watch::Receiver<Link>, epoch: u64) {
    let same = |link: &Link| matches!(link, Link::Live(live) if live.epoch == epoch);
    // A sender that is gone has left as well.
    let _left = link.wait_for(|link| !same(link)).await.is_ok();
}

/// Why an attempt ended.
enum End {
    /// A request failed.
    Failed(&'static str, Error),
    /// The server lags behind what is known.
    Stale(Stale),
    /// The connection was interrupted and is back (so the watch is gone).
    Reconnected,
    /// The session is over: the supervisor brings another.
    Terminated,
    /// The server does not know recursive watches.
    TooOld,
}

impl From<Stale> for End {
    fn from(stale: Stale) -> Self {
        Self::Stale(stale)
    }
}

/// An outstanding read.
type Pending = Pin<Box<dyn Future<Output = Result<Done, Error>> + Send>>;

/// What it gives.
enum Done {
    Full(Full),
    Names(Vec<(String, Read)>),
}

struct Follower {
    name: String,
    path: Arc<str>,
    tree: Tree,
    caution: Arc<Mutex<Caution>>,
    shared: Arc<Shared>,
    settings: Settings,
    view: watch::Sender<SourceView>,
    counters: Arc<Counters>,
    parent_data: usize,
    parent_config: Arc<[String]>,
    rng: fastrand::Rng,
    backoff: Backoff,
    /// The epoch whose first read has been spread already.
    paced: Option<u64>,
    /// The connection of this attempt was interrupted: nothing is fresh until the next one.
    interrupted: bool,
    /// The last listing was stale: `sync` first.
    suspect: bool,
    /// The watch of this attempt or the one before: replaced once the next is armed, so that its events are never
    /// missed for longer than the connection was away.
    watcher: Option<PersistentWatcher>,
    /// With old servers: the watch of the last list.
    children: Option<Armed>,
}

impl Follower {
    /// Arms, reads, follows; ends only by what [`End`] names.
    async fn attempt(&mut self, live: Live) -> Result<Infallible, End> {
        self.tree.restart();
        self.interrupted = false;
        let reader = self.reader(&live);
        self.arm(&reader).await?;
        let pace = self.pace(&live);
        drop(live);
        // Until then events are followed, and count.
        let mut full_due = Instant::now() + pace.list.mul_f64(self.rng.f64());
        let mut trust = pace.verify.map_or(Trust::Nothing, |_| Trust::Nodes);
        let mut pending: Option<Pending> = None;
        let mut testing: Option<Testing> = None;
        let mut complete = false;
        let mut drain: Option<Instant> = None;
        let mut retry: Option<Instant> = None;
        // With old servers: the children have changed; and the list that follows is under way.
        let (mut relist, mut listing) = (false, false);
        loop {
            let test_due = self.test_due();
            // Cancel-safe: a channel receive, deadlines kept outside, and futures kept outside. In this order, so
            // that events are noted before the reply that came after them, and no flood of events delays acting on them.
            tokio::select! {
                biased;
                () = until(drain) => self.absorb(&mut drain),
                event = changed(&mut self.watcher) => {
                    self.note(&event)?;
                    drain.get_or_insert(Instant::now() + DRAIN);
                }
                () = std::future::ready(()), if drain.is_some() => self.absorb(&mut drain),
                done = outstanding(&mut pending) => {
                    pending = None;
                    let done = done.map_err(|e| End::Failed("read", e))?;
                    if self.done(done, complete, reader.old)? && !std::mem::take(&mut listing) {
                        let verify = pace.verify.filter(|_| self.tree.is_unverified());
                        complete = verify.is_none();
                        trust = Trust::Nothing;
                        full_due = Instant::now() + match verify {
                            Some(spread) => spread.mul_f64(self.rng.f64()),
                            None => self.compare_pause(reader.old),
                        };
                    }
                    if retry.is_none() && !self.tree.left_out().is_empty() {
                        retry = Some(Instant::now() + self.slow_pause());
                    }
                }
                (asks, outcome) = tested(&mut testing) => {
                    testing = None;
                    self.tested(asks, outcome);
                }
                () = until(test_due), if testing.is_none() => testing = Some(self.test()),
                event = relisted(&mut self.children), if self.tree.is_listed() => {
                    self.children = None;
                    if event.event_type == EventType::Session {
                        // Only ever its end.
                        return Err(End::Terminated);
                    }
                    relist = true;
                }
                () = until(retry) => {
                    retry = None;
                    self.tree.reread(self.tree.left_out());
                }
                () = sleep_until(full_due), if pending.is_none() && !self.interrupted => {
                    pending = Some(self.read_all(&reader, trust));
                }
            }
            if pending.is_none() && std::mem::take(&mut relist) {
                listing = true;
                pending = Some(self.read_all(&reader, Trust::Nodes));
            }
            let idle = pending.is_none() && drain.is_none() && !self.interrupted;
            if idle && self.tree.is_dirty() {
                let (reader, names) = (reader.clone(), self.tree.begin_read());
                pending = Some(Box::pin(async move {
                    Ok(Done::Names(reader.names(names).await?))
                }));
            }
        }
    }

    fn reader(&self, live: &Live) -> Reader {
        Reader {
            client: live.client.clone(),
            doubt: live.doubt.clone(),
            limit: live.call_limit() * READ_LIMIT,
            path: self.path.clone(),
            caution: self.caution.clone(),
            shared: self.shared.clone(),
            counters: self.counters.clone(),
            old: self.settings.watch == Watch::Children || self.shared.is_old(),
        }
    }

    /// Arms the watch of this attempt, unless the list is to do that.
    async fn arm(&mut self, reader: &Reader) -> Result<(), End> {
        self.caution().suspects.connection_lost(Instant::now());
        if !reader.old {
            self.prove(&Ask::Watch).await;
        }
        self.prove(&Ask::List).await;
        if reader.old {
            // Of a client that may be gone.
            self.watcher = None;
        } else {
            let armed = reader.watch().await.map_err(|e| End::Failed("watch", e))?;
            // Replaced, not dropped before: its events are never missed for longer than the connection was away.
            self.watcher = Some(armed.ok_or(End::TooOld)?);
        }
        Ok(())
    }

    /// Acts on what was noted.
    fn absorb(&mut self, drain: &mut Option<Instant>) {
        *drain = None;
        let changed = self.tree.absorb();
        self.publish(changed);
    }

    fn read_all(&mut self, reader: &Reader, trust: Trust) -> Pending {
        let (reader, known, sync) = (
            reader.clone(),
            self.tree.begin_full(trust),
            std::mem::take(&mut self.suspect),
        );
        Box::pin(async move { Ok(Done::Full(reader.full(known, sync).await?)) })
    }

    /// Over what times the reads of this attempt are spread: another one on the same connection has waited already.
    fn pace(&mut self, live: &Live) -> Pace {
        match self.paced.replace(live.epoch) {
            Some(before) if before == live.epoch => Pace::AT_ONCE,
            _ => {
                let (away, timeout) = (live.away, live.timeout.granted);
                self.settings
                    .pace(away, timeout, self.view.borrow().confirmed)
            }
        }
    }

    fn note(&mut self, event: &WatchedEvent) -> Result<(), End> {
        let kind = match event.event_type {
            EventType::NodeCreated => Event::Created,
            EventType::NodeDeleted => Event::Deleted,
            EventType::NodeDataChanged => Event::Changed,
            // Of the path itself, which a list follows.
            EventType::NodeChildrenChanged => return Ok(()),
            EventType::Session => {
                return match event.session_state {
                    state if state.is_terminated() => Err(End::Terminated),
                    SessionState::SyncConnected => Err(End::Reconnected),
                    _ => {
                        self.interrupted = true;
                        self.lost(None);
                        Ok(())
                    }
                };
            }
        };
        Counters::add(&self.counters.events, 1);
        if let Some((_, name)) = event.path.rsplit_once('/') {
            self.caution().suspects.changed(name, Instant::now());
        }
        self.tree.note(kind, &event.path);
        Ok(())
    }

    /// Takes a read over. `complete`: the copy was before, so with a recursive watch a difference nobody told about is a
    /// defect. Returns whether it was a full one.
    fn done(&mut self, done: Done, complete: bool, old: bool) -> Result<bool, End> {
        match done {
            Done::Names(read) => {
                let changed = self.tree.apply(read);
                self.publish(changed);
                Ok(false)
            }
            Done::Full(full) => {
                let count = full.read.len();
                if full.synced {
                    self.tree.forget_parent();
                }
                let differed = self.tree.replace(full.parent, full.read)?;
                self.parent_data = full.parent_data;
                self.parent_config = full.parent_config;
                if let Some(armed) = full.watcher
                    && let Some(former) = self.children.replace(armed)
                {
                    former.replaced();
                }
                self.backoff.reset();
                Counters::add(&self.counters.full_reads, 1);
                Counters::add(&self.counters.lists, usize::from(self.tree.is_unverified()));
                if old && complete {
                    self.tree.accept();
                }
                if complete && !old && !differed.is_empty() {
                    Counters::add(&self.counters.differences, differed.len());
                    let example = differed.first().map(String::as_str).unwrap_or_default();
                    warn!(source = %self.name, differences = differed.len(), example, "the copy of the registry was wrong without an event; corrected");
                }
                self.confirm(count);
                Ok(true)
            }
        }
    }

    /// What has left the set since the last publication, appended to what was published of it.
    fn removals(&mut self) -> Arc<Removals> {
        let mut removals = self.view.borrow().removals.clone();
        let removed = self.tree.take_removed();
        if !removed.is_empty() {
            let (all, now) = (Arc::make_mut(&mut removals), Instant::now());
            for one in removed {
                let said = match one.announced {
                    true => Farewell::Announced,
                    // The list alone tells what has gone, and never how.
                    false if self.children.is_some() => Farewell::Unheard,
                    false => Farewell::Silent,
                };
                all.push(&one.name, one.child.data, said, now);
            }
        }
        removals
    }

    /// Publishes a complete read.
    fn confirm(&mut self, count: usize) {
        let first = !self.view.borrow().confirmed;
        if first || self.view.borrow().problem.is_some() {
            info!(source = %self.name, children = count, "read from the registry");
        }
        let (fresh, parent_data) = (
            self.tree.is_settled() && !self.interrupted,
            self.parent_data,
        );
        let removals = self.removals();
        let (children, skipped) = (self.tree.children().clone(), Arc::new(self.tree.skipped()));
        self.view.send_replace(SourceView {
            children,
            confirmed: true,
            agreed_at: Some(Moment::now()),
            fresh,
            skipped,
            parent_data,
            parent_config: Arc::clone(&self.parent_config),
            problem: None,
            removals,
        });
    }

    /// Publishes the set if it changed, or that nothing is outstanding any more.
    fn publish(&mut self, changed: bool) {
        if !self.view.borrow().confirmed {
            // A part of the set: what was not read yet is not in it.
            return;
        }
        let settled = self.tree.is_settled();
        let removals = if changed { Some(self.removals()) } else { None };
        self.view.send_if_modified(|view| {
            // Before the first full read of a connection the set is that of the connection before.
            let fresh = settled && !self.interrupted && view.confirmed && view.problem.is_none();
            if !changed && (view.fresh || !fresh) {
                return false;
            }
            view.children = self.tree.children().clone();
            view.skipped = Arc::new(self.tree.skipped());
            if let Some(removals) = removals {
                view.removals = removals;
            }
            if fresh {
                view.agreed_at = Some(Moment::now());
            }
            view.fresh = fresh;
            true
        });
    }

    /// Says that the set is no longer known to agree.
    fn lost(&mut self, problem: Option<String>) {
        self.view.send_if_modified(|view| {
            if !view.fresh && view.problem == problem {
                return false;
            }
            if view.fresh {
                view.agreed_at = Some(Moment::now());
                view.fresh = false;
            }
            view.problem = problem;
            true
        });
    }

    /// Gives the pause before the next attempt on the same connection.
    fn failed(&mut self, end: End) -> Duration {
        let mut pause = self.backoff.next(&mut self.rng);
        let problem = match end {
            End::Reconnected => {
                debug!(source = %self.name, "the connection was interrupted; watching and reading again");
                self.backoff.reset();
                self.lost(None);
                return Duration::ZERO;
            }
            End::Terminated => {
                // Nothing can come on them any more, and asking again would panic.
                self.watcher = None;
                self.children = None;
                self.lost(None);
                return self.settings.refused;
            }
            End::TooOld => return Duration::ZERO,
            End::Stale(stale) => {
                self.suspect = true;
                Counters::add(&self.counters.stale_lists, 1);
                stale.to_string()
            }
            End::Failed(step, error) => {
                Counters::add(&self.counters.failures, 1);
                if let Some(hint) = refusal(&error) {
                    pause = self.slow_pause();
                    format!("cannot {step} `{}`: {error} ({hint})", self.path)
                } else {
                    format!("cannot {step} `{}`: {error}", self.path)
                }
            }
        };
        if self.view.borrow().problem.as_ref() != Some(&problem) {
            warn!(source = %self.name, problem, "the registry cannot be read; the last known set stays");
        }
        self.lost(Some(problem));
        pause
    }

    fn slow_pause(&mut self) -> Duration {
        self.settings.refused.mul_f64(1.0 - self.rng.f64() / 3.0)
    }

    fn compare_pause(&mut self, old: bool) -> Duration {
        let mean = if old {
            self.settings.compare / OLD_COMPARES
        } else {
            self.settings.compare
        };
        mean.mul_f64(0.5 + self.rng.f64())
    }
}

/// What an administrator can do about an answer that will not change by itself.
fn refusal(error: &Error) -> Option<&'static str> {
    match error {
        Error::NoAuth => Some("its ACL does not let this client read; tried again every 30 s"),
        _ => None,
    }
}

/// The next event; never when no watch is armed. Cancel-safe.
async fn changed(watcher: &mut Option<PersistentWatcher>) -> WatchedEvent {
    match watcher {
        Some(watcher) => watcher.changed().await,
        None => std::future::pending().await,
    }
}

/// The next change of the children; never when nothing watches them. Cancel-safe: it goes on when polled again.
async fn relisted(children: &mut Option<Armed>) -> WatchedEvent {
    match children {
        Some(armed) => armed.changed().await,
        None => std::future::pending().await,
    }
}

/// Waits for the deadline; for ever when there is none. Cancel-safe.
async fn until(deadline: Option<Instant>) {
    match deadline {
        Some(deadline) => sleep_until(deadline).await,
        None => std::future::pending().await,
    }
}

/// Waits for the outstanding read; for ever when there is none. Cancel-safe: the read goes on when polled again.
async fn outstanding(pending: &mut Option<Pending>) -> Result<Done, Error> {
    match pending {
        Some(read) => read.await,
        None => std::future::pending().await,
    }
}
