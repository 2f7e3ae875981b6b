//! A simulation: seeded faults on a tree in memory, with made-up time. `NERVE_SIMULATION_SEED` replays one run.

use std::sync::{Arc, Mutex};

use smartstack_common::zk::Trouble;

use super::*;
use crate::config::NodeType;
use crate::job::perform;
use crate::node::Registration;
use crate::registry::{Failure, Registry};
use crate::service::Verdict;

const HOSTS: &str = "z:1";
const PATH: &str = "/s";
const FOREIGN: i64 = 999;

/// What the servers hold (names are whole paths), and what goes wrong next.
#[derive(Debug, Default)]
struct Tree {
    nodes: Vec<Found>,
    parent: bool,
    sequence: i64,
    zxid: i64,
    /// Sessions that are not expired.
    sessions: BTreeSet<i64>,
    /// Probability, in percent, that a call's request or its reply is lost.
    faults: u8,
    writes: u32,
}

#[derive(Clone)]
struct Fake {
    tree: Arc<Mutex<Tree>>,
    session: i64,
    rng: Arc<Mutex<fastrand::Rng>>,
}

fn failure(trouble: Trouble) -> Failure {
    Failure {
        step: "do",
        path: PATH.to_owned(),
        reason: format!("{trouble:?}"),
        trouble,
    }
}

impl Fake {
    /// Runs `call` on the tree, unless its request is lost; its reply may be lost after that.
    fn call<T>(&self, call: impl FnOnce(&mut Tree) -> Result<T, Failure>) -> Result<T, Failure> {
        let mut tree = self.tree.lock().unwrap();
        let lost = || self.rng.lock().unwrap().u8(0..100) < tree.faults;
        let (request_lost, reply_lost) = (lost(), lost());
        if !tree.sessions.contains(&self.session) {
            return Err(failure(Trouble::Terminal));
        }
        if request_lost {
            return Err(failure(Trouble::Lost));
        }
        let result = call(&mut tree);
        if reply_lost {
            Err(failure(Trouble::Lost))
        } else {
            result
        }
    }
}

impl Registry for Fake {
    async fn sync(&self) -> Result<(), Failure> {
        self.call(|_| Ok(()))
    }

    async fn look(
        &self,
        path: &str,
        ids: &BTreeSet<String>,
    ) -> Result<Option<Vec<Found>>, Failure> {
        self.call(|tree| {
            let below = |node: &Found| {
                let name = node.name.strip_prefix(path)?.strip_prefix('/')?.to_owned();
                let claimed = ids.iter().any(|id| crate::node::claims(&name, id));
                claimed.then(|| Found {
                    name,
                    ..node.clone()
                })
            };
            Ok(tree
                .parent
                .then(|| tree.nodes.iter().filter_map(below).collect()))
        })
    }

    async fn make_parents(&self, _path: &str) -> Result<(), Failure> {
        self.call(|tree| {
            tree.parent = true;
            Ok(())
        })
    }

    async fn apply(&self, path: &str, change: &Change) -> Result<(), Failure> {
        self.call(|tree| {
            if !tree.parent {
                return Err(failure(Trouble::NoNode));
            }
            let mut nodes = tree.nodes.clone();
            for name in change.removed() {
                let at = nodes
                    .iter()
                    .position(|n| n.name == format!("{path}/{name}"))
                    .ok_or_else(|| failure(Trouble::NoNode))?;
                nodes.remove(at);
            }
            if let Some(create) = &change.create {
                let name = match create.node_type {
                    NodeType::Ephemeral => format!("{path}/{}", create.prefix),
                    NodeType::EphemeralSequential => {
                        format!("{path}/{}{:010}", create.prefix, tree.sequence)
                    }
                };
                if nodes.iter().any(|n| n.name == name) {
                    return Err(failure(Trouble::NodeExists));
                }
                tree.sequence += 1;
                tree.zxid += 1;
                nodes.push(Found {
                    name,
                    owner: self.session,
                    czxid: tree.zxid,
                    version: 0,
                    data: create.payload.clone(),
                });
            }
            tree.nodes = nodes;
            tree.writes += 1;
            Ok(())
        })
    }

    async fn touched(self, _path: String) {
        std::future::pending().await
    }
}

fn registration(node_type: NodeType, weight: u8) -> Registration {
    Registration {
        hosts: HOSTS.to_owned(),
        path: PATH.to_owned(),
        instance_id: "i".to_owned(),
        prefix: "i_".to_owned(),
        node_type,
        payload: format!(r#"{{"host":"h","port":1,"name":"i","weight":{weight}}}"#).into_bytes(),
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
}

impl World {
    fn new(seed: u64, node_type: NodeType) -> Self {
        let rng = fastrand::Rng::with_seed(seed);
        let tree = Arc::new(Mutex::new(Tree {
            sessions: BTreeSet::from([1]),
            ..Tree::default()
        }));
        let fake = Fake {
            tree: Arc::clone(&tree),
            session: 1,
            rng: Arc::new(Mutex::new(rng.clone())),
        };
        let now = Instant::now();
        let reconciler = Reconciler::new(HOSTS, Duration::ZERO, 50, rng.clone(), now);
        let wants = Wants::new();
        let mut world = Self {
            tree,
            fake,
            reconciler,
            wants,
            ours: BTreeSet::from([1]),
            now,
            rng,
            node_type,
        };
        world.set(Verdict::Up, 1);
        world.reconciler.connected(1, &BTreeSet::new(), now);
        world
    }

    fn set(&mut self, verdict: Verdict, weight: u8) {
        let registration = registration(self.node_type, weight);
        let wanted = Wanted {
            service: "web".to_owned(),
            hold: None,
            registration,
            verdict,
            as_of: self.now,
            window: Duration::from_secs(3600),
        };
        self.wants.insert("web".to_owned(), wanted);
    }

    fn connect_anew(&mut self, keep_old: bool) {
        let old = self.fake.session;
        let session = old + 1;
        {
            let mut tree = self.tree.lock().unwrap();
            if !keep_old {
                tree.sessions.remove(&old);
                tree.nodes.retain(|n| n.owner != old);
            }
            tree.sessions.insert(session);
        }
        self.fake.session = session;
        let former = self.ours.clone();
        self.ours.insert(session);
        self.reconciler.disconnected();
        self.reconciler.connected(session, &former, self.now);
    }

    /// One random event.
    fn disturb(&mut self) {
        match self.rng.u8(0..9) {
            0 => self.set(Verdict::Up, 1),
            1 => self.set(Verdict::Up, 2),
            2 => self.set(Verdict::Down, 1),
            3 => self.set(Verdict::Unproven, 1),
            4 => {
                self.reconciler.disconnected();
                self.reconciler
                    .connected(self.fake.session, &BTreeSet::new(), self.now);
            }
            5 => self.connect_anew(false),
            6 => self.connect_anew(true),
            7 => {
                // nerve is killed and started again: it remembers its sessions only.
                let rng = fastrand::Rng::with_seed(self.rng.u64(..));
                self.reconciler = Reconciler::new(HOSTS, Duration::ZERO, 50, rng, self.now);
                self.connect_anew(true);
            }
            _ => {
                let own: Vec<String> = self.names(|owner| owner != FOREIGN);
                let mut tree = self.tree.lock().unwrap();
                tree.nodes.retain(|n| Some(&n.name) != own.first());
                drop(tree);
                self.reconciler.touched(PATH, self.now);
            }
        }
    }

    fn names(&self, is: impl Fn(i64) -> bool) -> Vec<String> {
        self.tree
            .lock()
            .unwrap()
            .nodes
            .iter()
            .filter(|n| is(n.owner))
            .map(|n| n.name.clone())
            .collect()
    }

    async fn step(&mut self) {
        self.reconciler.tick(self.now);
        for job in self.reconciler.jobs(&self.wants, self.now) {
            let done = perform(self.fake.clone(), job).await;
            self.reconciler.finished(done, &self.wants, self.now);
            let own = self.names(|owner| owner == self.fake.session);
            assert!(own.len() <= 1, "two own nodes: {own:?}");
        }
    }

    /// Without faults, until nothing is due within the next minute's half.
    async fn settle(&mut self) {
        self.tree.lock().unwrap().faults = 0;
        let end = self.now + Duration::from_secs(200);
        while self.now < end {
            self.step().await;
            self.now += Duration::from_secs(1);
        }
    }
}

async fn simulate(seed: u64, node_type: NodeType) {
    let mut world = World::new(seed, node_type);
    let sequential = node_type == NodeType::EphemeralSequential;
    if sequential {
        let data = registration(node_type, 7).payload;
        let twin = Found {
            name: format!("{PATH}/i_9999999999"),
            owner: FOREIGN,
            czxid: 0,
            version: 0,
            data,
        };
        world.tree.lock().unwrap().nodes.push(twin);
    }
    for _ in 0..60 {
        world.tree.lock().unwrap().faults = world.rng.u8(0..40);
        world.disturb();
        for _ in 0..world.rng.u8(0..6) {
            world.step().await;
            world.now += Duration::from_millis(world.rng.u64(0..400));
        }
        assert_eq!(
            world.names(|owner| owner == FOREIGN).len(),
            usize::from(sequential),
            "a foreign node was deleted"
        );
    }
    for verdict in [Verdict::Up, Verdict::Down, Verdict::Up] {
        world.set(verdict, 3);
        world.settle().await;
        let nodes = world.names(|owner| owner != FOREIGN);
        assert_eq!(
            nodes.len(),
            usize::from(verdict == Verdict::Up),
            "settled: {nodes:?}"
        );
        let own = world.names(|owner| owner == world.fake.session);
        assert_eq!(own, nodes, "a former node is left");
    }
    let writes = world.tree.lock().unwrap().writes;
    world.settle().await;
    assert_eq!(
        world.tree.lock().unwrap().writes,
        writes,
        "a settled registration is written again"
    );
    world.set(Verdict::Leaving, 3);
    world.settle().await;
    assert!(world.reconciler.is_withdrawn() && world.names(|owner| owner != FOREIGN).is_empty());
}

#[tokio::test]
async fn faults_never_double_lose_or_take_what_is_not_ours() {
    let seeds = match std::env::var("NERVE_SIMULATION_SEED")
        .ok()
        .and_then(|seed| seed.parse().ok())
    {
        Some(seed) => seed..seed + 1,
        None => 0..300,
    };
    for seed in seeds {
        println!("NERVE_SIMULATION_SEED={seed}");
        simulate(seed, NodeType::EphemeralSequential).await;
        simulate(seed, NodeType::Ephemeral).await;
    }
}

#[tokio::test]
async fn hands_off_before_the_first_result_and_after_a_stop() {
    let mut world = World::new(1, NodeType::EphemeralSequential);
    world.set(Verdict::Unknown, 1);
    assert!(
        world.reconciler.jobs(&world.wants, world.now).is_empty()
            || world.names(|_| true).is_empty()
    );
    world.set(Verdict::Up, 1);
    world.settle().await;
    assert_eq!(world.names(|_| true).len(), 1);
    let (node, stopped) = (world.names(|_| true), Duration::from_secs(7200));
    world.now += stopped;
    world.connect_anew(false);
    for _ in 0..5 {
        world.step().await;
    }
    assert_eq!(
        world.names(|_| true),
        Vec::<String>::new(),
        "registered on a stale result: {node:?}"
    );
    world.set(Verdict::Up, 1);
    world.settle().await;
    assert_eq!(world.names(|_| true).len(), 1);
    // No fresh result for longer than another window: withdrawn.
    for _ in 0..3 {
        world.now += Duration::from_secs(3700);
        world.step().await;
        world.step().await;
    }
    world.settle().await;
    assert_eq!(world.names(|_| true), Vec::<String>::new());
}

#[tokio::test]
async fn registrations_are_limited_and_removals_are_not() {
    let now = Instant::now();
    let mut reconciler =
        Reconciler::new(HOSTS, Duration::ZERO, 5, fastrand::Rng::with_seed(1), now);
    let tree = Arc::new(Mutex::new(Tree {
        sessions: BTreeSet::from([1]),
        parent: true,
        ..Tree::default()
    }));
    let fake = Fake {
        tree: Arc::clone(&tree),
        session: 1,
        rng: Arc::new(Mutex::new(fastrand::Rng::with_seed(1))),
    };
    let mut wants: Wants = (0..20u8)
        .map(|i| {
            let mut registration = registration(NodeType::EphemeralSequential, 1);
            registration.path = format!("/s{i}");
            registration.payload = format!(r#"{{"host":"h","port":{i},"name":"i"}}"#).into_bytes();
            let window = Duration::from_secs(3600);
            (
                format!("s{i}"),
                Wanted {
                    service: format!("s{i}"),
                    hold: None,
                    registration,
                    verdict: Verdict::Up,
                    as_of: now,
                    window,
                },
            )
        })
        .collect();
    reconciler.connected(1, &BTreeSet::new(), now);
    let run = async |reconciler: &mut Reconciler, wants: &Wants, now| {
        for _ in 0..3 {
            for job in reconciler.jobs(wants, now) {
                let done = perform(fake.clone(), job).await;
                reconciler.finished(done, wants, now);
            }
        }
        tree.lock().unwrap().nodes.len()
    };
    let first = run(&mut reconciler, &wants, now).await;
    assert_eq!(first, 5, "at once");
    let wake = reconciler.wake_at(&wants, now);
    assert!(wake > now && wake <= now + Duration::from_millis(250));
    wants
        .values_mut()
        .for_each(|wanted| wanted.verdict = Verdict::Down);
    assert_eq!(
        run(&mut reconciler, &wants, now).await,
        0,
        "removals wait for nothing"
    );
}
