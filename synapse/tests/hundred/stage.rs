//! One hundred apps, registered and served, and what a row needs to see of them.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use nix::sys::signal::Signal;
use serde_json::{Value, json};
use smartstack_common::testing::{
    App, Dir, Load, SteadyClient, Stub, Tally, ZooKeeper, eventually, free_port,
};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::task::JoinSet;
use tokio::time::Instant;
use zookeeper_client::Client;

use crate::instances::{PATH, held, names, register};
use crate::rig::{Rig, SOON, patient, settings};

/// Apps.
pub(crate) const ALL: usize = 100;
/// Of these so many stay when the others go.
pub(crate) const STAY: usize = 3;
/// So many go.
pub(crate) const LOST: usize = ALL - STAY;
/// Evidence in 2 s, 50 checks per second, and patient: apps, clients and haproxy share two busy cores.
pub(crate) const PATIENT: &str = "check inter 2s rise 1 fall 5";
/// Where a second service is registered.
pub(crate) const OTHER: &str = "/services/other";
/// Requests per second of each kind of client.
const RATE: f64 = 50.0;
/// Clients of each kind: what may be under way when servers die.
pub(crate) const CLIENTS: usize = 2;

/// What haproxy's table had at a time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Table {
    /// Servers that neither synapse nor an operator has taken out.
    pub(crate) serving: usize,
    /// Those of them that their checks have not taken down.
    pub(crate) up: usize,
}

/// Everything, in the order in which it ends.
pub(crate) struct Stage {
    kept: SteadyClient,
    fresh: SteadyClient,
    pub(crate) rig: Rig,
    pub(crate) client: Client,
    pub(crate) apps: BTreeMap<SocketAddr, App>,
    /// Those that are registered when a row begins.
    pub(crate) current: Vec<SocketAddr>,
    port: u16,
    _zookeeper: ZooKeeper,
}

/// A row that has begun.
pub(crate) struct Row {
    what: String,
    pub(crate) began: Instant,
    /// Every change of the table.
    seen: Arc<Mutex<Vec<(Instant, Table)>>>,
    _sampler: JoinSet<()>,
}

impl Stage {
    /// One hundred apps are registered, served and asked. `check`: options of each server.
    pub(crate) async fn start(check: &str, guard: Value) -> Self {
        let zookeeper = ZooKeeper::start().await;
        let client = patient(&zookeeper).await;
        ZooKeeper::make_path(&client, OTHER).await;
        let port = free_port();
        let (dir, frontend) = (Dir::new(), free_port());
        let mut config = settings(&dir);
        let service = |path: &str, port: u16| {
            json!({
                "discovery": {"method": "zookeeper", "hosts": [zookeeper.hosts()], "path": path},
                "guard": guard,
                "haproxy": {
                    "port": port, "bind_address": "127.0.0.1", "server_options": check,
                    "backend": ["option httpchk GET /health", "http-check expect string ok", "timeout check 5s"],
                },
            })
        };
        config["services"]["web"] = service(PATH, frontend);
        config["services"]["other"] = service(OTHER, free_port());
        let mut apps = BTreeMap::new();
        let current = start_apps(&mut apps, port, 0).await;
        register(&client, &current).await;
        let mut rig = Rig::start(dir, &config).await;
        rig.serves("web", &names(&current)).await;
        let target = SocketAddr::from(([127, 0, 0, 1], frontend));
        let load = |keep_alive| {
            SteadyClient::start(Load {
                rate: RATE,
                clients: CLIENTS,
                keep_alive,
                ..Load::new(target)
            })
        };
        Self {
            kept: load(true),
            fresh: load(false),
            rig,
            client,
            apps,
            current,
            port,
            _zookeeper: zookeeper,
        }
    }

    /// One hundred more apps, on other addresses; nobody has registered them.
    pub(crate) async fn others(&mut self) -> Vec<SocketAddr> {
        start_apps(&mut self.apps, self.port, ALL).await
    }

    /// Apps that were ended run again where they were.
    pub(crate) async fn revive(&mut self, addresses: &[SocketAddr]) {
        for address in addresses {
            let app = App::start_on(&address.to_string(), *address).await;
            self.apps.insert(*address, app);
        }
    }

    /// The processes of these apps die.
    pub(crate) fn kill(&mut self, addresses: &[SocketAddr]) {
        for address in addresses {
            self.apps.remove(address);
        }
    }

    /// Those that stay, and those that go.
    pub(crate) fn halves(&self) -> (Vec<SocketAddr>, Vec<SocketAddr>) {
        let (stay, lost) = self.current.split_at(STAY);
        (stay.to_vec(), lost.to_vec())
    }

    /// Waits until registry and haproxy agree, nothing is held and all are up; then begins to count.
    pub(crate) async fn begin(&mut self, what: &str) -> Row {
        self.rig.serves("web", &names(&self.current)).await;
        held(&self.rig, 0).await;
        let (seen, stats) = (Arc::default(), self.rig.dir.join("stats.sock"));
        let mut sampler = JoinSet::new();
        sampler.spawn(sample(stats, Arc::clone(&seen)));
        let row = Row {
            what: what.to_owned(),
            began: Instant::now(),
            seen,
            _sampler: sampler,
        };
        let all = self.current.len();
        row.when("all are up", SOON, |t| t.up == all).await;
        let before = self.tally();
        assert_eq!(before.failed(), 0, "before {what}: {before}");
        Row {
            began: Instant::now(),
            ..row
        }
    }

    /// Ends a row in which no request may fail. `note`: what else it is to say.
    pub(crate) async fn end(&self, row: Row, note: &str) {
        let what = row.what.clone();
        let tally = self.finish(row, note).await;
        assert_eq!(tally.failed(), 0, "{what}: {tally}\n{}", self.rig.log());
    }

    /// Ends a row and prints it.
    pub(crate) async fn finish(&self, row: Row, note: &str) -> Tally {
        self.lasts(Duration::from_millis(200)).await;
        let tally = self.tally();
        let sent = tally.ok() + tally.failed();
        println!(
            "guard: {}: {sent} requests, {} failed {:?}; {note}; never fewer than {} servers in rotation",
            row.what,
            tally.failed(),
            tally.failures,
            row.fewest(),
        );
        assert!(tally.ok() > 0, "{}: nobody was answered", row.what);
        tally
    }

    /// So much time passes, in requests of the clients.
    pub(crate) async fn lasts(&self, time: Duration) {
        let requests = (time.as_secs_f64() * RATE) as u64;
        self.kept.more(requests, SOON).await;
    }

    /// What clients saw since the last call.
    pub(crate) fn tally(&self) -> Tally {
        let (mut sum, other) = (self.kept.reset(), self.fresh.reset());
        for (name, count) in other.answers {
            *sum.answers.entry(name).or_default() += count;
        }
        for (name, count) in other.failures {
            *sum.failures.entry(name).or_default() += count;
        }
        sum
    }

    /// Failed requests so far.
    pub(crate) fn failed(&self) -> u64 {
        self.kept.snapshot().failed() + self.fresh.snapshot().failed()
    }

    /// Waits until each of these has answered a request from now on.
    pub(crate) async fn all_answer(&self, addresses: &[SocketAddr]) {
        let counts = |address: &SocketAddr| self.apps[address].state.requests();
        let before: Vec<u64> = addresses.iter().map(counts).collect();
        eventually("each of them answers", SOON, async || {
            let behind = addresses.iter().zip(&before);
            let silent: Vec<_> = behind.filter(|(a, n)| counts(a) <= **n).collect();
            match silent.is_empty() {
                true => Ok(()),
                false => Err(format!("{silent:?}")),
            }
        })
        .await;
    }

    /// `guard.trips` of `/status`.
    pub(crate) async fn trips(&self) -> u64 {
        let service = self.rig.service("web").await;
        service["guard"]["trips"].as_u64().unwrap()
    }

    /// Synapse gets a signal, ends, and is started again; haproxy is adopted as it runs.
    pub(crate) async fn restart(&mut self, signal: Signal) {
        let worker = self.rig.haproxy.worker_pid().await;
        self.rig.synapse.signal(signal);
        let status = self.rig.synapse.wait(SOON).await;
        if signal == Signal::SIGTERM {
            assert_eq!(status.code(), Some(0), "{}", self.rig.log());
        }
        self.rig.start_synapse();
        self.rig.synapse.ready(SOON).await;
        assert_eq!(self.rig.haproxy.worker_pid().await, worker, "a reload");
    }
}

async fn start_apps(
    apps: &mut BTreeMap<SocketAddr, App>,
    port: u16,
    first: usize,
) -> Vec<SocketAddr> {
    let mut addresses = Vec::new();
    for index in first..first + ALL {
        let ip = Stub::ip(u32::try_from(index).unwrap());
        let address = SocketAddr::from((ip, port));
        apps.insert(address, App::start_on(&address.to_string(), address).await);
        addresses.push(address);
    }
    addresses
}

impl Row {
    /// Waits until haproxy's table is so; how long after the row's begin it became so.
    pub(crate) async fn when(
        &self,
        what: &str,
        deadline: Duration,
        is: impl Fn(Table) -> bool,
    ) -> Duration {
        let at = eventually(
            &format!("{}: {what}", self.what),
            deadline,
            async || match self.seen.lock().unwrap().last() {
                Some((at, table)) if is(*table) => Ok(*at),
                other => Err(format!("{other:?}")),
            },
        )
        .await;
        at.saturating_duration_since(self.began)
    }

    /// Fewest servers that the table had since then.
    pub(crate) fn fewest_since(&self, then: Instant) -> usize {
        let seen = self.seen.lock().unwrap();
        let before = seen.partition_point(|(at, _)| *at <= then);
        let since = &seen[before.saturating_sub(1)..];
        let serving = since.iter().map(|(_, table)| table.serving);
        serving.min().expect("the table was seen")
    }

    /// Fewest servers that the table had.
    pub(crate) fn fewest(&self) -> usize {
        self.fewest_since(self.began)
    }
}

/// Looks at haproxy's table all the time and notes every change.
async fn sample(stats: PathBuf, seen: Arc<Mutex<Vec<(Instant, Table)>>>) {
    let mut ticks = tokio::time::interval(Duration::from_millis(25));
    loop {
        ticks.tick().await;
        // Err = haproxy is being reloaded.
        let Ok(now) = table(&stats).await else {
            continue;
        };
        let mut seen = seen.lock().unwrap();
        if seen.last().is_none_or(|(_, last)| *last != now) {
            seen.push((Instant::now(), now));
        }
    }
}

async fn table(stats: &PathBuf) -> std::io::Result<Table> {
    let exchange = async {
        let mut stream = UnixStream::connect(stats).await?;
        stream.write_all(b"show servers state web\n").await?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await?;
        Ok::<_, std::io::Error>(answer)
    };
    let answer = tokio::time::timeout(Duration::from_secs(5), exchange).await??;
    let mut lines = answer.lines().skip(1);
    let head = lines.next().unwrap_or_default();
    let columns: Vec<&str> = head.trim_start_matches("# ").split(' ').collect();
    let at = |name: &str| columns.iter().position(|column| *column == name);
    let (Some(admin), Some(state)) = (at("srv_admin_state"), at("srv_op_state")) else {
        return Err(std::io::Error::other(format!("no table: {answer}")));
    };
    let mut table = Table { serving: 0, up: 0 };
    for line in lines {
        let fields: Vec<&str> = line.split(' ').collect();
        if fields.get(admin) == Some(&"0") {
            table.serving += 1;
            table.up += usize::from(fields.get(state) != Some(&"0"));
        }
    }
    Ok(table)
}
