//! Each way of reloading: proven when it took, told when it did not, the old worker untouched then.

use std::net::TcpListener;

use smartstack_common::admin::Bind;
use smartstack_common::testing::{App, get};
use synapse::config::{self, Reload};
use synapse::outputs::haproxy::process::{Haproxy, ReloadOutcome};

use crate::site::{Site, server};

/// The three ways, each on a site of its own with one app behind it, running.
async fn each_way(app: &App) -> Vec<(&'static str, Site, Haproxy)> {
    let mut sites = Vec::new();
    for way in ["command", "master socket", "supervise"] {
        let mut site = Site::new();
        let desired = site.write(&[server(1, app.address, "")], "");
        let reload = match way {
            "command" => site.command(),
            "master socket" => {
                site.start_foreign().await;
                Reload::MasterSocket(site.dir.join("master.sock"))
            }
            _ => Reload::Supervise,
        };
        let mut haproxy = site.haproxy(reload);
        let outcome = haproxy.start(Some(&desired.generation), 1).await;
        assert!(
            matches!(outcome, ReloadOutcome::Confirmed { .. }),
            "{way}: {outcome:?}"
        );
        sites.push((way, site, haproxy));
    }
    sites
}

fn failure(outcome: ReloadOutcome) -> (String, String) {
    match outcome {
        ReloadOutcome::Failed { reason, output } => (reason, output),
        other => panic!("not failed: {other:?}"),
    }
}

#[tokio::test]
async fn a_good_file_is_proven_a_broken_file_and_a_busy_port_are_told() {
    let app = App::start("app").await;
    for (way, site, mut haproxy) in each_way(&app).await {
        let before = haproxy.live().await.unwrap();
        let line = server(1, app.address, "");
        let desired = site.write(&[line.clone(), "timeout server 9s".to_owned()], "");
        match haproxy.reload(Some(&desired.generation), 1).await {
            ReloadOutcome::Confirmed {
                pid, generation, ..
            } => {
                assert_ne!(pid, before.pid, "{way}");
                assert_eq!(generation.as_ref(), Some(&desired.generation), "{way}");
            }
            other => panic!("{way}: {other:?}"),
        }
        let good = haproxy.live().await.unwrap();

        let broken = site.write(&[line.clone(), "nonsense here".to_owned()], "");
        let (reason, _) = failure(haproxy.reload(Some(&broken.generation), 1).await);
        if way != "master socket" {
            assert!(
                reason.contains("unknown keyword 'nonsense'"),
                "{way}: {reason}"
            );
        }
        assert_eq!(
            haproxy.live().await.unwrap().pid,
            good.pid,
            "{way}: the old worker serves"
        );

        // haproxy binds with SO_REUSEPORT, the other does not.
        let other = TcpListener::bind("127.0.0.1:0").unwrap();
        let busy = format!(
            "frontend g\n\tbind {}\n\tdefault_backend b\n",
            other.local_addr().unwrap()
        );
        let desired = site.write(std::slice::from_ref(&line), &busy);
        let (reason, _) = failure(haproxy.reload(Some(&desired.generation), 1).await);
        if way != "master socket" {
            assert!(reason.contains("cannot bind"), "{way}: {reason}");
        }
        let live = haproxy.live().await.unwrap();
        assert_eq!(
            (live.pid, &live.generation),
            (good.pid, &good.generation),
            "{way}"
        );
        assert_eq!(
            get(&Bind::Tcp(site.address().to_string()), "/")
                .await
                .unwrap()
                .body
                .trim(),
            "app",
            "{way}"
        );

        // And it recovers.
        drop(other);
        let outcome = haproxy.reload(Some(&desired.generation), 1).await;
        assert!(
            matches!(outcome, ReloadOutcome::Confirmed { .. }),
            "{way}: {outcome:?}"
        );
        haproxy.stop(std::time::Duration::ZERO).await;
    }
}

#[tokio::test]
async fn a_worker_with_our_generation_is_adopted_without_a_reload() {
    let app = App::start("app").await;
    for (way, site, haproxy) in each_way(&app).await {
        let before = haproxy.live().await.unwrap();
        drop(haproxy);
        let reload = match way {
            "command" => Reload::Command("exit 1".to_owned()),
            "master socket" => Reload::MasterSocket(site.dir.join("nobody")),
            _ => Reload::Supervise,
        };
        let outcome = site
            .haproxy(reload)
            .start(before.generation.as_ref(), 1)
            .await;
        assert!(
            matches!(outcome, ReloadOutcome::Confirmed { pid, .. } if pid == before.pid),
            "{way}: {outcome:?}"
        );
    }
}

#[tokio::test]
async fn a_command_that_does_nothing_has_not_reloaded() {
    let site = Site::new();
    let desired = site.write(&[], "");
    let _haproxy = site.started(site.command(), &desired, 0).await;
    let (reason, _) = failure(
        site.haproxy(Reload::Command("true".to_owned()))
            .reload(Some(&desired.generation), 0)
            .await,
    );
    assert!(reason.contains("still serves after 5s"), "{reason}");
}

#[tokio::test]
async fn commands_that_fail_hang_or_cannot_be_asked() {
    let site = Site::new();
    let haproxy = |line: &str| {
        let settings = site.settings(Reload::Command(line.to_owned()));
        let reload_timeout = std::time::Duration::from_secs(1);
        Haproxy::new(&config::Haproxy {
            reload_timeout,
            socket_file_path: Vec::new(),
            ..settings
        })
    };
    let (reason, output) = failure(haproxy("echo told you so; exit 7").reload(None, 0).await);
    assert!(
        reason.contains("exit status: 7") && reason.contains("told you so"),
        "{reason}"
    );
    assert_eq!(output, "told you so");
    let (reason, output) = failure(haproxy("echo begun; sleep 100").reload(None, 0).await);
    assert!(reason.contains("was killed"), "{reason}");
    assert_eq!(output, "begun");
    assert_eq!(
        haproxy("true").reload(None, 0).await,
        ReloadOutcome::Unconfirmed
    );
    let (reason, _) = failure(
        site.haproxy(Reload::MasterSocket(site.dir.join("nobody")))
            .reload(None, 0)
            .await,
    );
    assert!(reason.contains("does not answer"), "{reason}");
    assert!(
        !site
            .haproxy(Reload::Never)
            .reload(None, 0)
            .await
            .succeeded()
    );
}
