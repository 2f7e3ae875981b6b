//! systemd's watchdog, with a socket in systemd's place: both programs feed it while they make progress, and not while
//! their process merely lives.

use std::time::Duration;

use nix::sys::signal::Signal;
use serde_json::json;
use smartstack_common::admin::Bind;
use smartstack_common::testing::{Dir, Haproxy, Program, eventually, free_port};
use tokio::net::UnixDatagram;
use tokio::time::timeout;

use crate::disk::Disk;
use crate::rig::{SOON, fixed, settings};
use crate::slow::Slow;

/// What systemd would wait before it kills: a program that makes progress is heard of well within it.
const WATCHDOG: Duration = Duration::from_secs(2);

struct Systemd(UnixDatagram);

impl Systemd {
    fn environment(dir: &Dir) -> [(String, String); 3] {
        let socket = dir.join("notify.sock").display().to_string();
        [
            ("NOTIFY_SOCKET".to_owned(), socket),
            ("WATCHDOG_USEC".to_owned(), WATCHDOG.as_micros().to_string()),
            ("RUST_LOG".to_owned(), "info".to_owned()),
        ]
    }

    fn new(dir: &Dir) -> Self {
        Self(UnixDatagram::bind(dir.join("notify.sock")).unwrap())
    }

    async fn hear(&self) -> String {
        let mut bytes = [0; 1024];
        let length = self.0.recv(&mut bytes).await.unwrap();
        String::from_utf8_lossy(&bytes[..length]).into_owned()
    }

    async fn hears(&self, what: &str, times: usize) {
        let all = async {
            let mut heard = 0;
            while heard < times {
                heard += usize::from(self.hear().await.contains(what));
            }
        };
        let heard = timeout(SOON, all).await;
        assert!(heard.is_ok(), "{what} is not heard {times} times");
    }

    /// Nothing comes for so long that systemd would act. What was sent before is taken out first.
    async fn hears_nothing(&self) {
        let mut bytes = [0; 1024];
        eventually("it is not fed any more", SOON, async || {
            while self.0.try_recv(&mut bytes).is_ok() {}
            match timeout(WATCHDOG, self.hear()).await {
                Err(_) => Ok(()),
                Ok(heard) => Err(heard),
            }
        })
        .await;
    }
}

fn pairs(environment: &[(String, String)]) -> Vec<(&str, &str)> {
    let pairs = environment.iter();
    pairs
        .map(|(name, value)| (name.as_str(), value.as_str()))
        .collect()
}

#[tokio::test]
async fn a_reconciler_that_hangs_is_not_fed() {
    let dir = Dir::new();
    let systemd = Systemd::new(&dir);
    let environment = Systemd::environment(&dir);
    let _disk = Disk::mount(dir.join("haproxy"));
    let mut config = settings(&dir);
    config["audit_interval"] = json!("1s");
    config["services"]["one"] = fixed(free_port(), &[1]);
    let _file = dir.write("synapse.json", config.to_string());
    let _haproxy = Haproxy::attach(&dir.join("haproxy/haproxy.cfg"), &dir.join("stats.sock"));
    let admin = Bind::Unix(dir.join("admin.sock"));
    let arguments = ["-c", "synapse.json"];
    let mut synapse = Program::start("synapse", &dir, &arguments, &pairs(&environment), admin);
    synapse.ready(SOON).await;
    systemd.hears("READY=1", 1).await;
    systemd.hears("WATCHDOG=1", 5).await;

    // The disk hangs: the audit waits for haproxy.cfg, and so does everything.
    let slow = Slow::disk(&dir.join("haproxy"));
    let waits = slow.somebody_waits().await;
    systemd.hears_nothing().await;
    assert!(synapse.process().ended().is_none(), "it lives");
    slow.let_go(&waits);
    drop((waits, slow));
    systemd.hears("WATCHDOG=1", 5).await;
    synapse.signal(Signal::SIGTERM);
    systemd.hears("STOPPING=1", 1).await;
    assert_eq!(synapse.wait(SOON).await.code(), Some(0));
}

#[tokio::test]
async fn nerve_is_fed_while_its_checks_go_on_also_without_zookeeper() {
    let dir = Dir::new();
    let systemd = Systemd::new(&dir);
    let environment = Systemd::environment(&dir);
    let config = json!({
        "instance_id": "i",
        "state_path": dir.join("state.json"),
        "admin": {"bind": format!("unix:{}", dir.join("admin.sock").display()), "socket": false},
        "services": {"web": {
            "host": "127.0.0.1", "port": free_port(), "check_interval": 0.2,
            "zk_hosts": [format!("127.0.0.1:{}", free_port())], "zk_path": "/web",
            "checks": [{"type": "tcp"}],
        }},
    });
    let _file = dir.write("nerve.json", config.to_string());
    let admin = Bind::Unix(dir.join("admin.sock"));
    let arguments = ["-c", "nerve.json"];
    let mut nerve = Program::start("nerve", &dir, &arguments, &pairs(&environment), admin);
    systemd.hears("READY=1", 1).await;
    systemd.hears("WATCHDOG=1", 5).await;
    nerve.signal(Signal::SIGSTOP);
    systemd.hears_nothing().await;
    nerve.signal(Signal::SIGCONT);
    systemd.hears("WATCHDOG=1", 5).await;
    nerve.signal(Signal::SIGTERM);
    assert_eq!(nerve.wait(SOON).await.code(), Some(0));
}
