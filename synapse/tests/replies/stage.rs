//! One synapse, one supervised haproxy behind a [`Gate`], one ZooKeeper; a service for each row.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::PathBuf;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};
use smartstack_common::testing::{Dir, Stub, ZooKeeper, ask_once, eventually, free_port};
use zookeeper_client::{Acls, Client, CreateMode};

use crate::gate::{Gate, kept};
use crate::rig::{Rig, SOON, patient, settings};

/// The address of servers that are in the file only because a line names them.
const NOWHERE: &str = "192.0.2.1";

/// A registered server.
#[derive(Debug, Clone)]
pub(crate) struct Server {
    pub(crate) name: String,
    pub(crate) address: SocketAddr,
    pub(crate) node: String,
    pub(crate) weight: u16,
}

pub(crate) struct Stage {
    pub(crate) gate: Gate,
    pub(crate) rig: Rig,
    pub(crate) client: Client,
    pub(crate) config: Value,
    _zookeeper: ZooKeeper,
    pub(crate) stub: Stub,
    ports: BTreeMap<String, u16>,
    /// What the registry names, by service.
    pub(crate) registered: BTreeMap<String, Vec<Server>>,
    next: u32,
}

pub(crate) type Row = BTreeMap<String, String>;

impl Stage {
    /// Services with what their `haproxy` section has besides the port; each has one server, but those called `no_...`.
    pub(crate) async fn start(services: &[(&str, Value)]) -> Self {
        let (zookeeper, stub, dir) = (ZooKeeper::start().await, Stub::start(), Dir::new());
        let client = patient(&zookeeper).await;
        let (gate, real) = (dir.join("gate.sock"), dir.join("stats.sock"));
        let mut config = settings(&dir);
        config["guard"] = json!("off");
        // Nothing is looked at that nothing points to: what a row shows is the reaction to its reply.
        config["audit_interval"] = json!("1h");
        config["haproxy"]["socket_file_path"] = json!(gate);
        config["haproxy"]["use_nerve_weights"] = json!(true);
        let mut ports = BTreeMap::new();
        for (name, own) in services {
            let mut haproxy = own.clone();
            let port = free_port();
            haproxy["port"] = json!(port);
            haproxy["bind_address"] = json!("127.0.0.1");
            config["services"][*name] = json!({
                "discovery": {"method": "zookeeper", "hosts": [zookeeper.hosts()], "path": path(name)},
                "haproxy": haproxy,
            });
            ports.insert((*name).to_owned(), port);
        }
        let gate = Gate::open(gate, real, dir.join("haproxy/haproxy.cfg"));
        let mut stage = Self {
            rig: Rig::launch(dir, &config),
            gate,
            client,
            config,
            _zookeeper: zookeeper,
            stub,
            ports,
            registered: BTreeMap::new(),
            next: 0,
        };
        for (name, _) in services {
            ZooKeeper::make_path(&stage.client, &path(name)).await;
            stage.registered.insert((*name).to_owned(), Vec::new());
            if name.starts_with("no_") {
                continue;
            }
            let first = stage.server(name);
            stage.register(name, &first).await;
        }
        stage.rig.synapse.ready(SOON).await;
        stage.settled().await;
        stage
    }

    pub(crate) fn real(&self) -> PathBuf {
        self.rig.dir.join("stats.sock")
    }

    pub(crate) fn port(&self, service: &str) -> u16 {
        self.ports[service]
    }

    /// A server that is not registered yet.
    pub(crate) fn server(&mut self, service: &str) -> Server {
        self.next += 1;
        let address = self.stub.address(self.next);
        self.server_at(service, address)
    }

    pub(crate) fn server_at(&mut self, service: &str, address: SocketAddr) -> Server {
        self.next += 1;
        Server {
            name: format!("i-{}_{address}", self.next),
            address,
            node: format!("{}/i-{}_{:010}", path(service), self.next, self.next),
            weight: 1,
        }
    }

    /// Its node is made.
    pub(crate) async fn register(&mut self, service: &str, server: &Server) {
        let instance = server.name.split('_').next().unwrap();
        let payload = json!({
            "host": server.address.ip().to_string(),
            "port": server.address.port(),
            "name": instance,
            "weight": server.weight,
        });
        let options = CreateMode::Persistent.with_acls(Acls::anyone_all());
        let data = payload.to_string();
        let created = self.client.create(&server.node, data.as_bytes(), &options);
        created.await.unwrap();
        let servers = self.registered.entry(service.to_owned()).or_default();
        servers.push(server.clone());
    }

    /// Its node goes.
    pub(crate) async fn withdraw(&mut self, service: &str, server: &Server) {
        self.client.delete(&server.node, None).await.unwrap();
        let servers = self.registered.get_mut(service).unwrap();
        servers.retain(|other| other.node != server.node);
    }

    /// A new server, and that haproxy has it.
    pub(crate) async fn add(&mut self, service: &str) -> Server {
        let server = self.server(service);
        self.register(service, &server).await;
        self.up(service, &server).await;
        server
    }

    /// Its row in haproxy's own table; a haproxy that does not answer has none.
    pub(crate) async fn row(&self, service: &str, name: &str) -> Option<Row> {
        let connected = tokio::net::UnixStream::connect(self.real()).await;
        connected.ok()?;
        let rows = self.rig.haproxy.servers_state().await;
        rows.into_iter()
            .find(|row| row["be_name"] == service && row["srv_name"] == name)
    }

    /// Waits until it takes requests, at its address, with its weight.
    pub(crate) async fn up(&self, service: &str, server: &Server) -> Row {
        let what = format!("{service}/{} takes requests", server.name);
        eventually(&what, SOON, async || {
            match self.row(service, &server.name).await {
                Some(row) if serves(&row, server) => Ok(row),
                other => Err(format!("{other:?}\n{}", self.rig.log())),
            }
        })
        .await
    }

    /// Waits until haproxy has it in maint with weight 0.
    pub(crate) async fn retired(&self, service: &str, server: &Server) {
        let what = format!("{service}/{} is taken out", server.name);
        eventually(&what, SOON, async || {
            match self.row(service, &server.name).await {
                Some(row) if row["srv_admin_state"] == "1" && row["srv_uweight"] == "0" => Ok(()),
                other => Err(format!("{other:?}\n{}", self.rig.log())),
            }
        })
        .await;
    }

    /// Waits until haproxy does not have it.
    pub(crate) async fn absent(&self, service: &str, name: &str) {
        let what = format!("{service}/{name} is gone");
        eventually(&what, SOON, async || match self.row(service, name).await {
            None => Ok(()),
            Some(row) => Err(format!("{row:?}\n{}", self.rig.log())),
        })
        .await;
    }

    /// `haproxy` of `/status`.
    pub(crate) async fn status(&self) -> Value {
        self.rig.synapse.status().await["haproxy"].take()
    }

    pub(crate) async fn reloads(&self) -> u64 {
        self.status().await["reloads"].as_u64().unwrap()
    }

    /// Waits until synapse says that it is in step, and haproxy's table and file are the registry: names, addresses,
    /// weights, and the same ids in both.
    pub(crate) async fn settled(&self) -> Value {
        eventually("registry, file and haproxy agree", SOON, async || {
            let status = self.rig.synapse.status().await;
            let haproxy = &status["haproxy"];
            let problems = status["problems"].as_array().unwrap();
            if haproxy["state"] != "serving" || haproxy["divergence"] != 0 || !problems.is_empty() {
                return Err(format!("{haproxy:#} {problems:?}\n{}", self.rig.log()));
            }
            tokio::net::UnixStream::connect(self.real())
                .await
                .map_err(|e| e.to_string())?;
            let (rows, file) = (self.rig.haproxy.servers_state().await, self.rig.text());
            for (service, servers) in &self.registered {
                let live = rows.iter().filter(|row| {
                    row["be_name"] == *service
                        && row["srv_addr"] != NOWHERE
                        && (row["srv_admin_state"] == "0" || row["srv_uweight"] != "0")
                });
                let mut found = 0;
                for row in live {
                    found += 1;
                    let server = servers.iter().find(|s| s.name == row["srv_name"]);
                    let right = server.is_some_and(|server| {
                        let line = format!(
                            "server {} {} id {} ",
                            server.name, server.address, row["srv_id"]
                        );
                        serves(row, server) && file.contains(&line)
                    });
                    if !right {
                        return Err(format!("{row:?}\n{file}\n{}", self.rig.log()));
                    }
                }
                if found != servers.len() {
                    return Err(format!(
                        "{service}: {found} of {servers:?}\n{}",
                        self.rig.log()
                    ));
                }
            }
            let named = self.registered.values().map(Vec::len).sum::<usize>();
            let lines = file
                .lines()
                .filter(|l| l.trim_start().starts_with("server i-") && !l.contains(NOWHERE));
            if lines.count() != named {
                return Err(format!("{named} are registered\n{file}"));
            }
            Ok(status["haproxy"].clone())
        })
        .await
    }

    /// Sends to haproxy behind synapse's back; it must not refuse. synapse's looks do not see it before it has changed
    /// something there itself: what a row shows is the reaction to its reply.
    pub(crate) async fn behind_its_back(&self, commands: &str) {
        for word in commands.split([' ', ';']) {
            if let Some((backend, _)) = word.split_once('/') {
                self.gate.freeze(backend).await;
            }
        }
        let reply = self.rig.haproxy.command(commands).await;
        let refused = [
            "No such",
            "Already",
            "used",
            "unknown",
            "not accepted",
            "must",
            "cannot",
        ];
        assert!(
            !refused.iter().any(|word| reply.contains(word)),
            "{commands}: {reply}"
        );
    }

    /// Waits until haproxy has answered a command with `needle` with these words.
    pub(crate) async fn replied(&self, needle: &str, words: &str) {
        eventually(
            &format!("`{needle}` is answered with {words:?}"),
            SOON,
            async || {
                let said = self.gate.said(needle);
                if said.iter().any(|said| said.reply.contains(words)) {
                    Ok(())
                } else {
                    Err(format!(
                        "{:?}\n{}",
                        said.iter()
                            .map(|s| (&s.command, &s.reply))
                            .collect::<Vec<_>>(),
                        self.rig.log()
                    ))
                }
            },
        )
        .await;
    }

    /// Waits until synapse has reloaded so many times since its start.
    pub(crate) async fn reloaded(&self, times: u64) {
        eventually(&format!("{times} reloads"), SOON, async || {
            match self.reloads().await {
                found if found == times => Ok(()),
                found => Err(format!("{found}\n{}", self.rig.log())),
            }
        })
        .await;
    }

    /// Somebody else reloads the file as it stands: another worker serves, and synapse has seen it. A master that has just
    /// re-executed itself loses the signal, so that it is sent again when nothing comes of it.
    pub(crate) async fn foreign_reload(&self) {
        self.gate.thaw();
        let before = self.status().await["foreign_reloads"].as_u64();
        let file = self.rig.dir.join("haproxy/haproxy.cfg.pid");
        let (mut sent, mut looks) = (0, 0);
        eventually("the foreign reload is seen", SOON, async || {
            let found = self.status().await["foreign_reloads"].as_u64();
            if found > before {
                return Ok(());
            }
            if looks >= sent * 100 {
                sent += 1;
                let master = std::fs::read_to_string(&file).unwrap();
                let master = Pid::from_raw(master.trim().parse().unwrap());
                kill(master, Signal::SIGUSR2).unwrap();
            }
            looks += 1;
            Err(format!("{found:?}, sent {sent} times"))
        })
        .await;
    }

    /// Bodies of so many requests to a service, each over a connection of its own.
    pub(crate) async fn answers(&self, service: &str, requests: usize) -> BTreeMap<String, usize> {
        let target = SocketAddr::from(([127, 0, 0, 1], self.port(service)));
        let ask = move || {
            let mut answers = BTreeMap::new();
            for _ in 0..requests {
                let body = ask_once(target).unwrap_or_else(|kind| kind);
                *answers.entry(body).or_default() += 1;
            }
            answers
        };
        tokio::task::spawn_blocking(ask).await.unwrap()
    }

    /// A connection that stays with the worker that serves now.
    pub(crate) async fn kept(&self) -> tokio::net::UnixStream {
        kept(&self.real()).await
    }
}

fn path(service: &str) -> String {
    format!("/row/{service}")
}

fn serves(row: &Row, server: &Server) -> bool {
    row["srv_admin_state"] == "0"
        && row["srv_op_state"] == "2"
        && row["srv_uweight"] == server.weight.to_string()
        && format!("{}:{}", row["srv_addr"], row["srv_port"]) == server.address.to_string()
}
