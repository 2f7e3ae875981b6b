//! The programs stand still and die, and servers close their sessions. (haproxy's deaths are in the soak.)

use std::time::Duration;

use nix::sys::signal::Signal;
use smartstack_common::testing::{Program, TcpProxy, close_session};

use crate::stage::{Plan, SOON, Stage, Way};

/// Shorter than a session, and longer.
const SHORT: Duration = Duration::from_secs(1);
const LONG: Duration = Duration::from_secs(6);
/// The nerve of the app that changes.
const NERVE: usize = 1;
/// Servers left when all of one nerve are gone.
const OTHERS: usize = 2;

#[tokio::test]
async fn a_nerve_stands_still_or_dies() {
    let mut stage = Stage::start(Plan::new(Way::Proxies)).await;
    for (fault, time, least) in [("1 s", SHORT, OTHERS + 1), ("6 s", LONG, OTHERS)] {
        let row = stage
            .begin(&format!("SIGSTOP of a nerve for {fault}"))
            .await;
        let mut row = row.least(least);
        stage.nerves[NERVE].program.signal(Signal::SIGSTOP);
        stage.change();
        stage.lasts(time).await;
        stage.nerves[NERVE].program.signal(Signal::SIGCONT);
        row.ended();
        stage.agree(row).await;
    }
    for (fault, time, least) in [
        ("started again at once", Duration::ZERO, OTHERS + 1),
        ("started again after 6 s", LONG, OTHERS),
    ] {
        let row = stage.begin(&format!("SIGKILL of a nerve, {fault}")).await;
        let mut row = row.least(least);
        stage.nerves[NERVE].kill().await;
        stage.change();
        stage.lasts(time).await;
        stage.nerves[NERVE].start_again().await;
        row.ended();
        stage.agree(row).await;
    }
}

#[tokio::test]
async fn synapse_stands_still_or_dies() {
    let mut stage = Stage::start(Plan::new(Way::Proxies)).await;
    for (fault, time) in [("1 s", SHORT), ("6 s", LONG)] {
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
    for (fault, time) in [("at once", Duration::ZERO), ("after 6 s", LONG)] {
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

#[tokio::test]
async fn servers_close_a_session() {
    let mut stage = Stage::start(Plan::new(Way::Proxies)).await;
    let row = stage.begin("a nerve's session closed by the servers").await;
    let mut row = row.least(OTHERS);
    close(&stage, &stage.nerves[NERVE].program, &stage.to_nerves).await;
    stage.change();
    row.ended();
    assert_eq!(stage.agree(row).await.kept, 2);

    let mut row = stage.begin("synapse's session closed by the servers").await;
    close(&stage, &stage.rig.synapse, &stage.to_synapse).await;
    stage.change();
    row.ended();
    assert_eq!(stage.agree(row).await.kept, 2);
}

/// Closes the session of a program that is connected through these proxies.
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
    let server = stage.zookeeper.host(0);
    close_session(&server, &key.unwrap()).await.unwrap();
}
