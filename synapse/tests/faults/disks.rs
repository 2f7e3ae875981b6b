//! Disks that take nothing: full, and read-only, under haproxy.cfg, the snapshot and nerve's state. Needs root, for the
//! small file systems. (More of it, under every other fault of haproxy, is in the soak.)

use std::path::{Path, PathBuf};
use std::process::Command;

use nix::sys::signal::Signal;

use crate::processes::close;
use crate::stage::{Plan, SOON, Stage, Way};

/// A folder that is read-only until this is dropped. Files that are open stay as they are.
struct ReadOnly(PathBuf);

impl ReadOnly {
    fn mount(path: PathBuf) -> Self {
        mount(&["--bind"], &[&path, &path]);
        let mounted = Self(path);
        mount(&["-o", "remount,bind,ro"], &[&mounted.0]);
        mounted
    }
}

impl Drop for ReadOnly {
    fn drop(&mut self) {
        let _unmounted = Command::new("umount").arg("-l").arg(&self.0).status();
    }
}

fn mount(options: &[&str], paths: &[&Path]) {
    let output = Command::new("mount")
        .args(options)
        .args(paths)
        .output()
        .unwrap();
    let problem = String::from_utf8_lossy(&output.stderr);
    assert!(
        output.status.success(),
        "{problem}\nhint: run this test as root"
    );
}

#[tokio::test]
async fn disks_are_full_or_read_only() {
    let mut plan = Plan::new(Way::Proxies);
    plan.disks = true;
    let mut stage = Stage::start(plan).await;
    let folders = [
        stage.nerves[0].dir.join("disk"),
        stage.rig.dir.join("haproxy"),
    ];
    for fault in ["full", "read-only"] {
        let mut fillers = Vec::new();
        let mut mounts = Vec::new();
        let row = format!("disks {fault}: an app changes, a nerve's session is closed");
        let mut row = stage.begin(&row).await;
        if fault == "full" {
            fillers.extend(stage.disks.iter().map(|disk| disk.fill()));
        } else {
            mounts.extend(folders.iter().cloned().map(ReadOnly::mount));
        }
        // Over as soon as it has begun: all goes on without the disks.
        row.ended();
        close(&stage, &stage.nerves[0].program, &stage.to_nerves).await;
        stage.change();
        stage.agree(row).await;
        let nerve = &stage.nerves[0].program;
        let failures = nerve.metric("nerve_state_failures_total").await;
        assert!(failures > Some(0.0), "{failures:?}");

        // An app leaves: one that joins might take a reload now, as the options of servers are known from the snapshot only,
        // and a reload needs the file.
        let row = format!("disks {fault}: synapse is killed and started again, an app leaves");
        let mut row = stage.begin_unsettled(&row).await;
        stage.rig.synapse.signal(Signal::SIGKILL);
        stage.rig.synapse.wait(SOON).await;
        stage.change();
        stage.start_synapse().await;
        row.ended();
        stage.agree(row).await;
        // The disks take files again, and these follow.
        drop(mounts);
        for filler in fillers {
            std::fs::remove_file(filler).unwrap();
        }
        for _ in 0..2 {
            stage.change();
            stage.settled().await;
            stage.remembered().await;
        }
    }
}
