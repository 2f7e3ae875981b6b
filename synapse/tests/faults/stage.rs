//! One stage for all rows: an ensemble of three, two nerves with two apps each, one synapse with its haproxy, and clients
//! that never retry. Between the programs and the ensemble are proxies, or the namespaces of a network.

use std::collections::BTreeSet;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::sys::signal::Signal;
use serde_json::{Value, json};
use smartstack_common::admin::Bind;
use smartstack_common::testing::{
    App, Behaviour, Dir, Haproxy, Host, Load, Mode, Network, Options, Program, SteadyClient, Tally,
    TcpProxy, ZooKeeper, eventually, free_port,
};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::sync::{Mutex, SemaphorePermit};
use zookeeper_client::{Client, Error};

use crate::disk::Disk;
use crate::rig::{Rig, settings};

/// Ten times what anything here should take.
pub(crate) const SOON: Duration = Duration::from_secs(60);
/// Session time-out: the shortest that two busy cores keep alive.
pub(crate) const SESSION: Duration = Duration::from_secs(3);
/// Where all apps are registered.
pub(crate) const PATH: &str = "/nerve/services/web/services";
/// Requests per second of each kind of client.
const RATE: f64 = 50.0;
/// haproxy's checks: evidence for the guard in a second, and patient, as apps and haproxy share two busy cores.
pub(crate) const CHECK: &str = "check inter 1s rise 1 fall 5";
pub(crate) const CHECKED: &str = "option httpchk GET /health";
pub(crate) const CHECK_LIMIT: &str = "timeout check 5s";
/// The app that rows change: its health is what happens meanwhile.
pub(crate) const CHANGED: usize = 3;

/// How programs reach the ensemble.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Way {
    /// Through a proxy per member for synapse, and another per member for the nerves.
    Proxies,
    /// Over a network: a host per member, one for synapse and haproxy, one for each nerve. Apps and clients are on this
    /// process's own address.
    Network,
}

/// Whose connections to the ensemble.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Side {
    Synapse,
    Nerves,
    Both,
}

/// What a stage is made of.
#[derive(Debug, Clone)]
pub(crate) struct Plan {
    pub(crate) way: Way,
    pub(crate) servers: usize,
    /// `zookeeper` of both programs' configurations.
    pub(crate) zookeeper: Value,
    /// Snapshot, haproxy.cfg and the first nerve's state are on small disks of their own.
    pub(crate) disks: bool,
}

impl Plan {
    /// Three members, [`SESSION`], no jitter.
    pub(crate) fn new(way: Way) -> Self {
        let session = format!("{}ms", SESSION.as_millis());
        Self {
            way,
            servers: 3,
            zookeeper: json!({"session_timeout": session, "jitter": 0}),
            disks: false,
        }
    }

    /// One member, for faults that are none of the ensemble's.
    pub(crate) fn small() -> Self {
        Self {
            servers: 1,
            ..Self::new(Way::Proxies)
        }
    }
}

/// The hosts of a stage on a network.
pub(crate) struct Hosts {
    pub(crate) members: Vec<Host>,
    pub(crate) synapse: Host,
    pub(crate) nerves: Vec<Host>,
    // Last: processes in it end before.
    pub(crate) network: Network,
}

/// A nerve and its apps.
pub(crate) struct Nerve {
    pub(crate) program: Program,
    pub(crate) dir: Dir,
    host: Option<Host>,
}

impl Nerve {
    fn launch(dir: &Dir, host: Option<&Host>) -> Program {
        let admin = Bind::Unix(dir.join("admin.sock"));
        let arguments = ["-c", "nerve.json"];
        let level = [("RUST_LOG", "info")];
        Program::start_on(host, "nerve", dir, &arguments, &level, admin)
    }

    /// Started again after its end.
    pub(crate) async fn start_again(&mut self) {
        self.program = Self::launch(&self.dir, self.host.as_ref());
        self.program.ready(SOON).await;
    }

    /// SIGKILL.
    pub(crate) async fn kill(&mut self) {
        self.program.signal(Signal::SIGKILL);
        self.program.wait(SOON).await;
    }
}

/// Everything, in the order in which it ends.
pub(crate) struct Stage {
    kept: SteadyClient,
    fresh: SteadyClient,
    /// Clients of one row's own.
    pub(crate) more: Vec<SteadyClient>,
    pub(crate) rig: Rig,
    pub(crate) nerves: Vec<Nerve>,
    pub(crate) to_synapse: Vec<TcpProxy>,
    pub(crate) to_nerves: Vec<TcpProxy>,
    pub(crate) registry: Registry,
    pub(crate) apps: Vec<App>,
    pub(crate) zookeeper: ZooKeeper,
    pub(crate) hosts: Option<Hosts>,
    /// The first nerve's, then synapse's.
    pub(crate) disks: Vec<Disk>,
    /// Where synapse's snapshot is.
    pub(crate) snapshot: PathBuf,
    /// Where clients go.
    pub(crate) target: SocketAddr,
    healthy: BTreeSet<usize>,
    _turn: SemaphorePermit<'static>,
}

fn joined(proxies: &[TcpProxy]) -> String {
    let hosts: Vec<String> = proxies.iter().map(TcpProxy::host).collect();
    hosts.join(",")
}

async fn proxies(zookeeper: &ZooKeeper, servers: usize) -> Vec<TcpProxy> {
    let mut proxies = Vec::new();
    for index in 0..servers {
        proxies.push(TcpProxy::start(&zookeeper.host(index)).await);
    }
    proxies
}

impl Stage {
    /// Everything runs and agrees; the fourth app is unhealthy.
    pub(crate) async fn start(plan: Plan) -> Self {
        let turn = crate::STAGES.acquire().await.unwrap();
        let hosts = (plan.way == Way::Network).then(|| {
            let mut network = Network::new();
            Hosts {
                members: (0..plan.servers).map(|_| network.host()).collect(),
                synapse: network.host(),
                nerves: vec![network.host(), network.host()],
                network,
            }
        });
        let here = hosts
            .as_ref()
            .map_or(Ipv4Addr::LOCALHOST, |hosts| hosts.network.here());
        let options = Options {
            servers: plan.servers,
            // 4 s: a member that stands still is given up by the others within a row.
            sync_limit: 20,
            hosts: hosts
                .as_ref()
                .map_or(Vec::new(), |hosts| hosts.members.clone()),
            ..Options::default()
        };
        let zookeeper = ZooKeeper::start_with(options).await;
        let (to_synapse, to_nerves) = match plan.way {
            Way::Network => (Vec::new(), Vec::new()),
            Way::Proxies => (
                proxies(&zookeeper, plan.servers).await,
                proxies(&zookeeper, plan.servers).await,
            ),
        };
        let way = |proxies: &[TcpProxy]| match plan.way {
            Way::Network => zookeeper.hosts(),
            Way::Proxies => joined(proxies),
        };
        let mut apps = Vec::new();
        for name in ["a", "b", "c", "d"] {
            let address = SocketAddr::from((here, free_port()));
            apps.push(App::start_on(name, address).await);
        }
        apps[CHANGED].set(Behaviour::Unhealthy);
        let (mut nerves, mut disks) = (Vec::new(), Vec::new());
        for (number, apps) in apps.chunks(2).enumerate() {
            let host = hosts.as_ref().map(|hosts| hosts.nerves[number].clone());
            let (dir, zk) = (Dir::new(), &plan.zookeeper);
            if plan.disks && number == 0 {
                disks.push(Disk::mount(dir.join("disk")));
            }
            let config = nerve_config(&dir, number, apps, &way(&to_nerves), zk);
            let _path = dir.write("nerve.json", config.to_string());
            std::fs::create_dir_all(dir.join("disk")).unwrap();
            let mut program = Nerve::launch(&dir, host.as_ref());
            program.ready(SOON).await;
            nerves.push(Nerve { program, dir, host });
        }
        let host = hosts.as_ref().map(|hosts| hosts.synapse.clone());
        let target =
            SocketAddr::from((host.as_ref().map_or(here, |host| host.address), free_port()));
        let dir = Dir::new();
        let mut config = settings(&dir);
        config["zookeeper"] = plan.zookeeper.clone();
        config["services"]["web"] = service(&way(&to_synapse), target);
        if plan.disks {
            disks.push(Disk::mount(dir.join("haproxy")));
            config["snapshot_path"] = json!(dir.join("haproxy/snapshot.json"));
        }
        let snapshot = PathBuf::from(config["snapshot_path"].as_str().unwrap());
        let rig = launch(dir, &config, host.as_ref());
        let load = |keep_alive| {
            SteadyClient::start(Load {
                rate: RATE,
                clients: 2,
                keep_alive,
                ..Load::new(target)
            })
        };
        let registry = Registry::new(&zookeeper);
        let mut stage = Self {
            kept: load(true),
            fresh: load(false),
            more: Vec::new(),
            rig,
            nerves,
            to_synapse,
            to_nerves,
            registry,
            apps,
            zookeeper,
            hosts,
            disks,
            snapshot,
            target,
            healthy: BTreeSet::from([0, 1, 2]),
            _turn: turn,
        };
        stage.rig.synapse.ready(SOON).await;
        stage.settled().await;
        // Refused before haproxy listened.
        stage.tally();
        stage
    }

    /// The app that changes becomes healthy, or unhealthy: something to agree on.
    pub(crate) fn change(&mut self) {
        if self.healthy.remove(&CHANGED) {
            self.apps[CHANGED].set(Behaviour::Unhealthy);
        } else {
            self.healthy.insert(CHANGED);
            self.apps[CHANGED].set(Behaviour::Healthy);
        }
    }

    /// The fault lasts so long, in requests of the clients.
    pub(crate) async fn lasts(&self, time: Duration) {
        let requests = (time.as_secs_f64() * RATE) as u64;
        self.kept.more(requests, SOON).await;
    }

    /// What clients saw since the last call.
    pub(crate) fn tally(&self) -> Tally {
        let mut sum = self.kept.reset();
        for clients in std::iter::once(&self.fresh).chain(&self.more) {
            let other = clients.reset();
            for (name, count) in other.answers {
                *sum.answers.entry(name).or_default() += count;
            }
            for (name, count) in other.failures {
                *sum.failures.entry(name).or_default() += count;
            }
        }
        sum
    }

    /// Ports of the apps that should be registered and served.
    pub(crate) fn wanted(&self) -> BTreeSet<u16> {
        let port = |index: &usize| self.apps[*index].address.port();
        self.healthy.iter().map(port).collect()
    }

    pub(crate) fn stats(&self) -> PathBuf {
        self.rig.dir.join("stats.sock")
    }

    /// Registry and haproxy's table are what is wanted now, each once; or what is not.
    pub(crate) async fn agreed(&self) -> Result<(), String> {
        let wanted = self.wanted();
        let registered = self.registry.ports().await?;
        let table = table(&self.stats()).await.map_err(|e| e.to_string())?;
        let same = registered.iter().copied().eq(wanted.iter().copied()) && table == wanted;
        if same {
            return Ok(());
        }
        Err(format!(
            "wanted {wanted:?}, registered {registered:?}, haproxy {table:?}"
        ))
    }

    /// Waits until all agree and nothing is held.
    pub(crate) async fn settled(&mut self) {
        eventually("all agree, nothing is held", SOON, async || {
            if let Some(status) = self.rig.synapse.process().ended() {
                panic!("synapse ended with {status}");
            }
            self.agreed().await?;
            let status = self.rig.synapse.status().await;
            let web = &status["services"]["web"];
            let quiet = web["fresh"] == true && web["guard"]["hold"].is_null();
            if quiet && status["haproxy"]["divergence"] == 0 {
                Ok(())
            } else {
                Err(format!("{status:#}\n{}", self.rig.log()))
            }
        })
        .await;
    }

    /// synapse's configuration as it stands.
    pub(crate) fn config(&self) -> Value {
        let text = std::fs::read_to_string(self.rig.dir.join("synapse.json")).unwrap();
        serde_json::from_str(&text).unwrap()
    }

    /// Another one by HUP, until haproxy has loaded it: its file has `words`.
    pub(crate) async fn reconfigured(&mut self, config: &Value, words: &str) {
        self.rig.configure(config);
        eventually(&format!("`{words}` is loaded"), SOON, async || {
            let status = self.rig.synapse.status().await;
            let serves = status["haproxy"]["state"] == "serving";
            if self.rig.text().contains(words) && serves {
                Ok(())
            } else {
                Err(self.rig.log())
            }
        })
        .await;
        self.settled().await;
        self.tally();
    }

    /// `web/NAME` of an app's server, if haproxy has it, in whatever state.
    pub(crate) async fn try_server(&self, app: usize) -> Option<String> {
        let port = self.apps[app].address.port().to_string();
        let rows = self.rig.haproxy.servers_state().await;
        let mut rows = rows.into_iter();
        let row = rows.find(|row| row["be_name"] == "web" && row["srv_port"] == port)?;
        Some(format!("web/{}", row["srv_name"]))
    }

    /// The same of one that haproxy has.
    pub(crate) async fn server(&self, app: usize) -> String {
        self.try_server(app).await.expect("haproxy has it")
    }

    /// The app gets requests.
    pub(crate) async fn reaches(&self, app: usize) {
        let state = &self.apps[app].state;
        let before = state.requests();
        eventually("it gets requests", SOON, async || {
            match state.requests() - before {
                3.. => Ok(()),
                fewer => Err(format!("{fewer}\n{}", self.rig.log())),
            }
        })
        .await;
    }

    /// The app gets no request while the others get some, once those in flight have ended.
    pub(crate) async fn avoids(&self, app: usize, when: &str) {
        self.kept.more(5, SOON).await;
        let state = &self.apps[app].state;
        let before = state.requests();
        self.kept.more(50, SOON).await;
        assert_eq!(state.requests(), before, "{when}: it gets requests");
    }

    /// The proxies of one side, or of both.
    pub(crate) fn proxies(&self, side: Side) -> impl Iterator<Item = &TcpProxy> {
        let synapse = self.to_synapse.iter().filter(move |_| side != Side::Nerves);
        let nerves = self.to_nerves.iter().filter(move |_| side != Side::Synapse);
        synapse.chain(nerves)
    }

    pub(crate) async fn set(&self, side: Side, mode: Mode) {
        for proxy in self.proxies(side) {
            proxy.set(mode).await;
        }
    }

    /// Starts synapse again after its end.
    pub(crate) async fn start_synapse(&mut self) {
        self.launch_synapse();
        self.rig.synapse.ready(SOON).await;
    }

    /// The same without waiting for it.
    pub(crate) fn launch_synapse(&mut self) {
        let host = self.hosts.as_ref().map(|hosts| &hosts.synapse);
        self.rig.synapse = synapse(&self.rig.dir, host);
    }

    /// Waits until haproxy.cfg and the registry's copy in the snapshot have the apps that are wanted, and no other.
    pub(crate) async fn remembered(&self) {
        let wanted = self.wanted();
        eventually("the files have the wanted apps", SOON, async || {
            let file = self.rig.text();
            let snapshot = std::fs::read(&self.snapshot).map_err(|e| e.to_string())?;
            let snapshot: Value = serde_json::from_slice(&snapshot).map_err(|e| e.to_string())?;
            let sources = snapshot["body"]["sources"].to_string();
            for app in &self.apps {
                let port = app.address.port();
                let in_file = file.contains(&format!(":{port} "));
                let in_sources = sources.contains(&format!(":{port},"));
                if [in_file, in_sources] != [wanted.contains(&port); 2] {
                    return Err(format!("{port}, wanted {wanted:?}: {file}\n{sources}"));
                }
            }
            Ok(())
        })
        .await;
    }

    /// The hosts of a stage on a network.
    pub(crate) fn hosts(&self) -> &Hosts {
        self.hosts.as_ref().expect("a stage on a network")
    }

    pub(crate) fn programs(&self) -> impl Iterator<Item = &Program> {
        let nerves = self.nerves.iter().map(|nerve| &nerve.program);
        std::iter::once(&self.rig.synapse).chain(nerves)
    }
}

pub(crate) fn nerve_config(
    dir: &Dir,
    number: usize,
    apps: &[App],
    hosts: &str,
    zookeeper: &Value,
) -> Value {
    let service = |app: &App| {
        let service = json!({
            "host": app.address.ip().to_string(),
            "port": app.address.port(),
            "zk_hosts": [hosts],
            "zk_path": PATH,
            "check_interval": 0.1,
            "checks": [{"type": "http", "uri": "/health", "timeout": 5, "open_timeout": 5, "rise": 1, "fall": 2}],
        });
        (app.name.clone(), service)
    };
    let services: serde_json::Map<String, Value> = apps.iter().map(service).collect();
    json!({
        "instance_id": format!("i-{number}"),
        "state_path": dir.join("disk/state.json"),
        "admin": {
            "bind": format!("unix:{}", dir.join("admin.sock").display()),
            "socket": dir.join("control.sock"),
        },
        "zookeeper": zookeeper,
        "services": services,
    })
}

fn service(hosts: &str, target: SocketAddr) -> Value {
    json!({
        "discovery": {"method": "zookeeper", "hosts": [hosts], "path": PATH},
        "haproxy": {
            "port": target.port(),
            "bind_address": target.ip().to_string(),
            "server_options": CHECK,
            "backend": [CHECKED, CHECK_LIMIT],
        },
    })
}

fn launch(dir: Dir, config: &Value, host: Option<&Host>) -> Rig {
    let _path = dir.write("synapse.json", config.to_string());
    Rig {
        synapse: synapse(&dir, host),
        haproxy: Haproxy::attach(&dir.join("haproxy/haproxy.cfg"), &dir.join("stats.sock")),
        dir,
    }
}

fn synapse(dir: &Dir, host: Option<&Host>) -> Program {
    let admin = Bind::Unix(dir.join("admin.sock"));
    let arguments = ["-c", "synapse.json"];
    let level = [("RUST_LOG", "info")];
    Program::start_on(host, "synapse", dir, &arguments, &level, admin)
}

/// The registry as a client beside the faults sees it.
pub(crate) struct Registry {
    hosts: String,
    client: Mutex<Option<Client>>,
}

impl Registry {
    pub(crate) fn new(zookeeper: &ZooKeeper) -> Self {
        Self {
            hosts: zookeeper.hosts(),
            client: Mutex::new(None),
        }
    }

    /// Connects anew at the next question.
    pub(crate) async fn renew(&self) {
        self.client.lock().await.take();
    }

    /// Sorted ports of all nodes; a port that stands twice is there twice.
    pub(crate) async fn ports(&self) -> Result<Vec<u16>, String> {
        let mut client = self.client.lock().await;
        let read = async {
            let connected = match client.take() {
                Some(connected) => connected,
                None => Client::connect(&self.hosts).await?,
            };
            let ports = read(&connected).await?;
            Ok::<_, Error>((connected, ports))
        };
        // One that fails or takes long is given up, and the next question connects anew: an ensemble that was wiped
        // refuses clients that have seen more than it.
        let limit = Duration::from_millis(500);
        let (connected, ports) = tokio::time::timeout(limit, read)
            .await
            .map_err(|_| "the registry does not answer".to_owned())?
            .map_err(|e| format!("registry: {e}"))?;
        *client = Some(connected);
        Ok(ports)
    }
}

async fn read(client: &Client) -> Result<Vec<u16>, Error> {
    let names = match client.list_children(PATH).await {
        Err(Error::NoNode) => Vec::new(),
        other => other?,
    };
    let mut ports = Vec::new();
    for name in names {
        match client.get_data(&format!("{PATH}/{name}")).await {
            // Gone since.
            Err(Error::NoNode) => {}
            Err(error) => return Err(error),
            Ok((data, _)) => {
                let payload: Value = serde_json::from_slice(&data).unwrap_or_default();
                let port = payload["port"].as_u64().unwrap_or_default();
                ports.push(u16::try_from(port).unwrap_or_default());
            }
        }
    }
    ports.sort_unstable();
    Ok(ports)
}

/// Ports of the servers of `web` that take requests, as haproxy says.
pub(crate) async fn table(stats: &Path) -> std::io::Result<BTreeSet<u16>> {
    let exchange = async {
        let mut stream = UnixStream::connect(stats).await?;
        stream.write_all(b"show servers state web\n").await?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await?;
        Ok(answer)
    };
    let answer: std::io::Result<String> =
        tokio::time::timeout(Duration::from_secs(5), exchange).await?;
    let answer = answer?;
    let mut lines = answer.lines().skip(1);
    let head = lines.next().unwrap_or_default();
    let columns: Vec<&str> = head.trim_start_matches("# ").split(' ').collect();
    let at = |name: &str| columns.iter().position(|column| *column == name);
    let (Some(admin), Some(port)) = (at("srv_admin_state"), at("srv_port")) else {
        return Err(std::io::Error::other(format!("no table: {answer}")));
    };
    let ready = |line: &str| {
        let fields: Vec<&str> = line.split(' ').collect();
        (*fields.get(admin)? == "0").then(|| fields.get(port)?.parse().ok())?
    };
    Ok(lines.filter_map(ready).collect())
}
