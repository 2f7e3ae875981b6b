//! What others do to haproxy, and what a reload must not undo or delay.

use std::os::unix::fs::PermissionsExt as _;
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::json;
use smartstack_common::testing::{App, Dir, Haproxy, eventually};
use tokio::time::Instant;

use crate::pair::{Pair, SOON, Traffic, Way, answer, in_step, reloaded_by_hand, reloads, status};

#[tokio::test]
async fn a_removal_and_its_return_do_not_wait_for_the_next_reload() {
    let mut pair = Pair::start(Way::Supervise).await;
    pair.with_cookies();
    let (a, b, c) = (
        App::start("a").await,
        App::start("b").await,
        App::start("c").await,
    );
    pair.register(&a).await;
    let node = pair.register(&b).await;
    let synapse = pair.serving().await;
    pair.until(&b, "ready").await;
    in_step(&synapse).await;
    // A reload begins the interval.
    pair.config["haproxy"]["restart_interval"] = json!(60);
    pair.config["services"]["web"]["haproxy"]["frontend"] = json!(["option dontlognull"]);
    let _path = pair.configure();
    let loaded = reloads(&synapse).await;
    synapse.signal(Signal::SIGHUP);
    status(&synapse, "the configuration is loaded", |status| {
        status["haproxy"]["reloads"].as_u64() > Some(loaded)
    })
    .await;
    in_step(&synapse).await;
    let traffic = Traffic::start(pair.port).await;
    traffic.reaches(&b).await;
    pair.register(&c).await;
    status(&synapse, "c waits for the next reload", |status| {
        status["haproxy"]["divergence"] != 0
    })
    .await;
    let (before, pid) = (reloads(&synapse).await, pair.haproxy.worker_pid().await);

    let began = Instant::now();
    pair.withdraw(&node).await;
    pair.until(&b, "retired").await;
    let took = began.elapsed();
    println!("removal with a reload pending: out after {took:?}");
    assert!(took < Duration::from_secs(1), "{took:?}");
    traffic.avoids(&b).await;

    let began = Instant::now();
    pair.register(&b).await;
    pair.until(&b, "ready").await;
    println!(
        "return with a reload pending: in after {:?}",
        began.elapsed()
    );
    traffic.reaches(&b).await;
    assert_eq!(pair.state(&c).await, "absent");
    assert_eq!(reloads(&synapse).await, before);
    assert_eq!(pair.haproxy.worker_pid().await, pid);
    traffic.unharmed().await;

    // The start of a haproxy that has died waits for nothing, and takes what waited along.
    pair.haproxy.kill();
    answer(pair.port).await;
    pair.until(&c, "ready").await;
}

#[tokio::test]
async fn an_operators_maint_outlives_our_reloads_and_restarts() {
    let mut pair = Pair::start(Way::Supervise).await;
    pair.with_cookies();
    let (a, b, c, d) = (
        App::start("a").await,
        App::start("b").await,
        App::start("c").await,
        App::start("d").await,
    );
    pair.register(&a).await;
    pair.register(&b).await;
    let mut synapse = pair.serving().await;
    pair.until(&b, "ready").await;
    in_step(&synapse).await;
    let traffic = Traffic::start(pair.port).await;
    let name = server_name(&pair, &b).await;
    let pid = pair.haproxy.worker_pid().await;

    pair.haproxy
        .command(&format!("set server web/{name} state maint"))
        .await;
    assert_eq!(pair.state(&b).await, "maint");
    // A reload right after it: nobody has looked in between.
    pair.register(&c).await;
    pair.until(&c, "ready").await;
    assert_ne!(pair.haproxy.worker_pid().await, pid);
    assert_eq!(pair.state(&b).await, "maint");
    let is_maint = |status: &serde_json::Value| {
        let servers = status["services"]["web"]["servers"].as_array().unwrap();
        servers
            .iter()
            .any(|s| s["name"] == json!(name) && s["haproxy"] == "maint")
    };
    status(&synapse, "/status says maint", is_maint).await;
    let line = pair.file();
    let line = line.lines().find(|line| line.contains(&name)).unwrap();
    assert!(line.ends_with(" disabled"), "{line}");

    for signal in [Signal::SIGTERM, Signal::SIGKILL] {
        synapse.signal(signal);
        synapse.wait(SOON).await;
        synapse = pair.serving().await;
        in_step(&synapse).await;
        status(&synapse, "/status says maint", is_maint).await;
        assert_eq!(pair.state(&b).await, "maint");
    }
    pair.register(&d).await;
    pair.until(&d, "ready").await;
    assert_eq!(pair.state(&b).await, "maint");
    traffic.avoids(&b).await;

    pair.haproxy
        .command(&format!("set server web/{name} state ready"))
        .await;
    traffic.reaches(&b).await;
    let e = App::start("e").await;
    pair.register(&e).await;
    pair.until(&e, "ready").await;
    assert_eq!(pair.state(&b).await, "ready");
    traffic.reaches(&b).await;
    traffic.unharmed().await;
}

#[tokio::test]
async fn a_reload_by_others_with_an_older_file_is_repaired() {
    let pair = Pair::start(Way::Master).await;
    let (a, b, c) = (
        App::start("a").await,
        App::start("b").await,
        App::start("c").await,
    );
    pair.register(&a).await;
    let gone = pair.register(&c).await;
    let synapse = pair.serving().await;
    pair.until(&c, "ready").await;
    in_step(&synapse).await;
    let old = pair.file();
    pair.register(&b).await;
    pair.until(&b, "ready").await;
    pair.withdraw(&gone).await;
    pair.until(&c, "retired").await;
    in_step(&synapse).await;
    let traffic = Traffic::start(pair.port).await;
    let pid = pair.haproxy.worker_pid().await;

    let _path = pair.dir.write("haproxy.cfg", old);
    let began = Instant::now();
    reloaded_by_hand(&pair, &synapse).await;
    pair.until(&b, "ready").await;
    in_step(&synapse).await;
    println!(
        "foreign reload with an older file: repaired after {:?}",
        began.elapsed()
    );
    assert_ne!(pair.haproxy.worker_pid().await, pid);
    assert_ne!(pair.state(&c).await, "ready");
    traffic.reaches(&b).await;
    traffic.avoids(&c).await;
    traffic.unharmed().await;
}

#[tokio::test]
async fn a_haproxy_that_was_killed_is_started_again_supervised() {
    let pair = Pair::start(Way::Supervise).await;
    let app = App::start("a").await;
    pair.register(&app).await;
    let synapse = pair.serving().await;
    pair.until(&app, "ready").await;
    for what in ["worker", "master and worker"] {
        let worker = pair.haproxy.worker_pid().await;
        let began = Instant::now();
        let pids = if what == "worker" {
            vec![worker]
        } else {
            pair.haproxy.pids()
        };
        for pid in pids {
            // Err = it went with the other.
            let _gone = kill(Pid::from_raw(i32::try_from(pid).unwrap()), Signal::SIGKILL).is_err();
        }
        eventually("another worker serves", SOON, async || {
            let status = synapse.status().await;
            let pid = status["haproxy"]["pid"].as_u64();
            if status["haproxy"]["state"] == "serving" && pid != Some(u64::from(worker)) {
                Ok(())
            } else {
                Err(status["haproxy"].to_string())
            }
        })
        .await;
        answer(pair.port).await;
        println!("{what} killed: served again after {:?}", began.elapsed());
        in_step(&synapse).await;
    }
}

#[tokio::test]
async fn a_haproxy_stopped_and_started_by_its_owner_is_brought_in_step() {
    let mut pair = Pair::start(Way::Master).await;
    let (a, b, c) = (
        App::start("a").await,
        App::start("b").await,
        App::start("c").await,
    );
    pair.register(&a).await;
    let gone = pair.register(&b).await;
    let synapse = pair.serving().await;
    pair.until(&b, "ready").await;
    pair.haproxy.kill();
    // What changes while it is away: synapse tries in vain, and the file follows.
    status(&synapse, "a reload has failed", |status| {
        status["haproxy"]["reload_failures"].as_u64() > Some(1)
    })
    .await;
    pair.withdraw(&gone).await;
    pair.register(&c).await;
    status(&synapse, "synapse knows", |status| {
        let servers = status["services"]["web"]["servers"].to_string();
        servers.contains("i-c") && !servers.contains("i-b")
    })
    .await;
    pair.start_haproxy().await;
    pair.until(&c, "ready").await;
    assert_ne!(pair.state(&b).await, "ready");
    in_step(&synapse).await;
    let traffic = Traffic::start(pair.port).await;
    traffic.reaches(&c).await;
    traffic.unharmed().await;
}

#[tokio::test]
async fn a_command_starts_a_haproxy_that_was_killed() {
    let mut pair = Pair::start(Way::Command).await;
    let app = App::start("a").await;
    pair.register(&app).await;
    let synapse = pair.serving().await;
    pair.until(&app, "ready").await;
    pair.haproxy.kill();
    let began = Instant::now();
    answer(pair.port).await;
    println!(
        "haproxy killed: served by the command after {:?}",
        began.elapsed()
    );
    in_step(&synapse).await;
}

/// Reloads fail for a while: removals go on, the file follows, and nothing spins.
#[tokio::test]
async fn while_reloads_fail_removals_go_on_and_nothing_spins() {
    let mut pair = Pair::start(Way::Command).await;
    pair.with_cookies();
    let broken = pair.dir.join("broken");
    let command = pair.config["haproxy"]["reload_command"]
        .as_str()
        .unwrap()
        .to_owned();
    pair.config["haproxy"]["reload_command"] = json!(format!(
        "if [ -e {} ]; then echo no >&2; exit 3; fi; {command}",
        broken.display()
    ));
    let (a, b, c) = (
        App::start("a").await,
        App::start("b").await,
        App::start("c").await,
    );
    pair.register(&a).await;
    let gone = pair.register(&b).await;
    let mut synapse = pair.serving().await;
    pair.until(&b, "ready").await;
    in_step(&synapse).await;
    let traffic = Traffic::start(pair.port).await;

    let _path = pair.dir.write("broken", "");
    pair.register(&c).await;
    status(&synapse, "reloads fail", |status| {
        status["haproxy"]["reload_failures"].as_u64() >= Some(2)
    })
    .await;
    let before = synapse.process().pid();
    let (cpu, began) = (cpu(before), Instant::now());
    pair.withdraw(&gone).await;
    pair.until(&b, "retired").await;
    eventually("the file follows", SOON, async || {
        let file = pair.file();
        if file.contains("i-b_") {
            Err(file)
        } else {
            Ok(())
        }
    })
    .await;
    traffic.avoids(&b).await;
    traffic.more(100).await;
    let used = self::cpu(before) - cpu;
    println!(
        "while reloads fail: {used:?} of CPU in {:?}",
        began.elapsed()
    );
    assert!(used < began.elapsed() / 4, "{used:?}");

    std::fs::remove_file(&broken).unwrap();
    pair.until(&c, "ready").await;
    in_step(&synapse).await;
    assert!(
        pair.log().contains("ended with exit status: 3"),
        "{}",
        pair.log()
    );
    traffic.reaches(&c).await;
    traffic.unharmed().await;
}

/// CPU time of a process, from `/proc/PID/stat` (100 ticks per second).
fn cpu(pid: u32) -> Duration {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    let fields: Vec<&str> = stat.rsplit_once(") ").unwrap().1.split(' ').collect();
    let ticks: u64 = fields[11..=12]
        .iter()
        .map(|f| f.parse::<u64>().unwrap())
        .sum();
    Duration::from_millis(ticks * 10)
}

async fn server_name(pair: &Pair, app: &App) -> String {
    let port = app.address.port().to_string();
    let rows = pair.haproxy.servers_state().await;
    rows.iter().find(|row| row["srv_port"] == port).unwrap()["srv_name"].clone()
}

/// The one that runs stays; another program, by HUP, does the checks from then on and is the one that is started next.
#[tokio::test]
async fn another_binary_is_taken_at_the_next_check_and_start() {
    let mut pair = Pair::start(Way::Supervise).await;
    let a = App::start("a").await;
    pair.register(&a).await;
    let synapse = pair.serving().await;
    in_step(&synapse).await;
    let dir = Dir::new();
    let asked = dir.join("asked");
    let script = format!(
        "#!/bin/sh\necho \"$@\" >>{}\nexec {} \"$@\"\n",
        asked.display(),
        Haproxy::binary().display()
    );
    let binary = dir.write("other-haproxy", script);
    std::fs::set_permissions(&binary, std::fs::Permissions::from_mode(0o755)).unwrap();
    let calls = |flag: &str| {
        let calls = std::fs::read_to_string(&asked).unwrap_or_default();
        let with = |line: &&str| line.split(' ').any(|word| word == flag);
        calls.lines().filter(with).count()
    };

    pair.config["haproxy"]["binary"] = json!(binary);
    pair.config["services"]["web"]["haproxy"]["frontend"] = json!(["option dontlognull"]);
    let _path = pair.configure();
    let loaded = reloads(&synapse).await;
    synapse.signal(Signal::SIGHUP);
    status(&synapse, "the configuration is loaded", |status| {
        status["haproxy"]["reloads"].as_u64() > Some(loaded)
    })
    .await;
    in_step(&synapse).await;
    assert!(calls("-c") > 0, "it was not asked to check");
    assert_eq!(calls("-W"), 0, "the one that runs stays");

    pair.haproxy.kill();
    eventually("it is started", SOON, async || match calls("-W") {
        0 => Err("not yet"),
        _ => Ok(()),
    })
    .await;
    answer(pair.port).await;
}
