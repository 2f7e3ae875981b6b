//! The harness's own pieces, as far as nothing else would prove them: a fault test is worth what its tools are.

use std::net::SocketAddr;
use std::time::Duration;

use smartstack_common::admin::Bind;
use smartstack_common::testing::{
    App, Behaviour, Cut, Dir, Haproxy, Load, Mode, SteadyClient, TcpProxy, ZooKeeper, eventually,
    free_port, get,
};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

const SOON: Duration = Duration::from_secs(20);

fn bind(address: impl ToString) -> Bind {
    Bind::Tcp(address.to_string())
}

fn load(target: impl ToString) -> Load {
    let target: SocketAddr = target.to_string().parse().expect("address:port");
    Load {
        timeout: Duration::from_millis(500),
        ..Load::new(target)
    }
}

#[tokio::test]
async fn the_app_fails_its_check_only_and_misbehaves_on_demand() {
    let app = App::start("a1").await;
    let page = async |path: &str| get(&bind(app.address), path).await;
    let told = |reply: std::io::Result<smartstack_common::testing::Reply>| {
        reply
            .map(|reply| (reply.status, reply.body))
            .expect("an answer")
    };
    assert_eq!(told(page("/").await), (200, "a1\n".to_owned()));
    app.set(Behaviour::Unhealthy);
    assert_eq!(told(page("/health").await), (503, "unhealthy\n".to_owned()));
    assert_eq!(told(page("/").await).0, 200);
    app.set(Behaviour::Close);
    assert!(page("/").await.is_err());
    app.set(Behaviour::Drip(Duration::from_millis(1)));
    assert_eq!(told(page("/").await), (200, "a1\n".to_owned()));
    app.set(Behaviour::Hang);
    let hanging = page("/");
    assert!(
        tokio::time::timeout(Duration::from_millis(50), hanging)
            .await
            .is_err()
    );
    assert_eq!((app.state.requests(), app.state.checks()), (5, 1));
}

#[tokio::test]
async fn the_steady_client_names_every_failure_and_never_retries() {
    let app = App::start("a1").await;
    let proxy = TcpProxy::start(&app.address.to_string()).await;
    let client = SteadyClient::start(load(proxy.host()));
    let tally = client.more(20, SOON).await;
    assert_eq!(
        (tally.failed(), tally.answers.keys().cloned().collect()),
        (0, vec!["a1".to_owned()])
    );

    for (mode, kind) in [(Mode::Refuse, "refused"), (Mode::Blackhole, "timeout")] {
        proxy.set(mode).await;
        let failed = async || match client.snapshot().failures.get(kind) {
            Some(1..) => Ok(()),
            _ => Err(client.snapshot()),
        };
        eventually(&format!("{kind} is counted"), SOON, failed).await;
        proxy.set(Mode::Pass).await;
    }
    drop(client);

    // Another app: what the proxy held back may still reach the first one.
    let app = App::start("a2").await;
    app.set(Behaviour::Close);
    let client = SteadyClient::start(load(app.address));
    let tally = client.more(10, SOON).await;
    assert_eq!(
        (tally.ok(), tally.failures.keys().cloned().collect()),
        (0, vec!["closed".to_owned()])
    );
    drop(client);
    let sent = app.state.requests();
    assert!(
        sent <= tally.failed() + 4,
        "{sent} requests for {} failures and 4 clients: retried",
        tally.failed()
    );
}

#[tokio::test]
async fn kept_connections_are_kept_and_a_phase_begins_anew() {
    let app = App::start("a1").await;
    let client = SteadyClient::start(Load {
        keep_alive: true,
        rate: 1000.0,
        ..load(app.address)
    });
    client.more(40, SOON).await;
    assert_eq!(app.state.connections(), 4);
    let first = client.reset();
    assert!(first.ok() >= 40);
    assert!(client.snapshot().ok() < first.ok());
}

#[tokio::test]
async fn the_proxy_passes_holds_refuses_delays_and_cuts() {
    let app = App::start("a1").await;
    let proxy = TcpProxy::start(&app.address.to_string()).await;
    let page = async || {
        get(&bind(proxy.host()), "/")
            .await
            .map(|reply| reply.status)
    };

    assert_eq!(page().await.expect("passed"), 200);
    assert!(proxy.bytes_to_server() > 0 && proxy.bytes_to_client() > 0);

    proxy.set(Mode::Refuse).await;
    assert!(TcpStream::connect(proxy.host()).await.is_err());

    proxy.set(Mode::Blackhole).await;
    let passed = proxy.bytes_to_client();
    let mut held = Box::pin(page());
    assert!(
        tokio::time::timeout(Duration::from_millis(50), &mut held)
            .await
            .is_err()
    );
    assert_eq!(proxy.bytes_to_client(), passed);
    proxy.set(Mode::Pass).await;
    assert_eq!(held.await.expect("the held bytes went on"), 200);

    proxy.set(Mode::Delay(Duration::from_millis(40))).await;
    let began = tokio::time::Instant::now();
    assert_eq!(page().await.expect("passed late"), 200);
    assert!(
        began.elapsed() >= Duration::from_millis(80),
        "{:?}",
        began.elapsed()
    );
    proxy.set(Mode::Pass).await;

    let connect = async || {
        let before = proxy.accepted();
        let stream = TcpStream::connect(proxy.host()).await.expect("passed");
        let accepted = async || {
            if proxy.accepted() > before {
                Ok(())
            } else {
                Err(before)
            }
        };
        eventually("the proxy accepts", SOON, accepted).await;
        stream
    };
    for (cut, error) in [
        (Cut::Reset, Some(std::io::ErrorKind::ConnectionReset)),
        (Cut::Close, None),
    ] {
        let mut stream = connect().await;
        proxy.cut(cut).await;
        let read = tokio::time::timeout(SOON, stream.read(&mut [0; 8]))
            .await
            .expect("cut");
        assert_eq!(
            read.map_err(|e| e.kind()),
            error.map_or(Ok(0), Err),
            "{cut:?}"
        );
    }

    let request = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n";
    let mut stream = connect().await;
    stream.write_all(request).await.expect("sent");
    let whole = stream.read(&mut [0; 4096]).await.expect("answered");
    proxy.cut(Cut::After(5)).await;
    stream.write_all(request).await.expect("sent");
    let mut piece = Vec::new();
    let end = tokio::time::timeout(SOON, stream.read_to_end(&mut piece))
        .await
        .expect("cut");
    // A reset may overtake the five bytes.
    assert!(
        end.is_err() && piece.len() <= 5 && whole > 5,
        "{end:?} {piece:?}"
    );
}

#[tokio::test]
async fn ports_are_not_handed_out_twice() {
    let mut ports: Vec<u16> = (0..50).map(|_| free_port()).collect();
    ports.sort_unstable();
    ports.dedup();
    assert_eq!(ports.len(), 50);
}

#[tokio::test]
#[should_panic(expected = "not within 20ms: the answer is 2; last: it is 1")]
async fn eventually_says_what_it_waited_for() {
    eventually("the answer is 2", Duration::from_millis(20), async || {
        Err::<(), _>("it is 1")
    })
    .await;
}

#[tokio::test]
async fn zookeeper_keeps_its_data_over_a_crash_and_tells_its_numbers() {
    let mut zookeeper = ZooKeeper::start().await;
    let client = zookeeper.connect().await;
    ZooKeeper::put(&client, "/a/b", b"data").await;
    ZooKeeper::make_ephemeral(&client, "/a/c", b"").await;
    assert_eq!(ZooKeeper::list(&client, "/a").await, ["b", "c"]);
    assert!(zookeeper.four_letters(0, "dump").await.contains("/a/c"));
    assert_eq!(zookeeper.mntr(0, "zk_ephemerals_count").await, 1.0);
    zookeeper.stop(0);
    zookeeper.start_all().await;
    let client = zookeeper.connect().await;
    assert_eq!(client.get_data("/a/b").await.expect("kept").0, b"data");
    ZooKeeper::wipe(&client, "/a").await;
    assert_eq!(ZooKeeper::list(&client, "/").await, ["zookeeper"]);
}

#[tokio::test]
async fn a_three_node_ensemble_survives_the_loss_of_one() {
    let mut zookeeper = ZooKeeper::start_ensemble().await;
    let client = zookeeper.connect().await;
    ZooKeeper::put(&client, "/a", b"1").await;
    zookeeper.stop(0);
    let read = async || client.get_data("/a").await.map(|(data, _)| data);
    assert_eq!(eventually("the others serve", SOON, read).await, b"1");
}

#[tokio::test]
async fn haproxy_answers_shows_its_servers_and_reloads() {
    let (dir, app) = (Dir::new(), App::start("a1").await);
    let (stats, port) = (dir.join("stats.sock"), free_port());
    let config = dir.write(
        "haproxy.cfg",
        format!(
            "global\n  stats socket {} level admin expose-fd listeners\n  description x synapse=0123\n\
             defaults\n  mode http\n  timeout connect 1s\n  timeout client 5s\n  timeout server 5s\n\
             listen web\n  bind 127.0.0.1:{port}\n  server s1 {}\n",
            stats.display(),
            app.address
        ),
    );
    let mut haproxy = Haproxy::start(&config, &stats).await;
    assert_eq!(haproxy.generation().await.as_deref(), Some("0123"));
    let servers = haproxy.servers_state().await;
    assert_eq!(servers.len(), 1);
    assert_eq!(
        (
            servers[0]["be_name"].as_str(),
            servers[0]["srv_name"].as_str()
        ),
        ("web", "s1")
    );
    let answer = get(&bind(format!("127.0.0.1:{port}")), "/")
        .await
        .expect("served");
    assert_eq!(answer.body, "a1\n");

    let before = haproxy.worker_pid().await;
    haproxy.master("reload").await;
    eventually("a new worker", SOON, async || {
        let pid = haproxy.worker_pid().await;
        if pid == before { Err(pid) } else { Ok(()) }
    })
    .await;
    haproxy.kill();
    eventually("all gone", SOON, async || match haproxy.pids() {
        pids if pids.is_empty() => Ok(()),
        pids => Err(format!("{pids:?}")),
    })
    .await;

    let command = Haproxy::reload_command(&config, &stats);
    let mut daemon = Haproxy::attach(&config, &stats);
    for _ in 0..2 {
        let ran = tokio::process::Command::new("sh")
            .args(["-c", &command])
            .status()
            .await
            .expect("there is a shell");
        assert!(ran.success());
        daemon.ready().await;
    }
    assert_eq!(
        get(&bind(format!("127.0.0.1:{port}")), "/")
            .await
            .expect("served")
            .status,
        200
    );
}
