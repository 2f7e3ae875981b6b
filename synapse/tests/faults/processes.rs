//! The programs stand still and die, and servers close their sessions. (haproxy's deaths are in the soak.)

use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::json;
use smartstack_common::testing::{Mode, Program, TcpProxy, close_session, eventually};

use crate::stage::{Plan, SOON, Stage, Way};

/// Shorter than a session, and longer.
const SHORT: Duration = Duration::from_secs(1);
const LONG: Duration = Duration::from_secs(5);
/// The nerve of the app that changes.
const NERVE: usize = 1;

#[tokio::test]
async fn programs_stand_still_or_die_or_lose_their_sessions() {
    let mut stage = Stage::start(Plan::new(Way::Proxies)).await;
    a_nerve_stands_still_or_dies(&mut stage).await;
    synapse_stands_still_or_dies(&mut stage).await;
    servers_close_a_session(&mut stage).await;
    haproxy_stands_still(&mut stage).await;
    haproxy_refuses(&mut stage).await;
}

/// Requests wait for as long as it stands still, and none fails.
async fn haproxy_stands_still(stage: &mut Stage) {
    for time in [SHORT, Duration::from_secs(4)] {
        let mut row = stage
            .begin(&format!("SIGSTOP of haproxy's worker for {time:?}"))
            .await;
        let worker = stage.rig.haproxy.worker_pid().await;
        let worker = Pid::from_raw(worker.try_into().unwrap());
        kill(worker, Signal::SIGSTOP).unwrap();
        stage.change();
        // The fault itself: nobody is answered meanwhile.
        tokio::time::sleep(time).await;
        kill(worker, Signal::SIGCONT).unwrap();
        row.ended();
        stage.agree(row).await;
    }
}

/// What haproxy refuses is done by reloads, of this service and of others.
async fn haproxy_refuses(stage: &mut Stage) {
    let known = stage.config();

    let mut config = known.clone();
    let line = known["haproxy"]["global"][0].as_str().unwrap();
    config["haproxy"]["global"][0] = json!(line.replace("level admin", "level operator"));
    stage.rig.configure(&config);
    let mut row = stage.begin("stats socket of level operator").await;
    for _ in 0..2 {
        stage.change();
        stage.lasts(LONG).await;
    }
    row.ended();
    stage.agree(row).await;

    // haproxy takes the algorithm for a static one, and we cannot know.
    let mut config = known.clone();
    let hidden = [
        "balance source",
        ".if !defined(HAPROXY_CFGFILES)",
        "hash-type consistent",
        ".endif",
    ];
    let lines = config["services"]["web"]["haproxy"]["backend"].as_array_mut();
    lines.unwrap().extend(hidden.map(|line| json!(line)));
    stage.rig.configure(&config);
    let mut row = stage
        .begin("refused weights while another service is reloaded")
        .await;
    for weight in [7, 9] {
        let options = format!("{} weight {weight}", crate::stage::CHECK);
        config["services"]["web"]["haproxy"]["server_options"] = json!(options);
        let port = smartstack_common::testing::free_port();
        let server = stage.apps[0].address.port();
        config["services"]["other"] = crate::rig::fixed(port, &[server]);
        stage.rig.configure(&config);
        stage.change();
        stage.lasts(LONG).await;
        let bind = format!("bind 127.0.0.1:{port}");
        eventually("the other service is loaded", SOON, async || {
            if stage.rig.text().contains(&bind) {
                Ok(())
            } else {
                Err(stage.rig.log())
            }
        })
        .await;
    }
    row.ended();
    stage.agree(row).await;
    stage.rig.configure(&known);
    stage.settled().await;
}

async fn a_nerve_stands_still_or_dies(stage: &mut Stage) {
    for (fault, time) in [("1 s", SHORT), ("5 s", LONG)] {
        let mut row = stage
            .begin(&format!("SIGSTOP of a nerve for {fault}"))
            .await;
        stage.nerves[NERVE].program.signal(Signal::SIGSTOP);
        stage.change();
        stage.lasts(time).await;
        stage.nerves[NERVE].program.signal(Signal::SIGCONT);
        row.ended();
        stage.agree(row).await;
    }
    for (fault, time) in [("at once", Duration::ZERO), ("after 5 s", LONG)] {
        let mut row = stage
            .begin(&format!("SIGKILL of a nerve, started again {fault}"))
            .await;
        if time.is_zero() {
            // A new session, whose nodes take the place of the old one's without a gap.
            row = row.least(3);
        }
        stage.nerves[NERVE].kill().await;
        stage.change();
        stage.lasts(time).await;
        stage.nerves[NERVE].start_again().await;
        row.ended();
        stage.agree(row).await;
    }
}

async fn synapse_stands_still_or_dies(stage: &mut Stage) {
    for (fault, time) in [("1 s", SHORT), ("5 s", LONG)] {
        let mut row = stage
            .begin(&format!("SIGSTOP of synapse for {fault}"))
            .await;
        stage.rig.synapse.signal(Signal::SIGSTOP);
        stage.change();
        stage.lasts(time).await;
        stage.rig.synapse.signal(Signal::SIGCONT);
        row.ended();
        stage.agree(row).await;
    }
    for (fault, time) in [("at once", Duration::ZERO), ("after 5 s", LONG)] {
        let mut row = stage
            .begin(&format!("SIGKILL of synapse, started again {fault}"))
            .await;
        stage.rig.synapse.signal(Signal::SIGKILL);
        stage.rig.synapse.wait(SOON).await;
        stage.change();
        stage.lasts(time).await;
        stage.start_synapse().await;
        row.ended();
        stage.agree(row).await;
    }
}

async fn servers_close_a_session(stage: &mut Stage) {
    let mut row = stage.begin("a nerve's session closed by the servers").await;
    close(stage, &stage.nerves[NERVE].program, &stage.to_nerves).await;
    stage.change();
    row.ended();
    assert_eq!(stage.agree(row).await.kept, 2);

    let mut row = stage.begin("synapse's session closed by the servers").await;
    close(stage, &stage.rig.synapse, &stage.to_synapse).await;
    stage.change();
    row.ended();
    assert_eq!(stage.agree(row).await.kept, 2);
}

/// Closes the session of a program that is connected through these proxies; on return it may learn of it.
///
/// It is kept away meanwhile: taking the session over ends its connection, and a client that is back before the close has
/// gone round all members can be left with a connection that reads and cannot write.
pub(crate) async fn close(stage: &Stage, program: &Program, proxies: &[TcpProxy]) {
    let status = program.status().await;
    let session = status["zookeeper"][0]["session"]
        .as_str()
        .unwrap()
        .to_owned();
    let known = proxies.iter().flat_map(TcpProxy::sessions);
    let key = known
        .into_iter()
        .find(|key| format!("{:#x}", key.id) == session);
    for proxy in proxies {
        proxy.set(Mode::Refuse).await;
    }
    let server = stage.zookeeper.host(0);
    close_session(&server, &key.unwrap()).await.unwrap();
    for index in 0..3 {
        eventually("no member knows the session", SOON, async || {
            let dump = stage.zookeeper.four_letters(index, "dump").await;
            match dump.contains(&session) {
                false => Ok(()),
                true => Err(dump),
            }
        })
        .await;
    }
    for proxy in proxies {
        proxy.set(Mode::Pass).await;
    }
}
