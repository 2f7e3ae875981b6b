//! Everything that can happen to haproxy and to synapse's files, one thing after another in a seeded order, under clients
//! that never retry. `SOAK_SECONDS` is how long (60 in the test suite, 600 in `make soak`), `SOAK_SEED` replays an order.
//!
//! At the end haproxy's table is the registry, and no request has failed, with two exceptions that are counted by name:
//!
//! * in flight on a killed process: its connection was established, or on its way into the queue of the listening socket,
//!   before that process was seen to be dead, and was reset or closed by its end. Nobody else has that connection.
//! * refused while nobody listened: between a kill and the first connection that the haproxy started in its place took.
//!   A listening socket ends with the last process that has it, and nothing that is left could hold it: this is what it
//!   means to kill haproxy itself, and only its restart ends it. How long that took is printed.
//!
//! Anything else fails the soak: a 503, a time-out, a reset of a connection that the next haproxy had taken, whenever.

#![allow(clippy::unwrap_used, reason = "a test")]
#![expect(clippy::print_stderr, reason = "where a failing test says what it did")]

mod disk;
mod kills;
#[path = "../rig/mod.rs"]
mod rig;
mod verdict;

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};
use smartstack_common::testing::{
    Dir, Stub, Style, Traffic, ZooKeeper, ask_once, eventually, free_port,
};
use tokio::time::Instant;
use zookeeper_client::{Acls, Client, CreateMode};

use disk::Disk;
use kills::{Kill, kill_and_watch};
use rig::{Rig, SOON, settings};
use verdict::{Table, differences, judge, live};

const CHECK: &str = "check inter 2s rise 3 fall 2";
/// How long the stats socket and the disk stay away.
const AWAY: Duration = Duration::from_secs(5);
/// Requests per second of each kind of client.
const RATE: f64 = 100.0;
/// Servers that `web` has at least.
const LEAST: usize = 3;

/// What happens. Each of them once per round, in a new order each time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Action {
    Add,
    Remove,
    Weight,
    Service,
    Template,
    Reload,
    KillWorker,
    KillAll,
    SocketAway,
    DiskFull,
}

const ACTIONS: [Action; 14] = [
    Action::Add,
    Action::Add,
    Action::Add,
    Action::Remove,
    Action::Remove,
    Action::Weight,
    Action::Weight,
    Action::Service,
    Action::Template,
    Action::Reload,
    Action::KillWorker,
    Action::KillAll,
    Action::SocketAway,
    Action::DiskFull,
];

/// What was done, and when; printed when the test fails.
struct Journal {
    began: Instant,
    lines: Vec<String>,
}

impl Journal {
    fn note(&mut self, line: impl std::fmt::Display) {
        let line = format!("{:7.2} s  {line}", self.began.elapsed().as_secs_f64());
        self.lines.push(line);
    }
}

impl Drop for Journal {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("What was done:\n{}", self.lines.join("\n"));
        }
    }
}

/// A registered server.
#[derive(Debug, Clone)]
struct Registered {
    number: u32,
    node: String,
    weight: Option<u16>,
}

struct Soak {
    // Before everything else: what is asked of haproxy must not fail because the test ends.
    traffic: Vec<Traffic>,
    disk: Disk,
    rig: Rig,
    client: Client,
    zookeeper: ZooKeeper,
    stub: Stub,
    config: Value,
    port: u16,
    extra_port: u16,
    registry: BTreeMap<&'static str, Vec<Registered>>,
    next: u32,
    rng: fastrand::Rng,
    journal: Journal,
    kills: Vec<Kill>,
    done: BTreeMap<Action, u32>,
}

fn path(service: &str) -> String {
    format!("/nerve/services/{service}/services")
}

fn local(port: u16) -> SocketAddr {
    SocketAddr::from((Ipv4Addr::LOCALHOST, port))
}

impl Soak {
    async fn start(seed: u64) -> Self {
        let (zookeeper, stub, dir) = (ZooKeeper::start().await, Stub::start(), Dir::new());
        let client = Client::connector()
            .with_session_timeout(Duration::from_secs(60))
            .connect(&zookeeper.hosts())
            .await
            .unwrap();
        let disk = Disk::mount(dir.join("haproxy"));
        let (port, extra_port) = (free_port(), free_port());
        let mut config = settings(&dir);
        // Nodes are deleted without an announcement: the guard would hold their servers.
        config["guard"] = json!("off");
        config["snapshot_path"] = json!(dir.join("haproxy/snapshot.json"));
        config["haproxy"]["use_nerve_weights"] = json!(true);
        config["haproxy"]["templates"] = json!({"service": dir.join("service.tera")});
        write_template(&dir, 30);
        config["services"]["web"] = service(&zookeeper, "web", port);
        for name in ["web", "extra"] {
            ZooKeeper::make_path(&client, &path(name)).await;
        }
        let mut journal = Journal {
            began: Instant::now(),
            lines: Vec::new(),
        };
        journal.note(format!("seed {seed}"));
        let mut registry = BTreeMap::new();
        let mut next = 0;
        for name in ["web", "extra"] {
            let mut servers = Vec::new();
            for _ in 0..5 {
                servers.push(register(&client, &stub, name, next, None).await);
                next += 1;
            }
            registry.insert(name, servers);
        }
        let rig = Rig::start(dir, &config).await;
        let soak = Self {
            traffic: Vec::new(),
            disk,
            rig,
            client,
            zookeeper,
            stub,
            config,
            port,
            extra_port,
            registry,
            next,
            rng: fastrand::Rng::with_seed(seed),
            journal,
            kills: Vec::new(),
            done: BTreeMap::new(),
        };
        soak.settled().await;
        soak
    }

    /// Waits until haproxy's table is the registry.
    async fn settled(&self) {
        let wanted = self.wanted();
        eventually("haproxy's table is the registry", SOON, async || {
            if tokio::net::UnixStream::connect(self.stats()).await.is_err() {
                return Err(format!("haproxy does not listen\n{}", self.rig.log()));
            }
            let live = live(&self.rig.haproxy.servers_state().await);
            let differences = differences(&wanted, &live);
            if differences.is_empty() {
                Ok(())
            } else {
                Err(format!("{}\n{}", differences.join("\n"), self.rig.log()))
            }
        })
        .await;
    }

    fn stats(&self) -> PathBuf {
        self.rig.dir.join("stats.sock")
    }

    fn wanted(&self) -> Table {
        let configured = self.config["services"].as_object().unwrap();
        let services = self
            .registry
            .iter()
            .filter(|(name, _)| configured.contains_key(**name));
        services
            .flat_map(|(name, servers)| servers.iter().map(move |server| (name, server)))
            .map(|(name, server)| {
                let address = self.stub.address(server.number).to_string();
                let key = ((*name).to_owned(), format!("i-{}_{address}", server.number));
                (key, (address, server.weight.unwrap_or(1), true))
            })
            .collect()
    }

    async fn round(&mut self) {
        let mut actions = ACTIONS;
        self.rng.shuffle(&mut actions);
        for action in actions {
            self.journal.note(format!("{action:?}"));
            self.act(action).await;
            *self.done.entry(action).or_default() += 1;
            let pause = self.rng.u64(0..700);
            tokio::time::sleep(Duration::from_millis(pause)).await;
        }
        self.settled().await;
        self.journal.note("settled");
    }

    async fn act(&mut self, action: Action) {
        match action {
            Action::Add => self.add().await,
            Action::Remove => self.remove().await,
            Action::Weight => self.weight().await,
            Action::Service => self.service(),
            Action::Template => {
                write_template(&self.rig.dir, self.rng.u32(20..60));
                self.rig.configure(&self.config);
            }
            Action::Reload => self.reload().await,
            Action::KillWorker => {
                let worker = self.rig.haproxy.worker_pid().await;
                self.killed(vec![worker]).await;
            }
            Action::KillAll => {
                let all = self.rig.haproxy.pids();
                self.killed(all).await;
            }
            Action::SocketAway => {
                let (socket, away) = (self.stats(), self.rig.dir.join("away.sock"));
                std::fs::rename(&socket, &away).unwrap();
                self.changes_for(AWAY).await;
                // A reload has made a new one: then the old one leads nowhere.
                if !socket.exists() {
                    std::fs::rename(&away, &socket).unwrap();
                }
                self.journal.note("the stats socket is back");
            }
            Action::DiskFull => {
                let filler = self.disk.fill();
                self.changes_for(AWAY).await;
                std::fs::remove_file(filler).unwrap();
                self.journal.note("the disk has room again");
            }
        }
    }

    /// By hand, as an operator's tool does: once more when nothing comes of it. A master that has just re-executed itself
    /// loses the signal; its worker answers before it does.
    async fn reload(&mut self) {
        let worker = self.rig.haproxy.worker_pid().await;
        eventually("haproxy reloads by hand", SOON, async || {
            // Not by its pid file: that is empty when the disk was full at its last reload.
            let pid = i32::try_from(self.rig.haproxy.master_pid().await?).unwrap();
            kill(Pid::from_raw(pid), Signal::SIGUSR2).map_err(|e| e.to_string())?;
            let another = async {
                loop {
                    let connected = tokio::net::UnixStream::connect(self.stats()).await;
                    if connected.is_ok() && self.rig.haproxy.worker_pid().await != worker {
                        return;
                    }
                    tokio::time::sleep(Duration::from_millis(20)).await;
                }
            };
            let patience = Duration::from_secs(3);
            tokio::time::timeout(patience, another)
                .await
                .map_err(|_| "the same worker".to_owned())
        })
        .await;
    }

    async fn changes_for(&mut self, time: Duration) {
        let end = Instant::now() + time;
        while Instant::now() < end {
            match self.rng.u8(0..3) {
                0 => self.add().await,
                1 => self.remove().await,
                _ => self.weight().await,
            }
            tokio::time::sleep(Duration::from_millis(500)).await;
        }
    }

    async fn add(&mut self) {
        let name = self.some_service();
        let weight = self.rng.bool().then(|| self.rng.u16(1..=10));
        let server = register(&self.client, &self.stub, name, self.next, weight).await;
        self.journal.note(format!(
            "  {name}: {} comes, weight {weight:?}",
            server.number
        ));
        self.next += 1;
        self.registry.get_mut(name).unwrap().push(server);
    }

    async fn remove(&mut self) {
        let name = self.some_service();
        let servers = self.registry.get_mut(name).unwrap();
        if servers.len() <= LEAST {
            return;
        }
        let server = servers.swap_remove(self.rng.usize(0..servers.len()));
        self.journal
            .note(format!("  {name}: {} goes", server.number));
        self.client.delete(&server.node, None).await.unwrap();
    }

    /// As nerve does: the new node first, then the old one goes.
    async fn weight(&mut self) {
        let name = self.some_service();
        let place = self.rng.usize(0..self.registry[name].len());
        let old = self.registry[name][place].clone();
        let weight = Some(self.rng.u16(1..=20));
        self.journal
            .note(format!("  {name}: {} gets weight {weight:?}", old.number));
        let new = register(&self.client, &self.stub, name, old.number, weight).await;
        self.client.delete(&old.node, None).await.unwrap();
        self.registry.get_mut(name).unwrap()[place] = new;
    }

    fn some_service(&mut self) -> &'static str {
        // The other one may not be configured: its registry changes all the same.
        if self.rng.u8(0..4) == 0 {
            "extra"
        } else {
            "web"
        }
    }

    /// The second service comes, or goes.
    fn service(&mut self) {
        let services = self.config["services"].as_object_mut().unwrap();
        if services.remove("extra").is_none() {
            let config = service(&self.zookeeper, "extra", self.extra_port);
            services.insert("extra".to_owned(), config);
        }
        self.rig.configure(&self.config);
    }

    async fn killed(&mut self, pids: Vec<u32>) {
        let port = local(self.port);
        let kill = tokio::task::spawn_blocking(move || kill_and_watch(&pids, port))
            .await
            .unwrap();
        self.journal.note(format!(
            "  dead {:?} after the kill, another one listens after {:?}",
            kill.dead - kill.at,
            kill.listens - kill.at
        ));
        self.kills.push(kill);
        eventually("haproxy answers again", SOON, async || {
            tokio::task::spawn_blocking(move || ask_once(port))
                .await
                .unwrap()
        })
        .await;
    }
}

fn service(zookeeper: &ZooKeeper, name: &str, port: u16) -> Value {
    json!({
        "discovery": {"method": "zookeeper", "hosts": [zookeeper.hosts()], "path": path(name)},
        "haproxy": {
            "port": port,
            "bind_address": "127.0.0.1",
            "server_options": CHECK,
            "listen": ["option httpchk /health"],
        },
    })
}

/// The built-in template with one more line, which is another with each number.
fn write_template(dir: &Dir, seconds: u32) {
    let built_in = Path::new(env!("CARGO_MANIFEST_DIR")).join("../templates/service.cfg.tera");
    let text = std::fs::read_to_string(built_in).unwrap();
    let line = "backend {{ service.backend_name }}\n";
    assert!(text.contains(line));
    let text = text.replace(line, &format!("{line}\ttimeout server {seconds}s\n"));
    let _path = dir.write("service.tera", text);
}

async fn register(
    client: &Client,
    stub: &Stub,
    service: &str,
    number: u32,
    weight: Option<u16>,
) -> Registered {
    let address = stub.address(number);
    let mut payload = json!({
        "host": address.ip().to_string(),
        "port": address.port(),
        "name": format!("i-{number}"),
    });
    if let Some(weight) = weight {
        payload["weight"] = json!(weight);
    }
    let prefix = format!("{}/i-{number}_", path(service));
    let options = CreateMode::EphemeralSequential.with_acls(Acls::anyone_all());
    let data = payload.to_string();
    let (_, sequence) = client
        .create(&prefix, data.as_bytes(), &options)
        .await
        .unwrap();
    Registered {
        number,
        node: format!("{prefix}{sequence}"),
        weight,
    }
}

fn number(name: &str) -> Option<u64> {
    std::env::var(name)
        .ok()
        .map(|text| text.parse().unwrap_or_else(|_| panic!("{name}={text}")))
}

#[tokio::test]
async fn whatever_happens_the_table_is_the_registry_and_no_request_fails() {
    let time = Duration::from_secs(number("SOAK_SECONDS").unwrap_or(60));
    let seed = number("SOAK_SEED").unwrap_or_else(|| fastrand::u64(0..1_000_000));
    println!("SOAK_SEED={seed}");
    let mut soak = Soak::start(seed).await;
    let port = local(soak.port);
    soak.traffic = [Style::KeepAlive, Style::PerRequest]
        .map(|style| Traffic::start(port, style, 4, RATE))
        .into();
    let began = Instant::now();
    let mut rounds = 0;
    while rounds == 0 || began.elapsed() < time {
        soak.round().await;
        rounds += 1;
        let failures = soak.traffic.iter().flat_map(Traffic::failures).collect();
        let (unexplained, _) = judge(failures, &soak.kills);
        for failure in &unexplained {
            let at = failure.ended.duration_since(soak.journal.began.into_std());
            soak.journal.note(format!("failed at {at:?}: {failure:?}"));
        }
        assert!(
            unexplained.is_empty(),
            "requests failed, none may: {unexplained:?}"
        );
    }
    let (mut answered, mut failures) = (0, Vec::new());
    for traffic in std::mem::take(&mut soak.traffic) {
        let stopped = tokio::task::spawn_blocking(|| traffic.stop())
            .await
            .unwrap();
        answered += stopped.0;
        failures.extend(stopped.1);
    }
    let (unexplained, explained) = judge(failures, &soak.kills);
    assert_eq!(unexplained, [], "requests failed, none may");
    soak.settled().await;
    soak.rig.assert_sound("at the end");
    let status = soak.rig.synapse.status().await;
    let killed = soak.kills.len();
    let down: Duration = soak.kills.iter().map(|k| k.listens - k.dead).sum();
    println!(
        "{rounds} rounds in {:.0} s: {:?}; {answered} requests answered; {killed} kills of haproxy, nobody listened for {down:?} \
         in all, cost {explained:?}; \
         reloads {}, foreign {}, runtime changes {}",
        began.elapsed().as_secs_f64(),
        soak.done,
        status["haproxy"]["reloads"],
        status["haproxy"]["foreign_reloads"],
        status["haproxy"]["runtime_ops"],
    );
    // Clients stand still only while haproxy is down.
    let least = 2.0 * RATE * began.elapsed().as_secs_f64() / 4.0;
    assert!(
        answered as f64 > least,
        "{answered} answered, {least} expected at least"
    );
}
