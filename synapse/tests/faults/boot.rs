//! A host boots while the ensemble cannot be reached: haproxy does not run, and all that is known is on disk.

use std::net::SocketAddr;
use std::time::Duration;

use nix::sys::signal::Signal;
use smartstack_common::testing::{Mode, ask_once, eventually};
use tokio::time::Instant;

use crate::clocks::a_host_boots_after_a_jump_of_the_wall_clock;
use crate::stage::{Plan, SOON, Side, Stage, Way};

/// Ten times the goal.
const LIMIT: Duration = Duration::from_secs(10);

#[tokio::test]
async fn a_host_boots_without_the_ensemble() {
    let mut plan = Plan::new(Way::Proxies);
    plan.servers = 1;
    let mut stage = Stage::start(plan).await;
    for (fault, mode) in [("blackholed", Mode::Blackhole), ("refused", Mode::Refuse)] {
        for known in ["haproxy.cfg and snapshot", "snapshot"] {
            stage.settled().await;
            stage.remembered().await;
            stage.set(Side::Both, mode).await;
            stage.rig.synapse.signal(Signal::SIGKILL);
            stage.rig.synapse.wait(SOON).await;
            stage.rig.haproxy.kill();
            if known == "snapshot" {
                std::fs::remove_file(stage.rig.config_file()).unwrap();
            }
            let target = stage.target;
            let began = Instant::now();
            stage.launch_synapse();
            let first = first_answer(target).await;
            let took = began.elapsed();
            // What was asked while haproxy did not run.
            let down = stage.tally();
            // From here on no request may fail.
            stage.lasts(Duration::from_millis(500)).await;
            let tally = stage.tally();
            println!(
                "fault: boot with the ensemble {fault}, from {known}: first answer {:.2} s after the start of synapse; then \
                 {} requests, {} failed ({} while nothing ran)",
                took.as_secs_f64(),
                tally.ok() + tally.failed(),
                tally.failed(),
                down.failed(),
            );
            assert!(["a", "b", "c", "d"].contains(&first.trim()), "{first}");
            assert!(took < LIMIT, "{took:?}");
            assert_eq!(tally.failed(), 0, "{tally}");
            let web = stage.rig.service("web").await;
            assert_eq!(web["fresh"], false, "{web:#}");
            stage.change();
            stage.set(Side::Both, Mode::Pass).await;
        }
    }
    a_host_boots_after_a_jump_of_the_wall_clock(&mut stage).await;
}

pub(crate) async fn first_answer(target: SocketAddr) -> String {
    eventually("the first answer", SOON, async || {
        tokio::task::spawn_blocking(move || ask_once(target))
            .await
            .unwrap()
    })
    .await
}
