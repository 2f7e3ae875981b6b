//! synapse ends and starts again, also without ZooKeeper and without haproxy: nothing that runs is touched.

use std::time::Duration;

use nix::sys::signal::Signal;
use serde_json::json;
use smartstack_common::admin::Bind;
use smartstack_common::testing::{App, Program, eventually, free_port, get};
use tokio::time::Instant;

use crate::pair::{Pair, SOON, Traffic, Way, answers, in_step, reloads, status};

/// First answer after a boot without ZooKeeper. The goal is 1 s (0.3 to 0.4 s on idle cores); two that five others share
/// took 1.2 s, most of it haproxy's own check and start.
const BOOT: Duration = Duration::from_secs(5);

/// The snapshot on disk knows the app.
async fn remembered(pair: &Pair, app: &App) {
    let port = app.address.port().to_string();
    eventually(
        "the snapshot is written",
        SOON,
        async || match std::fs::read_to_string(pair.dir.join("snapshot.json")) {
            Ok(text) if text.contains(&port) => Ok(()),
            Ok(text) => Err(text),
            Err(error) => Err(error.to_string()),
        },
    )
    .await;
}

async fn end(synapse: &mut Program, signal: Signal) {
    synapse.signal(signal);
    let status = synapse.wait(SOON).await;
    if signal == Signal::SIGTERM {
        assert_eq!(status.code(), Some(0));
    }
}

#[tokio::test]
async fn a_restart_with_nothing_changed_touches_nothing() {
    let mut pair = Pair::start(Way::Supervise).await;
    let (a, b, c) = (
        App::start("a").await,
        App::start("b").await,
        App::start("c").await,
    );
    pair.register(&a).await;
    let mut synapse = pair.serving().await;
    pair.until(&a, "ready").await;
    remembered(&pair, &a).await;
    let old = std::fs::read(pair.dir.join("snapshot.json")).unwrap();
    pair.register(&b).await;
    let gone = pair.register(&c).await;
    pair.until(&c, "ready").await;
    pair.withdraw(&gone).await;
    pair.until(&c, "absent").await;
    in_step(&synapse).await;
    remembered(&pair, &b).await;
    let (table, pid, file) = (
        pair.table().await,
        pair.haproxy.worker_pid().await,
        pair.file(),
    );
    let traffic = Traffic::start(pair.port).await;

    for signal in [Signal::SIGTERM, Signal::SIGKILL] {
        end(&mut synapse, signal).await;
        synapse = pair.serving().await;
        in_step(&synapse).await;
        assert_eq!(pair.haproxy.worker_pid().await, pid, "{signal}");
        assert_eq!(pair.table().await, table, "{signal}");
        assert_eq!(pair.file(), file, "{signal}");
        assert_eq!(reloads(&synapse).await, 0, "{signal}");
    }

    pair.zookeeper.stop_all();
    let snapshot = pair.dir.join("snapshot.json");
    for damage in ["none", "deleted", "corrupt", "old"] {
        end(&mut synapse, Signal::SIGKILL).await;
        match damage {
            "none" => {}
            "deleted" => std::fs::remove_file(&snapshot).unwrap(),
            "corrupt" => drop(
                pair.dir
                    .write("snapshot.json", b"{\"format\": 1, \"sha256\": \"00\""),
            ),
            _ => drop(pair.dir.write("snapshot.json", &old)),
        }
        synapse = pair.serving().await;
        status(&synapse, "haproxy is in step", |status| {
            status["haproxy"]["state"] == "serving" && status["haproxy"]["divergence"] == 0
        })
        .await;
        traffic.more(60).await;
        assert_eq!(pair.haproxy.worker_pid().await, pid, "snapshot {damage}");
        assert_eq!(pair.table().await, table, "snapshot {damage}");
        assert_eq!(reloads(&synapse).await, 0, "snapshot {damage}");
        let kept = snapshot.with_extension("json.bad-1").exists();
        assert_eq!(kept, damage == "corrupt" || damage == "old", "{damage}");
    }
    assert!(
        pair.log().contains("the snapshot cannot be used"),
        "{}",
        pair.log()
    );
    traffic.unharmed().await;
}

#[tokio::test]
async fn killed_and_started_again_it_goes_on_supervised() {
    killed_in_every_moment(Way::Supervise).await;
}

#[tokio::test]
async fn killed_and_started_again_it_goes_on_with_a_master_of_others() {
    killed_in_every_moment(Way::Master).await;
}

#[tokio::test]
async fn killed_and_started_again_it_goes_on_with_a_command() {
    killed_in_every_moment(Way::Command).await;
}

async fn killed_in_every_moment(way: Way) {
    let pair = Pair::start(way).await;
    let first = App::start("first").await;
    let leaving = App::start("leaving").await;
    pair.register(&first).await;
    let node = pair.register(&leaving).await;
    let mut synapse = pair.serving().await;
    pair.until(&first, "ready").await;
    pair.until(&leaving, "ready").await;
    in_step(&synapse).await;
    let traffic = Traffic::start(pair.port).await;

    // Between two changes: the same worker is adopted.
    let pid = pair.haproxy.worker_pid().await;
    end(&mut synapse, Signal::SIGKILL).await;
    traffic.more(20).await;
    synapse = pair.serving().await;
    in_step(&synapse).await;
    assert_eq!(pair.haproxy.worker_pid().await, pid);
    assert_eq!(reloads(&synapse).await, 0);
    // And it goes on.
    pair.withdraw(&node).await;
    pair.until(&leaving, "retired").await;

    // In the middle of an addition: the file has the new server, the worker may or may not.
    let mut apps = Vec::new();
    for round in 0..3 {
        let app = App::start(&format!("new{round}")).await;
        pair.register(&app).await;
        let line = format!(":{} ", app.address.port());
        eventually("the file is written", SOON, async || {
            if pair.file().contains(&line) {
                Ok(())
            } else {
                Err("not yet")
            }
        })
        .await;
        end(&mut synapse, Signal::SIGKILL).await;
        synapse = pair.serving().await;
        pair.until(&app, "ready").await;
        in_step(&synapse).await;
        traffic.reaches(&app).await;
        apps.push(app);
    }
    assert_eq!(pair.state(&first).await, "ready");
    traffic.avoids(&leaving).await;
    traffic.unharmed().await;
}

#[tokio::test]
async fn a_host_that_boots_without_zookeeper_serves() {
    let mut pair = Pair::start(Way::Supervise).await;
    let (a, b) = (App::start("a").await, App::start("b").await);
    pair.register(&a).await;
    pair.register(&b).await;
    let mut synapse = pair.serving().await;
    pair.until(&b, "ready").await;
    in_step(&synapse).await;
    remembered(&pair, &b).await;
    pair.zookeeper.stop_all();
    let bind = Bind::Tcp(pair.address().to_string());
    for (source, removed) in [
        ("haproxy.cfg and snapshot", None),
        ("snapshot", Some("haproxy.cfg")),
        ("haproxy.cfg", Some("snapshot.json")),
    ] {
        end(&mut synapse, Signal::SIGKILL).await;
        pair.haproxy.kill();
        if let Some(name) = removed {
            std::fs::remove_file(pair.dir.join(name)).unwrap();
        }
        let began = Instant::now();
        synapse = pair.synapse();
        let first = eventually("the first answer", SOON, async || {
            get(&bind, "/").await.map_err(|e| e.to_string())
        })
        .await;
        let took = began.elapsed();
        println!("boot without ZooKeeper, from {source}: first answer after {took:?}");
        assert_eq!(first.status, 200, "{first:?}");
        assert!(took < BOOT, "{took:?} from {source}");
        answers(pair.port, &["a", "b"]).await;
        remembered(&pair, &b).await;
    }
}

/// How often haproxy was given a file, the first start among them.
fn loads(pair: &Pair) -> usize {
    pair.log().matches("haproxy has loaded the file").count()
}

#[tokio::test]
async fn a_cold_start_loads_one_file() {
    let mut pair = Pair::start(Way::Supervise).await;
    // What a second load would have to wait for shows as a divergence meanwhile.
    pair.config["haproxy"]["restart_interval"] = json!(2);
    let (web, other) = (App::start("web").await, App::start("other").await);
    pair.register(&web).await;
    for number in 0..12 {
        let (name, path) = (format!("s{number}"), format!("/services/s{number}"));
        let port = free_port();
        pair.config["services"][&name] = pair.service(&path, port);
        let keys = match number {
            0..4 => json!({"haproxy_server_options": format!("check inter {}s", number + 1)}),
            4..8 => json!({"host": "localhost"}),
            _ => json!({"weight": number}),
        };
        pair.register_in(&path, &other, &keys).await;
    }
    pair.config["services"]["fixed"] = json!({
        "discovery": {"method": "base"},
        "default_servers": [{"name": "one", "host": "localhost", "port": other.address.port()}],
        "haproxy": {"port": free_port()},
    });
    // Nobody registers there, and nobody answers for this host.
    pair.config["services"]["nobody"] = pair.service("/services/nobody", free_port());
    pair.config["services"]["lost"] = json!({
        "discovery": {"method": "base"},
        "default_servers": [{"host": "no-such-host.invalid", "port": 80}],
        "haproxy": {"port": free_port()},
    });
    let synapse = pair.serving().await;
    in_step(&synapse).await;
    let first = pair.haproxy.servers_state().await.len();
    assert_eq!(first, 14, "all servers of the first file");
    assert_eq!(loads(&pair), 1, "{}", pair.log());
    assert_eq!(reloads(&synapse).await, 1);
    let log = pair.log();
    let unresolved: Vec<&str> = log
        .lines()
        .filter(|line| line.contains("does not resolve"))
        .collect();
    assert!(
        unresolved.len() == 1 && unresolved[0].contains("no-such-host.invalid"),
        "{unresolved:#?}"
    );
    println!("14 services, 14 servers: {} load", loads(&pair));
}

#[tokio::test]
async fn a_cold_start_without_zookeeper_waits_no_longer_than_it_may() {
    let mut pair = Pair::start(Way::Supervise).await;
    let app = App::start("app").await;
    pair.config["startup_wait"] = json!("700ms");
    pair.config["services"]["web"]["default_servers"] =
        json!([{"host": "127.0.0.1", "port": app.address.port()}]);
    pair.zookeeper.stop_all();
    let bind = Bind::Tcp(pair.address().to_string());
    let began = Instant::now();
    let _synapse = pair.synapse();
    let first = eventually("the first answer", SOON, async || {
        get(&bind, "/").await.map_err(|e| e.to_string())
    })
    .await;
    let took = began.elapsed();
    println!("cold start without ZooKeeper, startup_wait 700 ms: first answer after {took:?}");
    assert_eq!(first.status, 200, "{first:?}");
    assert!(took >= Duration::from_millis(700), "{took:?}");
    eventually("one load is told", SOON, async || match loads(&pair) {
        1 => Ok(()),
        _ => Err(pair.log()),
    })
    .await;
}
