//! What agents can do to a server, and what keeps them from it: measured on haproxy 2.6, 3.0 and 3.2, and relied upon.

use std::time::Duration;

use smartstack_common::testing::{App, eventually};
use synapse::config::Reload;
use synapse::outputs::haproxy::plan::{Change, Op, Plan, plan};

use crate::agent::Agent;
use crate::site::{Site, digests, server, taken_out};

const SOON: Duration = Duration::from_secs(20);

async fn state(site: &Site, name: &str) -> (String, String) {
    let rows = site.real().servers_state().await;
    let row = rows.iter().find(|row| row["srv_name"] == name).unwrap();
    (row["srv_op_state"].clone(), row["srv_admin_state"].clone())
}

fn op(server: &str, change: Change) -> Op {
    Op {
        backend: "b".to_owned(),
        server: server.to_owned(),
        change,
    }
}

/// An agent ends any maint, but not once it is not listened to: not even with the answer that was under way.
#[tokio::test]
async fn a_server_taken_out_stays_out_whatever_its_agent_says() {
    for word in ["ready", "up ready 100%"] {
        let (site, agent, app) = (Site::new(), Agent::start(word).await, App::start("a").await);
        let options = format!(
            "agent-check agent-port {} agent-inter 200ms weight 10",
            agent.port
        );
        let lines = [
            server(1, app.address, &options),
            server(2, app.address, &options),
            "timeout check 20s".to_owned(),
        ];
        let desired = site.write(&lines, "");
        let haproxy = site.started(Reload::Supervise, &desired, 2).await;
        agent.hold();
        // Both are asked, and wait.
        agent.asked(2).await;
        assert_eq!(
            haproxy
                .api()
                .apply(&[op("s1", Change::Retire { agent: true })])
                .await
                .unwrap(),
            [Ok(())]
        );
        site.real().command("set server b/s2 state maint").await;
        assert_eq!(state(&site, "s2").await, ("0".to_owned(), "1".to_owned()));
        agent.let_go();
        eventually(
            "the agent ends the other maint",
            SOON,
            async || match state(&site, "s2").await {
                (up, admin) if up == "2" && admin == "0" => Ok(()),
                other => Err(format!("{other:?}")),
            },
        )
        .await;
        // The other one goes on being asked.
        agent.asked(5).await;
        assert_eq!(
            state(&site, "s1").await,
            ("0".to_owned(), "1".to_owned()),
            "{word}"
        );
        // It comes back as the file has it: up at once, and with the agent's next word.
        let table = haproxy.live().await.unwrap();
        let running = table.running(&digests(&desired), taken_out);
        let Plan::Runtime(ops) = plan(&running, &desired) else {
            panic!("nothing to do");
        };
        agent.says("70%");
        assert!(
            haproxy
                .api()
                .apply(&ops)
                .await
                .unwrap()
                .iter()
                .all(Result::is_ok)
        );
        assert_eq!(state(&site, "s1").await, ("2".to_owned(), "0".to_owned()));
        eventually("its agent is heard", SOON, async || {
            let rows = site.real().servers_state().await;
            let row = rows.iter().find(|row| row["srv_name"] == "s1").unwrap();
            if row["srv_uweight"] == "7" {
                Ok(())
            } else {
                Err(row["srv_uweight"].clone())
            }
        })
        .await;
    }
}

/// Without a word of `up`, as a server of the file.
#[tokio::test]
async fn a_server_added_with_an_agent_is_up_as_one_of_the_file() {
    let (site, agent, app) = (
        Site::new(),
        Agent::start("75%").await,
        App::start("a").await,
    );
    let options = format!(
        "agent-check agent-port {} agent-inter 100ms weight 8",
        agent.port
    );
    let one = [server(1, app.address, &options)];
    let two = [one[0].clone(), server(2, app.address, &options)];
    let desired = site.write(&one, "");
    let haproxy = site.started(Reload::Supervise, &desired, 1).await;
    let wanted = site.write(&two, "");
    let running = haproxy
        .live()
        .await
        .unwrap()
        .running(&digests(&wanted), taken_out);
    let Plan::Runtime(ops) = plan(&running, &wanted) else {
        panic!("not at runtime");
    };
    assert_eq!(haproxy.api().apply(&ops).await.unwrap(), [Ok(())]);
    let up = ("2".to_owned(), "0".to_owned());
    assert_eq!(state(&site, "s2").await, up);
    agent.asked(6).await;
    // Both alike, also in what is not of this table.
    assert_eq!(
        [state(&site, "s1").await, state(&site, "s2").await],
        [up.clone(), up]
    );
    let rows = site.real().servers_state().await;
    for row in &rows {
        assert_eq!(
            (&*row["srv_uweight"], &*row["srv_agent_state"]),
            ("6", "22"),
            "{row:?}"
        );
    }
}
