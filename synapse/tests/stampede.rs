//! What a change, and a return, of everybody costs the ensemble. 100 clients by default; the full figures are printed by
//! `STAMPEDE=1000 cargo test -p synapse --test stampede -- --nocapture --test-threads 1` (a minute or two each).
//!
//! # Measured, all on two shared cores: one server, and one process that plays every client
//!
//! | 1,000 watchers of one path with 1,000 nodes | packets to / from the server | bytes to / from it |
//! |---|---|---|
//! | one node added: a bare watch and one read (the floor) | 1,002 / 2,003 | 49 kB / 262 kB |
//! | one node added: followers | 1,002..1,004 / 2,003 | 49 kB / 262 kB |
//! | one node removed: followers | 1 / 1,002 | 0 / 64 kB |
//! | first read of everything, each | 14 / 19 | 48 kB / 213 kB |
//!
//! The recursive-watch row of the facts about the client (2,001 / 3,003 packets, 1.3 MB with the frames of loopback) holds one
//! ping of each client, which are taken out here. The bytes are those of ZooKeeper's frames.
//!
//! | 1,000 come back at once, after | without spread | with spread |
//! |---|---|---|
//! | followers of 100 nodes, 20 s / 24 s away | 341 lists and 338 reads within a second, which is all that this machine does | 189..216 lists, 208..244 reads (spread 6 s: 167 lists a second and the first of the later reads) |
//! | followers of 1,000 nodes, 12 s away | 86 s until all had read: connections were lost while the answers waited, and asked again, 3 times the bytes | |
//! | nerves with three services, 24 s away | | 1,000 transactions and some again, 252 within a second (spread 6 s: 167 a second) |
//!
//! # A fleet: 10,000 hosts that each watch 100 services of 100 instances
//!
//! Each return of a synapse costs, as measured above for 100 nodes: 21.5 kB for everything, 3.1 kB for the list (the
//! difference of 24.6 and 21.5 kB), 2 packets each way and service for watch and list, 1 to 3 for multi-reads.
//!
//! | | without | with |
//! |---|---|---|
//! | bytes, everything | 10,000 x 100 x 21.5 kB = 21.5 GB, as fast as the network and the servers go | the same over 30 s: 720 MB/s |
//! | bytes, lists | none by themselves | 10,000 x 100 x 3.1 kB = 3.1 GB over 10 s: 310 MB/s |
//! | requests (watch, list, 2 reads) | 4 million at once: at some 20,000 a second and server (three of them) 67 s in which pings wait as well, so sessions are lost and all of it begins again | 2 million over 10 s, 3 million over the 30 s after it: 100,000 to 200,000 a second |
//! | registrations, 10,000 nerves with one transaction each | 10,000 at once: at 2,000 writes a second 5 s, longer than pings may wait | over 10 s: 1,000 a second |
//!
//! With spread that is still more than three small servers answer in time: an ensemble of this size needs five, or
//! observers, and `session_timeout` above the 10 s of the default. Without spread no size helps. Watches are armed at once
//! in either case, since what is not watched is missed: a million requests of 60 bytes, without data in their answers.

#![allow(clippy::print_stdout, reason = "the figures are what it is for")]

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use nerve::check::{Check, CheckKind};
use nerve::config::{Listeners, NodeType, Place, RateMode, Report, Service};
use smartstack_common::program::Reload;
use smartstack_common::shutdown::Signals;
use smartstack_common::testing::{Dir, Mode, Options, TcpProxy, ZooKeeper, eventually};
use smartstack_common::units::{Ensemble, ZkPath};
use smartstack_common::zk::{self, Link, supervise};
use synapse::model::source::{SourceKey, SourceView};
use synapse::sources::zookeeper::{Counters, Settings, Shared, Source, follow};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::Instant;
use zookeeper_client::{Acls, AddWatchMode, Client, CreateMode, CreateOptions};

const SOON: Duration = Duration::from_secs(240);
const PATH: &str = "/services/web";
const NODE: CreateOptions<'static> = CreateMode::Persistent.with_acls(Acls::anyone_all());
/// As long as one of nerve, 106 bytes.
const DATA: &[u8] = br#"{"host":"10.0.000.001","port":8080,"name":"i-0123456789abcdef0","weight":100,"labels":{"az":"eu-west-1a"}}"#;

/// How many clients, and how many nodes.
fn size() -> usize {
    let asked = std::env::var("STAMPEDE").ok();
    asked.map_or(100, |text| text.parse().expect("STAMPEDE is a number"))
}

/// A client whose session outlasts the work of a thousand others on the same thread.
async fn patient(host: &str) -> Client {
    let connector = Client::connector().with_session_timeout(Duration::from_secs(60));
    connector.connect(host).await.expect("the server runs")
}

async fn create_many(client: &Client, names: impl Iterator<Item = String>) {
    ZooKeeper::make_path(client, PATH).await;
    let names: Vec<String> = names.collect();
    for some in names.chunks(1000) {
        let mut multi = client.new_multi_writer();
        for name in some {
            let path = format!("{PATH}/{name}");
            multi.add_create(&path, DATA, &NODE).expect("a path");
        }
        multi.commit().await.expect("the registry is up");
    }
}

/// Synapses, as far as discovery goes: a session and a follower each.
struct Fleet {
    views: Vec<watch::Receiver<SourceView>>,
    _tasks: JoinSet<()>,
}

impl Fleet {
    /// Some at a time, so that the first reads do not starve each other; each has read `nodes` when this returns.
    async fn start(
        size: usize,
        nodes: usize,
        host: &str,
        timeout: Duration,
        jitter: Duration,
    ) -> Self {
        let mut fleet = Self {
            views: Vec::new(),
            _tasks: JoinSet::new(),
        };
        for _ in 0..size.div_ceil(50) {
            for _ in fleet.views.len()..size.min(fleet.views.len() + 50) {
                fleet.add(host, timeout, jitter);
            }
            fleet
                .until("all is read", |v| v.fresh && v.children.len() >= nodes)
                .await;
        }
        fleet
    }

    fn add(&mut self, host: &str, timeout: Duration, jitter: Duration) {
        let ensemble = Ensemble::new(&[host]).expect("host and port");
        let settings = zk::Settings {
            ensemble: ensemble.clone(),
            session_timeout: timeout,
        };
        let shared = Arc::new(Shared::new(settings.clone()));
        let (sender, link) = watch::channel(Link::Connecting);
        let supervisor = supervise(settings, sender, std::future::pending());
        self._tasks.spawn(supervisor);
        let source = Source {
            key: SourceKey {
                ensemble,
                path: ZkPath::new(PATH).expect("a path"),
            },
            valid: Arc::new(|_, _| true),
        };
        let settings = Settings {
            jitter,
            ..Settings::default()
        };
        let (sender, view) = watch::channel(SourceView::default());
        self.views.push(view);
        let counters = Arc::new(Counters::default());
        let follower = follow(source, settings, link, shared, sender, counters);
        self._tasks.spawn(follower);
    }

    async fn until(&mut self, what: &str, wanted: impl Fn(&SourceView) -> bool) {
        for view in &mut self.views {
            let seen = tokio::time::timeout(SOON, view.wait_for(&wanted)).await;
            assert!(seen.is_ok_and(|v| v.is_ok()), "not within {SOON:?}: {what}");
        }
    }
}

/// What the server and the wire saw, pings taken out.
#[derive(Debug, Clone, Copy)]
struct Cost {
    received: f64,
    sent: f64,
    up: f64,
    down: f64,
}

impl Cost {
    async fn now(zookeeper: &ZooKeeper, proxy: &TcpProxy) -> Self {
        let (received, sent) = (
            zookeeper.mntr(0, "zk_packets_received").await,
            zookeeper.mntr(0, "zk_packets_sent").await,
        );
        let pings = *proxy.operations().get("ping").unwrap_or(&0) as f64;
        Self {
            received: received - pings,
            sent: sent - pings,
            // A ping is 12 bytes with its length, its answer 20.
            up: proxy.bytes_to_server() as f64 - 12.0 * pings,
            down: proxy.bytes_to_client() as f64 - 20.0 * pings,
        }
    }

    fn since(self, before: Self, changes: f64) -> Self {
        Self {
            received: (self.received - before.received) / changes,
            sent: (self.sent - before.sent) / changes,
            up: (self.up - before.up) / changes,
            down: (self.down - before.down) / changes,
        }
    }

    fn print(self, what: &str) {
        println!(
            "{what:<44} {:>8.0} packets to, {:>8.0} from the server; {:>10.0} + {:>10.0} bytes",
            self.received, self.sent, self.up, self.down
        );
    }
}

/// One change costs each watcher what the reference's row says, a recursive watch and one read: one event, one request and
/// its answer.
#[tokio::test]
async fn one_change_costs_each_watcher_one_event_and_one_read() {
    let size = size();
    let zookeeper = ZooKeeper::start_with(Options::default()).await;
    let direct = patient(&zookeeper.hosts()).await;
    create_many(&direct, (0..size).map(|n| format!("i-{n:06}_{n:010}"))).await;
    let proxy = TcpProxy::start(&zookeeper.hosts()).await;
    const CHANGES: usize = 5;
    let added = |round: usize, n: usize| format!("added-{round}_{:010}", 100_000 + n);

    // The floor: nothing but a watch and a read.
    let done = Arc::new(AtomicU64::new(0));
    let mut bare = JoinSet::new();
    for _ in 0..size {
        let client = patient(&proxy.host()).await;
        let watch = client.watch(PATH, AddWatchMode::PersistentRecursive).await;
        let (mut watch, done) = (watch.expect("armed"), done.clone());
        bare.spawn(async move {
            loop {
                let event = watch.changed().await;
                if client.get_data(&event.path).await.is_ok() {
                    done.fetch_add(1, Ordering::AcqRel);
                }
            }
        });
    }
    let before = Cost::now(&zookeeper, &proxy).await;
    for n in 0..CHANGES {
        create_many(&direct, [added(0, n)].into_iter()).await;
        let wanted = ((n + 1) * size) as u64;
        eventually("every bare watcher has read it", SOON, async || match done
            .load(Ordering::Acquire)
        {
            read if read == wanted => Ok(()),
            read => Err(format!("{read} of {wanted}")),
        })
        .await;
    }
    let floor = Cost::now(&zookeeper, &proxy)
        .await
        .since(before, CHANGES as f64);
    bare.shutdown().await;
    eventually("their connections end", SOON, async || match proxy.open() {
        0 => Ok(()),
        open => Err(format!("{open} open")),
    })
    .await;

    let start = Cost::now(&zookeeper, &proxy).await;
    let all = size + CHANGES;
    let timeout = Duration::from_secs(60);
    let mut fleet = Fleet::start(size, all, &proxy.host(), timeout, Duration::ZERO).await;
    let before = Cost::now(&zookeeper, &proxy).await;
    for n in 0..CHANGES {
        create_many(&direct, [added(1, n)].into_iter()).await;
        let name = added(1, n);
        fleet
            .until("the change", |v| v.fresh && v.children.contains_key(&name))
            .await;
    }
    let added_cost = Cost::now(&zookeeper, &proxy)
        .await
        .since(before, CHANGES as f64);
    let before = Cost::now(&zookeeper, &proxy).await;
    for n in 0..CHANGES {
        let name = added(1, n);
        let path = format!("{PATH}/{name}");
        direct.delete(&path, None).await.expect("it is there");
        fleet
            .until("the removal", |v| {
                v.fresh && !v.children.contains_key(&name)
            })
            .await;
    }
    let removed = Cost::now(&zookeeper, &proxy)
        .await
        .since(before, CHANGES as f64);

    println!("{size} watchers of one path with {size} nodes, pings taken out:");
    let reads = size as f64;
    before
        .since(start, reads)
        .print("first read of everything, per watcher");
    floor.print("one node added, bare watchers");
    added_cost.print("one node added, followers");
    removed.print("one node removed, followers");
    // Six packets are those of the writing client and of the figures themselves.
    let slack = 8.0;
    assert!(
        added_cost.received <= 1.1 * floor.received + slack,
        "{added_cost:?} {floor:?}"
    );
    assert!(
        added_cost.sent <= 1.1 * floor.sent + slack,
        "{added_cost:?} {floor:?}"
    );
    assert!(added_cost.up + added_cost.down <= 1.1 * (floor.up + floor.down));
    assert!(added_cost.received <= 1.1 * reads + slack && added_cost.sent <= 2.2 * reads + slack);
    assert!(
        removed.received <= slack && removed.sent <= 1.1 * reads + slack,
        "{removed:?}"
    );
}

/// Operations over time.
struct Timeline(Vec<(Instant, BTreeMap<&'static str, u64>)>);

impl Timeline {
    /// The most operations of these kinds within any second.
    fn peak(&self, kinds: &[&str]) -> u64 {
        let count = |(at, all): &(Instant, BTreeMap<&'static str, u64>)| {
            let sum = kinds.iter().filter_map(|kind| all.get(kind)).sum::<u64>();
            (*at, sum)
        };
        let counts: Vec<(Instant, u64)> = self.0.iter().map(count).collect();
        let mut peak = 0;
        for (begin, (at, before)) in counts.iter().enumerate() {
            let second = counts[begin..]
                .iter()
                .take_while(|(later, _)| *later - *at <= Duration::from_secs(1));
            peak = peak.max(second.last().map_or(0, |(_, after)| after - before));
        }
        peak
    }

    fn total(&self, kind: &str) -> u64 {
        let of = |entry: Option<&(Instant, BTreeMap<&'static str, u64>)>| {
            entry.and_then(|(_, all)| all.get(kind)).copied()
        };
        of(self.0.last()).unwrap_or(0) - of(self.0.first()).unwrap_or(0)
    }
}

/// Records what goes through the proxy until `done`.
async fn record(proxy: &TcpProxy, done: impl Future<Output = ()>) -> Timeline {
    let mut timeline = Timeline(Vec::new());
    let mut tick = tokio::time::interval(Duration::from_millis(20));
    tokio::pin!(done);
    // Cancel-safe: a tick, and a future kept outside.
    loop {
        tokio::select! {
            at = tick.tick() => timeline.0.push((at, proxy.operations())),
            () = &mut done => break,
        }
    }
    timeline.0.push((Instant::now(), proxy.operations()));
    timeline
}

const LISTS: &[&str] = &["getChildren"];
const READS: &[&str] = &["getData", "multiRead"];
const WRITES: &[&str] = &["create", "multi"];

/// An outage whose spread makes a difference to so many.
fn long_enough(size: usize) -> Duration {
    Duration::from_secs(if size < 500 { 10 } else { 24 })
}

/// Spread over a quarter of the outage, with what chance may add within any second.
fn most_within_a_second(size: usize, outage: Duration, factor: f64) -> f64 {
    let mean = factor * size as f64 / (outage / 4).as_secs_f64();
    mean + 5.0 * mean.sqrt()
}

/// The registry is away for longer than the sessions live, and comes back for all of them at the same moment.
async fn outage(proxy: &TcpProxy, length: Duration, meanwhile: impl Future<Output = ()>) {
    proxy.set(Mode::Refuse).await;
    let end = Instant::now() + length;
    meanwhile.await;
    // Not waiting for anything: it is what is being tested.
    tokio::time::sleep_until(end).await;
}

#[tokio::test]
async fn after_an_outage_followers_come_back_spread_over_a_quarter_of_it() {
    let size = size();
    // The bytes are those of this many; all clients of all these nodes are served by one thread here.
    let nodes = size.min(100);
    // One thread answers the pings of all of them while it reads.
    let timeout = Duration::from_secs(if size < 500 { 2 } else { 10 });
    let zookeeper = ZooKeeper::start_with(Options::default()).await;
    let direct = patient(&zookeeper.hosts()).await;
    create_many(&direct, (0..nodes).map(|n| format!("i-{n:06}_{n:010}"))).await;
    for jitter in [Duration::ZERO, Duration::from_millis(500)] {
        let length = match jitter.is_zero() {
            true => 2 * timeout,
            false => long_enough(size),
        };
        let proxy = TcpProxy::start(&zookeeper.hosts()).await;
        let mut fleet = Fleet::start(size, nodes, &proxy.host(), timeout, jitter).await;
        let new = format!(
            "new-{}_{:010}",
            jitter.as_millis(),
            200_000 + jitter.as_millis()
        );
        let change = create_many(&direct, [new.clone()].into_iter());
        outage(&proxy, length, change).await;
        let bytes = proxy.bytes_to_client();
        proxy.set(Mode::Pass).await;
        let started = Instant::now();
        let mut listed = Duration::ZERO;
        let timeline = record(&proxy, async {
            fleet
                .until("the list", |v| v.children.contains_key(&new))
                .await;
            listed = started.elapsed();
            fleet.until("everything", |v| v.fresh).await;
        })
        .await;
        let bytes = (proxy.bytes_to_client() - bytes) / size as u64;
        let (lists, reads) = (timeline.peak(LISTS), timeline.peak(READS));
        println!(
            "{size} followers of {nodes} nodes back after {length:?} away, jitter {jitter:?}: all listed after {listed:.1?}, \
             all read after {:.1?}; within one second at most {} connects, {lists} lists, {reads} reads; {bytes} bytes each",
            started.elapsed(),
            timeline.peak(&["connect"]),
        );
        if !jitter.is_zero() {
            assert!(
                2 * timeline.total("getChildren") <= 5 * size as u64,
                "the list, and everything; a machine that is too slow loses a connection here and there"
            );
            // The first of the later reads of everything fall into the same second.
            let most = most_within_a_second(size, length, 4.0 / 3.0);
            assert!(
                (lists as f64) < most,
                "{lists} lists, not {most:.0} a second"
            );
        }
    }
}

/// One nerve with three services in this process.
fn nerve(host: usize, ensemble: &Ensemble, dir: &Dir, timeout: Duration) -> nerve::config::Config {
    let service = |n: usize| Service {
        name: format!("s{n}"),
        host: format!("10.0.{}.{}", host / 250, host % 250),
        port: (8000 + n).into(),
        check_interval: Duration::from_secs(2),
        checks: vec![Check {
            name: "noop".to_owned(),
            rise: 1,
            fall: 1,
            kind: CheckKind::Noop,
        }],
        check_grace: Duration::ZERO,
        check_mocked: false,
        weight: None,
        haproxy_server_options: None,
        labels: None,
        places: vec![Place {
            ensemble: ensemble.clone(),
            path: ZkPath::new(&format!("/services/s{n}")).expect("a path"),
        }],
        node_type: NodeType::EphemeralSequential,
        use_path_encoding: false,
    };
    nerve::config::Config {
        instance_id: format!("host-{host:05}"),
        services: (0..SERVICES)
            .map(|n| (format!("s{n}"), service(n)))
            .collect(),
        heartbeat_path: None,
        session_timeout: timeout,
        jitter: Duration::from_millis(500),
        write_rate: 50,
        write_rate_mode: RateMode::On,
        listeners: Listeners::default(),
        state_path: dir.join(&format!("state-{host}.json")),
        linger: Duration::ZERO,
        stop_deadline: Duration::from_secs(1),
    }
}

/// Services of each nerve.
const SERVICES: usize = 3;

/// Nodes by the host they are of: each must stand once at each service.
async fn registered(client: &Client) -> BTreeSet<String> {
    let mut all = BTreeSet::new();
    for service in 0..SERVICES {
        for name in ZooKeeper::list(client, &format!("/services/s{service}")).await {
            let id = name.rsplit_once('_').map_or("", |(id, _)| id).to_owned();
            all.insert(format!("{service} {id}"));
        }
    }
    all
}

#[tokio::test]
async fn after_an_outage_nerves_register_again_spread_over_a_quarter_of_it() {
    let size = size();
    let length = long_enough(size);
    let timeout = Duration::from_secs(if size < 500 { 2 } else { 10 });
    let zookeeper = ZooKeeper::start_with(Options::default()).await;
    let direct = patient(&zookeeper.hosts()).await;
    let proxy = TcpProxy::start(&zookeeper.hosts()).await;
    let ensemble = Ensemble::new(&[proxy.host()]).expect("host and port");
    let dir = Dir::new();
    let mut nerves = JoinSet::new();
    for host in 0..size {
        let config = nerve(host, &ensemble, &dir, timeout);
        let signals = Signals::install(true).expect("a handler");
        let nobody_asks = Reload::new(|| Err(Report::default()), 0);
        nerves.spawn(nerve::run(config, signals, nobody_asks));
    }
    let all_registered = async |what: &str| {
        eventually(what, SOON, async || {
            let found = registered(&direct).await.len();
            if found == size * SERVICES {
                Ok(())
            } else {
                Err(format!("{found} of {}", size * SERVICES))
            }
        })
        .await;
    };
    all_registered("all register").await;
    let gone = async {
        // One that was just being accepted may slip through the proxy.
        eventually("all sessions expire", SOON, async || {
            match registered(&direct).await.len() {
                left if left * 100 <= size * SERVICES => Ok(()),
                left => Err(format!("{left} left")),
            }
        })
        .await;
    };
    outage(&proxy, length, gone).await;
    proxy.set(Mode::Pass).await;
    let started = Instant::now();
    let timeline = record(&proxy, all_registered("all register again")).await;
    let (writes, total) = (
        timeline.peak(WRITES),
        WRITES.iter().map(|w| timeline.total(w)).sum::<u64>(),
    );
    println!(
        "{size} nerves with {SERVICES} services each back after {length:?} away: all registered after {:.1?}; {total} writes, \
         within one second at most {writes}, and {} connects",
        started.elapsed(),
        timeline.peak(&["connect"]),
    );
    let most = most_within_a_second(size, length, 1.3);
    assert!(
        (writes as f64) < most,
        "{writes} writes, not {most:.0} a second"
    );
    assert!(
        total <= size as u64 * 5 / 4,
        "{total}: one transaction for each nerve"
    );
    assert!(nerves.try_join_next().is_none(), "every nerve runs");
    nerves.shutdown().await;
}
