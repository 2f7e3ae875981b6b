//! A simulation: seeded faults on a tree in memory, with made-up time.
//!
//! Requests and replies are lost, single operations refused, sessions expire in the middle of a job, events come twice,
//! nerve is killed, leaves and comes back, services are drained, taken out of the configuration and changed. After every
//! transaction it is asserted that nobody else's node was touched, that a service has no second node of one session,
//! that a removal was announced exactly when it was deliberate, that what is wanted present is not withdrawn, that
//! nothing is created while the last result of a check is a failure, unless it replaces what stands, and that
//! equal creations come at most [`MOST_CREATIONS`] times a minute, whatever is believed about who owns a node (a
//! connection may silently have another session, with servers that say so or not); in the end, that everything stands as
//! wanted.
//!
//! `NERVE_SIMULATION_SEEDS=10000 cargo test -p nerve --lib simulation` runs more seeds than by default,
//! `NERVE_SIMULATION_SEED=17` one; a seed that fails says so. One long file: the tree and its faults mean nothing without the
//! judgements, and the reverse.

use std::sync::{Arc, Mutex};

use smartstack_common::zk::Trouble;

use super::tests::{PATH, TIMEOUT, failure, manner, wish};
use super::*;
use crate::check::Finding;
use crate::config::NodeType;
use crate::health::{Machine, Verdict};
use crate::registrar::lease::job::perform;
use crate::registrar::lease::registry::{Failure, Refusal, Registry};
use crate::wanted::{Hold, Intent, PlaceKey};

/// Seeds of an ordinary run: some seconds on a busy machine.
const SEEDS: u64 = 400;
const FOREIGN: i64 = 999;
/// Of one service in a minute, without a withdrawal or another session in between.
const MOST_CREATIONS: usize = 10;

/// A transaction that took place.
struct Write {
    path: String,
    change: Change,
    /// What stands below the path after it.
    after: Vec<Found>,
    session: i64,
}

/// What the servers hold (names are whole paths), and what goes wrong next.
#[derive(Default)]
pub(super) struct Tree {
    pub(super) nodes: Vec<Found>,
    pub(super) parents: BTreeSet<String>,
    sequence: i64,
    zxid: i64,
    /// Sessions that are not expired.
    pub(super) sessions: BTreeSet<i64>,
    /// Probability, in percent, that a call's request or its reply is lost, or one of its operations refused.
    faults: u8,
    /// Whether a call may find its session expired.
    expiry: bool,
    /// Whether the ACL forbids to delete.
    pub(super) no_delete: bool,
    /// Whether somebody deletes every node of ours as soon as it is there.
    eaten: bool,
    /// Transactions that were asked for, refused ones included.
    pub(super) attempts: u32,
    log: Vec<Write>,
    pub(super) transactions: u32,
}

#[derive(Clone)]
pub(super) struct Fake {
    pub(super) tree: Arc<Mutex<Tree>>,
    pub(super) session: i64,
    pub(super) rng: Arc<Mutex<fastrand::Rng>>,
}

impl Fake {
    /// Runs `call` on the tree, unless its request is lost; its reply may be lost after that.
    fn call<T, E>(
        &self,
        lost: impl Fn(Failure) -> E,
        call: impl FnOnce(&mut Tree) -> Result<T, E>,
    ) -> Result<T, E> {
        let mut tree = self.tree.lock().unwrap();
        let dice = |percent| self.rng.lock().unwrap().u8(0..100) < percent;
        let (request_lost, reply_lost) = (dice(tree.faults), dice(tree.faults));
        if tree.expiry && tree.faults > 0 && dice(2) {
            tree.expire(self.session);
        }
        if !tree.sessions.contains(&self.session) {
            return Err(lost(failure(Trouble::Terminal)));
        }
        if request_lost {
            return Err(lost(failure(Trouble::Lost)));
        }
        let result = call(&mut tree);
        if reply_lost {
            Err(lost(failure(Trouble::Lost)))
        } else {
            result
        }
    }
}

impl Tree {
    fn expire(&mut self, session: i64) {
        self.sessions.remove(&session);
        self.nodes.retain(|n| n.owner != session);
    }

    /// One change; the trouble leaves the tree in any state.
    fn change(&mut self, path: &str, change: &Change, session: i64) -> Result<(), Trouble> {
        if !self.parents.contains(path) {
            return Err(Trouble::NoNode);
        }
        let sequential =
            |c: &&crate::registrar::lease::plan::Create| c.node_type != NodeType::Ephemeral;
        let first = change.create.as_ref().filter(sequential);
        let last = change.create.as_ref().filter(|c| !sequential(c));
        let create = |tree: &mut Self, create: &crate::registrar::lease::plan::Create| {
            let name = match create.node_type {
                NodeType::Ephemeral => format!("{path}/{}", create.prefix),
                NodeType::EphemeralSequential => {
                    format!("{path}/{}{:010}", create.prefix, tree.sequence)
                }
            };
            if tree.nodes.iter().any(|n| n.name == name) {
                return Err(Trouble::NodeExists);
            }
            tree.sequence += 1;
            tree.zxid += 1;
            tree.nodes.push(Found {
                name,
                owner: session,
                czxid: tree.zxid,
                version: 0,
                data: create.payload.clone(),
            });
            Ok(())
        };
        first.map_or(Ok(()), |new| create(self, new))?;
        for name in change.removed() {
            if self.no_delete {
                return Err(Trouble::NoAuth);
            }
            let name = format!("{path}/{name}");
            let at = self.nodes.iter().position(|n| n.name == name);
            let node = self.nodes.remove(at.ok_or(Trouble::NoNode)?);
            let withdrawn = change
                .withdraw
                .iter()
                .find(|w| node.name.ends_with(&w.name));
            if withdrawn.is_some_and(|w| w.version != node.version) {
                return Err(Trouble::BadVersion);
            }
        }
        last.map_or(Ok(()), |new| create(self, new))
    }

    fn below(&self, path: &str) -> Vec<Found> {
        let below = |node: &Found| {
            let name = node.name.strip_prefix(path)?.strip_prefix('/')?.to_owned();
            Some(Found {
                name,
                ..node.clone()
            })
        };
        self.nodes.iter().filter_map(below).collect()
    }
}

impl Registry for Fake {
    async fn sync(&self) -> Result<(), Failure> {
        self.call(|f| f, |_| Ok(()))
    }

    async fn look(
        &self,
        path: &str,
        ids: &BTreeSet<String>,
    ) -> Result<Option<Vec<Found>>, Failure> {
        self.call(
            |f| f,
            |tree| {
                let mut found = tree.below(path);
                found.retain(|node| ids.iter().any(|id| crate::wanted::claims(&node.name, id)));
                Ok(tree.parents.contains(path).then_some(found))
            },
        )
    }

    async fn make_parents(&self, path: &str) -> Result<(), Failure> {
        self.call(
            |f| f,
            |tree| {
                tree.parents.insert(path.to_owned());
                Ok(())
            },
        )
    }

    async fn apply(&self, changes: &[(&str, &Change)]) -> Result<Vec<String>, Refusal> {
        let refused_one = {
            let mut rng = self.rng.lock().unwrap();
            let faults = self.tree.lock().unwrap().faults;
            (rng.u8(0..100) < faults / 4).then(|| rng.usize(0..=changes.len()))
        };
        let lost = |failure| Refusal {
            change: None,
            failure,
        };
        self.call(lost, |tree| {
            if let Some(at) = refused_one {
                return Err(Refusal {
                    change: Some(at).filter(|at| *at < changes.len()),
                    failure: failure(Trouble::Refused),
                });
            }
            tree.attempts += 1;
            let (nodes, sequence, zxid) = (tree.nodes.clone(), tree.sequence, tree.zxid);
            for (at, (path, change)) in changes.iter().enumerate() {
                if let Err(trouble) = tree.change(path, change, self.session) {
                    (tree.nodes, tree.sequence, tree.zxid) = (nodes, sequence, zxid);
                    return Err(Refusal {
                        change: Some(at),
                        failure: failure(trouble),
                    });
                }
            }
            tree.transactions += 1;
            let before: BTreeSet<&String> = nodes.iter().map(|node| &node.name).collect();
            let new = tree.nodes.iter().map(|node| &node.name);
            let created = new.filter(|name| !before.contains(name)).cloned().collect();
            if tree.eaten {
                tree.nodes.retain(|node| node.owner == FOREIGN);
            }
            for (path, change) in changes {
                let write = Write {
                    path: (*path).to_owned(),
                    change: (*change).clone(),
                    after: tree.below(path),
                    session: self.session,
                };
                tree.log.push(write);
            }
            Ok(created)
        })
    }

    async fn touched(self, _path: String) -> Result<(), Failure> {
        std::future::pending().await
    }
}

/// One nerve (the reconciler, with restarts) against the tree.
struct World {
    tree: Arc<Mutex<Tree>>,
    fake: Fake,
    reconciler: Reconciler,
    wants: Wants,
    /// All sessions this installation ever had.
    ours: BTreeSet<i64>,
    now: Instant,
    rng: fastrand::Rng,
    node_type: NodeType,
    leaving: bool,
    /// Whether the reconciler knew the session from its beginning.
    told: bool,
    /// Whether nobody meddles.
    calm: bool,
    /// Sessions that nobody keeps alive any more.
    dying: BTreeSet<i64>,
    /// Nodes that somebody has deleted lately, by their names below the parent.
    taken: Vec<Found>,
    /// The youngest session that the reconciler has learnt of.
    learnt: Option<i64>,
    /// The checks of each service.
    machines: BTreeMap<u8, Machine>,
    /// Whether the last result of each check of a service is a failure.
    failing: BTreeMap<String, [bool; 2]>,
    /// Equal creations of each service, and when.
    created: BTreeMap<String, (Change, Vec<Instant>)>,
}

impl World {
    fn new(seed: u64, node_type: NodeType) -> Self {
        let mut rng = fastrand::Rng::with_seed(seed);
        let tree = Arc::new(Mutex::new(Tree {
            sessions: BTreeSet::from([1]),
            ..Tree::default()
        }));
        let fake = Fake {
            tree: Arc::clone(&tree),
            session: 1,
            rng: Arc::new(Mutex::new(rng.fork())),
        };
        let now = Instant::now();
        let reconciler = Reconciler::new("z:1", manner(50), rng.fork(), now);
        let mut world = Self {
            tree,
            fake,
            reconciler,
            wants: Wants::new(),
            ours: BTreeSet::from([1]),
            now,
            rng,
            node_type,
            leaving: false,
            told: true,
            calm: false,
            dying: BTreeSet::new(),
            taken: Vec::new(),
            learnt: None,
            machines: BTreeMap::new(),
            failing: BTreeMap::new(),
            created: BTreeMap::new(),
        };
        world.restart();
        for service in world.services() {
            world.set(service, Verdict::Up, 1);
        }
        world
            .reconciler
            .connected(1, TIMEOUT, &BTreeSet::new(), now);
        world
    }

    /// 1, 2 and 4 share a parent (nodes of a fixed name cannot), 1 and 4 register the same; 3 has its own parent.
    fn services(&self) -> Vec<u8> {
        match self.node_type {
            NodeType::EphemeralSequential => vec![1, 2, 3, 4],
            NodeType::Ephemeral => vec![1, 3],
        }
    }

    fn any_service(&mut self) -> u8 {
        let services = self.services();
        services[self.rng.usize(0..services.len())]
    }

    fn key(&self, service: u8) -> PlaceKey {
        wish(service, self.node_type, 1, self.now).key()
    }

    fn wanted(&self, service: &str) -> Option<&Wanted> {
        self.wants.values().find(|wanted| wanted.service == service)
    }

    fn set(&mut self, service: u8, verdict: Verdict, weight: u8) {
        let mut wanted = wish(service, self.node_type, weight, self.now);
        wanted.verdict = verdict;
        wanted.hold = self.wants.get(&wanted.key()).and_then(|old| old.hold);
        // What was found before is forgotten.
        self.machines.remove(&service);
        self.failing.remove(&wanted.service);
        self.wants.insert(wanted.key(), wanted);
    }

    /// Its two checks run: each passes, fails, or cannot run.
    fn check(&mut self, service: u8, findings: &[Finding; 2]) {
        let rise_fall = [(1, 1 + u32::from(service)), (2, 3)];
        let machine = self
            .machines
            .entry(service)
            .or_insert_with(|| Machine::of(rise_fall.into_iter(), Duration::from_secs(20)));
        let verdict = machine.round(findings, self.now);
        let key = self.key(service);
        let Some(wanted) = self.wants.get_mut(&key) else {
            return;
        };
        wanted.verdict = verdict;
        wanted.as_of = self.now;
        let failing = self.failing.entry(wanted.service.clone()).or_default();
        for (failing, finding) in failing.iter_mut().zip(findings) {
            // A check that could not run has no result.
            if *finding != Finding::NotRun {
                *failing = *finding == Finding::Failed;
            }
        }
    }

    fn hold(&mut self, service: u8, hold: Option<Hold>) {
        if let Some(wanted) = self.wants.get_mut(&self.key(service)) {
            wanted.hold = hold;
        }
    }

    /// Another process with the memory of the state file only.
    fn restart(&mut self) {
        self.created.clear();
        let mut manner = manner(if self.rng.u8(0..3) == 0 { 2 } else { 50 });
        if self.rng.bool() {
            manner.jitter = Duration::from_millis(500);
        }
        let rng = fastrand::Rng::with_seed(self.rng.u64(..));
        self.reconciler = Reconciler::new("z:1", manner, rng, self.now);
        for wanted in self.wants.values_mut() {
            wanted.intent = Intent::Follow;
            wanted.verdict = Verdict::Unknown;
            wanted.as_of = self.now;
        }
    }

    /// The connection has another session, and neither the client nor the reconciler is told.
    fn silently_anew(&mut self) {
        let session = self.fake.session + 1;
        self.dying.insert(self.fake.session);
        self.tree.lock().unwrap().sessions.insert(session);
        self.fake.session = session;
        self.ours.insert(session);
        self.created.clear();
        self.told = false;
    }

    /// Sessions that nobody keeps alive expire, and the nodes' watches tell.
    fn bury(&mut self) {
        for session in std::mem::take(&mut self.dying) {
            self.tree.lock().unwrap().expire(session);
        }
        for path in [PATH, "/other"] {
            self.reconciler.touched(path, self.now);
        }
    }

    fn connect_anew(&mut self, keep_old: bool) {
        self.created.clear();
        self.told = true;
        let old = self.fake.session;
        let session = old + 1;
        {
            let mut tree = self.tree.lock().unwrap();
            if !keep_old {
                tree.expire(old);
            }
            tree.sessions.insert(session);
        }
        self.fake.session = session;
        let former = self.ours.clone();
        self.ours.insert(session);
        self.reconciler.disconnected(self.now);
        self.reconciler
            .connected(session, TIMEOUT, &former, self.now);
    }

    /// Away for up to a minute, without an expiry (the ensemble was away, too) or with one.
    fn outage(&mut self) {
        self.reconciler.disconnected(self.now);
        for _ in 0..self.rng.u8(0..4) {
            self.now += Duration::from_millis(self.rng.u64(0..20_000));
            self.reconciler.tick(self.now, Duration::ZERO);
            assert!(
                self.reconciler.jobs(&self.wants, self.now).is_empty(),
                "a job without a connection"
            );
            let service = self.any_service();
            if self.rng.bool() {
                self.set(service, Verdict::Up, 1);
            }
        }
        if self.rng.bool() {
            let session = self.fake.session;
            if self.reconciler.session() != Some(session) {
                self.created.clear();
            }
            self.reconciler
                .connected(session, TIMEOUT, &BTreeSet::new(), self.now);
        } else {
            self.connect_anew(false);
        }
    }

    /// One random event.
    async fn disturb(&mut self) {
        let service = self.any_service();
        match self.rng.u8(0..20) {
            16.. => {
                let finding = |dice: u8| match dice {
                    0..5 => Finding::Passed,
                    5..9 => Finding::Failed,
                    _ => Finding::NotRun,
                };
                let findings = [(); 2].map(|()| finding(self.rng.u8(0..10)));
                self.check(service, &findings);
            }
            14 => self.silently_anew(),
            15 => self.bury(),
            0 | 1 => self.set(service, Verdict::Up, 1),
            2 => self.set(service, Verdict::Up, 2),
            3 => self.set(service, Verdict::Down, 1),
            4 => self.set(service, Verdict::Unproven, 1),
            5 => self.outage(),
            6 => self.connect_anew(false),
            7 => self.connect_anew(true),
            8 => {
                // Killed and started again.
                self.restart();
                self.connect_anew(true);
            }
            9 => self.leave().await,
            10 => self.hold(service, Some(Hold::Drain)),
            11 => self.hold(service, None),
            12 => drop(self.wants.remove(&self.key(service))),
            _ => {
                let own: Vec<String> = self.names(|owner| owner != FOREIGN);
                let mut tree = self.tree.lock().unwrap();
                if self.rng.bool() {
                    let taken = tree.nodes.iter().filter(|n| Some(&n.name) == own.first());
                    let below = |node: &Found| Found {
                        name: node.name.rsplit('/').next().unwrap_or_default().to_owned(),
                        ..node.clone()
                    };
                    self.taken.extend(taken.map(below));
                    tree.nodes.retain(|n| Some(&n.name) != own.first());
                } else if let Some(node) = tree.nodes.iter_mut().find(|n| own.contains(&n.name)) {
                    // Somebody writes the same bytes again.
                    node.version += 1;
                }
                drop(tree);
                for path in [PATH, PATH, "/other", "/nowhere"] {
                    self.reconciler.touched(path, self.now);
                }
            }
        }
    }

    /// USR2: nothing is written any more, everything stays, a successor takes over.
    async fn leave(&mut self) {
        let verdicts: Vec<_> = self.wants.values().map(|wanted| wanted.verdict).collect();
        self.wants
            .values_mut()
            .for_each(|w| w.intent = Intent::HandOver);
        self.leaving = true;
        for _ in 0..3 {
            self.step().await;
        }
        self.leaving = false;
        assert!(self.reconciler.is_at_rest());
        self.restart();
        if self.rng.bool() {
            for (wanted, verdict) in self.wants.values_mut().zip(verdicts) {
                wanted.verdict = verdict;
            }
        }
        self.connect_anew(true);
    }

    fn names(&self, is: impl Fn(i64) -> bool) -> Vec<String> {
        let tree = self.tree.lock().unwrap();
        let nodes = tree.nodes.iter().filter(|n| is(n.owner));
        nodes.map(|n| n.name.clone()).collect()
    }

    /// The services that register what this one does, itself included.
    fn alike(&self, service: u8) -> Vec<u8> {
        let endpoint = |service| wish(service, self.node_type, 1, self.now).registration;
        let own = endpoint(service);
        let all = self.services().into_iter();
        all.filter(|other| {
            let other = endpoint(*other);
            (&other.path, &other.payload) == (&own.path, &own.payload)
        })
        .collect()
    }

    /// How many nodes of our sessions stand for a service and those alike.
    fn count(&self, service: u8, is: impl Fn(i64) -> bool) -> usize {
        let registration = wish(service, self.node_type, 1, self.now).registration;
        let tree = self.tree.lock().unwrap();
        let below = tree.below(&registration.path);
        let its = |n: &&Found| is(n.owner) && registration.has_endpoint_of(&n.data);
        below.iter().filter(its).count()
    }

    async fn step(&mut self) {
        self.reconciler.tick(self.now, Duration::ZERO);
        for job in self.reconciler.jobs(&self.wants, self.now) {
            let done = perform(self.fake.clone(), job).await;
            self.judge();
            self.reconciler.finished(done, &self.wants, self.now);
            // Learnt by what was created: what comes now is of another session. Each counts once.
            let session = self.reconciler.session();
            if session > self.learnt {
                self.learnt = session;
                self.created.clear();
            }
            for service in self.services() {
                let own = self.count(service, |owner| owner == self.fake.session);
                // Of a session that nobody told of, some may be there for a moment: the law of creations bounds them.
                assert!(
                    own <= self.alike(service).len() || !self.told,
                    "service {service}: {own} nodes of one session"
                );
            }
        }
        // Everything touched was looked at.
        self.taken.clear();
        let expired = !self
            .tree
            .lock()
            .unwrap()
            .sessions
            .contains(&self.fake.session);
        if expired {
            self.connect_anew(false);
        }
    }

    /// Judges every transaction since the last time: announced exactly when deliberate.
    fn judge(&mut self) {
        let log = std::mem::take(&mut self.tree.lock().unwrap().log);
        for write in log {
            let change = &write.change;
            // What was taken out of the configuration before may still be withdrawn.
            let untouched = !self.leaving || change.service.is_none();
            assert!(untouched, "written while leaving: {change:?}");
            self.count_creations(change);
            let wanted = change
                .service
                .as_ref()
                .map(|name| self.wanted(name).expect("a wish"));
            // Only what has passed its last checks is registered. What stands may be replaced by its like.
            if let (Some(_), Some(wanted)) = (&change.create, wanted) {
                let failing = self.failing.get(&wanted.service);
                let failing = failing.is_some_and(|checks| checks.contains(&true));
                let replaces = change.removed().next().is_some();
                let allowed = match wanted.verdict {
                    Verdict::Up => !failing,
                    Verdict::Unproven => replaces,
                    _ => false,
                };
                assert!(
                    allowed && wanted.hold.is_none() && wanted.intent == Intent::Follow,
                    "created although {wanted:?}, failing: {failing}: {change:?}"
                );
            }
            if !change.withdraw.is_empty() {
                assert!(change.create.is_none(), "a swap is announced: {change:?}");
                let deliberate = wanted.is_none_or(|w| {
                    w.verdict == Verdict::Down || w.intent == Intent::Withdraw || w.hold.is_some()
                });
                assert!(
                    deliberate,
                    "announced, and not deliberate: {change:?} {wanted:?}"
                );
                self.judge_siblings(&write);
                for withdrawal in &change.withdraw {
                    let mark: serde_json::Value = serde_json::from_slice(&withdrawal.mark).unwrap();
                    assert_eq!(mark["available"], false);
                    assert!(mark["reason"].is_string() && mark["port"].is_number());
                }
            }
            let eaten = self.tree.lock().unwrap().eaten;
            if !change.delete.is_empty() && !eaten {
                // Not announced: then the instance stays, in a node of the present session, or of one that is taken for it.
                let registration = &wanted.expect("of a service").registration;
                let stays = |n: &Found| {
                    (n.owner == write.session || self.dying.contains(&n.owner))
                        && registration.is_met_by(&n.name, &n.data)
                };
                // Or it stayed there when that was planned, and somebody took it since.
                assert!(
                    write.after.iter().chain(&self.taken).any(stays),
                    "gone without a word at {}: {change:?}",
                    write.path
                );
            }
        }
    }

    /// What one service withdraws is not what another one of the same payload stands by.
    fn judge_siblings(&self, write: &Write) {
        let service = write.change.service.as_ref();
        let Some(own) = service.and_then(|service| self.wanted(service)) else {
            return;
        };
        let path = &own.registration.path;
        let is_up = |w: &&Wanted| {
            w.verdict == Verdict::Up
                && w.intent == Intent::Follow
                && w.hold.is_none()
                && w.registration.path == *path
                && w.registration.payload == own.registration.payload
        };
        let stands = |n: &Found| n.owner != FOREIGN && own.registration.has_endpoint_of(&n.data);
        assert!(
            !self.calm || !self.wants.values().any(|w| is_up(&w)) || write.after.iter().any(stands),
            "withdrawn although another one stands by it: {:?}",
            write.change
        );
    }

    fn count_creations(&mut self, change: &Change) {
        let Some(service) = &change.service else {
            return;
        };
        if change.create.is_none() {
            self.created.remove(service);
            return;
        }
        let entry = self.created.entry(service.clone());
        let (first, times) = entry.or_insert_with(|| (change.clone(), Vec::new()));
        if first.create != change.create {
            (*first, *times) = (change.clone(), Vec::new());
        }
        times.push(self.now);
        times.retain(|at| *at + Duration::from_secs(60) > self.now);
        assert!(
            times.len() <= MOST_CREATIONS,
            "{service} was created {} times in a minute",
            times.len()
        );
    }

    /// For a minute somebody deletes every node as soon as it is there: the law of creations is all there is.
    async fn eaten(&mut self) {
        for service in self.services() {
            self.set(service, Verdict::Up, 1);
            self.hold(service, None);
        }
        // Some were not wanted until now, and had nothing left that could be withdrawn.
        self.created.clear();
        self.tree.lock().unwrap().eaten = true;
        for _ in 0..200 {
            for path in [PATH, "/other"] {
                self.reconciler.touched(path, self.now);
            }
            self.step().await;
            self.now += Duration::from_millis(300);
        }
        self.tree.lock().unwrap().eaten = false;
    }

    /// Without faults, until nothing is due within the next minute's half.
    async fn settle(&mut self) {
        self.tree.lock().unwrap().faults = 0;
        let end = self.now + Duration::from_secs(200);
        while self.now < end {
            self.step().await;
            self.now += Duration::from_secs(1);
            // What was planned before somebody meddled is written in the first steps.
            self.calm = true;
        }
        self.calm = false;
    }

    /// Settles, and asserts that each service has as many nodes as `wanted` says, all of the present session.
    async fn settled(&mut self, wanted: impl Fn(u8) -> usize) {
        self.settle().await;
        for service in self.services() {
            let all = self.count(service, |owner| owner != FOREIGN);
            let own = self.count(service, |owner| owner == self.fake.session);
            let alike = self.alike(service);
            let wanted: usize = alike.into_iter().map(&wanted).sum();
            assert_eq!((all, own), (wanted, wanted), "service {service}");
        }
    }
}

async fn simulate(seed: u64, node_type: NodeType) {
    let mut world = World::new(seed, node_type);
    let sequential = node_type == NodeType::EphemeralSequential;
    if sequential {
        let twin = Found {
            name: format!("{PATH}/i_9999999999"),
            owner: FOREIGN,
            czxid: 0,
            version: 0,
            data: wish(1, node_type, 7, world.now).registration.payload,
        };
        world.tree.lock().unwrap().nodes.push(twin);
    }
    for _ in 0..60 {
        {
            let mut tree = world.tree.lock().unwrap();
            tree.faults = world.rng.u8(0..40);
            tree.expiry = world.rng.bool();
        }
        world.disturb().await;
        for _ in 0..world.rng.u8(0..6) {
            world.step().await;
            world.now += Duration::from_millis(world.rng.u64(0..400));
        }
        let foreign = world.names(|owner| owner == FOREIGN).len();
        assert_eq!(
            foreign,
            usize::from(sequential),
            "a foreign node was deleted"
        );
    }
    world.bury();
    // It takes as long as all the rest.
    if seed.is_multiple_of(4) {
        world.eaten().await;
    }
    if world.reconciler.session() != Some(world.fake.session) {
        // Its creations' answers were all lost; here that does not end the connection, as it does with a real client.
        world.connect_anew(true);
    }
    let all = world.services();
    for verdict in [Verdict::Up, Verdict::Down, Verdict::Up] {
        for service in &all {
            world.set(*service, verdict, 3);
            world.hold(*service, None);
        }
        world.settled(|_| usize::from(verdict == Verdict::Up)).await;
    }
    let before = world.tree.lock().unwrap().transactions;
    world.settle().await;
    let after = world.tree.lock().unwrap().transactions;
    assert_eq!(before, after, "a settled registration is written again");
    world.hold(1, Some(Hold::Drain));
    world.settled(|service| usize::from(service != 1)).await;
    world.restart();
    world.connect_anew(true);
    all.iter()
        .for_each(|service| world.set(*service, Verdict::Up, 3));
    world.settled(|service| usize::from(service != 1)).await;
    world.hold(1, None);
    world.settled(|_| 1).await;
    for wanted in world.wants.values_mut() {
        wanted.intent = Intent::Withdraw;
    }
    world.settled(|_| 0).await;
    assert!(world.reconciler.is_withdrawn());
}

/// Says how to run a failed seed again.
struct Replay(u64);

impl Drop for Replay {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let seed = self.0;
            println!("again: NERVE_SIMULATION_SEED={seed} cargo test -p nerve --lib simulation");
        }
    }
}

#[tokio::test]
async fn faults_never_double_lose_or_take_what_is_not_ours() {
    let number = |name| {
        std::env::var(name)
            .ok()
            .and_then(|text| text.parse::<u64>().ok())
    };
    let seeds = match number("NERVE_SIMULATION_SEED") {
        Some(seed) => seed..seed + 1,
        None => 0..number("NERVE_SIMULATION_SEEDS").unwrap_or(SEEDS),
    };
    for seed in seeds {
        let _replay = Replay(seed);
        simulate(seed, NodeType::EphemeralSequential).await;
        simulate(seed, NodeType::Ephemeral).await;
    }
}
