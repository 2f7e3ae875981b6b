//! Jumps of the wall clock. The monotonic clock cannot jump, and all time-outs, windows and ages within a process are
//! measured with it; setting the machine's wall clock is nothing a test may do, and a time namespace does not have one.
//! Where the wall clock could decide something is how old the snapshot is at a start: so the snapshot's times jump instead,
//! with a `max_stale` that they would exceed and default servers that would take over.
//! (A nerve or synapse that stands still, as in a suspended machine, is SIGSTOP in `processes`.)

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use nix::sys::signal::Signal;
use serde_json::{Value, json};
use smartstack_common::shutdown::Shutdown;
use smartstack_common::testing::Mode;
use synapse::snapshot::{Counters, Snapshot, read, write_behind};
use tokio::sync::watch;
use tokio::time::Instant;

use crate::boot::first_answer;
use crate::stage::{SOON, Side, Stage};

const DAY: Duration = Duration::from_secs(24 * 3600);

/// Called by `boot`, on its stage.
pub(crate) async fn a_host_boots_after_a_jump_of_the_wall_clock(stage: &mut Stage) {
    // What is believed to be old gives way to what answers nobody.
    let mut config = stage.config();
    config["max_stale"] = json!("1h");
    let web = &mut config["services"]["web"];
    web["default_servers"] = json!([{"name": "nobody", "host": "127.0.0.1", "port": 1}]);
    let lines = web["haproxy"]["backend"].as_array_mut();
    lines.unwrap().push(json!("timeout queue 60s"));
    stage.reconfigured(&config, "timeout queue").await;
    let now = SystemTime::now();
    for (jump, agreed_at) in [("back by a day", now + DAY), ("ahead by a day", now - DAY)] {
        stage.settled().await;
        stage.remembered().await;
        stage.set(Side::Both, Mode::Refuse).await;
        stage.rig.synapse.signal(Signal::SIGKILL);
        stage.rig.synapse.wait(SOON).await;
        stage.rig.haproxy.kill();
        std::fs::remove_file(stage.rig.config_file()).unwrap();
        shift(stage, agreed_at).await;
        let began = Instant::now();
        stage.launch_synapse();
        first_answer(stage.target).await;
        let took = began.elapsed();
        stage.tally();
        stage.lasts(Duration::from_millis(500)).await;
        let tally = stage.tally();
        assert_eq!(tally.failed(), 0, "{tally}");
        stage.change();
        stage.set(Side::Both, Mode::Pass).await;
        let began = Instant::now();
        stage.settled().await;
        println!(
            "fault: boot without the ensemble, the clock set {jump}: first answer {:.2} s after the start of synapse; agreement \
             {:.2} s after the ensemble's return",
            took.as_secs_f64(),
            began.elapsed().as_secs_f64(),
        );
    }
}

/// Rewrites the snapshot as if the registry had last agreed then.
async fn shift(stage: &Stage, agreed_at: SystemTime) {
    let text = std::fs::read_to_string(&stage.snapshot).unwrap();
    let value: Value = serde_json::from_str(&text).unwrap();
    let machine = value["body"]["machine"].as_str().unwrap();
    let mut snapshot = read(&stage.snapshot, machine).snapshot.unwrap();
    for record in snapshot.sources.values_mut() {
        record.agreed_at = Some(agreed_at);
    }
    let (state, receiver) = watch::channel(Arc::new(Snapshot::default()));
    let (stop, shutdown) = Shutdown::channel();
    state.send_replace(Arc::new(snapshot));
    stop.send_replace(true);
    let counters = Arc::new(Counters::default());
    write_behind(stage.snapshot.clone(), receiver, counters, shutdown).await;
    let text = std::fs::read_to_string(&stage.snapshot).unwrap();
    let seconds = agreed_at
        .duration_since(SystemTime::UNIX_EPOCH)
        .unwrap()
        .as_secs();
    assert!(text.contains(&seconds.to_string()), "{text}");
}
