//! A log that nobody takes, and signals that come when nobody listens.

use std::time::Duration;

use nix::sys::signal::Signal;
use nix::sys::stat::Mode;
use nix::unistd::mkfifo;
use serde_json::json;
use smartstack_common::admin::Bind;
use smartstack_common::testing::{Behaviour, Program, Unread, eventually, free_port};

use crate::rig::{Host, Observer, SESSION, SOON, attempted, ends_in_time, writes};

const DROPPED: &str = "nerve_log_lines_dropped_total";

async fn unread(host: &Host) -> (Program, Bind) {
    let admin = Bind::Tcp(format!("127.0.0.1:{}", free_port()));
    let config = host.config(&admin, &host.zookeeper.hosts(), &json!({}));
    host.write(&config);
    let arguments = ["-c", "nerve.json"];
    let nerve = Program::start_by(&Unread::BY, "nerve", &host.dir, &arguments, admin.clone());
    (nerve, admin)
}

/// A configuration with thousands of mistakes is refused, which takes as many words, until lines are dropped.
async fn lost(host: &Host, nerve: &Program) -> f64 {
    let whole = std::fs::read(host.dir.join("nerve.json")).expect("ours");
    let wrong = (0..3000).map(|number| (format!("s{number}"), json!("wrong")));
    let wrong = json!({"services": wrong.collect::<serde_json::Map<_, _>>()});
    let _path = host.dir.write("nerve.json", wrong.to_string());
    let lost = eventually("log lines are dropped", SOON * 6, async || {
        nerve.signal(Signal::SIGHUP);
        match nerve.metric(DROPPED).await {
            Some(lost) if lost > 0.0 => Ok(lost),
            other => Err(format!("{other:?}")),
        }
    })
    .await;
    let _path = host.dir.write("nerve.json", whole);
    lost
}

/// It keeps its node for longer than its session, writes nothing, follows its app, takes another configuration, and withdraws
/// at its end. Returns what it has seen.
async fn works_and_ends(host: &Host, nerve: Program) -> String {
    let node = host.one_node("").await;
    let observer = Observer::start(host).await;
    let ensemble = host.zookeeper.hosts();
    let (written, passed) = (
        writes(&nerve, &ensemble).await,
        attempted(&nerve, "pass").await,
    );
    // Each check is at least its interval of 50 ms after the one before.
    let rounds = SESSION.as_secs_f64() * 2.0 / 0.05;
    eventually(
        "it has checked for twice its session's time-out",
        SESSION * 20,
        async || match attempted(&nerve, "pass").await - passed {
            more if more >= rounds => Ok(()),
            more => Err(more),
        },
    )
    .await;
    assert_eq!(writes(&nerve, &ensemble).await, written);
    assert_eq!(
        observer.sets(),
        [[node.clone()].into()],
        "its session ended"
    );
    host.app.set(Behaviour::Unhealthy);
    host.no_node().await;
    host.app.set(Behaviour::Healthy);
    host.one_node(&node).await;

    let ok = r#"nerve_config_reloads_total{result="ok"}"#;
    let before = nerve.metric(ok).await.unwrap_or_default();
    nerve.signal(Signal::SIGHUP);
    eventually(
        "it has read its configuration",
        SOON,
        async || match nerve.metric(ok).await {
            Some(now) if now > before => Ok(()),
            other => Err(format!("{other:?}")),
        },
    )
    .await;
    let status = nerve.status().await;
    assert!(status["log_lines_dropped"].is_u64(), "{status}");
    let lost = nerve.metric(DROPPED).await.unwrap_or_default();
    let ended = ends_in_time(nerve).await;
    assert_eq!(host.nodes().await, Vec::<String>::new());
    format!(
        "{lost} lines dropped, 0 withdrawals and 0 writes in two session time-outs; TERM in {ended:.1?}"
    )
}

#[tokio::test]
async fn a_full_stderr_that_nobody_reads_changes_nothing() {
    let host = Host::start().await;
    let _unread = Unread::new(&host.dir);
    let (mut nerve, _) = unread(&host).await;
    nerve.ready(SOON).await;
    lost(&host, &nerve).await;
    let seen = works_and_ends(&host, nerve).await;
    println!("fault: a full stderr that nobody reads: {seen}");
}

#[tokio::test]
async fn a_stderr_whose_reader_has_gone_changes_nothing() {
    let host = Host::start().await;
    let pipe = Unread::new(&host.dir);
    let (mut nerve, _) = unread(&host).await;
    nerve.ready(SOON).await;
    drop(pipe);
    lost(&host, &nerve).await;
    let seen = works_and_ends(&host, nerve).await;
    println!("fault: a stderr whose reader has gone: {seen}");
}

/// As `timeout` sends it, or a terminal and a wrapper: to the process and to its group.
#[tokio::test]
async fn signals_that_come_together_are_one() {
    let host = Host::start().await;
    let admin = Bind::Tcp(format!("127.0.0.1:{}", free_port()));
    let mut config = host.config(&admin, &host.zookeeper.hosts(), &json!({}));
    config["shutdown"] = json!({"linger": "1s"});
    host.write(&config);
    for together in [
        [Signal::SIGTERM, Signal::SIGTERM, Signal::SIGTERM],
        [Signal::SIGINT, Signal::SIGTERM, Signal::SIGQUIT],
        [Signal::SIGQUIT, Signal::SIGQUIT, Signal::SIGINT],
    ] {
        let mut nerve = host.launch(&admin).await;
        host.one_node("").await;
        for signal in together {
            nerve.signal(signal);
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        assert_eq!(nerve.wait(SOON).await.code(), Some(0), "{together:?}");
        assert_eq!(host.nodes().await, Vec::<String>::new(), "{together:?}");
    }
}

/// A configuration that does not come to an end is read for ever.
#[tokio::test]
async fn a_second_signal_ends_a_nerve_that_stands() {
    let host = Host::start().await;
    let (mut nerve, _) = host.nerve().await;
    let node = host.one_node("").await;
    let path = host.dir.join("nerve.json");
    std::fs::remove_file(&path).expect("a folder of ours");
    mkfifo(&path, Mode::S_IRWXU).expect("a folder of ours");
    nerve.signal(Signal::SIGHUP);
    eventually("it stands", SOON, async || {
        let answer = tokio::time::timeout(Duration::from_millis(500), nerve.get("/live")).await;
        if answer.is_err() {
            Ok(())
        } else {
            Err("it answers")
        }
    })
    .await;
    nerve.signal(Signal::SIGTERM);
    tokio::time::sleep(Duration::from_millis(600)).await;
    assert!(
        nerve.process().ended().is_none(),
        "the first one is in order"
    );
    nerve.signal(Signal::SIGTERM);
    assert_eq!(nerve.wait(SOON).await.code(), Some(0));
    assert_eq!(host.nodes().await, [node], "until the session expires");
}
