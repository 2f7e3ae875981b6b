//! What was measured about haproxy 2.6 and is relied upon.

use std::time::Duration;

use smartstack_common::admin::Bind;
use smartstack_common::testing::{App, Behaviour, Load, SteadyClient, eventually, get};
use synapse::config::Reload;
use synapse::outputs::haproxy::plan::{Change, Op};
use synapse::outputs::haproxy::process::{ReloadOutcome, master::Master};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::time::timeout;

use crate::site::{Site, server};

const SOON: Duration = Duration::from_secs(20);

/// Maint stops new requests at once; the request in flight finishes.
#[tokio::test]
async fn retiring_a_server_hurts_no_request_in_flight() {
    let site = Site::new();
    let (leaving, staying) = (App::start("leaving").await, App::start("staying").await);
    let desired = site.write(
        &[
            server(1, leaving.address, ""),
            server(2, staying.address, "weight 0"),
        ],
        "",
    );
    let haproxy = site.started(Reload::Supervise, &desired, 2).await;

    let bind = Bind::Tcp(site.address().to_string());
    leaving.set(Behaviour::Hang);
    let in_flight = get(&bind, "/");
    let meanwhile = async {
        eventually("the request has reached the app", SOON, async || {
            if leaving.state.requests() == 1 {
                Ok(())
            } else {
                Err("not yet")
            }
        })
        .await;
        let op = |server: &str, change| Op {
            backend: "b".to_owned(),
            server: server.to_owned(),
            change,
        };
        let ops = [
            op(
                "s2",
                Change::Weight {
                    weight: 1,
                    queue: false,
                },
            ),
            op("s1", Change::Retire { agent: false }),
        ];
        assert_eq!(haproxy.api().apply(&ops).await.unwrap(), [Ok(()), Ok(())]);
        for _ in 0..50 {
            assert_eq!(get(&bind, "/").await.unwrap().body.trim(), "staying");
        }
        assert_eq!(leaving.state.requests(), 1);
        leaving.set(Behaviour::Healthy);
    };
    let (answer, ()) = tokio::join!(in_flight, meanwhile);
    assert_eq!(answer.unwrap().body.trim(), "leaving");
}

/// Handed-over listeners and `idle-close-on-response`: a keep-alive load does not notice reloads.
#[tokio::test]
async fn reloads_cost_no_request() {
    for supervise in [true, false] {
        let site = Site::new();
        let app = App::start("app").await;
        let lines = |n: u32| {
            [
                server(1, app.address, ""),
                format!("timeout server {}s", 30 + n),
            ]
        };
        let desired = site.write(&lines(0), "");
        let mut haproxy = site
            .started(
                if supervise {
                    Reload::Supervise
                } else {
                    site.command()
                },
                &desired,
                1,
            )
            .await;
        let keep = SteadyClient::start(Load {
            keep_alive: true,
            clients: 8,
            rate: 400.0,
            ..Load::new(site.address())
        });
        let close = SteadyClient::start(Load {
            clients: 4,
            rate: 200.0,
            ..Load::new(site.address())
        });
        keep.more(100, SOON).await;
        for n in 1..=4 {
            let desired = site.write(&lines(n), "");
            let outcome = haproxy.reload(Some(&desired.generation), 1).await;
            assert!(
                matches!(outcome, ReloadOutcome::Confirmed { .. }),
                "{outcome:?}"
            );
            keep.more(100, SOON).await;
        }
        for (name, tally) in [("keep-alive", keep.snapshot()), ("close", close.snapshot())] {
            assert!(tally.ok() > 100, "{name}: {tally:?}");
            assert_eq!(
                tally.failed(),
                0,
                "{name}, supervise {supervise}: {tally:?}"
            );
        }
    }
}

/// The master CLI of 2.6 does not close after its answer; ours asks it to.
#[tokio::test]
async fn the_master_socket_needs_quit() {
    let site = Site::new();
    let desired = site.write(&[], "");
    let haproxy = site.started(Reload::Supervise, &desired, 0).await;
    let socket = site.dir.join("haproxy.cfg.master.sock");
    // The worker answers before its master does.
    let mut stream = eventually("the master listens", SOON, async || {
        UnixStream::connect(&socket).await
    })
    .await;
    stream.write_all(b"show proc\n").await.unwrap();
    let mut text = Vec::new();
    let open = timeout(Duration::from_millis(500), stream.read_to_end(&mut text)).await;
    assert!(
        open.is_err() && !text.is_empty(),
        "haproxy closes now: the work-around may go"
    );
    let processes = Master::new(socket).processes().await.unwrap();
    assert_eq!(processes.worker, Some(haproxy.live().await.unwrap().pid));
}

/// A kept CLI connection stays with the old worker; a fresh one reaches the new one.
#[tokio::test]
async fn a_kept_connection_stays_with_the_old_worker() {
    let site = Site::new();
    let desired = site.write(&[], "");
    let mut haproxy = site.started(Reload::Supervise, &desired, 0).await;
    let before = haproxy.live().await.unwrap().pid;
    let mut kept = UnixStream::connect(&site.stats).await.unwrap();
    kept.write_all(b"prompt\n").await.unwrap();
    assert!(
        haproxy
            .reload(Some(&desired.generation), 0)
            .await
            .succeeded()
    );
    kept.write_all(b"show info\n").await.unwrap();
    let mut text = String::new();
    let own = format!("\nPid: {before}\n");
    timeout(SOON, async {
        while !text.contains(&own) {
            let mut bytes = [0; 4096];
            let n = kept.read(&mut bytes).await.unwrap();
            assert!(n > 0, "closed: {text}");
            text += &String::from_utf8_lossy(&bytes[..n]);
        }
    })
    .await
    .expect("the old worker answers");
    assert_ne!(haproxy.live().await.unwrap().pid, before);
}
