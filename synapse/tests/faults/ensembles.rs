//! Two ensembles, every app registered in both by its nerve, synapse reads both: either is lost wholly and for good.

use std::collections::BTreeSet;
use std::net::SocketAddr;

use nix::sys::signal::Signal;
use serde_json::json;
use smartstack_common::admin::Bind;
use smartstack_common::testing::{
    App, Behaviour, Dir, Load, Program, SteadyClient, ZooKeeper, eventually, free_port,
};
use tokio::time::Instant;

use crate::rig::{Rig, settings};
use crate::stage::{CHECK, CHECK_LIMIT, CHECKED, PATH, SOON, nerve_config, table};

struct Two {
    load: SteadyClient,
    rig: Rig,
    nerves: Vec<(Program, Dir)>,
    apps: Vec<App>,
    zookeepers: [ZooKeeper; 2],
}

impl Two {
    async fn start() -> Self {
        let (one, two) = tokio::join!(ZooKeeper::start(), ZooKeeper::start());
        let zookeepers = [one, two];
        let target = SocketAddr::from(([127, 0, 0, 1], free_port()));
        let dir = Dir::new();
        let mut config = settings(&dir);
        config["zookeeper"] = zookeeper();
        let watcher = |n: usize| json!({"method": "zookeeper", "hosts": [zookeepers[n].hosts()], "path": PATH});
        config["services"]["web"] = json!({
            "discovery": {
                "method": "multi", "resolver": {"method": "union"},
                "watchers": {"one": watcher(0), "two": watcher(1)},
            },
            "haproxy": {
                "port": target.port(), "bind_address": "127.0.0.1",
                "server_options": CHECK,
                "backend": [CHECKED, CHECK_LIMIT],
            },
        });
        let mut two = Self {
            load: SteadyClient::start(Load::new(target)),
            rig: Rig::launch(dir, &config),
            nerves: Vec::new(),
            apps: Vec::new(),
            zookeepers,
        };
        for name in ["a", "b", "c"] {
            two.join(name).await;
        }
        two.rig.synapse.ready(SOON).await;
        two.serves(&["a", "b", "c"]).await;
        two.rig
            .status_shows("both agree", |s| s["services"]["web"]["fresh"] == true)
            .await;
        // Refused before haproxy listened.
        drop(two.load.reset());
        two
    }

    /// Another app with a nerve of its own.
    async fn join(&mut self, name: &str) {
        let (app, dir) = (App::start(name).await, Dir::new());
        let apps = [app];
        let number = self.nerves.len();
        let mut config = nerve_config(&dir, number, &apps, "", &zookeeper());
        let web = config["services"][name].as_object_mut().unwrap();
        web.remove("zk_hosts");
        web.remove("zk_path");
        let places = self
            .zookeepers
            .iter()
            .map(|zookeeper| json!({"zk_hosts": [zookeeper.hosts()], "zk_path": PATH}));
        web.insert("reporters".to_owned(), places.collect());
        let _path = dir.write("nerve.json", config.to_string());
        std::fs::create_dir_all(dir.join("disk")).unwrap();
        let admin = Bind::Unix(dir.join("admin.sock"));
        let mut nerve = Program::start(
            "nerve",
            &dir,
            &["-c", "nerve.json"],
            &[("RUST_LOG", "info")],
            admin,
        );
        nerve.ready(SOON).await;
        self.nerves.push((nerve, dir));
        self.apps.extend(apps);
    }

    fn port(&self, name: &str) -> u16 {
        let app = self.apps.iter().find(|app| app.name == name).unwrap();
        app.address.port()
    }

    async fn serves(&self, names: &[&str]) {
        let wanted: BTreeSet<u16> = names.iter().map(|name| self.port(name)).collect();
        let stats = self.rig.dir.join("stats.sock");
        eventually(&format!("haproxy has {names:?}"), SOON, async || {
            let table = table(&stats).await.map_err(|e| e.to_string())?;
            match table == wanted {
                true => Ok(()),
                false => Err(format!("{table:?} {wanted:?}\n{}", self.rig.log())),
            }
        })
        .await;
    }
}

fn zookeeper() -> serde_json::Value {
    json!({"session_timeout": "3s", "jitter": 0})
}

#[tokio::test]
async fn either_of_two_ensembles_is_lost_for_good() {
    let _turn = crate::STAGES.acquire().await.unwrap();
    for lost in [0, 1] {
        let mut two = Two::start().await;
        two.zookeepers[lost].stop_all();
        two.rig
            .status_shows("the loss is known", |s| {
                s["services"]["web"]["sources"][lost]["fresh"] == false
            })
            .await;
        let began = Instant::now();
        two.join("new").await;
        two.serves(&["a", "b", "c", "new"]).await;
        let joined = began.elapsed();
        let began = Instant::now();
        two.apps[0].set(Behaviour::Unhealthy);
        two.serves(&["b", "c", "new"]).await;
        let unhealthy = began.elapsed();
        let began = Instant::now();
        two.nerves[1].0.signal(Signal::SIGTERM);
        two.serves(&["c", "new"]).await;
        let stopped = began.elapsed();
        two.load.more(100, SOON).await;
        let tally = two.load.reset();
        println!(
            "fault: ensemble {lost} of two lost for good: {} requests, {} failed; a new app in after {:.2} s (with the start of \
             its nerve), an unhealthy one out after {:.2} s, a stopped one after {:.2} s",
            tally.ok() + tally.failed(),
            tally.failed(),
            joined.as_secs_f64(),
            unhealthy.as_secs_f64(),
            stopped.as_secs_f64(),
        );
        assert_eq!(tally.failed(), 0, "{tally}");
        assert!(tally.answers.contains_key("new"), "{tally}");
    }
}
