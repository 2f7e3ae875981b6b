//! What the registry may say, or not say, and what the funnel makes of it in a running pair.

use nix::sys::signal::Signal;
use serde_json::json;
use smartstack_common::testing::{App, ZooKeeper, eventually, free_port};

use crate::pair::{Pair, SOON, Way, answer, answers, in_step, status};

#[tokio::test]
async fn an_empty_registry_keeps_the_last_set_or_empties_it_as_configured() {
    let mut pair = Pair::start(Way::Supervise).await;
    let (keep, drop_port) = (pair.port, free_port());
    let (keep_path, drop_path) = (crate::pair::WEB, "/nerve/services/drop/services");
    pair.config["services"]["drop"] = pair.service(drop_path, drop_port);
    pair.config["services"]["drop"]["use_previous_backends"] = json!(false);
    // The guard holds even the last one for a while.
    pair.config["services"]["drop"]["guard"] = json!({"hold": "1s"});
    let (a, b) = (App::start("a").await, App::start("b").await);
    let kept = pair.register_in(keep_path, &a, &json!({})).await;
    let dropped = pair.register_in(drop_path, &b, &json!({})).await;
    let mut synapse = pair.serving().await;
    assert_eq!(answer(keep).await, "a");
    assert_eq!(answer(drop_port).await, "b");
    in_step(&synapse).await;

    pair.withdraw(&kept).await;
    pair.withdraw(&dropped).await;
    answers(drop_port, &["503"]).await;
    let held = |status: &serde_json::Value| {
        let web = &status["services"]["web"];
        web["origin"] == "held" && web["hold"].is_string() && web["fresh"] == true
    };
    status(&synapse, "web is held", held).await;
    answers(keep, &["a"]).await;
    eventually("the hold is written", SOON, async || {
        let text = std::fs::read_to_string(pair.dir.join("snapshot.json")).unwrap();
        let snapshot: serde_json::Value = serde_json::from_str(&text).unwrap();
        if snapshot["body"]["holds"]["web"].is_object() {
            Ok(())
        } else {
            Err(text)
        }
    })
    .await;

    // What is held is on disk a second later at most.
    eventually("the snapshot holds web", SOON, async || {
        let snapshot = std::fs::read_to_string(pair.dir.join("snapshot.json"));
        match snapshot {
            Ok(text) if text.contains("\"holds\":{\"web\"") => Ok(()),
            other => Err(format!("{other:?}")),
        }
    })
    .await;
    // Across restarts of synapse, then of everything, the second time without haproxy.cfg.
    for removed in [None, Some(""), Some("haproxy.cfg")] {
        synapse.signal(Signal::SIGKILL);
        synapse.wait(SOON).await;
        if let Some(name) = removed {
            pair.haproxy.kill();
            if !name.is_empty() {
                std::fs::remove_file(pair.dir.join(name)).unwrap();
            }
        }
        synapse = pair.serving().await;
        status(&synapse, "web is held", held).await;
        answers(keep, &["a"]).await;
        answers(drop_port, &["503"]).await;
        in_step(&synapse).await;
    }

    // A path that is gone altogether is as empty.
    ZooKeeper::wipe(&pair.client, "/nerve").await;
    let c = App::start("c").await;
    answers(keep, &["a"]).await;
    pair.register_in(keep_path, &c, &json!({})).await;
    pair.register_in(drop_path, &c, &json!({})).await;
    answers(keep, &["c"]).await;
    answers(drop_port, &["c"]).await;
    let status = in_step(&synapse).await;
    assert_eq!(status["services"]["web"]["origin"], "live");
}

#[tokio::test]
async fn default_servers_filters_port_override_and_base_in_one_pair() {
    let mut pair = Pair::start(Way::Supervise).await;
    let (a, b, d) = (
        App::start("a").await,
        App::start("b").await,
        App::start("d").await,
    );
    let default = json!([{"name": "default", "host": "127.0.0.1", "port": d.address.port()}]);
    let names = ["fallback", "joined", "filtered", "moved", "base"];
    let ports = names.map(|_| free_port());
    let [fallback, joined, filtered, moved, base] = ports;
    let path = |name: &str| format!("/nerve/services/{name}/services");
    pair.config["services"] = json!({});
    for (name, port) in names.iter().zip(ports) {
        pair.config["services"][name] = pair.service(&path(name), port);
    }
    let services = &mut pair.config["services"];
    services["fallback"]["default_servers"] = default.clone();
    services["joined"]["default_servers"] = default.clone();
    services["joined"]["keep_default_servers"] = json!(true);
    services["filtered"]["discovery"]["label_filters"] =
        json!([{"label": "az", "value": "here", "condition": "equals"}]);
    services["moved"]["backend_port_override"] = json!(a.address.port());
    services["base"] = json!({
        "discovery": {"method": "base"}, "default_servers": default, "haproxy": {"port": base},
    });
    pair.register_in(&path("joined"), &a, &json!({})).await;
    pair.register_in(&path("filtered"), &a, &json!({"labels": {"az": "here"}}))
        .await;
    pair.register_in(&path("filtered"), &b, &json!({"labels": {"az": "there"}}))
        .await;
    pair.register_in(&path("moved"), &b, &json!({})).await;

    let synapse = pair.serving().await;
    answers(fallback, &["d"]).await;
    answers(joined, &["a", "d"]).await;
    answers(filtered, &["a"]).await;
    answers(moved, &["a"]).await;
    answers(base, &["d"]).await;
    let status = in_step(&synapse).await;
    let services = &status["services"];
    assert_eq!(services["fallback"]["origin"], "defaults");
    assert_eq!(services["joined"]["origin"], "live");
    assert_eq!(services["base"]["origin"], "defaults");
    let others = services["filtered"]["filtered"].as_object().unwrap();
    assert_eq!(others.len(), 1, "{others:?}");

    // A first instance takes over from the default server; the default server takes over from the last one.
    let node = pair.register_in(&path("fallback"), &a, &json!({})).await;
    answers(fallback, &["a"]).await;
    pair.withdraw(&node).await;
    answers(fallback, &["d"]).await;
    in_step(&synapse).await;
}
