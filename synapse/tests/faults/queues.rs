//! A saturated backend: servers that take two requests at a time, and 30 clients that wait for them. A server that comes in
//! takes its share of the queue at once, on every way in.

use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use nix::sys::signal::Signal;
use serde_json::{Value, json};
use smartstack_common::admin::Bind;
use smartstack_common::testing::{
    App, AppState, Behaviour, Load, NameServer, Program, SteadyClient, eventually,
};

use crate::long;
use crate::stage::{CHANGED, CHECK, Plan, SOON, Stage};

const WAITING: usize = 30;
/// Answers in which the share of the server that came in is counted: at least a fair one, as it is quick and the others are slow.
const COUNTED: u64 = 120;
const SHARE: u64 = COUNTED / 4;

const NAME: &str = "app.smartstack.test";

#[tokio::test]
async fn a_server_takes_its_share_of_a_queue_on_every_way_in() {
    let mut stage = saturated().await;
    let mut row = stage
        .begin("a server is added while 30 clients wait for three that take two at a time")
        .await;
    stage.change();
    shares(&stage, &stage.apps[CHANGED].state).await;
    row.ended();
    stage.agree(row).await;

    let mut row = stage
        .begin("a server returns to such a queue")
        .await
        .least(CHANGED);
    goes_and_comes(&mut stage).await;
    shares(&stage, &stage.apps[CHANGED].state).await;
    row.ended();
    stage.agree(row).await;

    let mut row = stage
        .begin("an operator releases a server into such a queue")
        .await
        .least(CHANGED);
    let server = stage.server(CHANGED).await;
    let order = |state: &str| format!("set server {server} state {state}");
    stage.rig.haproxy.command(&order("maint")).await;
    stage.avoids(CHANGED, "an operator's maint").await;
    stage.rig.haproxy.command(&order("ready")).await;
    shares(&stage, &stage.apps[CHANGED].state).await;
    row.ended();
    stage.agree(row).await;
}

/// A server whose host is a name comes to stand at another address. In the short form it leaves and returns, as a name is
/// looked up at once when it appears, and else every 30 s.
#[tokio::test]
async fn a_server_at_another_address_takes_its_share_of_a_queue() {
    let mut stage = saturated().await;
    let names = NameServer::start().await;
    let path = stage.nerves[1].dir.join("nerve.json");
    let nerve = std::fs::read_to_string(&path).unwrap();
    let mut nerve: Value = serde_json::from_str(&nerve).unwrap();
    let service = &mut nerve["services"]["d"];
    service["checks"][0]["host"] = service["host"].take();
    service["host"] = json!(NAME);
    let _path = stage.nerves[1].dir.write("nerve.json", nerve.to_string());
    stage.nerves[1].program.signal(Signal::SIGHUP);
    stage.rig.synapse.signal(Signal::SIGKILL);
    stage.rig.synapse.wait(SOON).await;
    let (by, admin) = (
        names.used_by(&stage.rig.dir),
        Bind::Unix(stage.rig.dir.join("admin.sock")),
    );
    let by: Vec<&str> = by.iter().map(String::as_str).collect();
    stage.rig.synapse = Program::start_by(
        &by,
        "synapse",
        &stage.rig.dir,
        &["-c", "synapse.json"],
        admin,
    );
    stage.rig.synapse.ready(SOON).await;
    stage.change();
    stage.settled().await;
    stage.reaches(CHANGED).await;

    let address = SocketAddr::from(([127, 0, 0, 2], stage.apps[CHANGED].address.port()));
    let moved = App::start_on("moved", address).await;
    let mut row = stage
        .begin("a server comes to another address while such a queue waits")
        .await
        .least(CHANGED);
    names.answers(Ipv4Addr::new(127, 0, 0, 2));
    if !long() {
        goes_and_comes(&mut stage).await;
    }
    shares(&stage, &moved.state).await;
    row.ended();
    stage.agree(row).await;
    let before = stage.apps[CHANGED].state.requests();
    stage.lasts(Duration::from_millis(200)).await;
    assert_eq!(stage.apps[CHANGED].state.requests(), before);
    let told = stage.rig.whole_log();
    assert!(told.contains("readdress"), "{}", stage.rig.log());
}

/// Three slow servers that take two requests at a time, and clients that wait for them.
async fn saturated() -> Stage {
    let mut stage = Stage::start(Plan::small()).await;
    let mut config = stage.config();
    let web = &mut config["services"]["web"]["haproxy"];
    web["server_options"] = json!(format!("{CHECK} maxconn 2"));
    let lines = web["backend"].as_array_mut();
    lines.unwrap().push(json!("timeout queue 60s"));
    stage.reconfigured(&config, "timeout queue").await;
    for app in &stage.apps[..CHANGED] {
        app.set(Behaviour::Drip(Duration::from_millis(20)));
    }
    let clients = SteadyClient::start(Load {
        rate: 3000.0,
        clients: WAITING,
        keep_alive: true,
        timeout: SOON,
        ..Load::new(stage.target)
    });
    stage.more.push(clients);
    queue(&stage, 15).await;
    stage
}

/// The app that changes is withdrawn, and registered again while haproxy still has its server.
async fn goes_and_comes(stage: &mut Stage) {
    stage.change();
    eventually("it is out and still there", SOON, async || {
        let server = stage.try_server(CHANGED).await;
        match (stage.agreed().await, server) {
            (Ok(()), Some(_)) => Ok(()),
            other => Err(format!("{other:?}")),
        }
    })
    .await;
    stage.change();
}

/// Waits until so many requests wait for a server.
async fn queue(stage: &Stage, least: usize) {
    eventually("clients wait", SOON, async || {
        let stat = stage.rig.haproxy.command("show stat").await;
        let row = stat.lines().find(|line| line.starts_with("web,BACKEND,"));
        match row.and_then(|row| row.split(',').nth(2)?.parse::<usize>().ok()) {
            Some(queued) if queued >= least => Ok(()),
            other => Err(format!("{other:?}")),
        }
    })
    .await;
}

/// Counts from the server's first answer on; there is a queue before and afterwards.
async fn shares(stage: &Stage, server: &AppState) {
    let own = || server.requests();
    // Of the server that came in, and of the three.
    let all = || -> u64 {
        stage.apps[..CHANGED]
            .iter()
            .map(|app| app.state.requests())
            .sum::<u64>()
            + own()
    };
    let first = own();
    eventually("it gets requests", SOON, async || match own() - first {
        3.. => Ok(()),
        fewer => Err(format!("{fewer}\n{}", stage.rig.log())),
    })
    .await;
    let before = (own(), all());
    eventually("so many answers", SOON, async || match all() - before.1 {
        COUNTED.. => Ok(()),
        fewer => Err(fewer),
    })
    .await;
    let (own, all) = (own() - before.0, all() - before.1);
    println!("of {all} answers out of the queue {own} were of the server that came in");
    assert!(own >= SHARE, "{own} of {all}");
    queue(stage, 10).await;
}
