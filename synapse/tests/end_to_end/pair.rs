//! One host of the pair: a ZooKeeper, a haproxy driven in one of the ways, a configuration, and clients.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};
use smartstack_common::admin::Bind;
use smartstack_common::testing::{
    App, Dir, Haproxy, Load, Program, SteadyClient, Tally, ZooKeeper, eventually, free_port, get,
};
use zookeeper_client::Client;

/// Ten times what is expected, as machines are busy.
pub(crate) const SOON: Duration = Duration::from_secs(20);
/// Session time-out in these tests.
pub(crate) const SESSION: Duration = Duration::from_secs(3);
/// What `web` watches.
pub(crate) const WEB: &str = "/nerve/services/web/services";

/// How synapse reloads haproxy.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Way {
    /// synapse starts it.
    Supervise,
    /// The test starts `haproxy -W -S`.
    Master,
    /// A shell command, Airbnb's way.
    Command,
}

/// A host with one service, `web`.
pub(crate) struct Pair {
    // Before `dir`: processes end before their folder goes.
    pub(crate) haproxy: Haproxy,
    pub(crate) zookeeper: ZooKeeper,
    pub(crate) client: Client,
    pub(crate) dir: Dir,
    /// synapse's configuration; written by [`Pair::synapse`] and [`Pair::configure`].
    pub(crate) config: Value,
    /// The local port of `web`.
    pub(crate) port: u16,
    pub(crate) admin: Bind,
}

/// A nerve for one app.
pub(crate) struct Nerve {
    pub(crate) program: Program,
    pub(crate) dir: Dir,
    pub(crate) admin: Bind,
}

impl Pair {
    /// ZooKeeper serves; haproxy runs if the test is to start it; synapse does not run yet.
    pub(crate) async fn start(way: Way) -> Self {
        let zookeeper = ZooKeeper::start().await;
        let client = zookeeper.connect().await;
        let dir = Dir::new();
        let (file, stats) = (dir.join("haproxy.cfg"), dir.join("stats.sock"));
        let mut settings = json!({
            "config_file_path": file,
            "socket_file_path": stats,
            "restart_interval": 0,
            "bind_address": "127.0.0.1",
            "server_order_seed": "same everywhere",
            "global": [format!("stats socket {} mode 600 level admin expose-fd listeners", stats.display())],
            "defaults": ["mode http", "timeout connect 1s", "timeout client 30s", "timeout server 30s"],
        });
        let haproxy = match way {
            Way::Master => start_foreign(&dir).await,
            Way::Supervise | Way::Command => Haproxy::attach(&file, &stats),
        };
        let (key, value) = match way {
            Way::Supervise => ("supervise", json!(true)),
            Way::Master => ("master_socket", json!(dir.join("master.sock"))),
            Way::Command => (
                "reload_command",
                json!(Haproxy::reload_command(&file, &stats)),
            ),
        };
        settings[key] = value;
        let (admin, port) = (admin(), free_port());
        let mut pair = Self {
            haproxy,
            client,
            config: json!({
                "admin": {"bind": admin.to_string(), "socket": dir.join("synapse.sock")},
                "snapshot_path": dir.join("snapshot.json"),
                "zookeeper": {"session_timeout": seconds(SESSION), "jitter": 0},
                "haproxy": settings,
                "services": {},
            }),
            zookeeper,
            dir,
            port,
            admin,
        };
        pair.config["services"]["web"] = pair.service(WEB, port);
        pair
    }

    /// The configuration of a service that watches `path` and is served on `port`.
    pub(crate) fn service(&self, path: &str, port: u16) -> Value {
        json!({
            "discovery": {"method": "zookeeper", "hosts": [self.zookeeper.hosts()], "path": path},
            "haproxy": {"port": port},
        })
    }

    /// From here on a new server of `web` takes a reload: 2.6 knows a server's cookie only from the file.
    pub(crate) fn with_cookies(&mut self) {
        self.config["services"]["web"]["haproxy"]["backend"] =
            json!(["cookie SERVER insert indirect nocache"]);
    }

    /// Writes the configuration.
    pub(crate) fn configure(&self) -> PathBuf {
        self.dir.write("synapse.json", self.config.to_string())
    }

    /// Starts synapse and does not wait for it.
    pub(crate) fn synapse(&self) -> Program {
        let path = self.configure();
        let arguments = ["-c", path.to_str().unwrap()];
        Program::start("synapse", &self.dir, &arguments, &[], self.admin.clone())
    }

    /// The same with `soft:hard` as its limit of open files.
    pub(crate) fn limited(&self, limit: &str) -> Program {
        let (path, limit) = (self.configure(), format!("--nofile={limit}"));
        let arguments = ["-c", path.to_str().unwrap()];
        let admin = self.admin.clone();
        Program::start_by(
            &["prlimit", &limit],
            "synapse",
            &self.dir,
            &arguments,
            admin,
        )
    }

    /// Starts synapse and waits until haproxy serves what it wants.
    pub(crate) async fn serving(&self) -> Program {
        let mut synapse = self.synapse();
        synapse.ready(SOON).await;
        synapse
    }

    /// A nerve that has registered `app`.
    pub(crate) async fn nerve(&self, app: &App) -> Nerve {
        let (dir, admin) = (Dir::new(), admin());
        let config = json!({
            "instance_id": format!("i-{}", app.name),
            "state_path": dir.join("state.json"),
            "admin": {"bind": admin.to_string(), "socket": dir.join("nerve.sock")},
            "zookeeper": {"session_timeout": seconds(SESSION), "jitter": 0},
            "services": {"web": {
                "host": app.address.ip().to_string(),
                "port": app.address.port(),
                "zk_hosts": [self.zookeeper.hosts()],
                "zk_path": WEB,
                "check_interval": 0.1,
                "checks": [{"type": "http", "uri": "/health", "timeout": 5, "open_timeout": 5, "rise": 1, "fall": 2}],
            }},
        });
        let _path = dir.write("nerve.json", config.to_string());
        let mut program = Nerve::program(&dir, &admin);
        program.ready(SOON).await;
        let nerve = Nerve {
            program,
            dir,
            admin,
        };
        eventually("nerve has registered", SOON, async || {
            match nerve.node().await {
                Some(_) => Ok(()),
                None => Err("not yet"),
            }
        })
        .await;
        nerve
    }

    /// Registers `app` by hand, with a node that outlives every session. Returns its path.
    pub(crate) async fn register(&self, app: &App) -> String {
        self.register_in(WEB, app, &json!({})).await
    }

    /// The same below another path, with more keys in the payload.
    pub(crate) async fn register_in(&self, parent: &str, app: &App, keys: &Value) -> String {
        let mut payload = json!({
            "name": format!("i-{}", app.name),
            "host": app.address.ip().to_string(),
            "port": app.address.port(),
        });
        payload
            .as_object_mut()
            .unwrap()
            .extend(keys.as_object().unwrap().clone());
        let path = format!("{parent}/i-{}_{:010}", app.name, app.address.port());
        ZooKeeper::put(&self.client, &path, payload.to_string().as_bytes()).await;
        path
    }

    /// Takes a node away.
    pub(crate) async fn withdraw(&self, path: &str) {
        self.client.delete(path, None).await.unwrap();
    }

    /// Where clients of `web` go.
    pub(crate) fn address(&self) -> SocketAddr {
        local(self.port)
    }

    /// What haproxy says of the app's server: `ready`, `retired` (maint, weight 0), `maint` or `absent`.
    pub(crate) async fn state(&self, app: &App) -> &'static str {
        let rows = self.haproxy.servers_state().await;
        let port = app.address.port().to_string();
        let row = rows
            .iter()
            .find(|row| row["be_name"] == "web" && row["srv_port"] == port);
        // 4: its line says `disabled`, whatever became of it.
        match row.map(|row| (row["srv_admin_state"].as_str(), row["srv_uweight"].as_str())) {
            None => "absent",
            Some(("0" | "4", _)) => "ready",
            Some((_, "0")) => "retired",
            Some(_) => "maint",
        }
    }

    /// Waits until haproxy says so. `retired` may be over already: what nobody uses is deleted.
    pub(crate) async fn until(&self, app: &App, state: &str) {
        let what = format!("haproxy has {} {state}", app.name);
        eventually(&what, SOON, async || {
            // It may be restarting.
            let rows = tokio::net::UnixStream::connect(self.dir.join("stats.sock")).await;
            rows.map_err(|e| e.to_string())?;
            match self.state(app).await {
                found if found == state => Ok(()),
                "absent" if state == "retired" => Ok(()),
                found => Err(found.to_owned()),
            }
        })
        .await;
    }

    /// `show servers state` without the clock in it.
    pub(crate) async fn table(&self) -> Vec<BTreeMap<String, String>> {
        let mut rows = self.haproxy.servers_state().await;
        for row in &mut rows {
            row.remove("srv_time_since_last_change");
        }
        rows
    }

    /// haproxy.cfg.
    pub(crate) fn file(&self) -> String {
        std::fs::read_to_string(self.dir.join("haproxy.cfg")).unwrap_or_default()
    }

    /// What synapse has logged, of all its starts.
    pub(crate) fn log(&self) -> String {
        std::fs::read_to_string(self.dir.join("synapse.log")).unwrap()
    }

    /// haproxy as the test's own service manager starts it: with the file as it stands.
    pub(crate) async fn start_haproxy(&mut self) {
        let (file, stats) = (self.dir.join("haproxy.cfg"), self.dir.join("stats.sock"));
        let haproxy = Haproxy::start(&file, &stats).await;
        // The former one has been killed; dropped, it would kill every haproxy on this file.
        std::mem::forget(std::mem::replace(&mut self.haproxy, haproxy));
    }
}

impl Nerve {
    fn program(dir: &Dir, admin: &Bind) -> Program {
        Program::start("nerve", dir, &["-c", "nerve.json"], &[], admin.clone())
    }

    /// Another program in its place, as an upgrade starts it.
    pub(crate) fn start_again(&mut self) {
        self.program = Self::program(&self.dir, &self.admin);
    }

    /// Its node's name, once that stands.
    pub(crate) async fn node(&self) -> Option<String> {
        let status = self.program.status().await;
        let node = &status["services"]["web"]["registrations"][0]["node"];
        node.as_str().map(str::to_owned)
    }
}

/// A haproxy that knows nothing of synapse yet.
async fn start_foreign(dir: &Dir) -> Haproxy {
    let stats = dir.join("stats.sock");
    let text = format!(
        "global\n\tstats socket {} mode 600 level admin expose-fd listeners\ndefaults\n\tmode http\n\ttimeout connect 1s\n\ttimeout client 30s\n\ttimeout server 30s\nfrontend foreign\n\tbind unix@{}\n",
        stats.display(),
        dir.join("foreign.sock").display()
    );
    Haproxy::start(&dir.write("haproxy.cfg", text), &stats).await
}

/// Clients of one port, half of them with kept connections.
pub(crate) struct Traffic {
    kept: SteadyClient,
    fresh: SteadyClient,
}

impl Traffic {
    /// 100 requests per second, once the port answers.
    pub(crate) async fn start(port: u16) -> Self {
        answer(port).await;
        let load = |keep_alive| Load {
            rate: 50.0,
            clients: 2,
            keep_alive,
            ..Load::new(local(port))
        };
        Self {
            kept: SteadyClient::start(load(true)),
            fresh: SteadyClient::start(load(false)),
        }
    }

    /// Waits for that many more requests of each kind.
    pub(crate) async fn more(&self, requests: u64) {
        let limit = SOON + Duration::from_secs(requests / 10);
        self.kept.more(requests, limit).await;
        self.fresh.more(requests, limit).await;
    }

    /// All that came of the requests so far.
    pub(crate) fn tally(&self) -> Tally {
        let (mut sum, other) = (self.kept.snapshot(), self.fresh.snapshot());
        for (name, count) in other.answers {
            *sum.answers.entry(name).or_default() += count;
        }
        for (name, count) in other.failures {
            *sum.failures.entry(name).or_default() += count;
        }
        sum
    }

    /// No request has failed, and enough were made to tell.
    pub(crate) async fn unharmed(&self) {
        self.more(20).await;
        let tally = self.tally();
        assert_eq!(tally.failed(), 0, "{tally}");
    }

    /// The app gets no more requests, while others do.
    pub(crate) async fn avoids(&self, app: &App) {
        // Requests in flight end first.
        self.more(5).await;
        let before = app.state.requests();
        self.more(50).await;
        assert_eq!(app.state.requests(), before, "{} gets requests", app.name);
    }

    /// The app gets requests.
    pub(crate) async fn reaches(&self, app: &App) {
        let before = app.state.requests();
        let what = format!("{} gets requests", app.name);
        eventually(&what, SOON, async || {
            if app.state.requests() > before + 5 {
                Ok(())
            } else {
                Err(self.tally().to_string())
            }
        })
        .await;
    }
}

/// Waits until the port answers with 200, and returns what.
pub(crate) async fn answer(port: u16) -> String {
    let bind = Bind::Tcp(local(port).to_string());
    eventually("the local port answers", SOON, async || {
        match get(&bind, "/").await {
            Ok(reply) if reply.status == 200 => Ok(reply.body.trim().to_owned()),
            Ok(reply) => Err(format!("{reply:?}")),
            Err(error) => Err(error.to_string()),
        }
    })
    .await
}

/// Waits until the port answers with exactly these names, over 20 requests of their own connections.
pub(crate) async fn answers(port: u16, names: &[&str]) {
    let bind = Bind::Tcp(local(port).to_string());
    eventually(
        &format!("port {port} answers with {names:?}"),
        SOON,
        async || {
            let mut seen = std::collections::BTreeSet::new();
            for _ in 0..20 {
                let reply = get(&bind, "/").await.map_err(|e| e.to_string())?;
                seen.insert(match reply.status {
                    200 => reply.body.trim().to_owned(),
                    status => status.to_string(),
                });
            }
            if seen.iter().eq(names) {
                Ok(())
            } else {
                Err(format!("{seen:?}"))
            }
        },
    )
    .await;
}

/// Waits until `/status` has what `look` wants; it returns what is missing.
pub(crate) async fn status(program: &Program, what: &str, look: impl Fn(&Value) -> bool) -> Value {
    eventually(what, SOON, async || {
        let status = program.status().await;
        if look(&status) {
            Ok(status)
        } else {
            Err(format!("{status:#}"))
        }
    })
    .await
}

/// synapse agrees with the registry and haproxy with synapse.
pub(crate) async fn in_step(synapse: &Program) -> Value {
    status(synapse, "registry, synapse and haproxy agree", |status| {
        let services = status["services"].as_object().unwrap();
        status["haproxy"]["state"] == "serving"
            && status["haproxy"]["divergence"] == 0
            && services.values().all(|service| service["fresh"] == true)
    })
    .await
}

/// Reloads that synapse has made since its start.
pub(crate) async fn reloads(synapse: &Program) -> u64 {
    synapse.status().await["haproxy"]["reloads"]
        .as_u64()
        .unwrap()
}

fn admin() -> Bind {
    Bind::Tcp(local(free_port()).to_string())
}

fn local(port: u16) -> SocketAddr {
    SocketAddr::from((Ipv4Addr::LOCALHOST, port))
}

fn seconds(duration: Duration) -> String {
    format!("{}ms", duration.as_millis())
}

/// By hand, until synapse has seen it: a master that has just re-executed itself loses the signal, so that it is sent again
/// when nothing comes of it.
pub(crate) async fn reloaded_by_hand(pair: &Pair, synapse: &Program) {
    let before = synapse.status().await["haproxy"]["foreign_reloads"].as_u64();
    let (mut sent, mut looks) = (0, 0);
    eventually("the foreign reload is seen", SOON, async || {
        let found = synapse.status().await["haproxy"]["foreign_reloads"].as_u64();
        if found > before {
            return Ok(());
        }
        if looks >= sent * 100 {
            sent += 1;
            let master = pair.haproxy.master_pid().await?;
            let master = Pid::from_raw(i32::try_from(master).unwrap());
            kill(master, Signal::SIGUSR2).map_err(|e| e.to_string())?;
        }
        looks += 1;
        Err(format!("{found:?}, sent {sent} times"))
    })
    .await;
}
