//! The members of the ensemble stand still, die, are restarted, and lose everything they knew.

use std::time::Duration;

use crate::stage::{Plan, SESSION, SOON, Stage, Way};
use smartstack_common::testing::eventually;

/// Long enough for the other members to elect another leader, and for sessions to expire.
const LONG: Duration = Duration::from_secs(6);

#[tokio::test]
async fn a_member_stands_still_or_dies() {
    let mut stage = Stage::start(Plan::new(Way::Proxies)).await;
    for role in ["leader", "follower"] {
        let mut row = stage.begin(&format!("SIGSTOP of the {role} for 6 s")).await;
        // The leader that goes on finds sessions that nobody confirmed to it: all nodes may go at once.
        if role == "leader" {
            row = row.least(0);
        }
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
}

#[tokio::test]
async fn all_members_die_and_come_back_or_come_back_empty() {
    let mut stage = Stage::start(Plan::new(Way::Proxies)).await;
    let mut row = stage.begin("all three members killed for 6 s").await;
    stage.zookeeper.stop_all();
    stage.change();
    stage.lasts(LONG).await;
    stage.zookeeper.start_all().await;
    row.ended();
    stage.agree(row).await;

    let mut row = stage.begin("the ensemble wiped and started empty").await;
    stage.zookeeper.stop_all();
    stage.lasts(SESSION).await;
    (0..3).for_each(|index| stage.zookeeper.erase(index));
    stage.zookeeper.start_all().await;
    row.ended();
    stage.agree(row).await;
    stage.settled().await;
}

/// The nerves are away as well: the guard says why the backends stay, and lets go when the set is whole again.
#[tokio::test]
async fn a_wiped_ensemble_is_held_until_the_set_is_whole() {
    let mut stage = Stage::start(Plan::new(Way::Proxies)).await;
    let mut row = stage
        .begin("the ensemble wiped and started empty, nerves killed meanwhile")
        .await;
    let wanted = stage.wanted().len();
    for nerve in &mut stage.nerves {
        nerve.kill().await;
    }
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
    println!("held: {}, {}", web["origin"], web["guard"]["hold"]);
    assert_eq!(web["origin"], "held");
    assert!(web["guard"]["hold"].is_string(), "{web:#}");
    // Longer than a session: nothing goes meanwhile.
    stage.lasts(SESSION).await;
    for nerve in &mut stage.nerves {
        nerve.start_again().await;
    }
    row.ended();
    stage.agree(row).await;
    stage.settled().await;
    let web = stage.rig.service("web").await;
    assert_eq!(
        (&web["origin"], &web["guard"]["hold"]),
        (&"live".into(), &serde_json::Value::Null)
    );
}

async fn member(stage: &Stage, role: &str) -> usize {
    let leader = stage.zookeeper.leader().await;
    match role {
        "leader" => leader,
        _ => (leader + 1) % 3,
    }
}
