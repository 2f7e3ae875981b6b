//! Servers with an agent, in the real pair: what an agent may say, and what only synapse decides.

use serde_json::json;
use smartstack_common::testing::App;
use tokio::io::AsyncWriteExt;
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::task::JoinSet;

use crate::pair::{Pair, SOON, Traffic, Way, in_step, reloads};

/// Answers every agent check with one word.
struct Agent {
    port: u16,
    word: watch::Sender<String>,
    asked: watch::Receiver<u64>,
    _task: JoinSet<()>,
}

impl Agent {
    async fn start(word: &str) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let (word, words) = watch::channel(word.to_owned());
        let (count, asked) = watch::channel(0);
        let mut task = JoinSet::new();
        task.spawn(async move {
            loop {
                if let Ok((mut stream, _)) = listener.accept().await {
                    let answer = format!("{}\n", *words.borrow());
                    let _gone = stream.write_all(answer.as_bytes()).await.is_err();
                    count.send_modify(|count| *count += 1);
                }
            }
        });
        Self {
            port,
            word,
            asked,
            _task: task,
        }
    }

    /// Waits until it was asked so many times more.
    async fn asked(&self, times: u64) {
        let mut asked = self.asked.clone();
        let now = *asked.borrow();
        let more = asked.wait_for(|count| *count >= now + times);
        tokio::time::timeout(SOON, more).await.unwrap().unwrap();
    }
}

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
        agent.word.send_replace(word.to_owned());
        pair.withdraw(&node).await;
        pair.until(&b, "retired").await;
        agent.asked(10).await;
        traffic.avoids(&b).await;
        pair.register(&b).await;
        traffic.reaches(&b).await;
        in_step(&synapse).await;
    }
    // What the agent itself takes out is the agent's: nobody undoes it, and the agent can.
    agent.word.send_replace("maint 0%".to_owned());
    pair.until(&b, "retired").await;
    pair.until(&a, "retired").await;
    agent.asked(20).await;
    in_step(&synapse).await;
    assert_eq!([pair.state(&a).await, pair.state(&b).await], ["retired"; 2]);
    agent.word.send_replace("ready 100%".to_owned());
    pair.until(&b, "ready").await;
    pair.until(&a, "ready").await;
    // One that comes while there is an agent that says so.
    pair.register(&c).await;
    traffic.reaches(&c).await;
    assert_eq!(reloads(&synapse).await, before);
    println!("an agent's words: {}", traffic.tally());
}
