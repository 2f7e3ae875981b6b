//! The versions that the README names: one scene for each version of haproxy in each of two ways, and for each version of
//! ZooKeeper. What is not installed comes from other suites of Debian (`.ci/other-versions`, which downloads it once).
//!
//! Each scene prints a line of the table, also where the output of tests is not shown.

#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

mod pair;
mod plain;
#[path = "../rig/mod.rs"]
mod rig;
mod scene;

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use serde_json::json;
use smartstack_common::admin::Bind;
use smartstack_common::testing::{App, Dir, Haproxy, Options, Program, ZooKeeper, eventually};
use synapse::outputs::haproxy::process::master::{Asked, Master};

use rig::SOON;
use scene::{Scene, Way};

/// A version of the program or jar from a suite of Debian.
fn other_version(what: &str, suite: &str) -> PathBuf {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../.ci/other-versions");
    let output = Command::new(&script)
        .args([what, suite])
        .stderr(Stdio::inherit())
        .output()
        .unwrap();
    assert!(
        output.status.success(),
        "there is no {what} of Debian {suite}; what was tried stands above\nhint: `{} {what} {suite}` tries again",
        script.display()
    );
    String::from_utf8(output.stdout).unwrap().trim().into()
}

/// The version that a haproxy says it is.
fn version_of(program: &Path) -> String {
    let output = Command::new(program).arg("-v").output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let version = text.split_once("version ").map(|(_, rest)| rest);
    version.unwrap().split(' ').next().unwrap().to_owned()
}

/// The harness captures what `println!` prints, and shows it for failed tests alone.
fn tell(row: &str) {
    let mut out = std::io::stdout().lock();
    writeln!(out, "{row}").unwrap();
}

/// One version in both ways. `adds` = servers are added without a reload.
async fn haproxy(program: &Path, expected: &str, adds: bool) {
    let version = version_of(program);
    assert!(
        version.starts_with(expected),
        "haproxy {version} came instead of {expected}: the suite has moved on, and README and this test name another version"
    );
    // Beside each other: they mostly wait.
    tokio::join!(
        play(program, &version, Way::Supervise, adds),
        play(program, &version, Way::MasterSocket, adds)
    );
}

async fn play(program: &Path, version: &str, way: Way, adds: bool) {
    let name = format!("haproxy {version}, {way}");
    let scene = Scene::start(ZooKeeper::start().await, program, way).await;
    tell(&scene.play(&name, adds).await);
}

#[tokio::test]
async fn haproxy_2_2() {
    haproxy(&other_version("haproxy", "bullseye"), "2.2.", false).await;
}

#[tokio::test]
async fn haproxy_2_6() {
    haproxy(&Haproxy::binary(), "2.6.", true).await;
}

#[tokio::test]
async fn haproxy_3_0() {
    haproxy(&other_version("haproxy", "trixie"), "3.0.", true).await;
}

#[tokio::test]
async fn haproxy_3_2() {
    haproxy(&other_version("haproxy", "sid"), "3.2.", true).await;
}

/// While it loads a file, 3.2 refuses to load another and leaves the connection open: each of these gets its turn. One that
/// it had accepted when it re-executed itself is cut off, and asks again.
#[tokio::test]
async fn haproxy_3_2_loads_one_file_at_a_time() {
    let program = other_version("haproxy", "sid");
    let dir = Dir::new();
    let stats = dir.join("stats.sock");
    let mut text = format!("global\n\tstats socket {} level admin\n", stats.display());
    text += "defaults\n\ttimeout connect 1s\n\ttimeout client 1s\n\ttimeout server 1s\n";
    for backend in 0..200 {
        text += &format!("backend b{backend}\n");
        for server in 1..101 {
            text += &format!("\tserver s{server} 127.0.0.1:{server}\n");
        }
    }
    let haproxy = Haproxy::start_program(&program, &dir.write("haproxy.cfg", text), &stats).await;
    let before = haproxy.worker_pid().await;
    let master = Master::new(dir.join("master.sock"));
    let reload = || {
        eventually("the master has reloaded", SOON * 2, async || {
            match master.reload(SOON).await {
                Ok(Asked::Success) => Ok(()),
                other => Err(format!("{other:?}")),
            }
        })
    };
    tokio::join!(reload(), reload(), reload());
    assert_ne!(haproxy.worker_pid().await, before);
    let reloads = master.processes().await.unwrap().reloads;
    assert!(reloads >= 3, "{reloads}");
}

async fn zookeeper_of(suite: &str) -> (ZooKeeper, String) {
    let jar = Some(other_version("zookeeper", suite));
    let options = Options {
        jar,
        ..Options::default()
    };
    let zookeeper = ZooKeeper::start_with(options).await;
    let answer = zookeeper.four_letters(0, "srvr").await;
    let version = answer.split_once("version: ").unwrap().1;
    let version = version.split(['-', ',']).next().unwrap().to_owned();
    (zookeeper, version)
}

#[tokio::test]
async fn zookeeper_3_4() {
    let (zookeeper, version) = zookeeper_of("bullseye").await;
    assert_eq!(version, "3.4.13");
    let scene = Scene::start(zookeeper, &Haproxy::binary(), Way::Supervise).await;
    tell(&scene.play(&format!("ZooKeeper {version}"), true).await);
}

#[tokio::test]
async fn zookeeper_3_9() {
    let (zookeeper, version) = zookeeper_of("trixie").await;
    assert!(version.starts_with("3.9."), "{version}");
    let scene = Scene::start(zookeeper, &Haproxy::binary(), Way::Supervise).await;
    tell(&scene.play(&format!("ZooKeeper {version}"), true).await);
}

/// nerve has all it needs there but transactions that create.
#[tokio::test]
async fn nerve_on_zookeeper_3_4() {
    let (zookeeper, version) = zookeeper_of("bullseye").await;
    assert_eq!(version, "3.4.13");
    let life = pair::nerve_lives(zookeeper).await;
    tell(&format!("nerve on ZooKeeper {version}: {life}"));
}

/// An announcement is not told of there: what cannot be known is no loss.
#[tokio::test]
async fn announced_withdrawals_on_zookeeper_3_4() {
    let (zookeeper, version) = zookeeper_of("bullseye").await;
    let told = pair::withdrawals_are_believed(zookeeper).await;
    tell(&format!("nerve and synapse on ZooKeeper {version}: {told}"));
}

/// nerve registers there, withdraws when it is told to end, and synapse follows.
#[tokio::test]
async fn nerve_on_zookeeper_3_9() {
    let (zookeeper, version) = zookeeper_of("trixie").await;
    let hosts = zookeeper.hosts();
    let mut scene = Scene::start(zookeeper, &Haproxy::binary(), Way::Supervise).await;
    let (app, dir) = (App::start("app").await, Dir::new());
    let admin = Bind::Unix(dir.join("admin.sock"));
    let config = json!({
        "instance_id": "i-app",
        "state_path": dir.join("state.json"),
        "admin": {"bind": admin.to_string(), "socket": dir.join("nerve.sock")},
        "zookeeper": {"jitter": 0},
        "services": {"web": {
            "host": app.address.ip().to_string(),
            "port": app.address.port(),
            "zk_hosts": [hosts],
            "zk_path": scene::PATH,
            "check_interval": 0.1,
            "checks": [{"type": "http", "uri": "/health", "timeout": 5, "open_timeout": 5, "rise": 1, "fall": 2}],
        }},
    });
    let _path = dir.write("nerve.json", config.to_string());
    let mut nerve = Program::start("nerve", &dir, &["-c", "nerve.json"], &[], admin);
    nerve.ready(SOON).await;
    let name = format!("i-app_{}", app.address);
    scene.expect_also(&name).await;
    nerve.signal(nix::sys::signal::Signal::SIGTERM);
    assert!(nerve.wait(SOON).await.success());
    scene.converged().await;
    let tally = scene.so_far();
    assert_eq!(tally.failed(), 0, "{tally}");
    tell(&format!(
        "nerve on ZooKeeper {version}: registered, withdrawn; {} requests, 0 failed",
        tally.ok()
    ));
}
