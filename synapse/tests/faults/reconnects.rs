//! One client reconnects again and again: 200 times, or 10,000 times with `FAULTS=long`.

use serde_json::Value;
use smartstack_common::testing::{Cut, Program, eventually};
use tokio::time::Instant;

use crate::stage::{Plan, SOON, Side, Stage, Way};

/// What memory may grow by between the middle and the end, in kB: allocators and logs, not a leak per reconnection.
const GROWTH: u64 = 2048;

#[tokio::test]
async fn a_client_reconnects_many_times() {
    let rounds = if crate::long() { 10_000 } else { 200 };
    let mut plan = Plan::new(Way::Proxies);
    plan.servers = 1;
    let mut stage = Stage::start(plan).await;
    // The first ones fill caches and pools.
    for _ in 0..rounds / 10 {
        reconnect(&stage).await;
    }
    let mut row = stage
        .begin(&format!("{rounds} reconnections of each program"))
        .await;
    let (before, watches) = (memory(&mut stage), watches(&stage).await);
    let (began, mut middle) = (Instant::now(), Vec::new());
    for round in 0..rounds {
        if round == rounds / 2 {
            same_watches(&stage, &watches).await;
            middle = memory(&mut stage);
        }
        reconnect(&stage).await;
    }
    let each = began.elapsed() / rounds;
    let after = memory(&mut stage);
    same_watches(&stage, &watches).await;
    println!(
        "{each:?} each; resident kB of synapse and the nerves before {before:?}, in the middle {middle:?}, after {after:?}; \
         on the server {watches}"
    );
    stage.change();
    row.ended();
    let figures = stage.agree(row).await;
    assert_eq!(figures.kept, 3, "a reconnection keeps its session");
    for (middle, after) in middle.iter().zip(&after) {
        assert!(*after < middle + middle / 10 + GROWTH, "{middle} {after}");
    }
}

/// Cuts every connection, and waits until each program has another.
async fn reconnect(stage: &Stage) {
    let epoch = |status: Value| {
        let link = &status["zookeeper"][0];
        (link["state"] == "live").then(|| link["epoch"].as_u64())?
    };
    let mut before = Vec::new();
    for program in stage.programs() {
        before.push(connected(program, epoch).await);
    }
    for proxy in stage.proxies(Side::Both) {
        proxy.cut(Cut::Reset).await;
    }
    for (program, before) in stage.programs().zip(before) {
        eventually("reconnected", SOON, async || {
            match epoch(program.status().await) {
                Some(now) if now > before => Ok(()),
                other => Err(format!("epoch {other:?} after {before}")),
            }
        })
        .await;
    }
}

async fn connected(program: &Program, epoch: impl Fn(Value) -> Option<u64>) -> u64 {
    eventually("connected", SOON, async || {
        epoch(program.status().await).ok_or("not connected")
    })
    .await
}

/// Resident memory in kB.
fn memory(stage: &mut Stage) -> Vec<u64> {
    let nerves = stage.nerves.iter_mut().map(|nerve| &mut nerve.program);
    let programs = std::iter::once(&mut stage.rig.synapse).chain(nerves);
    let resident = |program: &mut Program| {
        let pid = program.process().pid();
        let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
        let line = status
            .lines()
            .find(|line| line.starts_with("VmRSS:"))
            .unwrap();
        line.split_ascii_whitespace()
            .nth(1)
            .unwrap()
            .parse()
            .unwrap()
    };
    programs.map(resident).collect()
}

/// Waits until the server has as many as before: the programs set theirs again after each reconnection.
async fn same_watches(stage: &Stage, before: &str) {
    eventually("as many watches as before", SOON, async || {
        let now = watches(stage).await;
        if now == before { Ok(()) } else { Err(now) }
    })
    .await;
}

/// The server's summary: connections, paths, watches.
async fn watches(stage: &Stage) -> String {
    let text = stage.zookeeper.four_letters(0, "wchs").await;
    text.lines().last().unwrap_or_default().to_owned()
}
