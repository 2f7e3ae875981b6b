//! A folder with one real synapse that supervises a real haproxy, and what can be seen of the two from outside. Used by
//! the tests of hostile registry data and of refused configurations.

#![allow(dead_code, reason = "each test file uses its part")]
#![allow(clippy::unwrap_used, reason = "helpers of tests")]

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use nix::sys::signal::Signal;
use serde_json::{Value, json};
use smartstack_common::admin::Bind;
use smartstack_common::testing::{Dir, Haproxy, Program, ZooKeeper, eventually};
use zookeeper_client::Client;

/// Ten times what anything here should take.
pub(crate) const SOON: Duration = Duration::from_secs(30);

pub(crate) struct Rig {
    // Before haproxy, or it would be started again; the folder goes last.
    pub(crate) synapse: Program,
    pub(crate) haproxy: Haproxy,
    pub(crate) dir: Dir,
}

/// A configuration without services: haproxy is supervised, reloads are not spaced, all files are in the folder.
pub(crate) fn settings(dir: &Dir) -> Value {
    let path = |name: &str| dir.join(name).display().to_string();
    json!({
        "admin": {"bind": format!("unix:{}", path("admin.sock")), "socket": path("synapse.sock")},
        "zookeeper": {"jitter": 0},
        "snapshot_path": path("state/snapshot.json"),
        "haproxy": {
            "supervise": true,
            "config_file_path": path("haproxy/haproxy.cfg"),
            "socket_file_path": path("stats.sock"),
            "restart_interval": "100ms",
            "global": [format!("stats socket {} mode 600 level admin expose-fd listeners", path("stats.sock"))],
            "defaults": ["mode http", "timeout connect 1s", "timeout client 10s", "timeout server 10s"],
        },
        "services": {},
    })
}

/// A service with servers of the configuration: one for each port, named `s<port>`.
pub(crate) fn fixed(port: u16, servers: &[u16]) -> Value {
    let servers: Vec<Value> = servers
        .iter()
        .map(|port| json!({"name": format!("s{port}"), "host": "127.0.0.1", "port": port}))
        .collect();
    json!({
        "discovery": {"method": "base"},
        "default_servers": servers,
        "haproxy": {"port": port, "bind_address": "127.0.0.1"},
    })
}

/// NAME of a server of [`fixed`].
pub(crate) fn server(port: u16) -> String {
    format!("s{port}_127.0.0.1:{port}")
}

/// Whether haproxy would start on a file, and what it says.
pub(crate) fn accepted(file: &Path) -> Result<(), String> {
    let output = Command::new(Haproxy::binary())
        .arg("-c")
        .arg("-f")
        .arg(file)
        .output()
        .unwrap();
    if output.status.success() {
        return Ok(());
    }
    let text = std::fs::read_to_string(file).unwrap_or_default();
    Err(format!(
        "{}\n{text}",
        String::from_utf8_lossy(&output.stderr)
    ))
}

impl Rig {
    /// Starts synapse and waits until haproxy serves what it wants.
    pub(crate) async fn start(dir: Dir, config: &Value) -> Self {
        let mut rig = Self::launch(dir, config);
        rig.synapse.ready(SOON).await;
        rig
    }

    /// Starts synapse.
    pub(crate) fn launch(dir: Dir, config: &Value) -> Self {
        write(&dir, config);
        let haproxy = Haproxy::attach(&dir.join("haproxy/haproxy.cfg"), &dir.join("stats.sock"));
        Self {
            synapse: program(&dir),
            haproxy,
            dir,
        }
    }

    /// Starts synapse, which has ended, again, on the configuration as it stands.
    pub(crate) fn start_synapse(&mut self) {
        self.synapse = program(&self.dir);
    }

    /// Synapse dies and is started again, on the configuration as it stands.
    pub(crate) async fn restart_synapse(&mut self) {
        self.synapse.signal(Signal::SIGKILL);
        self.synapse.wait(SOON).await;
        self.start_synapse();
        self.synapse.ready(SOON).await;
    }

    /// Another configuration, by HUP.
    pub(crate) fn configure(&self, config: &Value) {
        write(&self.dir, config);
        self.synapse.signal(Signal::SIGHUP);
    }

    pub(crate) fn config_file(&self) -> PathBuf {
        self.dir.join("haproxy/haproxy.cfg")
    }

    /// haproxy.cfg as it stands.
    pub(crate) fn text(&self) -> String {
        std::fs::read_to_string(self.config_file()).unwrap_or_default()
    }

    /// `services.NAME` of `/status`.
    pub(crate) async fn service(&self, name: &str) -> Value {
        self.synapse.status().await["services"][name].take()
    }

    /// Servers of a backend that take requests, as haproxy itself says.
    pub(crate) async fn live(&self, backend: &str) -> BTreeSet<String> {
        self.weights(backend).await.into_keys().collect()
    }

    /// The same with their weights.
    pub(crate) async fn weights(&self, backend: &str) -> BTreeMap<String, u16> {
        let rows = self.haproxy.servers_state().await;
        rows.iter()
            .filter(|row| row["be_name"] == backend && is_ready(row))
            .map(|row| (row["srv_name"].clone(), row["srv_uweight"].parse().unwrap()))
            .collect()
    }

    /// Waits until exactly these servers of a backend take requests.
    pub(crate) async fn serves(&mut self, backend: &str, servers: &[String]) {
        let wanted: BTreeSet<String> = servers.iter().cloned().collect();
        eventually(&format!("`{backend}` has {wanted:?}"), SOON, async || {
            if let Some(status) = self.synapse.process().ended() {
                panic!("synapse ended with {status}\n{}", self.log());
            }
            let now = if self.haproxy.pids().is_empty() {
                BTreeSet::new()
            } else {
                self.try_live(backend).await
            };
            if now == wanted {
                Ok(())
            } else {
                Err(format!(
                    "{now:?}\n{:#}\n{}",
                    self.synapse.status().await,
                    self.log()
                ))
            }
        })
        .await;
    }

    /// As [`Rig::live`] of a haproxy that may be about to start.
    async fn try_live(&self, backend: &str) -> BTreeSet<String> {
        if tokio::net::UnixStream::connect(self.dir.join("stats.sock"))
            .await
            .is_err()
        {
            return BTreeSet::new();
        }
        self.live(backend).await
    }

    /// Waits until `what` holds of `/status`.
    pub(crate) async fn status_shows(&self, what: &str, holds: impl Fn(&Value) -> bool) -> Value {
        eventually(what, SOON, async || {
            let status = self.synapse.status().await;
            if holds(&status) {
                Ok(status)
            } else {
                Err(format!("{status:#}"))
            }
        })
        .await
    }

    /// What synapse has logged, of all its starts.
    pub(crate) fn whole_log(&self) -> String {
        std::fs::read_to_string(self.dir.join("synapse.log")).unwrap_or_default()
    }

    /// The end of synapse's log.
    pub(crate) fn log(&self) -> String {
        let text = self.whole_log();
        let lines: Vec<&str> = text.lines().collect();
        lines[lines.len().saturating_sub(40)..].join("\n")
    }

    /// haproxy dies with all its processes; synapse starts it again, and it serves under another pid.
    pub(crate) async fn kill_haproxy(&mut self) {
        let before = self.haproxy.worker_pid().await;
        self.haproxy.kill();
        eventually("haproxy runs again", SOON, async || {
            let status = self.synapse.status().await;
            match status["haproxy"]["pid"].as_u64() {
                Some(pid) if pid != u64::from(before) => Ok(()),
                _ => Err(format!("{status:#}\n{}", self.log())),
            }
        })
        .await;
    }

    /// Synapse runs, and haproxy would start on the file as it stands.
    pub(crate) fn assert_sound(&mut self, when: &str) {
        if let Some(status) = self.synapse.process().ended() {
            panic!("{when}: synapse ended with {status}\n{}", self.log());
        }
        if let Err(words) = accepted(&self.config_file()) {
            panic!("{when}: haproxy refuses the file on disk: {words}");
        }
    }
}

/// A client whose session outlives a machine that is too busy for it.
pub(crate) async fn patient(zookeeper: &ZooKeeper) -> Client {
    let connector = Client::connector().with_session_timeout(Duration::from_secs(60));
    connector.connect(&zookeeper.hosts()).await.unwrap()
}

fn write(dir: &Dir, config: &Value) {
    let _path = dir.write("synapse.json", config.to_string());
}

fn program(dir: &Dir) -> Program {
    let admin = Bind::Unix(dir.join("admin.sock"));
    let arguments = ["-c", "synapse.json"];
    Program::start("synapse", dir, &arguments, &[("RUST_LOG", "info")], admin)
}

/// Nobody has put it in maint. A server whose line says `disabled` keeps that bit (4) when it is made ready.
fn is_ready(row: &BTreeMap<String, String>) -> bool {
    let made_ready = row["srv_admin_state"] == "4" && row["srv_op_state"] == "2";
    row["srv_admin_state"] == "0" || made_ready
}
