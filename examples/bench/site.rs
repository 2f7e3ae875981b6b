//! One size: a ZooKeeper with the znodes, the stub servers, synapse and the haproxy that it supervises.

use std::collections::BTreeMap;
use std::fmt;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::str::FromStr;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use smartstack_common::admin::Bind;
use smartstack_common::instance::Payload;
use smartstack_common::testing::{
    Dir, Haproxy, Program, Stub, ZooKeeper, ask_once, eventually, free_port,
};
use tokio::task::JoinSet;
use zookeeper_client::{Acls, Client, CreateMode, CreateOptions};

use crate::floor::Floor;

/// The most that anything may take to arrive.
pub(crate) const LIMIT: Duration = Duration::from_secs(120);
const NODE: CreateOptions<'static> = CreateMode::EphemeralSequential.with_acls(Acls::anyone_all());
/// A server that is added takes nearly all turns of its backend, so that the next request shows it.
pub(crate) const WEIGHT: u16 = 256;
/// znodes created at a time while a site is set up.
const AT_ONCE: usize = 64;

/// Services x servers of each.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Size {
    pub(crate) services: u32,
    pub(crate) servers: u32,
}

impl Size {
    pub(crate) fn total(self) -> u32 {
        self.services * self.servers
    }

    /// Airbnb's example, up to where the checks alone would keep two cores busy.
    pub(crate) fn check(self) -> &'static str {
        if self.total() > 100 {
            "check inter 60s rise 3 fall 2"
        } else {
            "check inter 2s rise 3 fall 2"
        }
    }
}

impl FromStr for Size {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let numbers = text.split_once(['x', '×']);
        let numbers = numbers.and_then(|(a, b)| Some((a.parse().ok()?, b.parse().ok()?)));
        match numbers {
            // An address for each frontend, and the names of services have four digits.
            Some((services @ 1..=10_000, servers @ 1..=100_000)) => Ok(Self { services, servers }),
            _ => Err(format!("{text:?} is not like 100x10 (services x servers)")),
        }
    }
}

impl fmt::Display for Size {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&format!("{}x{}", self.services, self.servers))
    }
}

/// How the start went.
#[derive(Debug, Clone)]
pub(crate) struct Started {
    pub(crate) first_answer: Duration,
    pub(crate) all_served: Duration,
}

/// A registered server.
#[derive(Debug, Clone)]
pub(crate) struct Server {
    pub(crate) service: u32,
    pub(crate) node: String,
    pub(crate) address: SocketAddr,
    /// haproxy's name for it.
    pub(crate) name: String,
}

/// Everything that runs. Dropped from the top: synapse before haproxy, or it would start it again.
pub(crate) struct Site {
    pub(crate) synapse: Program,
    pub(crate) haproxy: Haproxy,
    pub(crate) floor: Floor,
    pub(crate) client: Client,
    pub(crate) zookeeper: ZooKeeper,
    pub(crate) stub: Stub,
    pub(crate) size: Size,
    pub(crate) started: Started,
    /// Of all frontends: each has an address of its own.
    pub(crate) port: u16,
    /// Registered, the oldest first, by service.
    pub(crate) servers: BTreeMap<u32, Vec<Server>>,
    next: u32,
    pub(crate) rng: fastrand::Rng,
    pub(crate) dir: Dir,
}

impl Site {
    pub(crate) async fn start(size: Size, maxconn: u32) -> Self {
        let zookeeper = ZooKeeper::start().await;
        let client = Client::connector()
            .with_session_timeout(Duration::from_secs(60))
            .connect(&zookeeper.hosts())
            .await
            .expect("ZooKeeper serves");
        let (dir, stub, port) = (Dir::new(), Stub::start(), free_port());
        let mut servers: BTreeMap<u32, Vec<Server>> = BTreeMap::new();
        for service in 0..size.services {
            ZooKeeper::make_path(&client, &parent(service)).await;
        }
        ZooKeeper::make_path(&client, Floor::PARENT).await;
        let mut creating = JoinSet::new();
        for index in 0..size.total() {
            let (client, address) = (client.clone(), stub.address(index));
            creating.spawn(async move {
                register(&client, index / size.servers, index, address, None).await
            });
            if creating.len() >= AT_ONCE {
                take(&mut creating, &mut servers).await;
            }
        }
        while !creating.is_empty() {
            take(&mut creating, &mut servers).await;
        }
        let config = config(&dir, &zookeeper.hosts(), size, port, maxconn);
        let _written = dir.write("synapse.json", config.to_string());
        // Taken first: if synapse fails, a haproxy that it started is ended all the same.
        let haproxy = Haproxy::attach(&dir.join("main/haproxy.cfg"), &dir.join("main/stats.sock"));
        let (synapse, started) = start(&dir, &haproxy, size, port).await;
        let floor = Floor::start(&dir, &zookeeper, port, stub.port()).await;
        Self {
            synapse,
            haproxy,
            floor,
            client,
            zookeeper,
            stub,
            size,
            started,
            port,
            servers,
            next: size.total(),
            rng: fastrand::Rng::with_seed(3),
            dir,
        }
    }

    /// Registers another server with a service, by one create; when that was sent.
    pub(crate) async fn add(&mut self, service: u32, weight: Option<u16>) -> (Instant, Server) {
        let server = self.upcoming(service);
        self.next += 1;
        let (index, address) = (self.next - 1, server.address);
        let began = Instant::now();
        let server = register(&self.client, service, index, address, weight).await;
        self.servers
            .entry(service)
            .or_default()
            .push(server.clone());
        (began, server)
    }

    /// The server that [`Site::add`] registers next. It has no znode yet.
    pub(crate) fn upcoming(&self, service: u32) -> Server {
        let address = self.stub.address(self.next);
        Server {
            service,
            node: String::new(),
            address,
            name: name(self.next, address),
        }
    }

    /// The next server is another one.
    pub(crate) fn skip(&mut self) {
        self.next += 1;
    }

    /// Deletes a server's znode; when that was sent.
    pub(crate) async fn remove(&mut self, server: &Server) -> Instant {
        let servers = self.servers.entry(server.service).or_default();
        servers.retain(|other| other.node != server.node);
        let began = Instant::now();
        let deleted = self.client.delete(&server.node, None).await;
        deleted.unwrap_or_else(|e| panic!("delete {}: {e}", server.node));
        began
    }

    /// Ids of the sessions that are not synapse's, as the server prints them.
    pub(crate) fn own_sessions(&self) -> Vec<String> {
        let own = [self.client.session_id()]
            .into_iter()
            .chain(self.floor.sessions);
        own.map(|id| id.to_string()).collect()
    }

    /// Any service.
    pub(crate) fn service(&mut self) -> u32 {
        self.rng.u32(0..self.size.services)
    }

    /// Where a service is reached.
    pub(crate) fn frontend(&self, service: u32) -> SocketAddr {
        frontend(200, service, self.port)
    }

    /// Waits until haproxy serves exactly the registered servers; returns when it did.
    pub(crate) async fn settled(&self) -> Instant {
        eventually("haproxy's table is the registry", LIMIT, async || {
            let rows = self.haproxy.servers_state().await;
            let mut live: Vec<(String, String)> = rows
                .iter()
                .filter(|row| row["srv_admin_state"] == "0")
                .map(|row| (row["be_name"].clone(), row["srv_name"].clone()))
                .collect();
            let mut wanted: Vec<(String, String)> = self
                .servers
                .values()
                .flatten()
                .map(|server| (service_name(server.service), server.name.clone()))
                .collect();
            live.sort();
            wanted.sort();
            if live == wanted {
                Ok(Instant::now())
            } else {
                Err(format!("{} live, {} registered", live.len(), wanted.len()))
            }
        })
        .await
    }

    /// Ends everything in order.
    pub(crate) async fn close(mut self) {
        self.synapse.signal(nix::sys::signal::Signal::SIGTERM);
        let status = self.synapse.wait(LIMIT).await;
        assert_eq!(status.code(), Some(0), "synapse ends well on TERM");
    }
}

async fn take(creating: &mut JoinSet<Server>, servers: &mut BTreeMap<u32, Vec<Server>>) {
    if let Some(server) = creating.join_next().await {
        let server = server.expect("znodes can be created");
        servers.entry(server.service).or_default().push(server);
    }
}

/// The service's name, which is also its backend's.
pub(crate) fn service_name(service: u32) -> String {
    format!("s{service:04}")
}

fn parent(service: u32) -> String {
    format!("/nerve/services/{}/services", service_name(service))
}

fn instance(index: u32) -> String {
    format!("i-{index:08x}")
}

fn name(index: u32, address: SocketAddr) -> String {
    format!("{}_{address}", instance(index))
}

/// The address of a frontend: 127.200.0.0/16 is synapse's haproxy, 127.201.0.0/16 the floor's.
pub(crate) fn frontend(block: u8, service: u32, port: u16) -> SocketAddr {
    let [place, row] = [service % 250, service / 250].map(|n| n as u8 + 1);
    SocketAddr::from((Ipv4Addr::new(127, block, row, place), port))
}

/// As nerve does: one create of an ephemeral, sequential node.
async fn register(
    client: &Client,
    service: u32,
    index: u32,
    address: SocketAddr,
    weight: Option<u16>,
) -> Server {
    let path = format!("{}/{}_", parent(service), instance(index));
    let node = create(client, &path, index, address, weight).await;
    Server {
        service,
        node,
        address,
        name: name(index, address),
    }
}

/// The create alone; the path of the node.
pub(crate) async fn create(
    client: &Client,
    path: &str,
    index: u32,
    address: SocketAddr,
    weight: Option<u16>,
) -> String {
    let payload = Payload {
        host: address.ip().to_string(),
        port: address.port().into(),
        name: instance(index),
        weight: weight.map(u64::from),
        haproxy_server_options: None,
        labels: None,
        announces: true,
    };
    let created = client.create(path, &payload.to_bytes(), &NODE).await;
    let (_, sequence) = created.unwrap_or_else(|e| panic!("create {path}: {e}"));
    format!("{path}{sequence}")
}

/// synapse's configuration, written as Airbnb's examples are.
fn config(dir: &Dir, zookeeper: &str, size: Size, port: u16, maxconn: u32) -> Value {
    let path = |name: &str| dir.join(name).display().to_string();
    let services: serde_json::Map<String, Value> = (0..size.services)
        .map(|service| {
            let config = json!({
                "discovery": {"method": "zookeeper", "path": parent(service), "hosts": [zookeeper]},
                "haproxy": {
                    "port": port,
                    "bind_address": frontend(200, service, port).ip(),
                    "server_options": size.check(),
                    "listen": ["mode http", "option httpchk /health"],
                },
            });
            (service_name(service), config)
        })
        .collect();
    json!({
        "admin": {"bind": format!("unix:{}", path("admin.sock")), "socket": path("synapse.sock")},
        "snapshot_path": path("state/snapshot.json"),
        // Nodes are deleted without an announcement, and a pause of an unannounced loss is not what is measured.
        "guard": "off",
        "haproxy": {
            "supervise": true,
            "config_file_path": path("main/haproxy.cfg"),
            "socket_file_path": path("main/stats.sock"),
            "use_nerve_weights": true,
            "global": [
                format!("maxconn {maxconn}"),
                format!("stats socket {} mode 660 level admin expose-fd listeners", path("main/stats.sock")),
            ],
            "defaults": ["mode http", "timeout connect 1s", "timeout client 30s", "timeout server 30s"],
        },
        "services": services,
    })
}

/// From the start of synapse, without a haproxy, until each port answers from a table that holds every server.
async fn start(dir: &Dir, haproxy: &Haproxy, size: Size, port: u16) -> (Program, Started) {
    std::fs::create_dir_all(dir.join("main")).expect("a folder of ours is writable");
    let ports: Vec<SocketAddr> = (0..size.services)
        .map(|service| frontend(200, service, port))
        .collect();
    let stats: PathBuf = dir.join("main/stats.sock");
    let began = Instant::now();
    let asked = tokio::task::spawn_blocking(move || {
        let end = began + LIMIT;
        let mut first = None;
        for port in ports {
            while let Err(kind) = ask_once(port) {
                assert!(Instant::now() < end, "{port} does not answer: {kind}");
                std::thread::sleep(Duration::from_millis(1));
            }
            first.get_or_insert_with(Instant::now);
        }
        (first.expect("there is a service"), Instant::now())
    });
    let arguments = ["-c", "synapse.json"];
    let admin = Bind::Unix(dir.join("admin.sock"));
    let mut synapse = Program::start("synapse", dir, &arguments, &[("RUST_LOG", "info")], admin);
    let total = size.total() as usize;
    let served = eventually("haproxy has every server", LIMIT, async || {
        if let Some(status) = synapse.process().ended() {
            panic!(
                "synapse ended with {status}\n{}",
                synapse.process().log_tail()
            );
        }
        if tokio::net::UnixStream::connect(&stats).await.is_err() {
            return Err("haproxy does not listen".to_owned());
        }
        let rows = haproxy.servers_state().await;
        match rows
            .iter()
            .filter(|row| row["srv_admin_state"] == "0")
            .count()
        {
            n if n == total => Ok(Instant::now()),
            n => Err(format!("{n} of {total} servers")),
        }
    })
    .await;
    let (first, answered) = asked.await.expect("every port answers");
    let started = Started {
        first_answer: first - began,
        all_served: served.max(answered) - began,
    };
    synapse.ready(LIMIT).await;
    (synapse, started)
}
