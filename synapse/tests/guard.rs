//! The guard on real parts: ZooKeeper, haproxy and its checks, apps, and a client that never retries.

#![expect(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

mod instances;
mod rig;

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::process::Command;

use instances::{PATH, held, names, register, vanish, withdraw};
use rig::{Rig, SOON, settings};
use serde_json::{Value, json};
use smartstack_common::testing::{
    App, Behaviour, Dir, Load, Mode, Program, SteadyClient, TcpProxy, ZooKeeper, eventually,
    free_port,
};
use zookeeper_client::Client;

fn service(discovery: &Value, frontend: u16, guard: &Value) -> Value {
    json!({
        "discovery": discovery,
        "guard": guard,
        "haproxy": {
            "port": frontend, "bind_address": "127.0.0.1",
            "server_options": "check inter 100 rise 1 fall 2",
            "backend": ["option httpchk GET /health"],
        },
    })
}

struct Stage {
    rig: Rig,
    client: Client,
    apps: Vec<App>,
    addresses: Vec<SocketAddr>,
    frontend: u16,
    _zookeeper: ZooKeeper,
}

impl Stage {
    /// Ten apps, registered and served.
    async fn start(guard: Value) -> Self {
        let zookeeper = ZooKeeper::start().await;
        let client = zookeeper.connect().await;
        let (apps, addresses) = ten_apps().await;
        register(&client, &addresses).await;
        let (dir, frontend) = (Dir::new(), free_port());
        let mut config = settings(&dir);
        let discovery = json!({"method": "zookeeper", "hosts": [zookeeper.hosts()], "path": PATH});
        config["services"]["web"] = service(&discovery, frontend, &guard);
        let mut rig = Rig::start(dir, &config).await;
        rig.serves("web", &names(&addresses)).await;
        Self {
            rig,
            client,
            apps,
            addresses,
            frontend,
            _zookeeper: zookeeper,
        }
    }

    fn load(&self) -> SteadyClient {
        load(self.frontend)
    }

    /// Waits until so many servers are held.
    async fn holds(&self, count: usize) -> Value {
        held(&self.rig, count).await
    }
}

fn load(port: u16) -> SteadyClient {
    SteadyClient::start(Load::new(SocketAddr::from(([127, 0, 0, 1], port))))
}

async fn ten_apps() -> (Vec<App>, Vec<SocketAddr>) {
    let mut apps = Vec::new();
    for n in 0..10 {
        apps.push(App::start(&format!("app-{n}")).await);
    }
    let addresses = apps.iter().map(|app| app.address).collect();
    (apps, addresses)
}

#[tokio::test]
async fn what_vanishes_while_it_answers_is_held_over_a_restart_until_the_end() {
    let mut stage = Stage::start(json!({"hold": "12s"})).await;
    let load = stage.load();
    let (stay, lost) = (stage.addresses[..2].to_vec(), stage.addresses[2..].to_vec());
    vanish(&stage.client, &lost).await;
    let service = stage.holds(8).await;
    assert_eq!(service["origin"], "live");
    let until = service["guard"]["until"].as_f64().unwrap();
    let metric = |name: &'static str| {
        let synapse = &stage.rig.synapse;
        async move { synapse.metric(name).await }
    };
    assert_eq!(
        metric("synapse_guard_held_servers{service=\"web\"}").await,
        Some(8.0)
    );
    assert_eq!(
        metric("synapse_guard_trips_total{service=\"web\"}").await,
        Some(1.0)
    );
    let snapshot = stage.rig.dir.join("state/snapshot.json");
    eventually("the hold is on disk", SOON, async || {
        let text = std::fs::read_to_string(&snapshot).unwrap_or_default();
        match text.contains("\"guards\":") {
            true => Ok(()),
            false => Err(text),
        }
    })
    .await;
    stage.rig.restart_synapse().await;
    let service = stage.holds(8).await;
    let renewed = service["guard"]["until"].as_f64().unwrap() - until;
    assert!(
        renewed.abs() < 1.0,
        "the restart moved the end by {renewed} s"
    );
    stage.rig.serves("web", &names(&stage.addresses)).await;
    stage.rig.serves("web", &names(&stay)).await;
    stage.holds(0).await;
    let tally = load.reset();
    assert!(tally.ok() > 0);
    assert_eq!(tally.failed(), 0, "{:?}", tally.failures);
}

/// The command line as an operator uses it: exit code, and what it prints.
fn release(stage: &Stage, arguments: &[&str]) -> (Option<i32>, String) {
    let output = Command::new(Program::path("synapse"))
        .current_dir(stage.rig.dir.join("."))
        .args(["-c", "synapse.json", "release"])
        .args(arguments)
        .output()
        .unwrap();
    let text = [output.stdout, output.stderr].concat();
    (
        output.status.code(),
        String::from_utf8_lossy(&text).into_owned(),
    )
}

#[tokio::test]
async fn holds_are_released_by_the_control_socket() {
    let mut stage = Stage::start(json!("on")).await;
    let (stay, lost) = (stage.addresses[..2].to_vec(), stage.addresses[2..].to_vec());
    vanish(&stage.client, &lost).await;
    stage.holds(8).await;
    assert_eq!(
        release(&stage, &["wbe"]),
        (Some(1), "no service `wbe`; there are: web\n".to_owned())
    );
    stage.holds(8).await;
    let done = (Some(0), "web: 8 held servers released\n".to_owned());
    assert_eq!(release(&stage, &["web"]), done);
    stage.rig.serves("web", &names(&stay)).await;
    stage.holds(0).await;
    // The empty set as well, which nothing else ends.
    vanish(&stage.client, &stay).await;
    stage.holds(2).await;
    let done = (Some(0), "web: 2 held servers released\n".to_owned());
    assert_eq!(release(&stage, &["--all"]), done);
    stage.rig.serves("web", &[]).await;
    assert_eq!(
        release(&stage, &["web"]),
        (Some(0), "web: nothing was held\n".to_owned())
    );
}

#[tokio::test]
async fn what_vanishes_and_is_dead_leaves_by_its_check() {
    let mut stage = Stage::start(json!("on")).await;
    let (stay, lost) = (stage.addresses[..2].to_vec(), stage.addresses[2..].to_vec());
    stage.apps.truncate(3);
    vanish(&stage.client, &lost).await;
    // One of them answers.
    let mut rest = stay;
    rest.push(lost[0]);
    stage.rig.serves("web", &names(&rest)).await;
    stage.holds(1).await;
}

#[tokio::test]
async fn what_is_withdrawn_goes_at_once_and_the_last_stays_until_its_check_fails() {
    let mut stage = Stage::start(json!("on")).await;
    withdraw(&stage.client, &stage.addresses[1..]).await;
    stage.rig.serves("web", &names(&stage.addresses[..1])).await;
    let service = stage.rig.service("web").await;
    assert_eq!(service["guard"]["trips"], 0, "{service:#}");
    withdraw(&stage.client, &stage.addresses[..1]).await;
    let service = stage.holds(1).await;
    assert_eq!(service["origin"], "held");
    stage.apps.clear();
    stage.rig.serves("web", &[]).await;
    stage.holds(0).await;
}

#[tokio::test]
async fn an_emptied_registry_is_held_and_the_hold_ends_when_it_is_whole_again() {
    let mut stage = Stage::start(json!("on")).await;
    let load = stage.load();
    let reloads = async |stage: &Stage| stage.rig.synapse.metric("synapse_reloads_total").await;
    let before = reloads(&stage).await;
    vanish(&stage.client, &stage.addresses).await;
    ZooKeeper::wipe(&stage.client, PATH).await;
    let service = stage.holds(10).await;
    assert_eq!(service["guard"]["until"], Value::Null);
    assert_eq!(service["origin"], "held");
    register(&stage.client, &stage.addresses[..4]).await;
    stage.holds(6).await;
    register(&stage.client, &stage.addresses[4..]).await;
    stage.holds(0).await;
    stage.rig.serves("web", &names(&stage.addresses)).await;
    let tally = load.reset();
    assert_eq!(tally.failed(), 0, "{:?}", tally.failures);
    // The first few may have been taken out before it was seen that there are too many; they came back.
    assert_eq!(reloads(&stage).await, before);
}

#[tokio::test]
async fn in_shadow_nothing_is_held_and_all_is_told_and_few_are_believed_at_once() {
    let mut stage = Stage::start(json!("shadow")).await;
    vanish(&stage.client, &stage.addresses[3..]).await;
    stage.rig.serves("web", &names(&stage.addresses[..3])).await;
    let service = stage.rig.service("web").await;
    assert_eq!(service["guard"]["shadow_trips"], 1, "{service:#}");
    assert_eq!(service["guard"]["would_hold"], 7);
    assert_eq!(service["hold"], Value::Null);
    vanish(&stage.client, &stage.addresses[1..3]).await;
    stage.rig.serves("web", &names(&stage.addresses[..1])).await;
}

/// Two ensembles behind proxies, ten apps registered in both.
struct Two {
    rig: Rig,
    zookeepers: [ZooKeeper; 2],
    clients: [Client; 2],
    proxies: [TcpProxy; 2],
    _apps: Vec<App>,
    addresses: Vec<SocketAddr>,
    load: SteadyClient,
}

impl Two {
    async fn start() -> Self {
        let zookeepers = [ZooKeeper::start().await, ZooKeeper::start().await];
        let clients = [zookeepers[0].connect().await, zookeepers[1].connect().await];
        let proxies = [
            TcpProxy::start(&zookeepers[0].hosts()).await,
            TcpProxy::start(&zookeepers[1].hosts()).await,
        ];
        let (apps, addresses) = ten_apps().await;
        for client in &clients {
            register(client, &addresses[..5]).await;
        }
        let (dir, frontend) = (Dir::new(), free_port());
        let mut config = settings(&dir);
        config["zookeeper"]["session_timeout"] = json!("2s");
        let watcher =
            |n: usize| json!({"method": "zookeeper", "hosts": [proxies[n].host()], "path": PATH});
        let discovery = json!({
            "method": "multi", "resolver": {"method": "union"},
            "watchers": {"one": watcher(0), "two": watcher(1)},
        });
        config["services"]["web"] = service(&discovery, frontend, &json!("on"));
        let mut rig = Rig::start(dir, &config).await;
        rig.serves("web", &names(&addresses[..5])).await;
        rig.status_shows("both agree", |s| s["services"]["web"]["fresh"] == true)
            .await;
        let load = load(frontend);
        Self {
            rig,
            zookeepers,
            clients,
            proxies,
            _apps: apps,
            addresses,
            load,
        }
    }

    async fn stale(&self, source: usize) {
        let what = format!("source {source} is known to be away");
        self.rig
            .status_shows(&what, |s| {
                s["services"]["web"]["sources"][source]["fresh"] == false
            })
            .await;
    }

    fn assert_no_failures(&self) {
        let tally = self.load.reset();
        assert!(tally.ok() > 0);
        assert_eq!(tally.failed(), 0, "{:?}", tally.failures);
    }
}

#[tokio::test]
async fn either_of_two_ensembles_may_be_lost_for_good() {
    for lost in [0, 1] {
        let mut two = Two::start().await;
        two.zookeepers[lost].stop_all();
        two.stale(lost).await;
        let other = &two.clients[1 - lost];
        register(other, &two.addresses[5..7]).await;
        two.rig.serves("web", &names(&two.addresses[..7])).await;
        withdraw(other, &two.addresses[..2]).await;
        two.rig.serves("web", &names(&two.addresses[2..7])).await;
        two.rig.restart_synapse().await;
        two.rig.serves("web", &names(&two.addresses[2..7])).await;
        two.assert_no_failures();
    }
}

#[tokio::test]
async fn a_full_replacement_through_one_ensemble_is_not_undone_by_the_blackholed_other() {
    let mut two = Two::start().await;
    two.proxies[1].set(Mode::Blackhole).await;
    let (old, new) = (two.addresses[..5].to_vec(), two.addresses[5..].to_vec());
    for (old, new) in old.iter().zip(&new) {
        register(&two.clients[0], &[*new]).await;
        withdraw(&two.clients[0], &[*old]).await;
    }
    two.rig.serves("web", &names(&new)).await;
    two.stale(1).await;
    two.rig.serves("web", &names(&new)).await;
    two.rig.restart_synapse().await;
    let seen: BTreeSet<String> = two.rig.live("web").await;
    assert_eq!(seen, names(&new).into_iter().collect(), "after a restart");
    // The other side comes back with the old ones still registered there: it is believed, and says so.
    for one in &old {
        vanish(&two.clients[1], &[*one]).await;
    }
    register(&two.clients[1], &new).await;
    two.proxies[1].set(Mode::Pass).await;
    two.rig
        .status_shows("both agree again", |s| {
            s["services"]["web"]["fresh"] == true
        })
        .await;
    two.rig.serves("web", &names(&new)).await;
    two.assert_no_failures();
}

/// A host boots without the registry, and with a snapshot that cannot be used: the configured servers serve.
#[tokio::test]
async fn a_boot_with_an_unusable_snapshot_is_served_by_the_default_servers() {
    let app = App::start("default").await;
    let good = br#"{"format":1,"sha256":"00","body":{}}"#;
    let foreign = br#"{"format":99,"sha256":"00","body":{}}"#;
    let damages: [(&str, &[u8]); 3] = [
        ("corrupt", good),
        ("truncated", &good[..20]),
        ("foreign version", foreign),
    ];
    for (damage, bytes) in damages {
        let (dir, frontend) = (Dir::new(), free_port());
        let mut config = settings(&dir);
        let nobody = format!("127.0.0.1:{}", free_port());
        let discovery = json!({"method": "zookeeper", "hosts": [nobody], "path": PATH});
        config["services"]["web"] = service(&discovery, frontend, &json!("on"));
        let address = app.address;
        config["services"]["web"]["default_servers"] =
            json!([{"name": "d", "host": address.ip().to_string(), "port": address.port()}]);
        std::fs::create_dir_all(dir.join("state")).unwrap();
        let _path = dir.write("state/snapshot.json", bytes);
        let mut rig = Rig::start(dir, &config).await;
        rig.serves("web", &[format!("d_{address}")]).await;
        load(frontend).more(10, SOON).await;
        assert!(
            rig.log().contains("the snapshot cannot be used"),
            "{damage}: {}",
            rig.log()
        );
        let names = std::fs::read_dir(rig.dir.join("state")).unwrap();
        let aside = names
            .filter_map(Result::ok)
            .map(|entry| std::fs::read(entry.path()).unwrap_or_default())
            .any(|kept| kept == bytes);
        assert!(aside, "{damage}: what was there is kept beside");
    }
}

/// Eight instances of which seven go without a word, in four services: registered by nerves that cannot announce, by ones
/// that do, by both, and by ones that cannot while the configuration says `hold`. What a nerve that cannot announce
/// withdraws is sick: it accepts connections, so that haproxy's check vouches for it, and answers nothing.
#[tokio::test]
async fn what_rubys_nerves_withdraw_is_believed_and_what_ours_lose_is_held() {
    let zookeeper = ZooKeeper::start().await;
    let client = zookeeper.connect().await;
    let (mut apps, mut addresses) = ten_apps().await;
    apps.truncate(8);
    addresses.truncate(8);
    let dir = Dir::new();
    let mut config = settings(&dir);
    let scenes: [(&str, &[bool], usize); 4] = [
        ("plain", &[false; 8], 0),
        ("marked", &[true; 8], 7),
        (
            "mixed",
            &[true, true, true, true, false, false, false, true],
            4,
        ),
        ("kept", &[false; 8], 7),
    ];
    let node =
        |service: &str, address: &SocketAddr| format!("/services/{service}/{}", address.port());
    let mut frontends = Vec::new();
    for (name, marks, _) in scenes {
        let discovery = json!({
            "method": "zookeeper", "hosts": [zookeeper.hosts()], "path": format!("/services/{name}"),
        });
        let guard = match name {
            "kept" => json!({"unannounced": "hold"}),
            _ => json!({}),
        };
        let frontend = free_port();
        frontends.push(frontend);
        config["services"][name] = json!({
            "discovery": discovery, "guard": guard,
            "haproxy": {"port": frontend, "bind_address": "127.0.0.1", "server_options": "check inter 100"},
        });
        for (address, marked) in addresses.iter().zip(marks) {
            let mut payload = json!({"host": "127.0.0.1", "port": address.port(), "name": "i"});
            if *marked {
                payload["announces"] = json!(true);
            }
            ZooKeeper::put(
                &client,
                &node(name, address),
                payload.to_string().as_bytes(),
            )
            .await;
        }
    }
    let named = |addresses: &[SocketAddr]| -> Vec<String> {
        addresses.iter().map(|a| format!("i_{a}")).collect()
    };
    let mut rig = Rig::start(dir, &config).await;
    for (name, ..) in scenes {
        rig.serves(name, &named(&addresses)).await;
    }
    for app in &apps[..7] {
        app.set(Behaviour::Close);
    }
    for (name, marks, held) in scenes {
        let mut multi = client.new_multi_writer();
        for address in &addresses[..7] {
            multi.add_delete(&node(name, address), None).unwrap();
        }
        multi.commit().await.unwrap();
        let mut left: Vec<SocketAddr> = match held {
            7 => addresses.clone(),
            _ => addresses
                .iter()
                .zip(marks)
                .filter(|(_, m)| **m && held > 0)
                .map(|(a, _)| *a)
                .collect(),
        };
        if !left.contains(&addresses[7]) {
            left.push(addresses[7]);
        }
        rig.serves(name, &named(&left)).await;
        eventually("as many are held as should be", SOON, async || {
            let service = rig.service(name).await;
            let servers = service["servers"].as_array().unwrap();
            let found = servers.iter().filter(|s| s["held"] == true).count();
            let gone = service["sources"][0]["registered"] == 1;
            match (found == held) && gone {
                true => Ok(()),
                false => Err(format!("{name}: {service:#}")),
            }
        })
        .await;
    }
    let tally = load(frontends[0]).more(40, SOON).await;
    assert_eq!(
        (tally.failed(), tally.ok() >= 40),
        (0, true),
        "{:?}",
        tally.failures
    );
    // When nothing is left the last one stays, whoever registered it.
    client
        .delete(&node("plain", &addresses[7]), None)
        .await
        .unwrap();
    rig.status_shows("the last one is held", |s| {
        s["services"]["plain"]["origin"] == "held"
    })
    .await;
    rig.serves("plain", &named(&addresses)).await;
}
