//! One host under a steady load: everything that happens to it in its life, once.

use std::collections::BTreeMap;
use std::fmt;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::sys::signal::Signal;
use serde_json::{Value, json};
use smartstack_common::testing::{
    Dir, Haproxy, Load, SteadyClient, Stub, Tally, ZooKeeper, ask_once, eventually, free_port,
};

use crate::plain::Plain;
use crate::rig::{Rig, SOON, settings};

/// What the service watches.
pub(crate) const PATH: &str = "/versions/web";
const ADDED: u32 = 50;
const WEIGHED: u32 = 20;
/// Of a ZooKeeper before 3.6 synapse reads other data of a known znode within a minute.
const LIMIT: Duration = Duration::from_secs(150);

/// Who starts haproxy.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Way {
    /// synapse.
    Supervise,
    /// The test, as a service manager would: `haproxy -W -S`.
    MasterSocket,
}

impl fmt::Display for Way {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Supervise => "supervise",
            Self::MasterSocket => "master_socket",
        })
    }
}

pub(crate) struct Scene {
    rig: Rig,
    config: Value,
    program: PathBuf,
    foreign: Option<Haproxy>,
    zookeeper: ZooKeeper,
    writer: Plain,
    stub: Stub,
    port: u16,
    clients: Vec<SteadyClient>,
    /// haproxy's NAMEs and weights, as registered.
    wanted: BTreeMap<String, u16>,
}

/// A haproxy.cfg that knows nothing of synapse.
fn foreign_file(dir: &Dir) -> PathBuf {
    let text = format!(
        "global\n\tstats socket {} mode 600 level admin expose-fd listeners\ndefaults\n\tmode http\n\ttimeout connect 1s\n\ttimeout client 10s\n\ttimeout server 10s\nfrontend foreign\n\tbind unix@{}\n",
        dir.join("stats.sock").display(),
        dir.join("foreign.sock").display()
    );
    dir.write("haproxy/haproxy.cfg", text)
}

fn node(index: u32) -> String {
    format!("{PATH}/i-{index}_{index:010}")
}

impl Scene {
    /// Everything runs, with three servers, and the clients have begun.
    pub(crate) async fn start(zookeeper: ZooKeeper, program: &Path, way: Way) -> Self {
        let (dir, stub, port) = (Dir::new(), Stub::start(), free_port());
        let writer = Plain(zookeeper.host(0));
        let mut config = settings(&dir);
        config["guard"] = json!("off");
        config["haproxy"]["use_nerve_weights"] = json!(true);
        config["haproxy"]["binary"] = json!(program);
        let mut foreign = None;
        if way == Way::MasterSocket {
            let file = foreign_file(&dir);
            let stats = dir.join("stats.sock");
            foreign = Some(Haproxy::start_program(program, &file, &stats).await);
            let haproxy = config["haproxy"].as_object_mut().unwrap();
            haproxy.remove("supervise");
            haproxy.insert(
                "master_socket".to_owned(),
                json!(dir.join("haproxy/master.sock")),
            );
        }
        config["services"]["web"] = service(&zookeeper, PATH, port);
        writer.create("/versions", "").await;
        writer.create(PATH, "").await;
        let load = |keep_alive| Load {
            rate: 50.0,
            clients: 2,
            keep_alive,
            ..Load::new(SocketAddr::from((Ipv4Addr::LOCALHOST, port)))
        };
        let mut scene = Self {
            rig: Rig::launch(dir, &config),
            config,
            program: program.to_owned(),
            foreign,
            zookeeper,
            writer,
            stub,
            port,
            clients: Vec::new(),
            wanted: BTreeMap::new(),
        };
        for index in 0..3 {
            scene.register(index).await;
        }
        scene.rig.synapse.ready(SOON).await;
        scene.converged().await;
        scene.clients = vec![
            SteadyClient::start(load(true)),
            SteadyClient::start(load(false)),
        ];
        scene
    }

    fn name(&self, index: u32) -> String {
        format!("i-{index}_{}", self.stub.address(index))
    }

    fn payload(&self, index: u32, weight: u16) -> String {
        let address = self.stub.address(index);
        let payload = json!({
            "host": address.ip().to_string(), "port": address.port(), "name": format!("i-{index}"), "weight": weight,
        });
        payload.to_string()
    }

    async fn register(&mut self, index: u32) {
        let payload = self.payload(index, 1);
        self.writer.create(&node(index), &payload).await;
        self.wanted.insert(self.name(index), 1);
    }

    async fn withdraw(&mut self, index: u32) {
        self.writer.delete(&node(index)).await;
        self.wanted.remove(&self.name(index));
    }

    async fn weigh(&mut self, index: u32, weight: u16) {
        let payload = self.payload(index, weight);
        self.writer.set(&node(index), &payload).await;
        self.wanted.insert(self.name(index), weight);
    }

    /// Waits until haproxy's own table is the registry, and synapse says that it is in step.
    pub(crate) async fn converged(&mut self) {
        let wanted = self.wanted.clone();
        self.agree(wanted).await;
    }

    /// The same with one server more, of whatever weight.
    pub(crate) async fn expect_also(&mut self, name: &str) {
        let mut wanted = self.wanted.clone();
        wanted.insert(name.to_owned(), 1);
        self.agree(wanted).await;
    }

    async fn agree(&mut self, wanted: BTreeMap<String, u16>) {
        eventually("haproxy serves what is registered", LIMIT, async || {
            if let Some(status) = self.rig.synapse.process().ended() {
                panic!("synapse ended with {status}\n{}", self.rig.log());
            }
            let stats = self.rig.dir.join("stats.sock");
            let connected = tokio::net::UnixStream::connect(&stats).await;
            connected.map_err(|e| format!("{e}\n{}", self.rig.log()))?;
            let weights = self.rig.weights("web").await;
            let status = self.rig.synapse.status().await;
            let haproxy = &status["haproxy"];
            if weights == wanted && haproxy["state"] == "serving" && haproxy["divergence"] == 0 {
                return Ok(());
            }
            let missing: Vec<&String> = wanted
                .keys()
                .filter(|n| !weights.contains_key(*n))
                .collect();
            Err(format!(
                "missing {missing:?}, there are {}\n{haproxy:#}\n{}\n{}",
                weights.len(),
                status["problems"],
                self.rig.log()
            ))
        })
        .await;
    }

    async fn reloads(&self) -> u64 {
        self.rig.synapse.status().await["haproxy"]["reloads"]
            .as_u64()
            .unwrap()
    }

    /// What came of all requests since the last time.
    pub(crate) fn so_far(&self) -> Tally {
        let mut sum = Tally::default();
        for tally in self.clients.iter().map(SteadyClient::reset) {
            for (name, count) in tally.answers {
                *sum.answers.entry(name).or_default() += count;
            }
            for (kind, count) in tally.failures {
                *sum.failures.entry(kind).or_default() += count;
            }
        }
        sum
    }

    /// A few more requests, and that none since the last time has failed.
    async fn unhurt(&self, when: &str) -> u64 {
        for client in &self.clients {
            client.more(20, SOON).await;
        }
        let tally = self.so_far();
        let reason = || format!("{when}: {tally}\n{}", self.rig.log());
        assert_eq!(tally.failed(), 0, "{}", reason());
        tally.ok()
    }

    /// Everything that happens. The line of the table.
    pub(crate) async fn play(mut self, name: &str, adds: bool) -> String {
        let before = self.reloads().await;
        let mut requests = self.unhurt("start").await;
        let older = self.rig.text();

        for index in 3..3 + ADDED {
            self.register(index).await;
        }
        self.converged().await;
        requests += self.unhurt("additions").await;
        let for_adds = self.reloads().await - before;
        for index in 3..3 + WEIGHED {
            self.weigh(index, 7).await;
        }
        self.converged().await;
        requests += self.unhurt("weights").await;
        for index in 3..3 + ADDED {
            self.withdraw(index).await;
        }
        self.converged().await;
        requests += self.unhurt("removals").await;
        let for_servers = self.reloads().await - before;
        let expected = if adds {
            for_servers == 0
        } else {
            for_adds > 0 && for_adds == for_servers
        };
        assert!(
            expected,
            "{name}: {for_adds} of {for_servers} reloads\n{}",
            self.rig.log()
        );

        self.structure().await;
        requests += self.unhurt("structure").await;
        self.names_differ(name);
        let for_structure = self.reloads().await - before - for_servers;
        assert_eq!(for_structure, 1, "{}", self.rig.log());
        self.operator().await;
        requests += self.unhurt("operator").await;

        self.rig.restart_synapse().await;
        self.converged().await;
        requests += self.unhurt("synapse killed").await;
        self.zookeeper.stop_all();
        self.rig
            .status_shows("ZooKeeper is missed", |status| {
                status["services"]["web"]["fresh"] == false
            })
            .await;
        self.zookeeper.start_all().await;
        self.register(90).await;
        self.converged().await;
        requests += self.unhurt("ZooKeeper killed").await;
        requests += self.an_older_file(&older).await;
        let (answered, lost) = self.haproxy_killed().await;
        requests += answered;
        self.rig.synapse.signal(Signal::SIGTERM);
        let status = self.rig.synapse.wait(SOON).await;
        assert!(status.success(), "{status}");
        let tally = self.so_far();
        assert_eq!(tally.failed(), 0, "synapse ended: {tally}");
        format!(
            "{name}: {ADDED} added, {WEIGHED} weighed, {ADDED} removed: {for_servers} reloads; structure: 1; {} requests, 0 failed, {lost} while nobody listened",
            requests + tally.ok()
        )
    }

    /// From 3.2 on haproxy says that the next version refuses sections of one name.
    fn names_differ(&self, name: &str) {
        let check = std::process::Command::new(&self.program)
            .args(["-c", "-f"])
            .arg(self.rig.dir.join("haproxy/haproxy.cfg"))
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&check.stderr);
        assert!(check.status.success(), "{name}: {said}");
        assert!(!said.contains("has the same name as"), "{name}: {said}");
    }

    /// One service more.
    async fn structure(&mut self) {
        let port = free_port();
        self.config["services"]["more"] = service(&self.zookeeper, PATH, port);
        self.rig.configure(&self.config);
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
        eventually("the new service answers", SOON, async || ask_once(address)).await;
        self.converged().await;
    }

    /// What an operator disables stays so while others change, until he enables it.
    async fn operator(&mut self) {
        let name = self.name(0);
        let set = |state: &str| format!("set server web/{name} state {state}");
        self.rig.haproxy.command(&set("maint")).await;
        let weight = self.wanted.remove(&name).unwrap();
        self.rig
            .status_shows("the maint is seen", |status| {
                let servers = status["services"]["web"]["servers"].as_array().unwrap();
                servers
                    .iter()
                    .any(|s| s["name"] == name && s["haproxy"] == "maint")
            })
            .await;
        self.register(80).await;
        self.converged().await;
        self.withdraw(80).await;
        self.converged().await;
        self.rig.haproxy.command(&set("ready")).await;
        self.wanted.insert(name, weight);
        self.converged().await;
    }

    /// synapse finds a haproxy.cfg of yesterday when it starts: haproxy goes on, the file is put right.
    async fn an_older_file(&mut self, older: &str) -> u64 {
        self.rig.synapse.signal(Signal::SIGKILL);
        self.rig.synapse.wait(SOON).await;
        let _file = self.rig.dir.write("haproxy/haproxy.cfg", older);
        self.rig.start_synapse();
        self.rig.synapse.ready(SOON).await;
        self.converged().await;
        let name = self.name(90);
        eventually("the file is put right", SOON, async || {
            let text = self.rig.text();
            if text.contains(&name) && text.contains("more") {
                Ok(())
            } else {
                Err(text)
            }
        })
        .await;
        self.unhurt("an older file").await
    }

    /// Requests that were answered, and that failed while nobody listened. Nobody is served before haproxy runs again.
    async fn haproxy_killed(&mut self) -> (u64, u64) {
        let before = self.rig.synapse.status().await["haproxy"]["pid"].clone();
        self.rig.haproxy.kill();
        if self.foreign.take().is_some() {
            let (file, stats) = (self.rig.config_file(), self.rig.dir.join("stats.sock"));
            self.foreign = Some(Haproxy::start_program(&self.program, &file, &stats).await);
        }
        self.rig
            .status_shows("haproxy runs again", |status| {
                let pid = &status["haproxy"]["pid"];
                pid.is_u64() && *pid != before
            })
            .await;
        self.converged().await;
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, self.port));
        eventually("it answers", SOON, async || ask_once(address)).await;
        let meanwhile = self.so_far();
        let after = self.unhurt("haproxy killed").await;
        (meanwhile.ok() + after, meanwhile.failed())
    }
}

fn service(zookeeper: &ZooKeeper, path: &str, port: u16) -> Value {
    json!({
        "discovery": {"method": "zookeeper", "hosts": [zookeeper.hosts()], "path": path},
        "haproxy": {"port": port, "bind_address": "127.0.0.1"},
    })
}
