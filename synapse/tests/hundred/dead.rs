//! What vanishes and is dead. The registry's loss is not believed until haproxy's checks say the same, so requests meet dead
//! servers for as long as they would if the registry were away: until the checks have failed.
//!
//! What that costs: with haproxy's `retries 3` and the `option redispatch 1` that synapse adds, a request fails after four
//! tries at four servers, each dead with 97 %: nearly nine in ten, for at most `inter` and `fall` - 1 times `fastinter`. Where
//! a refused connection counts as a failed check (`observe layer4 error-limit 1 on-error mark-down`), each dead server costs
//! one try, so that at most 97 / 4 requests fail, however many are sent.

use std::time::Duration;

use serde_json::json;

use crate::instances::{held, names, register, vanish};
use crate::rig::SOON;
use crate::stage::{CLIENTS, LOST, STAY, Stage};

/// A dead server is down in 1.3 s at the latest, plus what a busy machine takes.
const QUICK: &str = "check inter 1s fastinter 300ms rise 1 fall 2";

#[tokio::test]
async fn what_vanishes_and_is_dead_leaves_by_its_checks() {
    let mut stage = Stage::start(QUICK, json!("on")).await;
    let (stay, lost) = stage.halves();

    let row = stage
        .begin("97 of 100 die, and vanish when they are down")
        .await;
    stage.kill(&lost);
    let down = row.when("they are down", SOON, |t| t.up == STAY).await;
    stage.lasts(Duration::from_millis(200)).await;
    let died = stage.tally();
    let sent = died.ok() + died.failed();
    vanish(&stage.client, &lost).await;
    let vanished = row.began.elapsed();
    let gone = row.when("they are gone", SOON, |t| t.serving == STAY).await;
    stage.rig.serves("web", &names(&stay)).await;
    held(&stage.rig, 0).await;
    stage.all_answer(&stay).await;
    let note = format!(
        "down {down:.2?} after they died ({} of {sent} requests failed until then: no matter of the registry), gone {:.2?} after they vanished",
        died.failed(),
        gone.saturating_sub(vanished),
    );
    stage.end(row, &note).await;

    stage.revive(&lost).await;
    register(&stage.client, &lost).await;
    let row = stage.begin("97 of 100 die and vanish at one moment").await;
    stage.kill(&lost);
    vanish(&stage.client, &lost).await;
    let down = row.when("they are down", SOON, |t| t.up == STAY).await;
    // Requests that had begun.
    stage.lasts(Duration::from_millis(200)).await;
    let before = stage.failed();
    let gone = row.when("they are gone", SOON, |t| t.serving == STAY).await;
    stage.rig.serves("web", &names(&stay)).await;
    held(&stage.rig, 0).await;
    stage.all_answer(&stay).await;
    let note = format!(
        "out of rotation by their checks after {down:.2?}, gone from the table after {gone:.2?}, no failure since"
    );
    let tally = stage.finish(row, &note).await;
    assert_eq!(tally.failed(), before, "after they were down: {tally}");
}

#[tokio::test]
async fn a_dead_server_costs_one_try_where_traffic_is_a_check() {
    let check = format!("{QUICK} observe layer4 error-limit 1 on-error mark-down");
    let mut stage = Stage::start(&check, json!("on")).await;
    let (stay, lost) = stage.halves();
    let row = stage
        .begin("97 of 100 die and vanish at one moment, refused connections count as checks")
        .await;
    stage.kill(&lost);
    vanish(&stage.client, &lost).await;
    let down = row.when("they are down", SOON, |t| t.up == STAY).await;
    let gone = row.when("they are gone", SOON, |t| t.serving == STAY).await;
    stage.rig.serves("web", &names(&stay)).await;
    held(&stage.rig, 0).await;
    stage.all_answer(&stay).await;
    let note = format!("out of rotation after {down:.2?}, gone from the table after {gone:.2?}");
    let tally = stage.finish(row, &note).await;
    let most = LOST / 4 + 2 * CLIENTS;
    assert!(tally.failed() <= most as u64, "at most {most}: {tally}");
}
