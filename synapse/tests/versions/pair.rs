//! nerve on ZooKeeper before 3.5, and synapse's guard beside it.

use std::collections::BTreeSet;
use std::time::Duration;

use nix::sys::signal::Signal;
use serde_json::{Value, json};
use smartstack_common::admin::Bind;
use smartstack_common::testing::{App, Dir, Haproxy, Program, ZooKeeper, eventually, free_port};
use zookeeper_client::Client;

use crate::rig::{Rig, SOON, settings};

const PARENT: &str = "/old/web";

/// A nerve with so many services of one path, all checked at one app.
struct Many {
    dir: Dir,
    admin: Bind,
    app: App,
    hosts: String,
}

impl Many {
    fn write(&self, services: usize, instance: &str, more: &Value) {
        let mut all = serde_json::Map::new();
        for number in 0..services {
            let mut service = json!({
                "host": "127.0.0.1",
                "port": 3000 + number,
                "zk_hosts": [self.hosts],
                "zk_path": PARENT,
                "check_interval": 0.1,
                "checks": [{
                    "type": "http", "uri": "/health", "port": self.app.address.port(),
                    "timeout": 5, "open_timeout": 5, "rise": 1, "fall": 2,
                }],
            });
            let map = service.as_object_mut().unwrap();
            map.extend(more.as_object().unwrap().clone());
            all.insert(format!("s{number}"), service);
        }
        let config = json!({
            "instance_id": instance,
            "state_path": self.dir.join("state.json"),
            "admin": {"bind": self.admin.to_string(), "socket": self.dir.join("nerve.sock")},
            "zookeeper": {"jitter": 0, "session_timeout": "4s"},
            "services": all,
        });
        let _path = self.dir.write("nerve.json", config.to_string());
    }

    async fn launch(&self) -> Program {
        let arguments = ["-c", "nerve.json"];
        let mut nerve = Program::start("nerve", &self.dir, &arguments, &[], self.admin.clone());
        nerve.ready(SOON).await;
        nerve
    }

    async fn start(zookeeper: &ZooKeeper) -> Self {
        let dir = Dir::new();
        Self {
            admin: Bind::Unix(dir.join("admin.sock")),
            app: App::start("app").await,
            hosts: zookeeper.hosts(),
            dir,
        }
    }
}

async fn nodes(client: &Client, count: usize, not: &BTreeSet<String>) -> BTreeSet<String> {
    eventually(&format!("{count} nodes"), SOON, async || {
        let now: BTreeSet<String> = ZooKeeper::list(client, PARENT).await.into_iter().collect();
        if now.len() == count && now.is_disjoint(not) {
            Ok(now)
        } else {
            Err(format!("{now:?}"))
        }
    })
    .await
}

/// Registers, is quiet, swaps after a restart, puts back what somebody deletes, withdraws: over one connection each.
pub(crate) async fn nerve_lives(zookeeper: ZooKeeper) -> String {
    const SERVICES: usize = 5;
    let client = zookeeper.connect().await;
    let nobody = BTreeSet::new();
    let mut lines = Vec::new();
    for (kind, more) in [
        ("sequential names", json!({})),
        (
            "one fixed name",
            json!({"node_type": "ephemeral", "use_path_encoding": true}),
        ),
    ] {
        let many = Many::start(&zookeeper).await;
        many.write(SERVICES, "i-many", &more);
        let mut nerve = many.launch().await;
        let first = nodes(&client, SERVICES, &nobody).await;
        let session = async |nerve: &Program| nerve.status().await["zookeeper"][0].clone();
        // Its watches tell of a node that somebody deletes.
        let one = first.first().unwrap();
        client
            .delete(&format!("{PARENT}/{one}"), None)
            .await
            .unwrap();
        let back = eventually("it is back", SOON, async || {
            let stat = client.check_stat(&format!("{PARENT}/{one}")).await;
            let now = ZooKeeper::list(&client, PARENT).await;
            match stat {
                Ok(_) if now.len() == SERVICES => Ok(now),
                other => Err(format!("{other:?} {now:?}")),
            }
        })
        .await;
        assert_eq!(
            session(&nerve).await["epoch"],
            1,
            "{}",
            session(&nerve).await
        );
        // Its successor takes the nodes over.
        nerve.signal(Signal::SIGUSR2);
        assert!(nerve.wait(SOON).await.success());
        let old: BTreeSet<String> = match kind {
            "sequential names" => back.into_iter().collect(),
            _ => BTreeSet::new(),
        };
        let mut nerve = many.launch().await;
        nodes(&client, SERVICES, &old).await;
        eventually("all are its own", SOON, async || {
            let status = nerve.status().await;
            let all = status["services"].as_object().unwrap().values();
            let wrong: Vec<String> = all
                .map(|service| &service["registrations"][0])
                .filter(|place| place["in_sync"] != true || !place["error"].is_null())
                .map(Value::to_string)
                .collect();
            if wrong.is_empty() {
                Ok(())
            } else {
                Err(wrong.join("\n"))
            }
        })
        .await;
        let now = session(&nerve).await;
        assert_eq!(now["epoch"], 1, "{now}");
        // One write for each, and none of them a withdrawal of a healthy app.
        let count = async |result: &str| {
            let hosts = zookeeper.hosts();
            let name = format!(r#"nerve_zk_writes_total{{hosts="{hosts}",result="{result}"}}"#);
            nerve.metric(&name).await.unwrap_or_default()
        };
        let (registered, withdrawn) = (count("registered").await, count("withdrawn").await);
        assert_eq!((registered, withdrawn), (SERVICES as f64, 0.0), "{kind}");
        let asked = tokio::time::Instant::now();
        nerve.signal(Signal::SIGTERM);
        assert!(nerve.wait(SOON).await.success());
        let ended = asked.elapsed();
        // `shutdown.deadline`, and what the machine takes longer.
        assert!(ended < Duration::from_secs(12), "TERM took {ended:?}");
        nodes(&client, 0, &nobody).await;
        lines.push(format!(
            "{kind}: {SERVICES} registered, restored, swapped by {registered} writes, withdrawn; TERM in {ended:.1?}"
        ));
    }
    lines.join("; ")
}

/// Half of what is registered is withdrawn at one moment, as a host does that goes: announced, which such servers do not
/// tell. Nothing is held.
pub(crate) async fn withdrawals_are_believed(zookeeper: ZooKeeper) -> String {
    const ALL: usize = 40;
    let many = Many::start(&zookeeper).await;
    many.write(ALL, "i-many", &json!({}));
    let mut nerve = many.launch().await;
    let client = zookeeper.connect().await;
    nodes(&client, ALL, &BTreeSet::new()).await;
    let (dir, port) = (Dir::new(), free_port());
    let mut config = settings(&dir);
    config["haproxy"]["binary"] = json!(Haproxy::binary());
    config["services"]["web"] = json!({
        "discovery": {"method": "zookeeper", "hosts": [zookeeper.hosts()], "path": PARENT},
        "haproxy": {"port": port},
    });
    let mut rig = Rig::launch(dir, &config);
    rig.synapse.ready(SOON).await;
    let served = async |rig: &Rig, count| {
        eventually(&format!("{count} servers"), SOON, async || {
            let now = rig.weights("web").await.len();
            if now == count {
                Ok(())
            } else {
                Err(format!("{now}: {}", rig.service("web").await))
            }
        })
        .await;
    };
    served(&rig, ALL).await;
    many.write(ALL / 2, "i-many", &json!({}));
    nerve.signal(Signal::SIGHUP);
    nodes(&client, ALL / 2, &BTreeSet::new()).await;
    served(&rig, ALL / 2).await;
    nerve.signal(Signal::SIGTERM);
    assert!(nerve.wait(SOON).await.success());
    format!("{ALL} registered, {} withdrawn at once, 0 held", ALL / 2)
}
