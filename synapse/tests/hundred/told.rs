//! What goes with a word, what few go without one, and what others take over: no hold.

use std::net::SocketAddr;

use serde_json::{Value, json};
use smartstack_common::testing::ZooKeeper;
use tokio::time::Instant;

use crate::instances::{held, names, payload, register, replace, vanish, withdraw};
use crate::rig::SOON;
use crate::stage::{ALL, LOST, OTHER, PATIENT, STAY, Stage};

#[tokio::test]
async fn what_is_withdrawn_goes_at_once_but_the_last() {
    // The last one's check is waited for.
    let check = "check inter 1s fastinter 300ms rise 1 fall 5";
    let mut stage = Stage::start(check, json!("on")).await;
    let (mut stay, lost) = stage.halves();
    let row = stage.begin("97 of 100 withdrawn").await;
    withdraw(&stage.client, &lost).await;
    let said = row.began.elapsed();
    let gone = row.when("they are gone", SOON, |t| t.serving == STAY).await;
    stage.rig.serves("web", &names(&stay)).await;
    assert_eq!(stage.trips().await, 0);
    held(&stage.rig, 0).await;
    let note =
        format!("the last transaction ended after {said:.2?}, they were gone after {gone:.2?}");
    stage.end(row, &note).await;

    stage.current = stay.clone();
    let row = stage.begin("the last three withdrawn one by one").await;
    let last = stay.remove(0);
    withdraw(&stage.client, &stay).await;
    row.when("two are gone", SOON, |t| t.serving == 1).await;
    withdraw(&stage.client, &[last]).await;
    let service = held(&stage.rig, 1).await;
    assert_eq!(service["origin"], "held");
    stage.all_answer(&[last]).await;
    assert_eq!(row.fewest(), 1);
    stage.end(row, "the last one is held and answers").await;

    stage.current = vec![last];
    let began = Instant::now();
    stage.kill(&[last]);
    stage.rig.serves("web", &[]).await;
    held(&stage.rig, 0).await;
    println!(
        "guard: the last one dies: gone by its check after {:.2?}",
        began.elapsed()
    );
}

#[tokio::test]
async fn the_unhealthy_and_a_few_losses_go_at_once() {
    let mut stage = Stage::start(PATIENT, json!("on")).await;
    let all = stage.current.clone();
    let rows: [(&str, usize, bool); 2] = [
        ("60 of 100 become unhealthy and say so", 60, true),
        ("3 of 100 vanish", 3, false),
    ];
    for (what, count, announced) in rows {
        let (gone, stay) = all.split_at(count);
        let row = stage.begin(what).await;
        match announced {
            true => withdraw(&stage.client, gone).await,
            false => vanish(&stage.client, gone).await,
        }
        let said = row.began.elapsed();
        let left = |t: crate::stage::Table| t.serving == ALL - count;
        let time = row.when("they are gone", SOON, left).await;
        stage.rig.serves("web", &names(stay)).await;
        held(&stage.rig, 0).await;
        assert_eq!(stage.trips().await, 0);
        let note =
            format!("the last transaction ended after {said:.2?}, they were gone after {time:.2?}");
        stage.end(row, &note).await;
        register(&stage.client, gone).await;
    }
}

#[tokio::test]
async fn a_full_replacement_is_not_held() {
    let mut stage = Stage::start(PATIENT, json!("on")).await;
    let (old, new) = (stage.current.clone(), stage.others().await);
    let row = stage
        .begin("100 of 100 replaced by other addresses, each in a transaction of its own")
        .await;
    replace(&stage.client, &old, &new).await;
    let said = row.began.elapsed();
    stage.rig.serves("web", &names(&new)).await;
    let time = row.began.elapsed();
    held(&stage.rig, 0).await;
    assert_eq!(stage.trips().await, 0);
    assert!(row.fewest() >= ALL / 2, "{}", row.fewest());
    stage.all_answer(&new).await;
    let note = format!("the last transaction ended after {said:.2?}, replaced after {time:.2?}");
    stage.end(row, &note).await;

    stage.current = new;
    let (old, new) = (stage.current.clone(), old);
    let row = stage
        .begin("100 of 100 vanish, 100 other addresses come afterwards")
        .await;
    vanish(&stage.client, &old).await;
    let service = held(&stage.rig, ALL).await;
    assert_eq!(service["guard"]["until"], Value::Null);
    register(&stage.client, &new).await;
    let said = row.began.elapsed();
    stage.rig.serves("web", &names(&new)).await;
    let time = row.began.elapsed();
    held(&stage.rig, 0).await;
    stage.all_answer(&new).await;
    let note = format!(
        "100 held until the last of the others came after {said:.2?}, replaced after {time:.2?}"
    );
    stage.end(row, &note).await;
}

#[tokio::test]
async fn a_held_address_that_another_service_registers_leaves_alone() {
    let mut stage = Stage::start(PATIENT, json!("on")).await;
    let (_, lost) = stage.halves();
    let row = stage
        .begin("97 of 100 vanish, one of their addresses is registered by another service")
        .await;
    vanish(&stage.client, &lost).await;
    held(&stage.rig, LOST).await;
    row.when("all are there", SOON, |t| t.serving == ALL).await;
    let kept = Instant::now();
    let taken = lost[0];
    let path = format!("{OTHER}/i_{:010}", 1);
    ZooKeeper::put(&stage.client, &path, &payload(taken, true)).await;
    let began = row.began.elapsed();
    let time = row.when("it leaves", SOON, |t| t.serving == ALL - 1).await;
    let rest: Vec<SocketAddr> = stage.current.clone();
    let rest: Vec<SocketAddr> = rest.into_iter().filter(|a| *a != taken).collect();
    stage.rig.serves("web", &names(&rest)).await;
    stage.rig.serves("other", &names(&[taken])).await;
    held(&stage.rig, LOST - 1).await;
    stage.all_answer(&rest).await;
    assert_eq!(row.fewest_since(kept), ALL - 1);
    let note = format!(
        "it left {:.2?} after that, 96 are held",
        time.saturating_sub(began)
    );
    stage.end(row, &note).await;
}
