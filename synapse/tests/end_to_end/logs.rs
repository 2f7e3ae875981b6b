//! A log that nobody takes, and signals that come when nobody listens.

use std::time::Duration;

use nix::sys::signal::Signal;
use nix::sys::stat::Mode;
use nix::unistd::mkfifo;
use serde_json::json;
use smartstack_common::testing::{App, Program, Unread, eventually};

use crate::pair::{Pair, SOON, Traffic, Way, answers, in_step};

/// It follows the registry, takes another configuration and ends.
async fn works_and_ends(pair: &mut Pair, mut synapse: Program) {
    let (a, b) = (App::start("a").await, App::start("b").await);
    let node = pair.register(&a).await;
    answers(pair.port, &["a"]).await;
    let traffic = Traffic::start(pair.port).await;
    pair.register(&b).await;
    answers(pair.port, &["a", "b"]).await;
    pair.withdraw(&node).await;
    answers(pair.port, &["b"]).await;

    pair.config["services"]["web"]["haproxy"]["server_options"] = json!("maxconn 77");
    let _path = pair.configure();
    synapse.signal(Signal::SIGHUP);
    eventually("it has taken the other configuration", SOON, async || {
        let file = pair.file();
        if file.contains(" maxconn 77") {
            Ok(())
        } else {
            Err(file)
        }
    })
    .await;
    let status = in_step(&synapse).await;
    assert!(status["log_lines_dropped"].as_u64() > Some(0), "{status}");
    traffic.unharmed().await;
    synapse.signal(Signal::SIGTERM);
    assert_eq!(synapse.wait(SOON).await.code(), Some(0));
}

async fn unread(pair: &Pair) -> Program {
    let path = pair.configure();
    let arguments = ["-c", path.to_str().unwrap()];
    let admin = pair.admin.clone();
    let mut synapse = Program::start_by(&Unread::BY, "synapse", &pair.dir, &arguments, admin);
    synapse.ready(SOON).await;
    synapse
}

/// A configuration with thousands of mistakes is refused, which takes as many words, until lines are dropped.
async fn lost(pair: &Pair, synapse: &Program) -> f64 {
    let wrong = (0..3000).map(|number| (format!("s{number}"), json!("wrong")));
    let wrong = json!({"services": wrong.collect::<serde_json::Map<_, _>>()});
    let _path = pair.dir.write("synapse.json", wrong.to_string());
    let lost = eventually("log lines are dropped", SOON * 6, async || {
        synapse.signal(Signal::SIGHUP);
        match synapse.metric("synapse_log_lines_dropped_total").await {
            Some(lost) if lost > 0.0 => Ok(lost),
            other => Err(format!("{other:?}")),
        }
    })
    .await;
    let _path = pair.configure();
    lost
}

#[tokio::test]
async fn a_full_stderr_that_nobody_reads_changes_nothing() {
    let mut pair = Pair::start(Way::Supervise).await;
    let _unread = Unread::new(&pair.dir);
    let synapse = unread(&pair).await;
    let lost = lost(&pair, &synapse).await;
    println!("{lost} lines dropped");
    works_and_ends(&mut pair, synapse).await;
}

#[tokio::test]
async fn a_stderr_whose_reader_has_gone_changes_nothing() {
    let mut pair = Pair::start(Way::Supervise).await;
    let pipe = Unread::new(&pair.dir);
    let synapse = unread(&pair).await;
    drop(pipe);
    lost(&pair, &synapse).await;
    works_and_ends(&mut pair, synapse).await;
}

/// A configuration that does not come to an end is read for ever.
#[tokio::test]
async fn a_second_signal_ends_a_synapse_that_stands() {
    let pair = Pair::start(Way::Supervise).await;
    let mut synapse = pair.serving().await;
    let path = pair.dir.join("synapse.json");
    std::fs::remove_file(&path).unwrap();
    mkfifo(&path, Mode::S_IRWXU).unwrap();
    synapse.signal(Signal::SIGHUP);
    eventually("it stands", SOON, async || {
        let answer = tokio::time::timeout(Duration::from_millis(500), synapse.get("/live")).await;
        if answer.is_err() {
            Ok(())
        } else {
            Err("it answers")
        }
    })
    .await;
    synapse.signal(Signal::SIGQUIT);
    tokio::time::sleep(Duration::from_millis(600)).await;
    assert!(
        synapse.process().ended().is_none(),
        "the first one is in order"
    );
    synapse.signal(Signal::SIGTERM);
    assert_eq!(synapse.wait(SOON).await.code(), Some(0));
}
