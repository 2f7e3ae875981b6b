//! Servers with an agent come and go under load: what an agent may say, and what only the registry or an operator decides.

use std::time::Duration;

use serde_json::json;
use smartstack_common::testing::eventually;

use crate::agent::Agent;
use crate::stage::{CHANGED, CHECK, Plan, SOON, Stage};

/// Questions to an agent that four servers have, each ten times a second: a second and a half.
const ASKED: u64 = 60;

#[tokio::test]
async fn agents_say_what_they_like() {
    let mut stage = Stage::start(Plan::small()).await;
    // It never says `up`.
    let agent = Agent::start("75%").await;
    let mut config = stage.config();
    let options = format!(
        "{CHECK} agent-check agent-port {} agent-inter 100ms weight 8",
        agent.port
    );
    config["services"]["web"]["haproxy"]["server_options"] = json!(options);
    config["audit_interval"] = json!("1s");
    stage.reconfigured(&config, "agent-check").await;

    let mut row = stage
        .begin("a server is added whose agent never says `up`")
        .await;
    stage.change();
    row.ended();
    stage.reaches(CHANGED).await;
    stage.agree(row).await;

    for word in ["ready", "up ready 100%"] {
        let fault = format!("a server is removed whose agent says `{word}`");
        let mut row = stage.begin(&fault).await;
        agent.says(word);
        stage.change();
        stage.settled().await;
        agent.asked(ASKED).await;
        stage.avoids(CHANGED, &fault).await;
        row.ended();
        stage.agree(row).await;
        stage.change();
        stage.settled().await;
        stage.reaches(CHANGED).await;
    }
    agent.says("75%");
    an_operator_takes_a_server_out(&mut stage, &agent).await;
}

/// As operators do it: weight 0, then maint. It stays over audits and a restart of synapse, and ends with their word.
async fn an_operator_takes_a_server_out(stage: &mut Stage, agent: &Agent) {
    let fault = "an operator's weight 0 and maint, over audits and a restart of synapse";
    let mut row = stage.begin(fault).await.least(3);
    let server = stage.server(CHANGED).await;
    let order = format!("set server {server} weight 0;set server {server} state maint");
    stage.rig.haproxy.command(&order).await;
    let shown = async |stage: &Stage| {
        eventually("the maint is shown", SOON, async || {
            let web = stage.rig.service("web").await;
            if web["servers"].to_string().contains(r#""haproxy":"maint""#) {
                Ok(())
            } else {
                Err(format!("{web:#}"))
            }
        })
        .await;
    };
    shown(stage).await;
    for restart in [false, true] {
        if restart {
            stage.rig.restart_synapse().await;
            shown(stage).await;
        }
        // Two audits.
        agent.asked(2 * ASKED).await;
        stage.avoids(CHANGED, fault).await;
    }
    let order = format!("set server {server} state ready");
    stage.rig.haproxy.command(&order).await;
    row.ended();
    stage.reaches(CHANGED).await;
    stage.agree(row).await;
    stage.lasts(Duration::from_millis(100)).await;
}
