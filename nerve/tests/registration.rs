//! The real nerve on a real ZooKeeper: what it writes, when it takes it back, and what no fault may make it do.

mod local;
mod rig;

use std::collections::BTreeSet;
use std::process::Command;
use std::time::Duration;

use nix::sys::signal::Signal;
use serde_json::json;
use smartstack_common::testing::{
    Behaviour, Cut, Dir, Mode, Program, TcpProxy, ZooKeeper, eventually, free_port,
};
use zookeeper_client::Acls;

use self::rig::{Host, Observer, PARENT, SOON};

#[tokio::test]
async fn writes_what_ruby_writes_and_one_key_more_and_follows_the_checks() {
    let host = Host::start().await;
    let (mut nerve, _) = host.nerve().await;
    assert_eq!(host.one_node("").await, "i-0a1b2c3d_0000000000");
    let path = format!("{PARENT}/i-0a1b2c3d_0000000000");
    let (data, stat) = host.client.get_data(&path).await.unwrap();
    assert_eq!(
        String::from_utf8(data).unwrap(),
        r#"{"host":"10.0.0.12","port":3000,"name":"i-0a1b2c3d","weight":2,"haproxy_server_options":"backup","labels":{"az":"us-east-1a"},"announces":true}"#
    );
    assert_eq!(stat.version, 0);
    assert_ne!(stat.ephemeral_owner, 0);
    let (acl, _) = host.client.get_acl(&path).await.unwrap();
    assert_eq!(acl, Acls::anyone_all().iter().cloned().collect::<Vec<_>>());
    for parent in ["/nerve", "/nerve/services", "/nerve/services/web", PARENT] {
        let (data, stat) = host.client.get_data(parent).await.unwrap();
        assert!(data.is_empty() && stat.ephemeral_owner == 0, "{parent}");
        let (acl, _) = host.client.get_acl(parent).await.unwrap();
        assert_eq!(acl, Acls::anyone_all().iter().cloned().collect::<Vec<_>>());
    }
    assert!(host.dir.join("heartbeat").exists());
    let status = nerve.status().await;
    assert_eq!(status["schema"], 1);
    assert_eq!(status["services"]["web"]["health"], "up");
    assert_eq!(
        status["services"]["web"]["registrations"][0]["node"],
        "i-0a1b2c3d_0000000000"
    );

    host.app.set(Behaviour::Unhealthy);
    host.no_node().await;
    assert_eq!(
        nerve.status().await["services"]["web"]["checks"][0]["error"],
        "status 503"
    );
    host.app.set(Behaviour::Healthy);
    assert_eq!(host.one_node("").await, "i-0a1b2c3d_0000000001");

    host.client
        .delete(&format!("{PARENT}/i-0a1b2c3d_0000000001"), None)
        .await
        .unwrap();
    assert_eq!(
        host.one_node("").await,
        "i-0a1b2c3d_0000000002",
        "a node deleted by hand comes back"
    );

    nerve.signal(Signal::SIGTERM);
    assert_eq!(nerve.wait(SOON).await.code(), Some(0));
    assert_eq!(
        host.nodes().await,
        Vec::<String>::new(),
        "withdrawn before the exit"
    );
}

#[tokio::test]
async fn a_service_that_starts_down_creates_nothing() {
    let host = Host::start().await;
    host.app.set(Behaviour::Unhealthy);
    let (mut nerve, _) = host.nerve().await;
    eventually(
        "connected",
        SOON,
        async || match nerve.status().await["zookeeper"][0]["state"].as_str() {
            Some("live") => Ok(()),
            other => Err(format!("{other:?}")),
        },
    )
    .await;
    assert!(host.client.check_stat("/nerve").await.unwrap().is_none());
    nerve.signal(Signal::SIGTERM);
    assert_eq!(nerve.wait(SOON).await.code(), Some(0));
}

/// The successor swaps its predecessor's node in one transaction, and its own outlives the old session.
#[tokio::test]
async fn a_killed_nerve_leaves_no_twin_and_no_hole() {
    let host = Host::start().await;
    let (mut nerve, _) = host.nerve().await;
    let old = host.one_node("").await;
    let old_owner = host.owner(&old).await;
    let observer = Observer::start(&host).await;
    nerve.signal(Signal::SIGKILL);
    nerve.wait(SOON).await;
    let half_written = host.dir.write(".state.json.tmp-x7Yz01", "{");
    // One failed check at the start takes nobody out: `fall` is 2.
    host.app.set(Behaviour::Unhealthy);
    let (mut nerve, _) = {
        let app = host.app.state.clone();
        let checks = app.checks();
        let recovery = eventually("one failed check", SOON, async || {
            let asked = app.checks() > checks;
            if asked { Ok(()) } else { Err("not asked yet") }
        });
        let recovery = async {
            recovery.await;
            app.set(Behaviour::Healthy);
        };
        tokio::join!(host.nerve(), recovery).0
    };
    let new = host.one_node(&old).await;
    assert_ne!(host.owner(&new).await, old_owner);
    eventually("the old session is gone", SOON, async || {
        let dump = host.zookeeper.four_letters(0, "dump").await;
        if dump.contains(&format!("{old_owner:x}")) {
            Err("still there")
        } else {
            Ok(())
        }
    })
    .await;
    assert_eq!(host.nodes().await, std::slice::from_ref(&new));
    let one = |name: &String| BTreeSet::from([name.clone()]);
    assert_eq!(observer.sets(), [one(&old), one(&new)]);
    assert!(!half_written.exists(), "left for ever");
    nerve.signal(Signal::SIGTERM);
    assert_eq!(nerve.wait(SOON).await.code(), Some(0));
}

/// Frozen past its session's end: it comes back only with a fresh check, and not at all if that fails.
#[tokio::test]
async fn an_expired_session_is_replaced_after_a_fresh_check() {
    let host = Host::start().await;
    let (nerve, _) = host.nerve().await;
    let first = host.one_node("").await;
    nerve.signal(Signal::SIGSTOP);
    host.no_node().await;
    nerve.signal(Signal::SIGCONT);
    let second = host.one_node(&first).await;

    nerve.signal(Signal::SIGSTOP);
    host.no_node().await;
    host.app.set(Behaviour::Unhealthy);
    let observer = Observer::start(&host).await;
    nerve.signal(Signal::SIGCONT);
    eventually("down", SOON, async || match nerve.status().await {
        status
            if status["services"]["web"]["health"] == "down"
                && status["zookeeper"][0]["state"] == "live" =>
        {
            Ok(())
        }
        status => Err(status.to_string()),
    })
    .await;
    assert_eq!(
        observer.sets(),
        [BTreeSet::new()],
        "registered on a result from before the stop"
    );
    host.app.set(Behaviour::Healthy);
    assert_ne!(host.one_node("").await, second);
}

#[tokio::test]
async fn cuts_neither_remove_nor_double_the_node() {
    let host = Host::start().await;
    let proxy = TcpProxy::start(&host.zookeeper.host(0)).await;
    let (nerve, _) = host.nerve_with(&proxy.host(), &json!({})).await;
    let node = host.one_node("").await;
    let observer = Observer::start(&host).await;
    for round in 0..10 {
        let accepted = proxy.accepted();
        proxy
            .cut(if round % 2 == 0 {
                Cut::Reset
            } else {
                Cut::Close
            })
            .await;
        eventually("connected again", SOON, async || {
            match nerve.status().await["zookeeper"][0]["state"].as_str() {
                Some("live") if proxy.accepted() > accepted => Ok(()),
                other => Err(format!("{other:?}")),
            }
        })
        .await;
    }
    proxy.set(Mode::Refuse).await;
    eventually(
        "suspended",
        SOON,
        async || match nerve.status().await["zookeeper"][0]["state"].as_str() {
            Some("live") => Err("live"),
            _ => Ok(()),
        },
    )
    .await;
    proxy.set(Mode::Pass).await;
    eventually(
        "live again",
        SOON,
        async || match nerve.status().await["zookeeper"][0]["state"].as_str() {
            Some("live") => Ok(()),
            other => Err(format!("{other:?}")),
        },
    )
    .await;
    assert_eq!(observer.sets(), [BTreeSet::from([node])]);
}

/// The reply to a creation is lost at every place of the conversation: one node in the end, never two.
#[tokio::test]
async fn a_lost_reply_makes_no_duplicate() {
    let host = Host::start().await;
    let proxy = TcpProxy::start(&host.zookeeper.host(0)).await;
    let (mut nerve, _) = host.nerve_with(&proxy.host(), &json!({})).await;
    host.one_node("").await;
    let observer = Observer::start(&host).await;
    for bytes in [1, 30, 60, 90, 120, 150, 200] {
        host.app.set(Behaviour::Unhealthy);
        host.no_node().await;
        proxy.cut(Cut::After(bytes)).await;
        host.app.set(Behaviour::Healthy);
        host.one_node("").await;
    }
    let crowds: Vec<_> = observer
        .sets()
        .into_iter()
        .filter(|set| set.len() > 1)
        .collect();
    assert_eq!(crowds, Vec::<BTreeSet<String>>::new());
    nerve.signal(Signal::SIGTERM);
    assert_eq!(nerve.wait(SOON).await.code(), Some(0));
}

/// Two nerves with one configuration: each has its node or reports that it cannot, and neither goes to war.
#[tokio::test]
async fn two_nerves_on_one_config_do_not_fight() {
    two_nerves("ephemeral_sequential", 2).await;
}

#[tokio::test]
async fn two_nerves_on_one_fixed_name_do_not_fight() {
    two_nerves("ephemeral", 1).await;
}

/// Two nerves with one configuration for a minute: long enough for a war of any kind (a verification, a watch, a retry).
async fn two_nerves(node_type: &str, nodes: usize) {
    let mut host = Host::start().await;
    let changes = json!({"node_type": node_type});
    let (first, _) = host.nerve_with(&host.zookeeper.hosts(), &changes).await;
    host.one_node("").await;
    host.socket = "second.sock";
    let (second, _) = host.nerve_with(&host.zookeeper.hosts(), &changes).await;
    for nerve in [&first, &second] {
        eventually(
            "the other one is reported or displaced",
            SOON * 3,
            async || {
                let status = nerve.status().await;
                let reported = status["warnings"]
                    .as_array()
                    .is_some_and(|warnings| !warnings.is_empty());
                let alone = status["services"]["web"]["registrations"][0]["observed"] == "present"
                    && nodes == 1;
                if reported || alone {
                    Ok(())
                } else {
                    Err(status.to_string())
                }
            },
        )
        .await;
    }
    let mut looks = tokio::time::interval(Duration::from_millis(500));
    let mut writes = 0.0;
    for _ in 0..120 {
        looks.tick().await;
        writes = 0.0;
        for nerve in [&first, &second] {
            for result in ["registered", "withdrawn", "failed"] {
                let hosts = host.zookeeper.hosts();
                let name = format!(r#"nerve_zk_writes_total{{hosts="{hosts}",result="{result}"}}"#);
                writes += nerve.metric(&name).await.unwrap_or(0.0);
            }
        }
        assert!(writes <= 4.0, "{node_type}: {writes} writes");
        assert_eq!(host.nodes().await.len(), nodes);
    }
    assert!(writes >= 2.0, "{node_type}: {writes} writes");
}

#[tokio::test]
async fn hup_swaps_a_changed_weight_and_ignores_a_broken_file() {
    let host = Host::start().await;
    let (nerve, admin) = host.nerve().await;
    let old = host.one_node("").await;
    let observer = Observer::start(&host).await;
    let checked = host.app.state.checks();
    host.write(&host.config(&admin, &host.zookeeper.hosts(), &json!({"weight": 9})));
    nerve.signal(Signal::SIGHUP);
    let new = host.one_node(&old).await;
    assert_eq!(new, "i-0a1b2c3d_0000000001");
    let (data, _) = host
        .client
        .get_data(&format!("{PARENT}/{new}"))
        .await
        .unwrap();
    assert!(String::from_utf8(data).unwrap().contains(r#""weight":9"#));
    assert!(host.app.state.checks() >= checked);

    let _path = host.dir.write("nerve.json", "{\"services\": [");
    nerve.signal(Signal::SIGHUP);
    eventually("the refusal is counted", SOON, async || {
        match nerve
            .metric(r#"nerve_config_reloads_total{result="failed"}"#)
            .await
        {
            Some(1.0) => Ok(()),
            other => Err(format!("{other:?}")),
        }
    })
    .await;
    assert_eq!(nerve.status().await["services"]["web"]["health"], "up");

    // To another path: registered there before it leaves here.
    let elsewhere = json!({"weight": 9, "zk_path": "/moved/web"});
    host.write(&host.config(&admin, &host.zookeeper.hosts(), &elsewhere));
    nerve.signal(Signal::SIGHUP);
    host.no_node().await;
    assert_eq!(ZooKeeper::list(&host.client, "/moved/web").await.len(), 1);
    let moved: i64 = host
        .client
        .check_stat("/moved/web/i-0a1b2c3d_0000000000")
        .await
        .unwrap()
        .unwrap()
        .czxid;
    let gone = host.client.check_stat(PARENT).await.unwrap().unwrap().pzxid;
    assert!(moved < gone, "made before broken");

    let mut empty = host.config(&admin, &host.zookeeper.hosts(), &json!({}));
    empty["services"] = json!({});
    host.write(&empty);
    nerve.signal(Signal::SIGHUP);
    eventually(
        "a removed service is withdrawn",
        SOON,
        async || match &ZooKeeper::list(&host.client, "/moved/web").await[..] {
            [] => Ok(()),
            other => Err(format!("{other:?}")),
        },
    )
    .await;
    let one = |name: &String| BTreeSet::from([name.clone()]);
    assert_eq!(
        observer.sets(),
        [one(&old), one(&new), BTreeSet::new()],
        "never a hole in a swap"
    );
}

#[tokio::test]
async fn without_zookeeper_it_checks_starts_and_stops_all_the_same() {
    let mut host = Host::start().await;
    host.zookeeper.stop_all();
    let (mut nerve, _) = host.nerve().await;
    assert_eq!(nerve.status().await["services"]["web"]["health"], "up");
    host.zookeeper.start_all().await;
    host.one_node("").await;
    host.zookeeper.stop_all();
    nerve.signal(Signal::SIGTERM);
    assert_eq!(nerve.wait(Duration::from_secs(15)).await.code(), Some(0));
    assert!(nerve.process().log_tail().contains("not withdrawn"));
}

#[tokio::test]
async fn exit_codes() {
    let dir = Dir::new();
    let program = Program::path("nerve");
    let good = dir.write("good.json", r#"{"instance_id": "i", "services": {}}"#);
    let bad = dir.write(
        "bad.json",
        r#"{"instance_id": "i", "services": {"web": {"host": 1}}}"#,
    );
    let admin = format!(
        r#"{{"instance_id": "i", "services": {{}}, "admin": {{"bind": "127.0.0.1:{}"}}}}"#,
        free_port()
    );
    let nowhere = dir.write("nowhere.json", admin);
    let nowhere = nowhere.to_str().unwrap();
    let (good, bad) = (good.to_str().unwrap(), bad.to_str().unwrap());
    for (arguments, variables, code) in [
        (&["-c", good, "-k"][..], &[][..], 0),
        (&["check"], &[("NERVE_CONFIG", good)], 0),
        (&["-c", good], &[("NERVE_CHECK_CONFIG", "true")], 0),
        (&["-c", bad, "-k"], &[], 78),
        (&["-c", bad], &[], 78),
        (
            &["-c", "/nonexistent"],
            &[("NERVE_CHECK_CONFIG", "false")],
            78,
        ),
        (&[], &[("NERVE_CONFIG", "")], 64),
        (&["--nonsense"], &[], 64),
        (&["-c", good, "stray"], &[], 64),
        (&["--version"], &[], 0),
        (&["schema"], &[], 0),
        (&["completions", "bash"], &[], 0),
        (&["status", "-c", nowhere], &[], 1),
    ] {
        let output = Command::new(&program)
            .args(arguments)
            .env_remove("NERVE_CONFIG")
            .envs(variables.iter().copied())
            .output()
            .unwrap();
        let told = String::from_utf8_lossy(&output.stderr);
        assert_eq!(
            output.status.code(),
            Some(code),
            "{arguments:?} {variables:?}: {told}"
        );
        assert_eq!(told.is_empty(), code == 0, "{arguments:?}: {told}");
    }
    // The admin address that the configuration names is another program's.
    let other = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let taken = other.local_addr().unwrap().to_string();
    let config = dir.write(
        "taken.json",
        format!(r#"{{"instance_id": "i", "services": {{}}, "admin": {{"bind": "{taken}"}}}}"#),
    );
    let output = Command::new(&program).arg("-c").arg(config).output();
    let output = output.unwrap();
    let told = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{told}");
    assert!(told.contains(&taken), "{told}");
}
