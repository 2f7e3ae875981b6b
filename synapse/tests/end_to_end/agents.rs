//! Servers with an agent, in the real pair: what an agent may say, and what only synapse decides.

use serde_json::json;
use smartstack_common::testing::App;

use crate::agent::Agent;
use crate::pair::{Pair, Traffic, Way, in_step, reloads};

#[tokio::test]
async fn an_agent_neither_keeps_a_new_server_down_nor_brings_a_removed_one_back() {
    let mut pair = Pair::start(Way::Supervise).await;
    let agent = Agent::start("60%").await;
    let options = format!(
        "agent-check agent-port {} agent-inter 100ms weight 10",
        agent.port
    );
    pair.config["services"]["web"]["haproxy"]["server_options"] = json!(options);
    pair.config["guard"] = json!("off");
    pair.config["audit_interval"] = json!("1s");
    let (a, b, c) = (
        App::start("a").await,
        App::start("b").await,
        App::start("c").await,
    );
    pair.register(&a).await;
    let synapse = pair.serving().await;
    pair.until(&a, "ready").await;
    in_step(&synapse).await;
    let traffic = Traffic::start(pair.port).await;
    let node = pair.register(&b).await;
    traffic.reaches(&b).await;
    let before = reloads(&synapse).await;

    for word in ["ready", "up ready 100%"] {
        agent.says(word);
        pair.withdraw(&node).await;
        pair.until(&b, "retired").await;
        agent.asked(10).await;
        traffic.avoids(&b).await;
        pair.register(&b).await;
        traffic.reaches(&b).await;
        in_step(&synapse).await;
    }
    // What the agent itself takes out is the agent's: nobody undoes it, and the agent can.
    agent.says("maint 0%");
    pair.until(&b, "retired").await;
    pair.until(&a, "retired").await;
    agent.asked(20).await;
    in_step(&synapse).await;
    assert_eq!([pair.state(&a).await, pair.state(&b).await], ["retired"; 2]);
    agent.says("ready 100%");
    pair.until(&b, "ready").await;
    pair.until(&a, "ready").await;
    // One that comes while there is an agent that says so.
    pair.register(&c).await;
    traffic.reaches(&c).await;
    assert_eq!(reloads(&synapse).await, before);
    println!("an agent's words: {}", traffic.tally());
}
