//! What vanishes without a word while it answers.

use std::net::SocketAddr;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use nix::sys::signal::Signal;
use serde_json::{Value, json};
use smartstack_common::testing::{Behaviour, eventually};
use tokio::task::JoinHandle;
use tokio::time::Instant;
use zookeeper_client::Client;

use crate::instances::{held, names, node, register, vanish};
use crate::long;
use crate::rig::SOON;
use crate::stage::{ALL, LOST, PATIENT, STAY, Stage};

/// Long enough for a restart after [`UNJUDGED`].
const HOLD: Duration = Duration::from_secs(45);
/// Servers without a check that passes are held for 30 s: a synapse that has just started knows of no check yet.
const UNJUDGED: Duration = Duration::from_secs(31);

fn until(service: &Value) -> f64 {
    service["guard"]["until"].as_f64().expect("it has an end")
}

#[tokio::test]
async fn what_vanishes_while_it_answers_is_held_over_restarts_until_the_end() {
    let guard = json!({"hold": format!("{}s", HOLD.as_secs())});
    let mut stage = Stage::start(PATIENT, guard).await;
    // At any time some are being checked: haproxy shows no result of those.
    for app in stage.apps.values() {
        app.set(Behaviour::Drip(Duration::from_millis(4)));
    }
    let (stay, lost) = stage.halves();
    let row = stage
        .begin(
            "97 of 100 vanish and answer; synapse ended by TERM, by KILL, and by KILL after 31 s",
        )
        .await;
    vanish(&stage.client, &lost).await;
    let service = held(&stage.rig, LOST).await;
    // The first ones may leave before it is seen that there are too many.
    let whole = row.when("all are there", SOON, |t| t.serving == ALL).await;
    let early = ALL - row.fewest();
    assert!(early <= ALL / 2, "{early} left");
    let kept = Instant::now();
    let end = until(&service);
    assert_eq!(stage.trips().await, 1);
    stage.all_answer(&stage.current).await;
    on_disk(&stage).await;
    let mut moved = Vec::new();
    for (signal, after) in [
        (Signal::SIGTERM, Duration::ZERO),
        (Signal::SIGKILL, Duration::ZERO),
        (Signal::SIGKILL, UNJUDGED),
    ] {
        while kept.elapsed() < after {
            stage.lasts(Duration::from_secs(1)).await;
        }
        stage.restart(signal).await;
        let service = held(&stage.rig, LOST).await;
        moved.push(until(&service) - end);
    }
    assert!(
        moved.iter().all(|moved| moved.abs() < 1.0),
        "restarts moved the end by {moved:?} s"
    );
    stage.all_answer(&stage.current).await;
    assert_eq!(row.fewest_since(kept), ALL, "servers in rotation");
    row.when("one leaves", HOLD + SOON, |t| t.serving < ALL)
        .await;
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
    let late = now.as_secs_f64() - end;
    assert!(late > -0.5, "one left {late} s after the end");
    row.when("all leave", SOON, |t| t.serving == STAY).await;
    stage.rig.serves("web", &names(&stay)).await;
    held(&stage.rig, 0).await;
    let note = format!(
        "97 held and all in rotation {whole:.2?} after the loss ({early} had left); restarts moved the end of the hold by {moved:.3?} s; out {late:.2} s after it"
    );
    stage.end(row, &note).await;
}

/// Waits until the hold is in the snapshot.
async fn on_disk(stage: &Stage) {
    let snapshot = stage.rig.dir.join("state/snapshot.json");
    eventually("the hold is on disk", SOON, async || {
        let text = std::fs::read_to_string(&snapshot).unwrap_or_default();
        match text.contains("\"guards\":") {
            true => Ok(()),
            false => Err(text),
        }
    })
    .await;
}

/// Deletes the nodes one after another, spread over a time: the pace is the fault.
fn spread(client: &Client, lost: &[SocketAddr], time: Duration) -> JoinHandle<()> {
    let (client, lost) = (client.clone(), lost.to_vec());
    tokio::spawn(async move {
        let mut ticks = tokio::time::interval(time / u32::try_from(lost.len()).unwrap());
        for address in lost {
            ticks.tick().await;
            client.delete(&node(address), None).await.unwrap();
        }
    })
}

#[tokio::test]
async fn deletes_spread_over_the_window_are_all_restored() {
    let mut stage = Stage::start(PATIENT, json!("on")).await;
    let mut times = vec![0.1, 5.0];
    if long() {
        times.push(29.0);
    }
    for seconds in times {
        let trips = stage.trips().await;
        let (_, lost) = stage.halves();
        let row = stage
            .begin(&format!("97 of 100 deleted over {seconds} s"))
            .await;
        let time = Duration::from_secs_f64(seconds);
        spread(&stage.client, &lost, time).await.unwrap();
        let deleted = row.began.elapsed();
        held(&stage.rig, LOST).await;
        let whole = row.when("all are back", SOON, |t| t.serving == ALL).await;
        assert_eq!(stage.trips().await, trips + 1);
        stage.all_answer(&stage.current).await;
        assert!(row.fewest() >= ALL / 2, "{}", row.fewest());
        let note = format!(
            "last delete after {deleted:.2?}, all 100 in rotation again after {whole:.2?}, 97 held"
        );
        stage.end(row, &note).await;
        register(&stage.client, &lost).await;
    }

    let (_, lost) = stage.halves();
    let row = stage
        .begin("97 of 100 deleted over 5 s, synapse killed in the midst of them")
        .await;
    let deleting = spread(&stage.client, &lost, Duration::from_secs(5));
    row.when("some are gone", SOON, |t| t.serving <= ALL - 30)
        .await;
    stage.restart(Signal::SIGKILL).await;
    let restarted = row.began.elapsed();
    deleting.await.unwrap();
    let deleted = row.began.elapsed();
    held(&stage.rig, LOST).await;
    let whole = row.when("all are back", SOON, |t| t.serving == ALL).await;
    stage.all_answer(&stage.current).await;
    assert!(row.fewest() >= ALL / 2, "{}", row.fewest());
    let note = format!(
        "ready again after {restarted:.2?}, last delete after {deleted:.2?}, all 100 in rotation again after {whole:.2?}, 97 held"
    );
    stage.end(row, &note).await;
}
