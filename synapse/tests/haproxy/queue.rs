//! A server that comes in takes its share of the queue at once: a backend of one slow server that takes two requests at a time, and
//! 30 clients that wait for it. haproxy hands the queue over to a server at the moment it becomes ready, if it has a weight.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use smartstack_common::admin::Bind;
use smartstack_common::testing::{App, Behaviour, eventually, get};
use synapse::config::Reload;
use synapse::outputs::haproxy::cfg::effective::{Follows, Options};
use synapse::outputs::haproxy::plan::{Addition, Admit, Change, Checks, Op, Return};
use synapse::outputs::haproxy::socket::RuntimeApi;
use tokio::task::JoinSet;

use crate::agent::Agent;
use crate::site::{Site, server};

const SOON: Duration = Duration::from_secs(20);
const WAITING: usize = 30;

/// An app that takes 60 ms for a request.
async fn slow(name: &str) -> App {
    let app = App::start(name).await;
    app.set(Behaviour::Drip(Duration::from_millis(20)));
    app
}

fn op(server: &str, change: Change) -> Op {
    Op {
        backend: "b".to_owned(),
        server: server.to_owned(),
        change,
    }
}

async fn apply(api: &RuntimeApi, ops: &[Op]) {
    let results = api.apply(ops).await.unwrap();
    assert!(results.iter().all(Result::is_ok), "{ops:?}: {results:?}");
}

fn addition(number: u32, address: SocketAddr, options: &str) -> Change {
    let options = Options::of(options);
    Change::Add(Addition {
        address,
        id: number,
        weight: 8,
        digest: options.digest(),
        options: Arc::new(options),
        admit: Admit::Ready,
    })
}

/// It gets requests although others wait, and says how many in the time that two take.
async fn takes_its_share(app: &App, way: &str) {
    let before = app.state.requests();
    eventually(&format!("{way}: it gets requests"), SOON, async || {
        match app.state.requests() - before {
            0..8 => Err(app.state.requests() - before),
            _ => Ok(()),
        }
    })
    .await;
}

#[tokio::test]
async fn a_server_takes_its_share_of_the_queue_on_every_way_in() {
    let site = Site::new();
    let (busy, own) = (slow("one").await, slow("own").await);
    let lines = [
        server(1, busy.address, "maxconn 2"),
        server(2, own.address, "maxconn 2 weight 0"),
    ];
    let desired = site.write(&lines, "");
    let haproxy = site.started(Reload::Supervise, &desired, 2).await;
    let api = haproxy.api();
    let mut clients = JoinSet::new();
    for _ in 0..WAITING {
        let bind = Bind::Tcp(site.address().to_string());
        clients.spawn(async move {
            loop {
                assert_eq!(get(&bind, "/").await.unwrap().status, 200);
            }
        });
    }
    let queued = async || {
        let stat = site.real().command("show stat").await;
        let row = stat.lines().find(|line| line.starts_with("b,BACKEND,"));
        row.and_then(|row| row.split(',').nth(2)?.parse::<usize>().ok())
    };
    eventually("clients wait", SOON, async || match queued().await {
        Some(20..) => Ok(()),
        other => Err(format!("{other:?}")),
    })
    .await;

    // A weight of 0 is raised.
    apply(
        api,
        &[op(
            "s2",
            Change::Weight {
                weight: 8,
                queue: true,
            },
        )],
    )
    .await;
    takes_its_share(&own, "weight raised from 0").await;
    let retire = |server, agent| op(server, Change::Retire { agent });
    let plain = |weight| Return {
        weight: Some(weight),
        checks: Checks {
            health: false,
            agent: false,
        },
    };
    apply(api, &[retire("s2", false)]).await;

    let added = slow("add").await;
    apply(api, &[op("s3", addition(3, added.address, "maxconn 2"))]).await;
    takes_its_share(&added, "added").await;
    apply(api, &[retire("s3", false)]).await;
    apply(api, &[op("s3", Change::Return(plain(8)))]).await;
    takes_its_share(&added, "returned").await;

    let moved = slow("new").await;
    let change = Change::Readdress {
        address: moved.address,
        around: Some(plain(8)),
        follows: Follows::default(),
    };
    apply(api, &[op("s3", change)]).await;
    takes_its_share(&moved, "re-addressed").await;

    // An operator's maint, in which the registry's weight has changed, and its release.
    apply(api, &[op("s3", Change::Maint { agent: false })]).await;
    apply(
        api,
        &[op(
            "s3",
            Change::Weight {
                weight: 5,
                queue: false,
            },
        )],
    )
    .await;
    site.real().command("set server b/s3 state ready").await;
    takes_its_share(&moved, "released by an operator").await;
    // A share of its initial weight, which is the real one.
    site.real().command("set server b/s3 weight 50%").await;
    let rows = site.real().servers_state().await;
    let row = rows.iter().find(|row| row["srv_name"] == "s3").unwrap();
    assert_eq!(row["srv_uweight"], "4", "half of the 8 it was added with");
    apply(api, &[retire("s3", false)]).await;

    // With checks, and with an agent that never says `up`.
    let agent = Agent::start("75%").await;
    let checked = slow("chk").await;
    let options = format!(
        "maxconn 2 check inter 500ms agent-check agent-port {} agent-inter 200ms",
        agent.port
    );
    apply(api, &[op("s4", addition(4, checked.address, &options))]).await;
    takes_its_share(&checked, "added with an agent").await;
    apply(api, &[retire("s4", true)]).await;
    let back = Return {
        weight: None,
        checks: Checks {
            health: true,
            agent: true,
        },
    };
    apply(api, &[op("s4", Change::Return(back))]).await;
    takes_its_share(&checked, "returned with an agent").await;
    assert!(queued().await > Some(WAITING / 3), "{:?}", queued().await);
    clients.abort_all();
}
