//! What the configuration does not name any more: ensembles, services, checks. Nothing of it is shown, kept open or asked.

use nix::sys::signal::Signal;
use serde_json::{Value, json};
use smartstack_common::admin::Bind;
use smartstack_common::testing::{
    App, Behaviour, Mode, Program, TcpProxy, ZooKeeper, eventually, free_port,
};

use crate::rig::{Host, PARENT, SOON};

/// Waits until neither page says any of `words`, or for each of those that are `shown` until one does.
async fn pages(nerve: &Program, shown: &[&str], words: &[&str]) {
    eventually("the pages name what they should", SOON * 3, async || {
        let status = nerve.status().await.to_string();
        let metrics = nerve.get("/metrics").await.unwrap().body;
        let lines = metrics.lines().filter(|line| !line.starts_with('#'));
        let metrics: Vec<&str> = lines.collect();
        for word in words {
            if status.contains(word) {
                return Err(format!("`{word}` in the status: {status}"));
            }
            if let Some(line) = metrics.iter().find(|line| line.contains(word)) {
                return Err(format!("`{word}`: {line}"));
            }
        }
        for word in shown {
            if !status.contains(word) || !metrics.iter().any(|line| line.contains(word)) {
                return Err(format!("no `{word}`: {status} {metrics:?}"));
            }
        }
        Ok(())
    })
    .await;
}

async fn reload(host: &Host, nerve: &Program, config: &Value) {
    let ok = r#"nerve_config_reloads_total{result="ok"}"#;
    let before = nerve.metric(ok).await.unwrap_or_default();
    host.write(config);
    nerve.signal(Signal::SIGHUP);
    eventually("it is reloaded", SOON, async || {
        match nerve.metric(ok).await {
            Some(now) if now > before => Ok(()),
            other => Err(format!("{other:?}")),
        }
    })
    .await;
}

/// The configuration with one service more for each name, at that host of a ZooKeeper.
fn with(config: &Value, others: &[(&str, &str)]) -> Value {
    let mut config = config.clone();
    for (name, hosts) in others {
        let mut service = config["services"]["web"].clone();
        service["zk_hosts"] = json!([hosts]);
        service["zk_path"] = json!(format!("/of/{name}"));
        config["services"][*name] = service;
    }
    config
}

/// One that refuses, one that takes connections and says nothing, one that has no address: none was ever reached.
#[tokio::test]
async fn an_ensemble_that_was_never_reached_is_gone_with_its_last_service() {
    let host = Host::start().await;
    let silent = TcpProxy::start(&host.zookeeper.host(0)).await;
    silent.set(Mode::Blackhole).await;
    let refusing = TcpProxy::start(&host.zookeeper.host(0)).await;
    refusing.set(Mode::Refuse).await;
    let (silent_host, refusing_host) = (silent.host(), refusing.host());
    let others = [
        ("far-refused", &*refusing_host),
        ("far-unheard", &*silent_host),
        ("far-nowhere", "no-such-host.invalid:2181"),
    ];
    let words: Vec<&str> = others
        .iter()
        .flat_map(|(name, hosts)| [*name, *hosts])
        .collect();
    let admin = Bind::Tcp(format!("127.0.0.1:{}", free_port()));
    let base = host.config(&admin, &host.zookeeper.hosts(), &json!({}));
    host.write(&with(&base, &others));
    let mut nerve = host.launch(&admin).await;
    let node = host.one_node("").await;
    pages(&nerve, &words, &[]).await;
    eventually("it asks", SOON, async || match silent.open() {
        0 => Err("no connection"),
        _ => Ok(()),
    })
    .await;

    // One of the three stays, with another service that is new.
    reload(&host, &nerve, &with(&base, &[("next", &refusing_host)])).await;
    pages(
        &nerve,
        &["next", &refusing_host],
        &[
            "far-refused",
            "far-unheard",
            &silent_host,
            "far-nowhere",
            "no-such-host",
        ],
    )
    .await;
    reload(&host, &nerve, &base).await;
    pages(&nerve, &["web"], &[&["next"][..], &words[..]].concat()).await;
    silent.set(Mode::Pass).await;
    refusing.set(Mode::Pass).await;
    eventually("it does not ask any more", SOON, async || {
        match silent.open() {
            0 => Ok(()),
            open => Err(format!("{open} connections")),
        }
    })
    .await;
    // It comes back, when it can be reached.
    reload(&host, &nerve, &with(&base, &others[..1])).await;
    pages(&nerve, &["far-refused", &refusing_host], &["far-unheard"]).await;
    eventually(
        "it is registered there",
        SOON,
        async || match &ZooKeeper::list(&host.client, "/of/far-refused").await[..] {
            [_] => Ok(()),
            other => Err(format!("{other:?}")),
        },
    )
    .await;
    assert_eq!(silent.open(), 0, "nobody asks where nobody is named");
    assert_eq!(host.nodes().await, [node], "the other one is not touched");
    nerve.signal(Signal::SIGTERM);
    assert_eq!(nerve.wait(SOON).await.code(), Some(0));
    let left = ZooKeeper::list(&host.client, "/of/far-refused").await;
    assert_eq!(left, Vec::<String>::new());
}

/// One that was reached stays until what stands there is withdrawn, however long that takes; then its session is closed.
#[tokio::test]
async fn an_ensemble_that_was_reached_is_gone_once_nothing_is_left_there() {
    let host = Host::start().await;
    let other = TcpProxy::start(&host.zookeeper.host(0)).await;
    let other_host = other.host();
    let admin = Bind::Tcp(format!("127.0.0.1:{}", free_port()));
    let base = host.config(&admin, &host.zookeeper.hosts(), &json!({}));
    let both = with(&base, &[("away", &other_host)]);
    host.write(&both);
    let nerve = host.launch(&admin).await;
    let node = host.one_node("").await;
    let list = async || ZooKeeper::list(&host.client, "/of/away").await;
    let stands = async || {
        eventually("it stands", SOON, async || match &list().await[..] {
            [_] => Ok(()),
            other => Err(format!("{other:?}")),
        })
        .await;
    };
    stands().await;
    reload(&host, &nerve, &base).await;
    pages(&nerve, &["web"], &["away", &other_host]).await;
    assert_eq!(list().await, Vec::<String>::new(), "withdrawn before");
    eventually("the connection is closed", SOON, async || {
        match other.open() {
            0 => Ok(()),
            open => Err(format!("{open} connections")),
        }
    })
    .await;
    for session in other.sessions() {
        let dump = host.zookeeper.four_letters(0, "dump").await;
        let id = format!("{:x}", session.id);
        assert!(!dump.contains(&id), "session {id} is open: {dump}");
    }

    // Again, and cut off: it is told of until it can be withdrawn.
    reload(&host, &nerve, &both).await;
    stands().await;
    eventually("nerve has seen it", SOON, async || {
        let status = nerve.status().await;
        match status["services"]["away"]["registrations"][0]["in_sync"].as_bool() {
            Some(true) => Ok(()),
            _ => Err(status.to_string()),
        }
    })
    .await;
    other.set(Mode::Refuse).await;
    eventually("it is noticed", SOON, async || {
        let status = nerve.status().await["zookeeper"].to_string();
        match status.contains("\"live\"") && status.contains("suspended") {
            true => Ok(()),
            false => Err(status),
        }
    })
    .await;
    reload(&host, &nerve, &base).await;
    let status = eventually("what is left is told", SOON, async || {
        let status = nerve.status().await;
        match status["left_over"][0]["service"].as_str() {
            Some("away") => Ok(status),
            _ => Err(status.to_string()),
        }
    })
    .await;
    assert_eq!(status["left_over"][0]["hosts"], other_host, "{status}");
    assert!(status["services"]["away"].is_null(), "{status}");
    other.set(Mode::Pass).await;
    pages(&nerve, &["web"], &["away", &other_host]).await;
    assert_eq!(list().await, Vec::<String>::new());
    assert_eq!(host.nodes().await, [node], "the other one is not touched");
}

/// Services and checks that are removed, one that was renamed, one that was drained: the pages hold no line with their names,
/// but for the operator's order, which is kept for when the service comes back.
#[tokio::test]
async fn removed_services_and_checks_leave_no_line() {
    let host = Host::start().await;
    let sick = App::start("sick").await;
    sick.set(Behaviour::Unhealthy);
    let admin = Bind::Tcp(format!("127.0.0.1:{}", free_port()));
    let hosts = host.zookeeper.hosts();
    let base = host.config(&admin, &hosts, &json!({}));
    let keeping = |config: &Value, name: &str| {
        let mut config = with(config, &[(name, &hosts)]);
        config["services"][name]["zk_path"] = json!(PARENT);
        config["services"][name]["port"] = json!(4000);
        config
    };
    let sick_check = json!({
        "type": "http", "host": "127.0.0.1", "port": sick.address.port(), "uri": "/sickly", "fall": 1,
    });
    let mut before = with(
        &keeping(&base, "beside"),
        &[("former", &hosts), ("drained", &hosts)],
    );
    before["services"]["former"]["checks"]
        .as_array_mut()
        .unwrap()
        .push(sick_check.clone());
    before["services"]["web"]["checks"]
        .as_array_mut()
        .unwrap()
        .push(sick_check);
    host.write(&before);
    let nerve = host.launch(&admin).await;
    pages(
        &nerve,
        &["beside", "former", "drained", "sickly", "/of/drained"],
        &[],
    )
    .await;
    crate::order(&host, "drain", &["drained"]).await;
    sick.set(Behaviour::Healthy);
    eventually("all stand", SOON, async || match host.nodes().await.len() {
        2 => Ok(()),
        other => Err(other),
    })
    .await;

    reload(&host, &nerve, &base).await;
    let gone = ["beside", "former", "sickly", "/of/"];
    pages(&nerve, &["web"], &gone).await;
    host.one_node("").await;
    let metrics = nerve.get("/metrics").await.unwrap().body;
    let about: Vec<&str> = metrics
        .lines()
        .filter(|line| line.contains("drained"))
        .collect();
    assert_eq!(
        about,
        [r#"nerve_service_held{service="drained",by="drain"} 1"#]
    );
    let status = nerve.status().await;
    assert!(!status.to_string().contains("drained"), "{status}");
    crate::order(&host, "enable", &["drained"]).await;
    pages(&nerve, &["web"], &["drained"]).await;
}
