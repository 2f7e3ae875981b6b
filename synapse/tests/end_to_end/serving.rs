//! Instances come and go, ZooKeeper goes and comes back: what clients see.

use std::time::Duration;

use nix::sys::signal::Signal;
use smartstack_common::testing::{App, Behaviour, ZooKeeper, eventually};
use tokio::time::Instant;

use crate::pair::{
    Pair, SESSION, SOON, Traffic, WEB, Way, answer, answers, in_step, reloads, status,
};

/// ZooKeeper is away this long, in seconds; `OUTAGE` in the environment for another time.
const OUTAGE: u64 = 60;

#[tokio::test]
async fn an_unhealthy_instance_gets_no_requests_and_comes_back_without_a_reload() {
    let pair = Pair::start(Way::Supervise).await;
    let (a, b) = (App::start("a").await, App::start("b").await);
    let synapse = pair.serving().await;
    let first = pair.nerve(&a).await;
    assert_eq!(
        answer(pair.port).await,
        "a",
        "the first answer is the app's"
    );
    let second = pair.nerve(&b).await;
    pair.until(&b, "ready").await;
    let traffic = Traffic::start(pair.port).await;
    traffic.reaches(&a).await;
    traffic.reaches(&b).await;
    in_step(&synapse).await;
    let before = reloads(&synapse).await;

    a.set(Behaviour::Unhealthy);
    pair.until(&a, "retired").await;
    traffic.avoids(&a).await;
    a.set(Behaviour::Healthy);
    pair.until(&a, "ready").await;
    traffic.reaches(&a).await;
    assert_eq!(reloads(&synapse).await, before);
    traffic.unharmed().await;
    drop((first, second));
}

#[tokio::test]
async fn nerve_stopped_takes_its_server_out_at_once_and_nerve_killed_after_its_session() {
    let pair = Pair::start(Way::Supervise).await;
    let (a, b, c) = (
        App::start("a").await,
        App::start("b").await,
        App::start("c").await,
    );
    let mut stopped = pair.nerve(&a).await;
    let mut killed = pair.nerve(&b).await;
    let stays = pair.nerve(&c).await;
    let synapse = pair.serving().await;
    for app in [&a, &b, &c] {
        pair.until(app, "ready").await;
    }
    let traffic = Traffic::start(pair.port).await;
    traffic.reaches(&a).await;

    let node = stopped.node().await.unwrap();
    let began = Instant::now();
    stopped.program.signal(Signal::SIGTERM);
    eventually("its node is gone", Duration::from_secs(1), async || {
        let nodes = ZooKeeper::list(&pair.client, WEB).await;
        if nodes.contains(&node) {
            Err("there")
        } else {
            Ok(())
        }
    })
    .await;
    println!(
        "SIGTERM to nerve: its node is gone after {:?}",
        began.elapsed()
    );
    pair.until(&a, "retired").await;
    println!(
        "SIGTERM to nerve: its server is out after {:?}",
        began.elapsed()
    );
    assert_eq!(stopped.program.wait(SOON).await.code(), Some(0));
    traffic.avoids(&a).await;

    let began = Instant::now();
    killed.program.signal(Signal::SIGKILL);
    killed.program.wait(SOON).await;
    pair.until(&b, "retired").await;
    let took = began.elapsed();
    println!("SIGKILL to nerve: its server is out after {took:?} (session {SESSION:?})");
    assert!(took < SESSION * 4, "{took:?}");
    traffic.avoids(&b).await;
    traffic.unharmed().await;
    assert_eq!(synapse.status().await["haproxy"]["reload_failures"], 0);
    drop(stays);
}

#[tokio::test]
async fn zookeeper_away_hurts_nobody_and_what_changes_after_its_return_arrives() {
    let mut pair = Pair::start(Way::Supervise).await;
    let (a, b, c) = (
        App::start("a").await,
        App::start("b").await,
        App::start("c").await,
    );
    let mut leaves = pair.nerve(&a).await;
    let stays = pair.nerve(&b).await;
    let synapse = pair.serving().await;
    pair.until(&a, "ready").await;
    pair.until(&b, "ready").await;
    // The new worker answers a moment before its reload counts.
    in_step(&synapse).await;
    let traffic = Traffic::start(pair.port).await;
    let before = reloads(&synapse).await;

    let outage = std::env::var("OUTAGE").map_or(OUTAGE, |text| text.parse().unwrap());
    pair.zookeeper.stop_all();
    status(&synapse, "the source is known to be old", |status| {
        status["services"]["web"]["fresh"] == false
    })
    .await;
    // 50 requests per second of each kind.
    traffic.more(outage * 50).await;
    for app in [&a, &b] {
        assert_eq!(pair.state(app).await, "ready");
        traffic.reaches(app).await;
    }
    assert_eq!(reloads(&synapse).await, before);

    pair.zookeeper.start_all().await;
    let joins = pair.nerve(&c).await;
    pair.until(&c, "ready").await;
    traffic.reaches(&c).await;
    leaves.program.signal(Signal::SIGTERM);
    pair.until(&a, "retired").await;
    assert_eq!(leaves.program.wait(SOON).await.code(), Some(0));
    traffic.avoids(&a).await;
    in_step(&synapse).await;
    answers(pair.port, &["b", "c"]).await;
    println!("ZooKeeper away for {outage} s: {}", traffic.tally());
    traffic.unharmed().await;
    drop((stays, joins));
}
