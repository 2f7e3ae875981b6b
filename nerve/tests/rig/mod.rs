//! What the tests of the nerve program share: one ZooKeeper, one app, a nerve between them, and who watches.

#![expect(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]
#![allow(dead_code, reason = "each test program uses its part of the rig")]

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use serde_json::{Value, json};
use smartstack_common::admin::Bind;
use smartstack_common::testing::{App, Dir, Program, ZooKeeper, eventually, free_port};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::Instant;
use zookeeper_client::{AddWatchMode, Client, EventType};

pub(crate) const PARENT: &str = "/nerve/services/web/services";
/// Ten times what is expected, as machines are busy.
pub(crate) const SOON: Duration = Duration::from_secs(10);
/// Session time-out in these tests; the shortest that two busy cores keep alive.
pub(crate) const SESSION: Duration = Duration::from_secs(3);

/// One ZooKeeper, one app, and what nerve is told about them.
pub(crate) struct Host {
    pub(crate) zookeeper: ZooKeeper,
    pub(crate) app: App,
    pub(crate) dir: Dir,
    pub(crate) client: Client,
    /// File name of the next nerve's control socket.
    pub(crate) socket: &'static str,
}

impl Host {
    pub(crate) async fn start() -> Self {
        Self::start_beside(ZooKeeper::start().await).await
    }

    pub(crate) async fn start_beside(zookeeper: ZooKeeper) -> Self {
        let client = zookeeper.connect().await;
        Self {
            app: App::start("app").await,
            dir: Dir::new(),
            client,
            zookeeper,
            socket: "nerve.sock",
        }
    }

    /// A configuration, with `changes` made to its service.
    pub(crate) fn config(&self, admin: &Bind, zk_host: &str, changes: &Value) -> Value {
        let mut service = json!({
            "host": "10.0.0.12",
            "port": 3000,
            "zk_hosts": [zk_host],
            "zk_path": PARENT,
            "check_interval": 0.05,
            "weight": 2,
            "haproxy_server_options": "backup",
            "labels": {"az": "us-east-1a"},
            "checks": [{
                "type": "http",
                "host": "127.0.0.1",
                "port": self.app.address.port(),
                "uri": "/health",
                "timeout": 1,
                "open_timeout": 1,
                "fall": 2,
            }],
        });
        let map = service.as_object_mut().unwrap();
        map.extend(changes.as_object().unwrap().clone());
        json!({
            "instance_id": "i-0a1b2c3d",
            "heartbeat_path": self.dir.join("heartbeat"),
            "state_path": self.dir.join("state.json"),
            "admin": {"bind": admin.to_string(), "socket": self.dir.join(self.socket)},
            "zookeeper": {"session_timeout": format!("{}s", SESSION.as_secs()), "jitter": 0},
            "services": {"web": service},
        })
    }

    pub(crate) fn write(&self, config: &Value) {
        let _path = self.dir.write("nerve.json", config.to_string());
    }

    pub(crate) async fn nerve(&self) -> (Program, Bind) {
        self.nerve_with(&self.zookeeper.hosts(), &json!({})).await
    }

    pub(crate) async fn nerve_with(&self, zk_host: &str, changes: &Value) -> (Program, Bind) {
        let admin = Bind::Tcp(format!("127.0.0.1:{}", free_port()));
        self.write(&self.config(&admin, zk_host, changes));
        (self.launch(&admin).await, admin)
    }

    /// Its check has to fail twenty times, each 50 ms, before it is down.
    pub(crate) async fn nerve_patient(&self, zk_host: &str) -> (Program, Bind) {
        let admin = Bind::Tcp(format!("127.0.0.1:{}", free_port()));
        let mut config = self.config(&admin, zk_host, &json!({}));
        config["services"]["web"]["checks"][0]["fall"] = json!(20);
        self.write(&config);
        (self.launch(&admin).await, admin)
    }

    /// With other settings of `zookeeper`.
    pub(crate) async fn nerve_zookeeper(&self, zookeeper: &Value) -> (Program, Bind) {
        let admin = Bind::Tcp(format!("127.0.0.1:{}", free_port()));
        let mut config = self.config(&admin, &self.zookeeper.hosts(), &json!({}));
        config["zookeeper"] = zookeeper.clone();
        self.write(&config);
        (self.launch(&admin).await, admin)
    }

    /// Starts nerve on the configuration as it is written.
    pub(crate) async fn launch(&self, admin: &Bind) -> Program {
        let path = self.dir.join("nerve.json");
        let arguments = ["-c", path.to_str().unwrap()];
        let mut nerve = Program::start("nerve", &self.dir, &arguments, &[], admin.clone());
        nerve.ready(SOON).await;
        nerve
    }

    pub(crate) async fn nodes(&self) -> Vec<String> {
        ZooKeeper::list(&self.client, PARENT).await
    }

    /// Waits for exactly one node, other than `not`.
    pub(crate) async fn one_node(&self, not: &str) -> String {
        eventually("one node", SOON, async || match &self.nodes().await[..] {
            [one] if one != not => Ok(one.clone()),
            other => Err(format!("{other:?}")),
        })
        .await
    }

    pub(crate) async fn no_node(&self) {
        eventually("no node", SOON, async || match &self.nodes().await[..] {
            [] => Ok(()),
            other => Err(format!("{other:?}")),
        })
        .await;
    }

    pub(crate) async fn owner(&self, node: &str) -> i64 {
        let stat = self
            .client
            .check_stat(&format!("{PARENT}/{node}"))
            .await
            .unwrap();
        stat.map_or(0, |stat| stat.ephemeral_owner)
    }
}

/// TERM: it withdraws and ends within `shutdown.deadline`, by default 10 s. Returns how long it took.
pub(crate) async fn ends_in_time(mut nerve: Program) -> Duration {
    const DEADLINE: Duration = Duration::from_secs(10);
    let asked = Instant::now();
    nerve.signal(nix::sys::signal::Signal::SIGTERM);
    assert_eq!(nerve.wait(DEADLINE * 3).await.code(), Some(0));
    let took = asked.elapsed();
    // Its end is no more than what the machine takes longer than the deadline.
    assert!(
        took < DEADLINE + Duration::from_secs(2),
        "TERM took {took:?}"
    );
    took
}

/// How many nodes an ensemble was asked for, or to take away, so far, also in vain.
pub(crate) async fn writes(nerve: &Program, hosts: &str) -> f64 {
    let mut writes = 0.0;
    for result in ["registered", "withdrawn", "failed"] {
        let name = format!(r#"nerve_zk_writes_total{{hosts="{hosts}",result="{result}"}}"#);
        writes += nerve.metric(&name).await.unwrap_or_default();
    }
    writes
}

/// How many attempts of all checks ended so: `pass`, `fail`, `not_run`.
pub(crate) async fn attempted(nerve: &Program, result: &str) -> f64 {
    let result = format!(r#"result="{result}""#);
    let metrics = nerve.get("/metrics").await.unwrap().body;
    let counts = metrics.lines().filter_map(|line| {
        let (labels, count) = line.rsplit_once(' ')?;
        let counts = labels.starts_with("nerve_checks_total") && labels.contains(&result);
        counts.then(|| count.parse::<f64>().unwrap())
    });
    counts.sum()
}

/// Looks at the nodes all the time and remembers every set it saw.
pub(crate) struct Observer {
    pub(crate) seen: Arc<watch::Sender<Vec<BTreeSet<String>>>>,
    _task: JoinSet<()>,
}

impl Observer {
    pub(crate) async fn start(host: &Host) -> Self {
        let seen = Arc::new(watch::Sender::new(Vec::new()));
        let client = host.zookeeper.connect().await;
        let (mut task, sets) = (JoinSet::new(), Arc::clone(&seen));
        task.spawn(async move {
            loop {
                let set: BTreeSet<String> =
                    ZooKeeper::list(&client, PARENT).await.into_iter().collect();
                sets.send_if_modified(|sets| {
                    let news = sets.last() != Some(&set);
                    if news {
                        sets.push(set);
                    }
                    news
                });
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
        });
        let mut first = seen.subscribe();
        first.wait_for(|sets| !sets.is_empty()).await.unwrap();
        Self { seen, _task: task }
    }

    pub(crate) fn sets(&self) -> Vec<BTreeSet<String>> {
        self.seen.borrow().clone()
    }
}

/// What happened to a node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum What {
    Created,
    Changed,
    Deleted,
}

/// One event of a recursive watch.
#[derive(Debug, Clone)]
pub(crate) struct Seen {
    pub(crate) what: What,
    pub(crate) node: String,
    pub(crate) at: Instant,
    /// The nodes that stand after it.
    pub(crate) standing: BTreeSet<String>,
}

/// Sees every event below [`PARENT`] through a recursive watch, as a consumer does.
pub(crate) struct Witness {
    seen: Arc<watch::Sender<Vec<Seen>>>,
    /// Set when it may have missed something.
    lost: Arc<AtomicBool>,
    _task: JoinSet<()>,
}

impl Witness {
    /// Watches through `client`, which must not lose its connection before the last question.
    pub(crate) async fn start(client: Client) -> Self {
        ZooKeeper::make_path(&client, PARENT).await;
        let mut watcher = client
            .watch(PARENT, AddWatchMode::PersistentRecursive)
            .await
            .unwrap();
        let mut standing: BTreeSet<String> =
            ZooKeeper::list(&client, PARENT).await.into_iter().collect();
        let seen = Arc::new(watch::Sender::new(Vec::new()));
        let lost = Arc::new(AtomicBool::new(false));
        let (mut task, events, gone) = (JoinSet::new(), Arc::clone(&seen), Arc::clone(&lost));
        task.spawn(async move {
            let _open = client;
            loop {
                let event = watcher.changed().await;
                let what = match event.event_type {
                    EventType::NodeCreated => What::Created,
                    EventType::NodeDataChanged => What::Changed,
                    EventType::NodeDeleted => What::Deleted,
                    _ => return gone.store(true, Ordering::Release),
                };
                let Some(node) = event.path.strip_prefix(PARENT) else {
                    continue;
                };
                let node = node.trim_start_matches('/').to_owned();
                match what {
                    What::Created => drop(standing.insert(node.clone())),
                    What::Deleted => drop(standing.remove(&node)),
                    What::Changed => {}
                }
                let (standing, at) = (standing.clone(), Instant::now());
                events.send_modify(|events| {
                    events.push(Seen {
                        what,
                        node,
                        at,
                        standing,
                    });
                });
            }
        });
        Self {
            seen,
            lost,
            _task: task,
        }
    }

    pub(crate) fn events(&self) -> Vec<Seen> {
        assert!(
            !self.lost.load(Ordering::Acquire),
            "the witness lost its connection"
        );
        self.seen.borrow().clone()
    }

    /// The events so far, without their times.
    pub(crate) fn told(&self) -> Vec<(What, String)> {
        let events = self.events();
        events.into_iter().map(|e| (e.what, e.node)).collect()
    }

    /// Waits until `count` events came.
    pub(crate) async fn wait(&self, count: usize) -> Vec<(What, String)> {
        let mut seen = self.seen.subscribe();
        let enough = seen.wait_for(|events| events.len() >= count);
        match tokio::time::timeout(SOON, enough).await {
            Ok(Ok(_)) => self.told(),
            _ => panic!("not {count} events within {SOON:?}: {:?}", self.told()),
        }
    }
}
