//! Servers that come and go without a reload, and the backends in which they cannot.

use nix::sys::signal::Signal;
use serde_json::json;
use smartstack_common::testing::App;

use crate::pair::{Pair, SOON, Traffic, WEB, Way, in_step, reloaded_by_hand, reloads};

/// Names and ids of `web`: in the file, and in the worker.
async fn ids(pair: &Pair) -> [Vec<(String, String)>; 2] {
    let file = pair.file();
    let lines = file
        .lines()
        .map(|line| line.split_ascii_whitespace().collect::<Vec<_>>());
    let mut written: Vec<(String, String)> = lines
        .filter(|words| words.first() == Some(&"server"))
        .map(|words| (words[1].to_owned(), words[4].to_owned()))
        .collect();
    written.sort();
    let rows = pair.haproxy.servers_state().await;
    let mut live: Vec<(String, String)> = rows
        .iter()
        .filter(|row| row["be_name"] == "web" && row["srv_uweight"] != "0")
        .map(|row| (row["srv_name"].clone(), row["srv_id"].clone()))
        .collect();
    live.sort();
    [written, live]
}

/// Airbnb's shape: a cookie and a check on each line.
fn airbnb(pair: &mut Pair) {
    pair.config["services"]["web"]["haproxy"]["server_options"] =
        json!("check inter 2s rise 3 fall 2");
}

#[tokio::test]
async fn twenty_come_and_go_without_a_reload() {
    let mut pair = Pair::start(Way::Supervise).await;
    airbnb(&mut pair);
    // The twenty vanish without a word.
    pair.config["guard"] = serde_json::json!("off");
    let first = App::start("first").await;
    pair.register(&first).await;
    let synapse = pair.serving().await;
    pair.until(&first, "ready").await;
    in_step(&synapse).await;
    let traffic = Traffic::start(pair.port).await;
    let (before, pid) = (reloads(&synapse).await, pair.haproxy.worker_pid().await);

    let mut apps = Vec::new();
    for number in 0..20 {
        let app = App::start(&format!("n{number}")).await;
        let node = pair.register(&app).await;
        pair.until(&app, "ready").await;
        apps.push((app, node));
    }
    in_step(&synapse).await;
    for (app, _) in &apps {
        traffic.reaches(app).await;
    }
    assert!(pair.file().contains(" cookie "), "{}", pair.file());
    let [written, live] = ids(&pair).await;
    assert_eq!(written, live);
    assert_eq!(live.len(), 21);
    for row in pair.haproxy.servers_state().await {
        assert_eq!(row["srv_uweight"], "1", "{row:?}");
        // Configured and enabled, CHK_ST_*: as the one from the file.
        assert_eq!(row["srv_check_state"], "6", "{row:?}");
    }
    for (app, node) in &apps {
        pair.withdraw(node).await;
        pair.until(app, "retired").await;
    }
    in_step(&synapse).await;
    for (app, _) in &apps {
        pair.until(app, "absent").await;
    }
    println!("20 servers came and went: {}", traffic.tally());
    traffic.unharmed().await;
    assert_eq!(reloads(&synapse).await, before);
    assert_eq!(pair.haproxy.worker_pid().await, pid);
}

#[tokio::test]
async fn what_was_added_outlives_restarts_and_reloads_by_others() {
    let mut pair = Pair::start(Way::Master).await;
    airbnb(&mut pair);
    let (a, b, c) = (
        App::start("a").await,
        App::start("b").await,
        App::start("c").await,
    );
    pair.register(&a).await;
    let mut synapse = pair.serving().await;
    pair.until(&a, "ready").await;
    in_step(&synapse).await;
    let pid = pair.haproxy.worker_pid().await;
    let traffic = Traffic::start(pair.port).await;
    pair.register(&b).await;
    pair.until(&b, "ready").await;
    for signal in [Signal::SIGKILL, Signal::SIGTERM] {
        synapse.signal(signal);
        synapse.wait(SOON).await;
        synapse = pair.serving().await;
        in_step(&synapse).await;
        assert_eq!(reloads(&synapse).await, 0, "{signal}");
        traffic.reaches(&b).await;
    }
    // With a server that only its own znode gives options, haproxy is asked first.
    pair.register_in(WEB, &c, &json!({"haproxy_server_options": "maxconn 77"}))
        .await;
    pair.until(&c, "ready").await;
    in_step(&synapse).await;
    assert_eq!(reloads(&synapse).await, 0);
    assert_eq!(pair.haproxy.worker_pid().await, pid);
    assert!(pair.file().contains("maxconn 77"), "{}", pair.file());
    let [written, live] = ids(&pair).await;
    assert_eq!(written, live);

    reloaded_by_hand(&pair, &synapse).await;
    in_step(&synapse).await;
    assert_eq!(reloads(&synapse).await, 0);
    assert_eq!(ids(&pair).await[1], live);
    for app in [&a, &b, &c] {
        traffic.reaches(app).await;
    }
    traffic.unharmed().await;
}

#[tokio::test]
async fn backends_that_take_no_servers_are_reloaded_and_say_so() {
    for (lines, why) in [
        (json!(["balance source"]), "hash-type consistent"),
        (json!(["balance static-rr"]), "static-rr"),
        (json!(["cookie SERVER insert indirect"]), "`cookie`"),
    ] {
        let mut pair = Pair::start(Way::Supervise).await;
        pair.config["services"]["web"]["haproxy"]["backend"] = lines;
        let (a, b) = (App::start("a").await, App::start("b").await);
        pair.register(&a).await;
        let synapse = pair.serving().await;
        pair.until(&a, "ready").await;
        in_step(&synapse).await;
        let (before, pid) = (reloads(&synapse).await, pair.haproxy.worker_pid().await);
        pair.register(&b).await;
        pair.until(&b, "ready").await;
        let status = in_step(&synapse).await;
        assert_eq!(reloads(&synapse).await, before + 1);
        assert_ne!(pair.haproxy.worker_pid().await, pid);
        let reason = status["haproxy"]["last_reload"]["reason"].to_string();
        assert!(reason.contains(why), "{reason}");
        let fallback = status["haproxy"]["fallbacks"]["web"].to_string();
        assert!(fallback.contains(why), "{fallback}");
    }
}

#[tokio::test]
async fn consistent_hashing_gives_servers_added_at_runtime_their_share() {
    let mut pair = Pair::start(Way::Supervise).await;
    pair.config["services"]["web"]["haproxy"]["backend"] =
        json!(["balance uri whole", "hash-type consistent"]);
    pair.config["services"]["web"]["haproxy"]["server_options"] = json!("weight 100");
    let synapse = pair.serving().await;
    let pid = pair.haproxy.worker_pid().await;
    let mut apps = Vec::new();
    for name in ["a", "b", "c", "d"] {
        let app = App::start(name).await;
        pair.register(&app).await;
        pair.until(&app, "ready").await;
        apps.push(app);
    }
    in_step(&synapse).await;
    let bind = smartstack_common::admin::Bind::Tcp(pair.address().to_string());
    let whose = async || {
        let mut names = Vec::new();
        for key in 0..200 {
            let reply = smartstack_common::testing::get(&bind, &format!("/?{key}")).await;
            names.push(reply.unwrap().body.trim().to_owned());
        }
        names
    };
    let added = whose().await;
    for app in &apps {
        let share = added.iter().filter(|name| **name == app.name).count();
        assert!((20..=90).contains(&share), "{}: {share} of 200", app.name);
    }
    assert_eq!(pair.haproxy.worker_pid().await, pid);
    // A reload does not move a key.
    reloaded_by_hand(&pair, &synapse).await;
    assert_eq!(whose().await, added);
}
