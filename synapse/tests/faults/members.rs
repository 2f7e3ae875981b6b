//! The members of the ensemble stand still, die, are restarted, and lose everything they knew.

use std::time::Duration;

use serde_json::Value;
use smartstack_common::testing::{Mode, eventually};

use crate::stage::{Plan, SESSION, SOON, Side, Stage, Way};

/// Long enough for the other members to elect another leader, and for sessions to expire.
const LONG: Duration = Duration::from_secs(5);

#[tokio::test]
async fn members_stand_still_or_die() {
    let mut stage = Stage::start(Plan::new(Way::Proxies)).await;
    for role in ["leader", "follower"] {
        let mut row = stage.begin(&format!("SIGSTOP of the {role} for 5 s")).await;
        let index = member(&stage, role).await;
        stage.zookeeper.pause(index);
        stage.change();
        stage.lasts(LONG).await;
        stage.zookeeper.resume(index);
        row.ended();
        stage.agree(row).await;
    }
    for role in ["leader", "follower"] {
        let mut row = stage.begin(&format!("SIGKILL of the {role}")).await;
        let index = member(&stage, role).await;
        stage.zookeeper.stop(index);
        stage.change();
        // Over, for the programs, with the death: two members are left.
        row.ended();
        stage.agree(row).await;
        stage.zookeeper.start_all().await;
    }
    let mut row = stage.begin("rolling restart of the three members").await;
    stage.change();
    for index in 0..3 {
        stage.zookeeper.stop(index);
        stage.zookeeper.start_all().await;
    }
    row.ended();
    stage.agree(row).await;

    let mut row = stage.begin("all three members killed for 5 s").await;
    stage.zookeeper.stop_all();
    stage.change();
    stage.lasts(LONG).await;
    stage.zookeeper.start_all().await;
    row.ended();
    stage.agree(row).await;
}

/// The guard says why the backends stay, and lets go when the set is whole again. The nerves are kept away until synapse
/// has seen the empty ensemble.
#[tokio::test]
async fn all_members_are_wiped_and_come_back_empty() {
    let mut stage = Stage::start(Plan::new(Way::Proxies)).await;
    let mut row = stage.begin("the ensemble wiped and started empty").await;
    let wanted = stage.wanted().len();
    stage.set(Side::Nerves, Mode::Refuse).await;
    stage.zookeeper.stop_all();
    (0..3).for_each(|index| stage.zookeeper.erase(index));
    stage.zookeeper.start_all().await;
    let web = eventually("the guard holds all servers", SOON, async || {
        let web = stage.rig.service("web").await;
        let servers = web["servers"].as_array().cloned().unwrap_or_default();
        let held = servers.iter().filter(|s| s["held"] == true).count();
        match held == wanted && web["fresh"] == true {
            true => Ok(web),
            false => Err(format!("{web:#}\n{}", stage.rig.log())),
        }
    })
    .await;
    // A client that knew the old ensemble is refused by the new one, and connects anew.
    let registered = eventually("the registry answers", SOON, async || {
        stage.registry.ports().await
    })
    .await;
    assert_eq!(registered, Vec::<u16>::new());
    println!("held: {}", web["guard"]["hold"]);
    assert_eq!(web["origin"], "held");
    // Longer than a session: nothing goes meanwhile.
    stage.lasts(SESSION).await;
    stage.set(Side::Nerves, Mode::Pass).await;
    row.ended();
    assert_eq!(
        stage.agree(row).await.kept,
        0,
        "an empty ensemble knows no session"
    );
    stage.settled().await;
    let web = stage.rig.service("web").await;
    assert_eq!(web["origin"], "live");
    assert_eq!(web["guard"]["hold"], Value::Null);
}

/// The nerves are first: synapse never sees the path empty, only made anew by earlier transactions than it knows.
#[tokio::test]
async fn all_members_are_wiped_and_the_nerves_are_first() {
    let mut stage = Stage::start(Plan::new(Way::Proxies)).await;
    let mut row = stage
        .begin("the ensemble wiped, the nerves back before synapse")
        .await;
    stage.set(Side::Synapse, Mode::Refuse).await;
    stage.zookeeper.stop_all();
    (0..3).for_each(|index| stage.zookeeper.erase(index));
    stage.zookeeper.start_all().await;
    stage.registry.renew().await;
    eventually("the nerves have registered", SOON, async || {
        let ports = stage.registry.ports().await?;
        let wanted = stage.wanted();
        match ports.iter().eq(&wanted) {
            true => Ok(()),
            false => Err(format!("{ports:?}")),
        }
    })
    .await;
    stage.change();
    stage.set(Side::Synapse, Mode::Pass).await;
    row.ended();
    stage.agree(row).await;
}

async fn member(stage: &Stage, role: &str) -> usize {
    let leader = stage.zookeeper.leader().await;
    match role {
        "leader" => leader,
        _ => (leader + 1) % 3,
    }
}
