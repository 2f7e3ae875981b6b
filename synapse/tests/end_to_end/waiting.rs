//! Servers while a structure waits for its reload, admission by checks, several stats sockets, and what each balance
//! algorithm lets go over the stats socket.

use serde_json::json;
use smartstack_common::testing::{App, Behaviour};

use nix::sys::signal::Signal;

use crate::pair::{Pair, Traffic, Way, in_step, reloads, status};

#[tokio::test]
async fn servers_come_and_go_while_a_reload_waits() {
    let mut pair = Pair::start(Way::Supervise).await;
    pair.config["haproxy"]["restart_interval"] = json!(600);
    let (a, b) = (App::start("a").await, App::start("b").await);
    let node = pair.register(&a).await;
    let synapse = pair.serving().await;
    pair.until(&a, "ready").await;
    in_step(&synapse).await;
    let before = reloads(&synapse).await;
    let change = |pair: &mut Pair, timeout: &str| {
        pair.config["services"]["web"]["haproxy"]["backend"] =
            json!([format!("timeout server {timeout}")]);
        pair.configure();
        synapse.signal(Signal::SIGHUP);
    };
    change(&mut pair, "21s");
    status(
        &synapse,
        "the first change of structure is loaded",
        |status| status["haproxy"]["reloads"].as_u64() == Some(before + 1),
    )
    .await;
    in_step(&synapse).await;
    let pid = pair.haproxy.worker_pid().await;
    change(&mut pair, "22s");
    status(&synapse, "the second waits", |status| {
        let haproxy = &status["haproxy"];
        haproxy["state"] == "other generation" && haproxy["divergence"].as_u64() > Some(0)
    })
    .await;
    let traffic = Traffic::start(pair.port).await;
    pair.register(&b).await;
    pair.until(&b, "ready").await;
    traffic.reaches(&b).await;
    // The file has it in the structure that the worker has: whoever reloads now loads that.
    let file = pair.file();
    assert!(file.contains(&format!(":{}", b.address.port())), "{file}");
    assert!(file.contains("timeout server 21s"), "{file}");
    pair.withdraw(&node).await;
    pair.until(&a, "retired").await;
    traffic.avoids(&a).await;
    traffic.unharmed().await;
    assert_eq!(reloads(&synapse).await, before + 1);
    assert_eq!(pair.haproxy.worker_pid().await, pid);
}

#[tokio::test]
async fn a_checked_server_gets_its_first_request_after_its_first_passed_check() {
    let mut pair = Pair::start(Way::Supervise).await;
    pair.config["haproxy"]["admit"] = json!("checked");
    let web = &mut pair.config["services"]["web"]["haproxy"];
    web["server_options"] = json!("check inter 200ms");
    web["backend"] = json!(["option httpchk GET /health"]);
    let (a, b) = (App::start("a").await, App::start("b").await);
    pair.register(&a).await;
    let synapse = pair.serving().await;
    pair.until(&a, "ready").await;
    in_step(&synapse).await;
    let traffic = Traffic::start(pair.port).await;
    b.set(Behaviour::Unhealthy);
    pair.register(&b).await;
    let awaits = |status: &serde_json::Value, word: &str| {
        let servers = status["services"]["web"]["servers"].as_array().cloned();
        let port = json!(b.address.port());
        servers
            .into_iter()
            .flatten()
            .any(|s| s["port"] == port && s["haproxy"] == word)
    };
    status(&synapse, "it is checked", |status| {
        awaits(status, "checking")
    })
    .await;
    let checks = b.state.checks();
    traffic.more(200).await;
    assert_eq!(
        b.state.requests(),
        0,
        "of a server that has passed no check"
    );
    assert!(b.state.checks() > checks, "it is checked meanwhile");
    b.set(Behaviour::Healthy);
    pair.until(&b, "ready").await;
    status(&synapse, "it takes requests", |status| awaits(status, "up")).await;
    traffic.reaches(&b).await;
    traffic.unharmed().await;
}

#[tokio::test]
async fn two_stats_sockets_of_one_process_get_each_change_once() {
    let mut pair = Pair::start(Way::Supervise).await;
    let (first, second) = (pair.dir.join("stats.sock"), pair.dir.join("second.sock"));
    pair.config["haproxy"]["socket_file_path"] = json!([first, second]);
    let socket = |path: &std::path::Path| {
        format!(
            "stats socket {} mode 600 level admin expose-fd listeners",
            path.display()
        )
    };
    pair.config["haproxy"]["global"] = json!([socket(&first), socket(&second)]);
    let (a, b) = (App::start("a").await, App::start("b").await);
    pair.register(&a).await;
    let synapse = pair.serving().await;
    pair.until(&a, "ready").await;
    in_step(&synapse).await;
    let before = reloads(&synapse).await;
    let node = pair.register(&b).await;
    pair.until(&b, "ready").await;
    pair.withdraw(&node).await;
    pair.until(&b, "absent").await;
    in_step(&synapse).await;
    assert_eq!(reloads(&synapse).await, before);
    assert!(!pair.log().contains("haproxy refuses;"), "{}", pair.log());
}

/// Lines of the backend, whether a server is added without a reload, and whether each gets requests then.
#[tokio::test]
async fn what_each_balance_algorithm_lets_go_over_the_stats_socket() {
    for (lines, at_runtime, spreads) in [
        (json!(["balance roundrobin"]), true, true),
        (json!(["balance leastconn"]), true, true),
        (json!(["balance random"]), true, true),
        (json!(["balance first"]), true, false),
        (json!(["mode tcp", "balance roundrobin"]), true, true),
        (
            json!(["balance source", "hash-type consistent"]),
            true,
            false,
        ),
        (json!(["balance uri", "hash-type map-based"]), false, false),
        (json!(["balance static-rr"]), false, true),
        (
            json!(["cookie SERVER insert indirect nocache"]),
            false,
            true,
        ),
    ] {
        println!("{lines}");
        let mut pair = Pair::start(Way::Supervise).await;
        let tcp = lines[0] == "mode tcp";
        let web = &mut pair.config["services"]["web"]["haproxy"];
        web["backend"] = lines;
        if tcp {
            web["frontend"] = json!(["mode tcp"]);
        }
        let (a, b) = (App::start("a").await, App::start("b").await);
        pair.register(&a).await;
        let synapse = pair.serving().await;
        pair.until(&a, "ready").await;
        in_step(&synapse).await;
        let before = reloads(&synapse).await;
        let traffic = Traffic::start(pair.port).await;
        let node = pair.register(&b).await;
        pair.until(&b, "ready").await;
        in_step(&synapse).await;
        assert_eq!(reloads(&synapse).await == before, at_runtime);
        if spreads {
            traffic.reaches(&b).await;
        }
        // A removal goes at once in every one of them.
        let after = reloads(&synapse).await;
        pair.withdraw(&node).await;
        pair.until(&b, "retired").await;
        traffic.avoids(&b).await;
        assert_eq!(reloads(&synapse).await, after);
        traffic.unharmed().await;
    }
}
