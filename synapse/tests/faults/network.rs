//! Hosts cut off from each other, in network namespaces: each program and each member on a host of its own. Needs root.
//! (The kernel these were written on has no netem: delay and loss of bytes are the proxies'.)

use std::time::Duration;

use smartstack_common::testing::{Host, Partition};

use crate::stage::{Plan, SESSION, Stage, Way};

/// Shorter than a session, and longer.
const SHORT: Duration = Duration::from_secs(1);
const LONG: Duration = Duration::from_secs(5);
const ALL: [(&str, Partition); 4] = [
    ("both ways", Partition::Both),
    ("on the way to them", Partition::Out),
    ("on the way from them", Partition::In),
    ("by a blackhole route", Partition::Blackhole),
];

#[tokio::test]
async fn hosts_are_cut_off_from_the_ensemble() {
    let mut stage = Stage::start(Plan::new(Way::Network)).await;
    for (way, partition) in ALL {
        let row = stage
            .begin(&format!(
                "synapse's host cut off from all members {way} for 4 s"
            ))
            .await;
        let host = stage.hosts().synapse.clone();
        let time = SESSION + SHORT;
        cut_off(&mut stage, row, &host, partition, time).await;
    }
    for time in [SHORT, LONG] {
        let row = stage
            .begin(&format!(
                "a nerve's host cut off from all members both ways for {time:?}"
            ))
            .await;
        let host = stage.hosts().nerves[1].clone();
        cut_off(&mut stage, row, &host, Partition::Both, time).await;
    }
}

#[tokio::test]
async fn the_leader_is_cut_off() {
    let mut stage = Stage::start(Plan::new(Way::Network)).await;
    for (way, partition) in [ALL[0], ALL[1]] {
        let fault = format!("the leader's host cut off from all other hosts {way} for 5 s");
        let row = stage.begin(&fault).await;
        let leader = stage.zookeeper.leader().await;
        let host = stage.hosts().members[leader].clone();
        cut_off(&mut stage, row, &host, partition, LONG).await;
    }
}

/// Cuts a host off: from all others if it is a member, else from the members.
async fn cut_off(
    stage: &mut Stage,
    mut row: crate::row::Row,
    host: &Host,
    partition: Partition,
    time: Duration,
) {
    let hosts = stage.hosts();
    let mut peers: Vec<&Host> = hosts.members.iter().filter(|peer| *peer != host).collect();
    if hosts.members.contains(host) {
        peers.extend(&hosts.nerves);
        peers.push(&hosts.synapse);
    }
    hosts.network.cut(host, &peers, partition);
    stage.change();
    stage.lasts(time).await;
    stage.hosts().network.mend(host);
    row.ended();
    stage.agree(row).await;
}
