//! Draining and several ensembles, on the real nerve: what an operator orders, and what stays when one ensemble goes.

#![expect(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

mod orders;
mod removed;
mod rig;

use std::path::Path;
use std::process::Output;

use nix::sys::signal::Signal;
use serde_json::{Value, json};
use smartstack_common::admin::Bind;
use smartstack_common::testing::{
    App, Behaviour, Mode, Program, TcpProxy, ZooKeeper, eventually, free_port,
};

use self::rig::{Host, PARENT, SOON, What, Witness};

/// Runs `nerve COMMAND -c CONFIG ARGUMENTS`.
async fn order(host: &Host, command: &str, arguments: &[&str]) -> Output {
    tokio::process::Command::new(Program::path("nerve"))
        .arg(command)
        .arg("-c")
        .arg(host.dir.join("nerve.json"))
        .args(arguments)
        .env_remove("NERVE_CONFIG")
        .output()
        .await
        .unwrap()
}

fn told(output: &Output) -> (Option<i32>, String) {
    let text = [&output.stdout[..], &output.stderr[..]].concat();
    (
        output.status.code(),
        String::from_utf8_lossy(&text).into_owned(),
    )
}

/// Runs a command that must succeed.
async fn done(host: &Host, command: &str, arguments: &[&str]) -> String {
    let (code, text) = told(&order(host, command, arguments).await);
    assert_eq!(code, Some(0), "{command} {arguments:?}: {text}");
    text
}

/// Runs a command that must fail with 1, and returns what it says.
async fn refused(host: &Host, command: &str, arguments: &[&str]) -> String {
    let (code, text) = told(&order(host, command, arguments).await);
    assert_eq!(code, Some(1), "{command} {arguments:?}: {text}");
    text
}

fn holds(path: &Path) -> Value {
    let state: Value = serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
    state["holds"].clone()
}

#[tokio::test]
async fn a_drained_service_stays_out_until_enable_across_restarts() {
    let host = Host::start().await;
    let (mut nerve, _) = host.nerve().await;
    let node = host.one_node("").await;
    let witness = Witness::start(host.zookeeper.connect().await).await;
    assert_eq!(done(&host, "drain", &["web"]).await, "web: withdrawn\n");
    assert_eq!(
        host.nodes().await,
        Vec::<String>::new(),
        "gone before the reply"
    );
    let announced = [(What::Changed, node.clone()), (What::Deleted, node)];
    assert_eq!(witness.wait(2).await, announced);
    let status = nerve.status().await;
    let web = &status["services"]["web"];
    assert_eq!(web["held"]["by"], "drain");
    assert!(web["held"]["since"].as_f64().unwrap() > 1e9);
    assert_eq!(web["health"], "up", "still checked");
    assert_eq!(web["registrations"][0]["wanted"], "absent: drained");
    let metric = r#"nerve_service_held{service="web",by="drain"}"#;
    assert_eq!(nerve.metric(metric).await, Some(1.0));
    let since = holds(&host.dir.join("state.json"))["web"]["since"].clone();
    done(&host, "drain", &["--all"]).await;
    assert_eq!(holds(&host.dir.join("state.json"))["web"]["since"], since);

    nerve.signal(Signal::SIGKILL);
    nerve.wait(SOON).await;
    (nerve, _) = host.nerve().await;
    eventually("confirmed absent", SOON, async || {
        let status = nerve.status().await;
        let place = &status["services"]["web"]["registrations"][0];
        match (place["wanted"].as_str(), place["observed"].as_str()) {
            (Some("absent: drained"), Some("absent")) => Ok(()),
            _ => Err(status.to_string()),
        }
    })
    .await;
    nerve.signal(Signal::SIGUSR2);
    assert_eq!(nerve.wait(SOON).await.code(), Some(0));
    (nerve, _) = host.nerve().await;
    nerve.signal(Signal::SIGHUP);
    eventually("reloaded", SOON, async || {
        let count = nerve
            .metric(r#"nerve_config_reloads_total{result="ok"}"#)
            .await;
        if count == Some(1.0) {
            Ok(())
        } else {
            Err(format!("{count:?}"))
        }
    })
    .await;
    assert_eq!(witness.told(), announced, "registered while drained");
    done(&host, "enable", &["web"]).await;
    host.one_node("").await;
    assert_eq!(nerve.metric(metric).await, None);
    assert_eq!(holds(&host.dir.join("state.json")), Value::Null);
}

/// Two services that make one payload on one path, as Airbnb's cookbook writes them: each has its node, and when one of them is
/// drained, or down, the other's stays.
#[tokio::test]
async fn of_two_services_with_one_payload_one_is_drained() {
    let host = Host::start().await;
    let admin = Bind::Tcp(format!("127.0.0.1:{}", free_port()));
    let mut config = host.config(&admin, &host.zookeeper.hosts(), &json!({}));
    let sick = App::start("sick").await;
    let mut other = config["services"]["web"].clone();
    other["checks"][0]["port"] = json!(sick.address.port());
    config["services"]["other"] = other;
    host.write(&config);
    let nerve = host.launch(&admin).await;
    let two = async || {
        eventually("two nodes", SOON, async || match host.nodes().await {
            nodes if nodes.len() == 2 => Ok(()),
            other => Err(other.join(" ")),
        })
        .await;
    };
    two().await;
    let witness = Witness::start(host.zookeeper.connect().await).await;
    let mut events = 0;
    for round in 0..2 {
        // `other` goes; `web` stays.
        if round == 0 {
            done(&host, "drain", &["other"]).await;
        } else {
            sick.set(Behaviour::Unhealthy);
        }
        let left = host.one_node("").await;
        // Marked and deleted: nothing else, for sixty rounds of checks.
        events += 2;
        witness.wait(events).await;
        let checks = host.app.state.checks();
        eventually("60 checks more", SOON, async || {
            match host.app.state.checks() - checks {
                60.. => Ok(()),
                fewer => Err(fewer),
            }
        })
        .await;
        assert_eq!(witness.told().len(), events, "{:?}", witness.told());
        assert_eq!(host.nodes().await, [left]);
        let status = nerve.status().await;
        let web = &status["services"]["web"]["registrations"][0];
        assert_eq!(web["observed"], "present", "{status:#}");
        if round == 0 {
            done(&host, "enable", &["other"]).await;
        } else {
            sick.set(Behaviour::Healthy);
        }
        two().await;
        events += 1;
    }
    witness.wait(events).await;
    println!(
        "fault: of two services with one payload one is drained, then down: {} events of the registry, as many as it takes; \
         the other's node stayed",
        witness.told().len()
    );
}

/// While nerve is cut off its configuration changes: what it wants, what it saw last and when, and what nobody wants any more,
/// are all in its status.
#[tokio::test]
async fn what_is_kept_during_a_cut_is_told() {
    let host = Host::start().await;
    let proxy = TcpProxy::start(&host.zookeeper.host(0)).await;
    let admin = Bind::Tcp(format!("127.0.0.1:{}", free_port()));
    let mut config = host.config(&admin, &proxy.host(), &json!({}));
    let mut other = config["services"]["web"].clone();
    other["port"] = json!(3001);
    config["services"]["gone"] = other;
    host.write(&config);
    let nerve = host.launch(&admin).await;
    let status = async |what: &str, holds: fn(&Value) -> bool| {
        eventually(what, SOON, async || match nerve.status().await {
            status if holds(&status) => Ok(status),
            status => Err(format!("{status:#}")),
        })
        .await
    };
    let place = |status: &Value| status["services"]["web"]["registrations"][0].clone();
    let synced = |status: &Value| {
        let services = status["services"].as_object().unwrap();
        let places = services.values().map(|s| &s["registrations"][0]["in_sync"]);
        places.into_iter().all(|in_sync| in_sync == true) && status["left_over"] == json!([])
    };
    let before = place(&status("both are registered", synced).await);
    assert_eq!(before["payload"], before["observed_payload"]);
    assert_eq!(before["payload"]["weight"], 2);

    proxy.set(Mode::Refuse).await;
    config["services"]["web"]["weight"] = json!(7);
    config["services"].as_object_mut().unwrap().remove("gone");
    host.write(&config);
    nerve.signal(Signal::SIGHUP);
    let cut = status("it knows of a node nobody wants", |status| {
        status["left_over"] != json!([]) && status["zookeeper"][0]["state"] != "live"
    })
    .await;
    let web = place(&cut);
    assert_eq!(
        (&web["wanted"], &web["observed"], &web["in_sync"]),
        (&json!("present"), &json!("present"), &json!(false)),
        "{cut:#}"
    );
    assert_eq!(web["payload"]["weight"], 7);
    assert_eq!(web["observed_payload"], before["observed_payload"]);
    let (seen, then) = (web["observed_at"].as_f64(), before["observed_at"].as_f64());
    assert!((seen.unwrap() - then.unwrap()).abs() < 0.1, "{web}");
    let left = &cut["left_over"][0];
    assert_eq!(
        (&left["service"], &left["path"]),
        (&json!("gone"), &json!(PARENT))
    );
    let warned = cut["warnings"].to_string();
    assert!(
        warned.contains("of the removed service `gone` still stands"),
        "{warned}"
    );
    let metrics = nerve.get("/metrics").await.unwrap().body;
    let in_sync = metrics
        .lines()
        .filter(|line| line.starts_with("nerve_in_sync{"));
    let in_sync: Vec<&str> = in_sync.collect();
    assert!(
        matches!(&in_sync[..], [one] if one.ends_with(" 0")),
        "{in_sync:?}"
    );
    let shown = done(&host, "status", &[]).await;
    assert!(
        shown.contains("wanted present, present, with another payload"),
        "{shown}"
    );

    proxy.set(Mode::Pass).await;
    let after = place(&status("all is as wanted", synced).await);
    assert_eq!(after["observed_payload"]["weight"], 7);
    let node = host.one_node("").await;
    assert_eq!(after["node"], node);
}

#[tokio::test]
async fn a_disabled_service_is_not_checked() {
    let host = Host::start().await;
    let (mut nerve, _) = host.nerve().await;
    let node = host.one_node("").await;
    done(&host, "disable", &["web"]).await;
    assert_eq!(host.nodes().await, Vec::<String>::new());
    eventually("the checks rest", SOON, async || {
        let status = nerve.status().await;
        let health = &status["services"]["web"]["health"];
        if health.is_null() {
            Ok(())
        } else {
            Err(health.to_string())
        }
    })
    .await;
    let checks = host.app.state.checks();
    nerve.signal(Signal::SIGTERM);
    nerve.wait(SOON).await;
    // Ready, though its only check never runs.
    (nerve, _) = host.nerve().await;
    assert_eq!(
        nerve.status().await["services"]["web"]["held"]["by"],
        "disable"
    );
    assert_eq!(host.app.state.checks(), checks, "checked while disabled");
    // What is found after `enable` counts, not what was known before.
    host.app.set(Behaviour::Unhealthy);
    done(&host, "enable", &["--all"]).await;
    eventually("down", SOON, async || {
        let status = nerve.status().await;
        let health = &status["services"]["web"]["health"];
        if health == "down" {
            Ok(())
        } else {
            Err(health.to_string())
        }
    })
    .await;
    assert_eq!(host.nodes().await, Vec::<String>::new());
    host.app.set(Behaviour::Healthy);
    host.one_node(&node).await;
}

#[tokio::test]
async fn what_cannot_be_done_is_said() {
    let mut host = Host::start().await;
    let (mut nerve, _) = host.nerve().await;
    host.one_node("").await;
    let text = refused(&host, "drain", &["nonsense"]).await;
    assert!(
        text.contains("no service `nonsense`; there are: web"),
        "{text}"
    );
    let (code, text) = told(&order(&host, "drain", &[]).await);
    assert_eq!(code, Some(64), "{text}");

    // A folder where the state's lock should be: not even root can open it.
    let state = host.dir.join("state.json");
    let lock = host.dir.join("state.lock");
    std::fs::remove_file(&lock).unwrap();
    std::fs::create_dir(&lock).unwrap();
    let text = refused(&host, "drain", &["web"]).await;
    assert!(
        text.contains("nothing is changed") && text.contains("state.lock"),
        "{text}"
    );
    assert_eq!(nerve.status().await["services"]["web"]["held"], Value::Null);
    assert_eq!(holds(&state), Value::Null);
    assert_eq!(host.nodes().await.len(), 1);
    std::fs::remove_dir(&lock).unwrap();

    // A second nerve does not take the socket of the first.
    let second = tokio::process::Command::new(Program::path("nerve"))
        .arg("-c")
        .arg(host.dir.write(
            "second.json",
            json!({
                "instance_id": "i", "services": {}, "admin": {"bind": "127.0.0.1:0", "socket": host.dir.join("nerve.sock")},
                "state_path": host.dir.join("second-state.json"),
            })
            .to_string(),
        ))
        .output()
        .await
        .unwrap();
    let (code, text) = told(&second);
    assert_eq!(code, Some(1), "{text}");
    assert!(
        text.contains("nerve.sock") && text.contains("another process"),
        "{text}"
    );

    host.zookeeper.stop_all();
    eventually("connection lost", SOON, async || {
        match nerve.status().await["zookeeper"][0]["state"].as_str() {
            Some("live") => Err("live"),
            _ => Ok(()),
        }
    })
    .await;
    let text = refused(&host, "drain", &["web"]).await;
    assert!(
        text.contains("not withdrawn yet") && text.contains("zookeeper is"),
        "{text}"
    );
    assert_eq!(
        nerve.status().await["services"]["web"]["held"]["by"],
        "drain"
    );
    host.zookeeper.start_all().await;
    host.client = host.zookeeper.connect().await;
    host.no_node().await;

    nerve.signal(Signal::SIGTERM);
    nerve.wait(SOON).await;
    let text = refused(&host, "enable", &["web"]).await;
    assert!(text.contains("does nerve run?"), "{text}");
}

/// One service in two ensembles; either goes for good, and nothing changes in the other.
#[tokio::test]
async fn two_ensembles_are_independent() {
    let mut host = Host::start().await;
    let mut other = ZooKeeper::start().await;
    let client = other.connect().await;
    let reporters = json!({"reporters": [{"zk_hosts": [other.hosts()], "zk_path": PARENT}]});
    let first = host.zookeeper.hosts();
    let (mut nerve, _) = host.nerve_with(&first, &reporters).await;
    let node = host.one_node("").await;
    let there = async |client: &zookeeper_client::Client, count: usize| {
        eventually("nodes in the other ensemble", SOON, async || {
            let nodes = ZooKeeper::list(client, PARENT).await;
            if nodes.len() == count {
                Ok(())
            } else {
                Err(format!("{nodes:?}"))
            }
        })
        .await;
    };
    there(&client, 1).await;
    for hosts in [&first, &other.hosts()] {
        eventually("each place is shown", SOON, async || {
            let status = nerve.status().await;
            let places = status["services"]["web"]["registrations"]
                .as_array()
                .unwrap();
            let stands = |p: &Value| p["hosts"] == **hosts && p["node"] == node;
            if places.len() == 2 && places.iter().any(stands) {
                Ok(())
            } else {
                Err(status.to_string())
            }
        })
        .await;
        let metric =
            format!(r#"nerve_registered{{service="web",hosts="{hosts}",path="{PARENT}"}}"#);
        assert_eq!(nerve.metric(&metric).await, Some(1.0));
    }

    let witness = Witness::start(host.zookeeper.connect().await).await;
    other.stop_all();
    eventually("the other one is lost", SOON, async || {
        let status = nerve.status().await;
        let links = status["zookeeper"].as_array().unwrap().clone();
        let state = |hosts: &str| {
            links
                .iter()
                .find(|l| l["hosts"] == hosts)
                .map(|l| l["state"].clone())
        };
        match (state(&first), state(&other.hosts())) {
            (Some(one), Some(two)) if one == "live" && two != "live" => Ok(()),
            _ => Err(status.to_string()),
        }
    })
    .await;
    // Follows its checks in the ensemble that is left, as if there were no other.
    host.app.set(Behaviour::Unhealthy);
    host.no_node().await;
    host.app.set(Behaviour::Healthy);
    let second = host.one_node(&node).await;
    let expected = [
        (What::Changed, node.clone()),
        (What::Deleted, node),
        (What::Created, second.clone()),
    ];
    assert_eq!(witness.told(), expected);
    // Drained where it can be; the other ensemble is named.
    let text = refused(&host, "drain", &["web"]).await;
    assert!(
        text.contains(&other.hosts()) && !text.contains(&first),
        "{text}"
    );
    host.no_node().await;
    done(&host, "enable", &["web"]).await;
    host.one_node(&second).await;

    // The other way round, with a change of the configuration: only the second place is left in it.
    other.start_all().await;
    let client = other.connect().await;
    there(&client, 1).await;
    host.zookeeper.stop_all();
    let text = std::fs::read_to_string(host.dir.join("nerve.json")).unwrap();
    let mut config: Value = serde_json::from_str(&text).unwrap();
    let web = config["services"]["web"].as_object_mut().unwrap();
    web.remove("zk_hosts");
    web.remove("zk_path");
    web.insert("weight".to_owned(), json!(7));
    host.write(&config);
    nerve.signal(Signal::SIGHUP);
    eventually("the new weight", SOON, async || {
        let nodes = ZooKeeper::list(&client, PARENT).await;
        let [node] = &nodes[..] else {
            return Err(format!("{nodes:?}"));
        };
        let (data, _) = client
            .get_data(&format!("{PARENT}/{node}"))
            .await
            .map_err(|e| e.to_string())?;
        let data = String::from_utf8_lossy(&data).into_owned();
        if data.contains(r#""weight":7"#) {
            Ok(())
        } else {
            Err(data)
        }
    })
    .await;
    nerve.signal(Signal::SIGTERM);
    assert_eq!(nerve.wait(SOON * 2).await.code(), Some(0));
    there(&client, 0).await;
}
