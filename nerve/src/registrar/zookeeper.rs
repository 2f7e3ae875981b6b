//! The registrar of one ensemble: the only user of its ZooKeeper client. A shell around [`super::lease::reconciler`].
//!
//! It hands the latest link, wishes and results to the reconciler, starts the jobs it asks for, and publishes how things
//! stand. While the link is not live it holds no client and asks nothing.

mod calls;

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use smartstack_common::clock::Clock;
use smartstack_common::process::ProcessId;
use smartstack_common::report::Chain;
use smartstack_common::units::Ensemble;
use smartstack_common::zk::{Link, LinkStatus, Live};
use tokio::sync::watch;
use tokio::task::{JoinError, JoinSet};
use tokio::time::Instant;

use self::calls::ZooKeeper;
use super::lease::job::{Done, perform};
use super::lease::reconciler::{Manner, Reconciler};
use super::lease::registry::{Failure, Registry};
use crate::boards::{EnsembleReport, Entry, LeftOver, Registered, Wishes};
use crate::report::metrics::{Metrics, of_hosts, of_registration, of_write};
use crate::state;
use crate::wanted::{PlaceKey, Wants};

/// How long the state file may hold up a registration.
const STATE_LIMIT: Duration = Duration::from_secs(2);

/// How soon to look again at a node that cannot be watched.
const UNWATCHED: Duration = Duration::from_secs(5);

/// What a registrar works with.
pub(crate) struct Setup {
    /// Without chroot: wishes hold absolute paths.
    pub(crate) ensemble: Ensemble,
    pub(crate) manner: Manner,
    pub(crate) state_path: PathBuf,
    /// Whether a service of the configuration names the ensemble.
    pub(crate) named: watch::Receiver<bool>,
    pub(crate) wishes: Wishes,
    pub(crate) link: watch::Receiver<Link>,
    pub(crate) report: Entry<EnsembleReport>,
    pub(crate) round: Entry<Instant>,
    pub(crate) metrics: Metrics,
}

/// Registers and withdraws, until the ensemble is not named any more and nothing of this nerve's is left there. Dropping it
/// lets go of the client.
pub(crate) async fn run(setup: Setup) {
    let mut registrar = Registrar::new(setup);
    let mut before = (Instant::now(), Clock::now());
    loop {
        let (now, boot) = (Instant::now(), Clock::now());
        let (ran, passed) = (now - before.0, boot.saturating_sub(before.1));
        before = (now, boot);
        registrar.reconciler.tick(now, passed.saturating_sub(ran));
        registrar.setup.round.post(now);
        registrar.follow_link().await;
        let wants = registrar.setup.wishes.read(Some(&registrar.hosts));
        registrar.start_jobs(&wants);
        registrar.publish();
        if !*registrar.setup.named.borrow_and_update() && registrar.reconciler.is_vacant() {
            return;
        }
        let wake = registrar.reconciler.wake_at(&wants, Instant::now());
        let Registrar {
            setup,
            jobs,
            watches,
            ..
        } = &mut registrar;
        // Watch receives, joins of a JoinSet and a sleep that is made anew: all may be dropped anywhere.
        tokio::select! {
            Ok(()) = setup.link.changed() => {}
            () = setup.wishes.changed() => {}
            Ok(()) = setup.named.changed() => {}
            Some(done) = jobs.join_next() => registrar.finished(unwrap(done)),
            // One that panics was of a client that is gone: the next one's are others.
            Some(Ok(touched)) = watches.join_next() => registrar.touched(touched),
            () = tokio::time::sleep_until(wake) => {}
        }
    }
}

/// A job is only ever aborted together with its set, so what is left is a panic: let it end this task, too.
fn unwrap<T>(joined: Result<T, JoinError>) -> T {
    match joined {
        Ok(value) => value,
        Err(error) => std::panic::resume_unwind(error.into_panic()),
    }
}

struct Registrar {
    setup: Setup,
    hosts: String,
    reconciler: Reconciler,
    /// While live: the client and its epoch.
    registry: Option<(u64, ZooKeeper)>,
    jobs: JoinSet<Vec<Done>>,
    /// One for each node of our name: ends when it is touched, or when that cannot be told. They last as long as their client,
    /// which arms them again after a reconnection.
    watches: JoinSet<(String, String, Result<(), Failure>)>,
    watched: BTreeSet<(String, String)>,
    /// Whose they are.
    generation: Option<u64>,
    /// Whether a server did not understand a transaction that creates.
    old: Arc<AtomicBool>,
    link: LinkStatus,
    /// Whether `link` was not published yet.
    link_news: bool,
    /// The session that the state file was told of.
    session: Option<i64>,
    /// Whether the state file holds it.
    remembered: bool,
    process: ProcessId,
    /// What the log was last told of registrations that failed since they last stood as wanted, by key.
    told: BTreeMap<PlaceKey, String>,
}

impl Registrar {
    fn new(setup: Setup) -> Self {
        let hosts = setup.ensemble.hosts().to_owned();
        let reconciler = Reconciler::new(
            &hosts,
            setup.manner.clone(),
            fastrand::Rng::new(),
            Instant::now(),
        );
        let link = LinkStatus::of(&setup.ensemble, &setup.link.borrow());
        Self {
            setup,
            hosts,
            reconciler,
            registry: None,
            jobs: JoinSet::new(),
            watches: JoinSet::new(),
            watched: BTreeSet::new(),
            generation: None,
            old: Arc::default(),
            link,
            link_news: true,
            session: None,
            remembered: false,
            process: ProcessId::own(),
            told: BTreeMap::new(),
        }
    }

    /// Takes up a new connection, or lets go of a lost one with everything that hung on it.
    async fn follow_link(&mut self) {
        let link = self.setup.link.borrow_and_update().clone();
        let live = match &link {
            Link::Live(live) => Some(live),
            _ => None,
        };
        if live.map(|live| live.epoch) == self.registry.as_ref().map(|(epoch, _)| *epoch)
            && live.is_some()
        {
            self.link_news |= self.link.error != link.error();
            self.link.error = link.error();
            return self.follow_session().await;
        }
        let status = LinkStatus::of(&self.setup.ensemble, &link);
        if self.registry.take().is_some() {
            self.jobs = JoinSet::new();
            self.reconciler.disconnected(Instant::now());
        }
        // Whoever waits for a watch of a client that is given up has to leave.
        if let Some(generation) = link.generation()
            && self.generation != Some(generation)
        {
            self.watches = JoinSet::new();
            self.watched.clear();
            // The servers may be others by now.
            self.old = Arc::default();
            self.generation = Some(generation);
        }
        if let Some(live) = live {
            self.take_up(live).await;
        }
        let connected = self
            .setup
            .metrics
            .connected
            .get_or_create_owned(&of_hosts(&self.hosts));
        connected.set(i64::from(live.is_some()));
        self.link_news |= self.link != status;
        self.link = status;
    }

    /// Takes up the session that the servers name as the owner of what was created, where it is another one than the
    /// client knows.
    async fn follow_session(&mut self) {
        let session = self.reconciler.session();
        let (Some(now), Some(before)) = (session, self.session) else {
            return;
        };
        if now == before {
            return;
        }
        let (now_shown, before_shown) = (format!("{now:#x}"), format!("{before:#x}"));
        tracing::warn!(
            ensemble = %self.setup.ensemble,
            session = now_shown,
            before = before_shown,
            "zookeeper gave this connection another session than the one it was asked to resume: what stands of the one before is replaced"
        );
        let _known_already = self.remember(now).await;
        self.link.session = Some(now_shown);
        self.link_news = true;
    }

    async fn take_up(&mut self, live: &Live) {
        let former = self.remember(live.session).await;
        self.reconciler
            .connected(live.session, live.timeout.granted, &former, Instant::now());
        self.registry = Some((
            live.epoch,
            ZooKeeper {
                client: live.client.clone(),
                doubt: live.doubt.clone(),
                limit: live.call_limit(),
                old: Arc::clone(&self.old),
            },
        ));
    }

    /// Tells the state file of the session in force. Returns the earlier ones of this installation.
    async fn remember(&mut self, session: i64) -> BTreeSet<i64> {
        self.session = Some(session);
        let (path, hosts) = (self.setup.state_path.clone(), self.hosts.clone());
        let process = self.process.clone();
        let remember =
            tokio::task::spawn_blocking(move || state::remember(&path, &hosts, session, &process));
        let remembered = tokio::time::timeout(STATE_LIMIT, remember).await;
        self.remembered = matches!(remembered, Ok(Ok(Ok(_))));
        match remembered {
            Ok(Ok(Ok(former))) => former,
            Ok(Ok(Err(error))) => self.without_state(&Chain(&error)),
            Ok(Err(error)) => self.without_state(&error),
            Err(_) => self.without_state(&"the disk or the lock is slow"),
        }
    }

    fn without_state(&self, reason: &dyn std::fmt::Display) -> BTreeSet<i64> {
        let path = self.setup.state_path.display();
        tracing::warn!(
            %path,
            "state not kept, so that after a crash the old nodes would stay until their session expires: {reason}\nhint: nerve needs a folder it may write in for `state_path`"
        );
        self.setup.metrics.state_failures.inc();
        BTreeSet::new()
    }

    fn start_jobs(&mut self, wants: &Wants) {
        let jobs = self.reconciler.jobs(wants, Instant::now());
        let delayed = self.reconciler.take_delayed();
        if delayed > 0 {
            let labels = of_hosts(&self.hosts);
            self.setup
                .metrics
                .delayed
                .get_or_create(&labels)
                .inc_by(delayed);
        }
        let Some((_, registry)) = &self.registry else {
            return;
        };
        for job in jobs {
            self.jobs.spawn(perform(registry.clone(), job));
        }
    }

    fn finished(&mut self, done: Vec<Done>) {
        done.iter().for_each(|done| self.count(done));
        let paths: Vec<String> = done.iter().map(|done| done.path.clone()).collect();
        let wants = self.setup.wishes.read(Some(&self.hosts));
        self.reconciler.finished(done, &wants, Instant::now());
        let Some((_, registry)) = &self.registry else {
            return;
        };
        for path in paths {
            for node in self.reconciler.nodes(&path) {
                if self.watched.insert((path.clone(), node.clone())) {
                    let (registry, path) = (registry.clone(), path.clone());
                    self.watches.spawn(async move {
                        let touched = registry.touched(format!("{path}/{node}")).await;
                        (path, node, touched)
                    });
                }
            }
        }
    }

    fn count(&self, done: &Done) {
        let count = |result| {
            self.setup
                .metrics
                .writes
                .get_or_create_owned(&of_write(&self.hosts, result))
                .inc()
        };
        for change in &done.written {
            count(if change.create.is_some() {
                "registered"
            } else {
                "withdrawn"
            });
            if change.service.is_none() {
                tracing::info!(
                    path = done.path,
                    nodes = change.removed().collect::<Vec<_>>().join(", "),
                    "own nodes of no service deleted"
                );
            }
        }
        let refused = done.refused.iter().map(|(_, failure)| failure);
        for failure in done.look.as_ref().err().into_iter().chain(refused) {
            count("failed");
            // The operator is told by `tell`, once: the same failure may come back at every try.
            tracing::debug!(ensemble = %self.setup.ensemble, error = %failure, "zookeeper call failed, looking again");
        }
    }

    fn touched(&mut self, (path, node, touched): (String, String, Result<(), Failure>)) {
        let now = Instant::now();
        // Without a watch it is looked at again soon, and the watch tried again then.
        let at = match touched {
            Ok(()) => now,
            Err(failure) => {
                tracing::debug!(%failure, "node not watched");
                now + UNWATCHED
            }
        };
        self.reconciler.touched(&path, at);
        self.watched.remove(&(path, node));
    }

    fn publish(&mut self) {
        if !self.reconciler.take_news() && !std::mem::take(&mut self.link_news) {
            return;
        }
        let report = EnsembleReport {
            link: self.link.clone(),
            registrations: self.reconciler.report(),
            left_over: self.reconciler.left_over(),
            withdrawn: self.reconciler.is_withdrawn(),
            at_rest: self.reconciler.is_at_rest(),
            remembered: self.remembered,
        };
        let mut told = std::mem::take(&mut self.told);
        let tell = |before: Option<&_>, now: &_| self.tell(before, now, &mut told);
        self.setup.report.renew(report, tell);
        self.told = told;
    }

    /// One log line per transition.
    fn tell(
        &self,
        before: Option<&EnsembleReport>,
        after: &EnsembleReport,
        told: &mut BTreeMap<PlaceKey, String>,
    ) {
        told.retain(|key, _| after.registrations.contains_key(key));
        let metrics = &self.setup.metrics;
        let mut twins: BTreeSet<&String> = BTreeSet::new();
        let gone = before.into_iter().flat_map(|report| &report.registrations);
        for (_, old) in gone.filter(|(key, _)| !after.registrations.contains_key(*key)) {
            let labels = of_registration(&old.service, &self.hosts, &old.path);
            metrics.registered.remove(&labels);
            metrics.in_sync.remove(&labels);
        }
        for (key, now) in &after.registrations {
            let service = &now.service;
            let old = before.and_then(|report| report.registrations.get(key));
            let old_node = old.and_then(|old| old.node.as_ref());
            if now.node.as_ref() != old_node {
                match &now.node {
                    Some(node) => tracing::info!(
                        service,
                        path = now.path,
                        node,
                        wanted = now.wanted.to_string(),
                        "node present"
                    ),
                    None => tracing::info!(
                        service,
                        path = now.path,
                        node = old_node,
                        wanted = now.wanted.to_string(),
                        "node gone"
                    ),
                }
            }
            let labels = of_registration(service, &self.hosts, &now.path);
            for (gauge, value) in [
                (&metrics.registered, now.node.is_some()),
                (&metrics.in_sync, now.in_sync),
            ] {
                gauge.get_or_create(&labels).set(i64::from(value));
            }
            for twin in now
                .twins
                .iter()
                .filter(|twin| !old.is_some_and(|old| old.twins.contains(twin)))
            {
                tracing::warn!(
                    service,
                    path = now.path,
                    twin,
                    "two nerves claim one instance_id, left alone"
                );
            }
            if let Some(error) = to_tell(told, key, now) {
                tracing::warn!(
                    service,
                    path = now.path,
                    error,
                    "registration is not as wanted"
                );
            }
            twins.extend(&now.twins);
        }
        let known = before.map_or(&[][..], |report| &report.left_over);
        let is_known = |left: &LeftOver| known.iter().any(|known| known.node == left.node);
        for left in after.left_over.iter().filter(|left| !is_known(left)) {
            tracing::info!(
                service = left.service,
                path = left.path,
                node = left.node,
                "node of a removed service still stands, to be withdrawn"
            );
        }
        let count = i64::try_from(twins.len()).unwrap_or(i64::MAX);
        metrics
            .twins
            .get_or_create_owned(&of_hosts(&self.hosts))
            .set(count);
    }
}

/// The error of a registration, where it is another one than the log was last told. One that comes and goes with the
/// attempts is told once, until the registration stands as wanted.
fn to_tell<'a>(
    told: &mut BTreeMap<PlaceKey, String>,
    key: &PlaceKey,
    now: &'a Registered,
) -> Option<&'a String> {
    match &now.error {
        None if now.in_sync => drop(told.remove(key)),
        None => {}
        Some(error) if told.get(key) == Some(error) => {}
        Some(error) => {
            told.insert(key.clone(), error.clone());
            return Some(error);
        }
    }
    None
}

/// The ensemble of `hosts` alone, as one session serves all chroots of it.
pub(crate) fn without_chroot(ensemble: &Ensemble) -> Arc<Ensemble> {
    let hosts: Vec<&str> = ensemble.hosts().split(',').collect();
    Arc::new(Ensemble::new(&hosts).unwrap_or_else(|_| ensemble.clone()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::boards::Observed;
    use crate::wanted::Stance;

    #[test]
    fn a_reason_is_told_once_until_it_changes_or_the_registration_stands() {
        let registered = |error: Option<&str>, in_sync| Registered {
            service: "web".to_owned(),
            path: "/s".to_owned(),
            wanted: Stance::Present,
            payload: Vec::new(),
            observed: Observed::Unknown,
            node: None,
            observed_payload: None,
            observed_at: None,
            confirmed: false,
            in_sync,
            since: None,
            error: error.map(str::to_owned),
            twins: Vec::new(),
            elsewhere: Vec::new(),
        };
        let mut told = BTreeMap::new();
        let key = PlaceKey {
            service: "web".to_owned(),
            hosts: "z:1".to_owned(),
            path: "/s".to_owned(),
        };
        let mut tells = |error, in_sync| {
            let now = registered(error, in_sync);
            to_tell(&mut told, &key, &now).is_some()
        };
        let (denied, full) = (Some("NoAuth"), Some("quota"));
        assert!(tells(denied, false));
        for _ in 0..10 {
            assert!(!tells(None, false), "an attempt is under way");
            assert!(!tells(denied, false));
        }
        assert!(tells(full, false) && !tells(full, false) && tells(denied, false));
        assert!(!tells(None, true), "it stands");
        assert!(tells(denied, false));
    }
}
