//! A haproxy of our own: it outlives us, is found again, and comes back when it dies.

use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use smartstack_common::process::start_time;
use smartstack_common::testing::{App, eventually};
use synapse::config::Reload;
use synapse::outputs::haproxy::process::ReloadOutcome;
use synapse::outputs::haproxy::process::master::Master;
use synapse::outputs::haproxy::process::supervise::{Origin, StartError, Supervisor};

use crate::site::{Site, server};

const SOON: Duration = Duration::from_secs(20);

fn signal(pid: u32, signal: Signal) {
    let pid = Pid::from_raw(i32::try_from(pid).expect("a pid is an i32"));
    kill(pid, signal).expect("the process is ours");
}

#[tokio::test]
async fn it_outlives_its_owner_and_is_adopted_also_when_the_file_has_changed() {
    let site = Site::new();
    let app = App::start("app").await;
    let desired = site.write(&[server(1, app.address, "")], "");
    let first = site.started(Reload::Supervise, &desired, 1).await;
    let worker = first.live().await.unwrap().pid;
    drop(first);

    let master = Master::new(site.dir.join("haproxy.cfg.master.sock"));
    let before = eventually("the master answers", SOON, async || {
        master.processes().await
    })
    .await;
    let changed = site.write(
        &[server(1, app.address, ""), "timeout server 9s".to_owned()],
        "",
    );
    let mut second = site.haproxy(Reload::Supervise);
    let outcome = second.start(Some(&changed.generation), 1).await;
    assert!(
        matches!(outcome, ReloadOutcome::Confirmed { pid, .. } if pid != worker),
        "{outcome:?}"
    );
    // It re-executes itself: for a moment nobody takes connections.
    let after = eventually("the master answers again", SOON, async || {
        master.processes().await
    })
    .await;
    assert_eq!(
        (after.master, after.reloads),
        (before.master, before.reloads + 1),
        "same master, one reload"
    );

    second.stop(SOON).await;
    assert_eq!(start_time(after.master), None);
    assert_eq!(site.real().pids(), [0; 0]);
}

#[tokio::test]
async fn its_death_is_seen_and_it_comes_back() {
    let site = Site::new();
    let desired = site.write(&[], "");
    let mut haproxy = site.started(Reload::Supervise, &desired, 0).await;
    // The worker's death takes the master with it: before it is asked to reload, or in the middle of that.
    let worker = haproxy.live().await.unwrap().pid;
    signal(worker, Signal::SIGKILL);
    let outcome = haproxy.reload(Some(&desired.generation), 0).await;
    assert!(
        matches!(outcome, ReloadOutcome::Confirmed { pid, .. } if pid != worker),
        "{outcome:?}"
    );
    haproxy.stop(Duration::ZERO).await;
}

/// haproxy keeps its listening sockets over a reload as they are, also one whose file is gone (measured with 2.6): the new
/// worker loads the file, and cannot be asked.
#[tokio::test]
async fn a_stats_socket_that_somebody_removed_is_told_with_the_way_out() {
    let site = Site::new();
    let desired = site.write(&[], "");
    let mut haproxy = site.started(Reload::Supervise, &desired, 0).await;
    std::fs::remove_file(&site.stats).unwrap();
    let outcome = haproxy.reload(Some(&desired.generation), 0).await;
    assert!(
        matches!(&outcome, ReloadOutcome::Failed { reason, .. }
            if reason.contains("does not exist") && reason.contains("when it is stopped and started")),
        "{outcome:?}"
    );
    haproxy.stop(Duration::ZERO).await;
    assert!(
        haproxy
            .start(Some(&desired.generation), 0)
            .await
            .succeeded()
    );
    assert!(site.stats.exists());
    haproxy.stop(Duration::ZERO).await;
}

#[tokio::test]
async fn a_start_that_fails_is_told_in_haproxys_words() {
    let site = Site::new();
    let desired = site.write(&["nonsense here".to_owned()], "");
    let outcome = site
        .haproxy(Reload::Supervise)
        .start(Some(&desired.generation), 0)
        .await;
    assert!(
        matches!(&outcome, ReloadOutcome::Failed { reason, .. } if reason.contains("unknown keyword 'nonsense'")),
        "{outcome:?}"
    );
}

#[tokio::test]
async fn a_stopped_master_is_not_fought() {
    let site = Site::new();
    let desired = site.write(&[], "");
    let _haproxy = site.started(Reload::Supervise, &desired, 0).await;
    let socket = Master::new(site.dir.join("haproxy.cfg.master.sock"));
    let master = eventually("the master answers", SOON, async || {
        socket.processes().await
    })
    .await
    .master;
    signal(master, Signal::SIGSTOP);
    let mut other = Supervisor::new("haproxy", &site.config);
    let outcome = other.ensure().await;
    assert!(
        matches!(outcome, Err(StartError::Hung { pid, .. }) if pid == master),
        "{outcome:?}"
    );
    signal(master, Signal::SIGCONT);
    assert_eq!(other.ensure().await.unwrap(), Origin::Adopted);
    other.stop(SOON).await;
}

/// `daemon` among the user's lines: the child would end, and another start would fight the master that goes on.
#[tokio::test]
async fn daemon_in_the_users_lines_changes_nothing() {
    let site = Site::new();
    let desired = site.write(&[], "global\n\tdaemon\n");
    for round in 0..5 {
        let mut haproxy = site.haproxy(Reload::Supervise);
        let started = haproxy.start(Some(&desired.generation), 0).await;
        assert!(
            matches!(started, ReloadOutcome::Confirmed { .. }),
            "{round}: {started:?}"
        );
        let reloaded = haproxy.reload(Some(&desired.generation), 0).await;
        assert!(
            matches!(reloaded, ReloadOutcome::Confirmed { .. }),
            "{round}: {reloaded:?}"
        );
        eventually("one master, one worker", SOON, async || {
            match site.real().pids() {
                pids if pids.len() == 2 => Ok(()),
                pids => Err(format!("{pids:?}")),
            }
        })
        .await;
        haproxy.stop(SOON).await;
        assert_eq!(site.real().pids(), [0; 0], "{round}");
    }
}

/// A start without a stats socket is believed once the master shows a worker, and not when it has ended.
#[tokio::test]
async fn a_start_that_cannot_be_asked_is_proven_by_the_master() {
    let site = Site::new();
    let without = |site: &Site| {
        let mut settings = site.settings(Reload::Supervise);
        settings.do_socket = false;
        synapse::outputs::haproxy::process::Haproxy::new(&settings)
    };
    let broken = site.write(&["nonsense here".to_owned()], "");
    let outcome = without(&site).start(Some(&broken.generation), 0).await;
    assert!(
        matches!(&outcome, ReloadOutcome::Failed { reason, .. } if reason.contains("unknown keyword 'nonsense'")),
        "{outcome:?}"
    );
    let desired = site.write(&[], "");
    let mut haproxy = without(&site);
    let outcome = haproxy.start(Some(&desired.generation), 0).await;
    assert_eq!(outcome, ReloadOutcome::Unconfirmed);
    let master = Master::new(site.dir.join("haproxy.cfg.master.sock"));
    let shown = master
        .processes()
        .await
        .expect("it was asked for the proof");
    assert!(shown.worker.is_some());
    haproxy.stop(SOON).await;
}

/// What a dead haproxy leaves behind is no haproxy.
#[tokio::test]
async fn stale_files_do_not_stop_a_start() {
    let mut site = Site::new();
    let desired = site.write(&[], "");
    let haproxy = site.started(Reload::Supervise, &desired, 0).await;
    site.kill();
    eventually("all are dead", SOON, async || {
        if site.real().pids().is_empty() {
            Ok(())
        } else {
            Err("not yet")
        }
    })
    .await;
    drop(haproxy);
    // The pid is another program's by now.
    let _pid_file = site
        .dir
        .write("haproxy.cfg.pid", std::process::id().to_string());
    let outcome = site
        .haproxy(Reload::Supervise)
        .start(Some(&desired.generation), 0)
        .await;
    assert!(
        matches!(outcome, ReloadOutcome::Confirmed { .. }),
        "{outcome:?}"
    );
}
