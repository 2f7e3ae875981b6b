//! A saturated backend: servers that take two requests at a time, and 30 clients that wait for them. A server that comes in
//! takes its share of the queue at once, on every way in.

use std::time::Duration;

use serde_json::json;
use smartstack_common::testing::{Behaviour, Load, SteadyClient, eventually};

use crate::stage::{CHANGED, CHECK, Plan, SOON, Stage};

const WAITING: usize = 30;
/// Answers in which the share of the server that came in is counted: at least a fair one, as it is quick and the others are slow.
const COUNTED: u64 = 120;
const SHARE: u64 = COUNTED / 4;

#[tokio::test]
async fn a_server_takes_its_share_of_a_queue_on_every_way_in() {
    let mut stage = Stage::start(Plan::small()).await;
    let mut config = stage.config();
    let web = &mut config["services"]["web"]["haproxy"];
    web["server_options"] = json!(format!("{CHECK} maxconn 2"));
    let lines = web["backend"].as_array_mut();
    lines.unwrap().push(json!("timeout queue 60s"));
    stage.reconfigured(&config, "timeout queue").await;
    for app in &stage.apps[..CHANGED] {
        app.set(Behaviour::Drip(Duration::from_millis(20)));
    }
    let clients = SteadyClient::start(Load {
        rate: 3000.0,
        clients: WAITING,
        keep_alive: true,
        timeout: SOON,
        ..Load::new(stage.target)
    });
    stage.more.push(clients);
    queue(&stage, 15).await;

    let mut row = stage
        .begin("a server is added while 30 clients wait for three that take two at a time")
        .await;
    stage.change();
    shares(&stage).await;
    row.ended();
    stage.agree(row).await;

    let mut row = stage
        .begin("a server returns to such a queue")
        .await
        .least(CHANGED);
    stage.change();
    eventually("it is out and still there", SOON, async || {
        let server = stage.try_server(CHANGED).await;
        match (stage.agreed().await, server) {
            (Ok(()), Some(_)) => Ok(()),
            other => Err(format!("{other:?}")),
        }
    })
    .await;
    stage.change();
    shares(&stage).await;
    row.ended();
    stage.agree(row).await;

    let mut row = stage
        .begin("an operator releases a server into such a queue")
        .await
        .least(CHANGED);
    let server = stage.server(CHANGED).await;
    let order = |state: &str| format!("set server {server} state {state}");
    stage.rig.haproxy.command(&order("maint")).await;
    stage.avoids(CHANGED, "an operator's maint").await;
    stage.rig.haproxy.command(&order("ready")).await;
    shares(&stage).await;
    row.ended();
    stage.agree(row).await;
}

/// Waits until so many requests wait for a server.
async fn queue(stage: &Stage, least: usize) {
    eventually("clients wait", SOON, async || {
        let stat = stage.rig.haproxy.command("show stat").await;
        let row = stat.lines().find(|line| line.starts_with("web,BACKEND,"));
        match row.and_then(|row| row.split(',').nth(2)?.parse::<usize>().ok()) {
            Some(queued) if queued >= least => Ok(()),
            other => Err(format!("{other:?}")),
        }
    })
    .await;
}

/// Counts from the server's first answer on; there is a queue before and afterwards.
async fn shares(stage: &Stage) {
    stage.reaches(CHANGED).await;
    let requests = |range: std::ops::RangeInclusive<usize>| -> u64 {
        let apps = &stage.apps[range];
        apps.iter().map(|app| app.state.requests()).sum()
    };
    let (own, all) = (requests(CHANGED..=CHANGED), requests(0..=CHANGED));
    eventually("so many answers", SOON, async || {
        match requests(0..=CHANGED) - all {
            COUNTED.. => Ok(()),
            fewer => Err(fewer),
        }
    })
    .await;
    let (own, all) = (
        requests(CHANGED..=CHANGED) - own,
        requests(0..=CHANGED) - all,
    );
    println!("of {all} answers out of the queue {own} were of the server that came in");
    assert!(own >= SHARE, "{own} of {all}");
    queue(stage, 10).await;
}
