//! A haproxy that hangs: what is said of it while it does, and what becomes of it.

use std::net::SocketAddr;
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};
use smartstack_common::testing::{Load, SteadyClient, ask_once, eventually};

use crate::rig::SOON;
use crate::stage::Stage;

fn signal(pid: u32, signal: Signal) {
    kill(Pid::from_raw(pid.try_into().unwrap()), signal).unwrap();
}

/// Waits until `/ready` has this status, and returns what it says.
async fn ready(stage: &Stage, status: u16) -> String {
    eventually(&format!("/ready is {status}"), SOON, async || {
        let reply = stage
            .rig
            .synapse
            .get("/ready")
            .await
            .map_err(|e| e.to_string())?;
        match reply.status {
            found if found == status => Ok(reply.body),
            found => Err(format!("{found}: {}\n{}", reply.body, stage.rig.log())),
        }
    })
    .await
}

/// SIGSTOP of the worker: not ready, with the reason and since when; states keep their time; nothing is reloaded; then all is
/// as before.
pub(crate) async fn it_is_told(stage: &mut Stage) {
    let before = stage.settled().await;
    assert_eq!(stage.rig.synapse.metric("synapse_ready").await, Some(1.0));
    let pid = stage.rig.haproxy.worker_pid().await;
    signal(pid, Signal::SIGSTOP);
    let began = tokio::time::Instant::now();
    let body = ready(stage, 503).await;
    println!(
        "  /ready after {:.1} s: {}",
        began.elapsed().as_secs_f64(),
        body.trim()
    );
    assert!(body.contains("does not answer"), "{body}");
    let status = stage.rig.synapse.status().await;
    let haproxy = &status["haproxy"];
    assert_eq!(haproxy["state"], "not answering", "{status:#}");
    assert_eq!(status["ready"], false);
    let at = |value: &Value| value.as_f64().unwrap();
    assert!(
        at(&haproxy["states_at"]) <= at(&haproxy["silent_since"]),
        "{status:#}"
    );
    assert_eq!(stage.rig.synapse.metric("synapse_ready").await, Some(0.0));
    assert_eq!(
        stage.rig.synapse.metric("synapse_haproxy_answers").await,
        Some(0.0)
    );
    signal(pid, Signal::SIGCONT);
    ready(stage, 200).await;
    let after = stage.settled().await;
    for what in ["pid", "reloads", "reload_failures", "foreign_reloads"] {
        assert_eq!(after[what], before[what], "{what}");
    }
}

/// Synapse itself has no descriptor left to ask with: haproxy is not blamed and not killed, whatever time passes; what the
/// registry says meanwhile is served afterwards, and no request notices anything.
pub(crate) async fn it_cannot_be_asked(stage: &mut Stage) {
    stage.config["haproxy"]["replace_hung_after"] = json!("5s");
    stage.rig.configure(&stage.config);
    let before = stage.settled().await;
    let target = SocketAddr::from(([127, 0, 0, 1], stage.port("one")));
    let client = SteadyClient::start(Load::new(target));
    let synapse = stage.rig.synapse.process().pid();
    let told = || {
        let log = stage.rig.whole_log();
        log.matches("this program has no free file descriptor")
            .count()
    };
    let former = told();
    descriptors(synapse, Some(0));
    eventually("it tells what it is short of", SOON, async || {
        match told() {
            now if now > former => Ok(()),
            _ => Err(stage.rig.log()),
        }
    })
    .await;
    let server = stage.server("one");
    stage.register("one", &server).await;
    // At 100 a second: nearly twice the time after which a haproxy that does not answer is replaced.
    let tally = client.more(900, SOON).await;
    assert_eq!(tally.failed(), 0, "{tally}");
    let lines = stage.rig.whole_log();
    let lines = lines
        .lines()
        .filter(|line| line.contains("admin listener takes"));
    assert!(lines.count() <= 1, "{}", stage.rig.log());
    descriptors(synapse, None);
    ready(stage, 200).await;
    let after = stage.settled().await;
    for what in ["pid", "reloads", "reload_failures", "foreign_reloads"] {
        assert_eq!(after[what], before[what], "{what}\n{}", stage.rig.log());
    }
    let tally = client.snapshot();
    println!("  {tally}");
    assert_eq!(tally.failed(), 0, "{tally}");
}

/// Another soft limit of open files for a program that runs; `None` = the hard one.
fn descriptors(pid: u32, soft: Option<u64>) {
    let limits = std::fs::read_to_string(format!("/proc/{pid}/limits")).unwrap();
    let line = limits
        .lines()
        .find(|line| line.starts_with("Max open files"));
    let hard = line.unwrap().split_ascii_whitespace().nth(4).unwrap();
    let soft = soft.map_or(hard.to_owned(), |soft| soft.to_string());
    let status = std::process::Command::new("prlimit")
        .args([format!("--pid={pid}"), format!("--nofile={soft}:{hard}")])
        .status()
        .expect("prlimit runs (Debian: util-linux)");
    assert!(status.success(), "prlimit: {status}");
}

/// A haproxy that hangs, with a limit: the worker is killed, alone or with a master that hangs as well, and another one serves.
pub(crate) async fn it_is_replaced(stage: &mut Stage) {
    stage.config["haproxy"]["replace_hung_after"] = json!("5s");
    stage.rig.configure(&stage.config);
    let target = SocketAddr::from(([127, 0, 0, 1], stage.port("one")));
    for whole in [false, true] {
        stage.settled().await;
        let pid = stage.rig.haproxy.worker_pid().await;
        let file = stage.rig.dir.join("haproxy/haproxy.cfg.pid");
        let master: u32 = std::fs::read_to_string(file)
            .unwrap()
            .trim()
            .parse()
            .unwrap();
        let began = tokio::time::Instant::now();
        signal(pid, Signal::SIGSTOP);
        if whole {
            signal(master, Signal::SIGSTOP);
        }
        let limit = Duration::from_secs(120);
        eventually("another haproxy serves", limit, async || {
            let status = stage.rig.synapse.status().await;
            let other = status["haproxy"]["pid"]
                .as_u64()
                .is_some_and(|now| now != u64::from(pid));
            if other && status["ready"] == true {
                return Ok(());
            }
            Err(format!("{status:#}\n{}", stage.rig.log()))
        })
        .await;
        println!(
            "  replaced after {:.1} s, master stopped: {whole}",
            began.elapsed().as_secs_f64()
        );
        let body = tokio::task::spawn_blocking(move || ask_once(target))
            .await
            .unwrap();
        assert!(body.is_ok(), "{body:?}");
    }
}

/// Without a stats socket: nothing diverges for ever, and a haproxy of ours that dies is started again.
pub(crate) async fn without_a_socket(stage: &mut Stage) {
    stage.config["haproxy"]["do_socket"] = json!(false);
    stage.rig.configure(&stage.config);
    let target = SocketAddr::from(([127, 0, 0, 1], stage.port("one")));
    let unconfirmed = |status: &Value| {
        let haproxy = &status["haproxy"];
        haproxy["state"] == "unconfirmed" && haproxy["divergence"] == 0 && status["ready"] == true
    };
    stage
        .rig
        .status_shows("in step as far as can be told", unconfirmed)
        .await;
    let before = stage.reloads().await;
    stage.rig.haproxy.kill();
    eventually("haproxy was started again", SOON, async || {
        match stage.reloads().await {
            now if now > before => Ok(()),
            now => Err(format!("{now}\n{}", stage.rig.log())),
        }
    })
    .await;
    stage.rig.status_shows("in step again", unconfirmed).await;
    eventually("it serves", SOON, async || {
        tokio::task::spawn_blocking(move || ask_once(target))
            .await
            .unwrap()
    })
    .await;
}
