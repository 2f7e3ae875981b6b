//! What this host itself does to nerve: its ports, its descriptors, its resolver, its reader of logs, its signals. None
//! of it is the app's doing.

mod logs;
mod names;

use std::collections::BTreeSet;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::time::Duration;

use nix::sys::signal::Signal;
use nix::sys::socket::{AddressFamily, SockFlag, SockType, SockaddrIn, bind, listen, socket};
use serde_json::{Value, json};
use smartstack_common::admin::Bind;
use smartstack_common::testing::{Behaviour, Dir, Network, Program, eventually, free_port};

use crate::rig::{Host, Observer, SOON, attempted, ends_in_time, writes};

/// One service with a tcp check every 10 ms, and nothing but a hole where ZooKeeper should be.
fn checked(dir: &Dir, admin: &Bind, check: &Value) -> String {
    let config = json!({
        "instance_id": "i",
        "state_path": dir.join("state.json"),
        "admin": {"bind": admin.to_string(), "socket": false},
        "services": {"web": {
            "host": "10.0.0.12",
            "port": 3000,
            "zk_hosts": ["198.18.0.0:1"],
            "zk_path": "/s",
            "check_interval": 0.01,
            "checks": [check],
        }},
    });
    let path = dir.write("nerve.json", config.to_string());
    path.to_str().expect("a plain name").to_owned()
}

async fn attempts(nerve: &Program, check: &str, result: &str) -> f64 {
    let name = format!(r#"nerve_checks_total{{service="web",check="{check}",result="{result}"}}"#);
    nerve.metric(&name).await.unwrap_or_default()
}

/// The only port that the kernel has for connections is the one that is asked: every connect meets itself.
#[tokio::test]
async fn a_connection_that_met_itself_is_no_app_and_keeps_no_app_from_its_port() {
    const PORT: u16 = 40_001;
    const TRIES: usize = 300;
    let mut network = Network::new();
    let host = network.host();
    network.local_ports(&host, PORT..=PORT);
    let dir = Dir::new();
    let admin = Bind::Unix(dir.join("admin.sock"));
    let check =
        json!({"type": "tcp", "name": "c", "host": "127.0.0.1", "port": PORT, "timeout": 5});
    let config = checked(&dir, &admin, &check);
    let mut nerve = Program::start_on(Some(&host), "nerve", &dir, &["-c", &config], &[], admin);
    nerve.ready(SOON).await;
    let met = async || {
        let status = nerve.status().await;
        let error = status["services"]["web"]["checks"][0]["error"].to_string();
        if error.contains("met itself") {
            Ok(())
        } else {
            Err(error)
        }
    };
    eventually("a connection met itself", SOON, met).await;

    // An app that sets no option on its socket: `SO_REUSEADDR` would get it past a connection that lingers.
    let started = || {
        let app = socket(
            AddressFamily::Inet,
            SockType::Stream,
            SockFlag::empty(),
            None,
        );
        let app = app.expect("a socket");
        let address = SockaddrIn::from(std::net::SocketAddrV4::new(Ipv4Addr::LOCALHOST, PORT));
        bind(std::os::fd::AsRawFd::as_raw_fd(&app), &address).map(|()| app)
    };
    let mut had = 0;
    for _ in 0..TRIES {
        had += usize::from(host.within(|| started().is_ok()));
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    assert!(had * 10 >= TRIES * 9, "{had} of {TRIES}");
    let before = attempts(&nerve, "c", "fail").await;
    eventually("a hundred checks more", SOON, async || {
        match attempts(&nerve, "c", "fail").await - before {
            100.0.. => Ok(()),
            fewer => Err(fewer),
        }
    })
    .await;
    let [passed, failed] = [
        attempts(&nerve, "c", "pass").await,
        attempts(&nerve, "c", "fail").await,
    ];
    println!(
        "fault: every connect of a check meets itself: {} checks, {passed} passed without an app; an app had the port in \
         {had} of {TRIES} tries",
        passed + failed,
    );
    assert_eq!(passed, 0.0);

    let app = host.within(|| {
        let app = (0..1000).find_map(|_| started().ok()).expect("its port");
        listen(&app, nix::sys::socket::Backlog::MAXCONN).expect("it listens");
        TcpListener::from(app)
    });
    assert_eq!(
        app.local_addr().expect("ours"),
        SocketAddr::from((Ipv4Addr::LOCALHOST, PORT))
    );
    nerve.signal(Signal::SIGTERM);
    assert_eq!(nerve.wait(SOON).await.code(), Some(0));
}

/// How many attempts of all checks could not run.
async fn not_run(nerve: &Program) -> f64 {
    attempted(nerve, "not_run").await
}

/// Nerve with `soft:hard` as its limit of open files.
fn limited(host: &Host, limit: &str, admin: &Bind) -> Program {
    let (limit, path) = (format!("--nofile={limit}"), host.dir.join("nerve.json"));
    let arguments = ["-c", path.to_str().expect("a plain name")];
    Program::start_by(
        &["prlimit", &limit],
        "nerve",
        &host.dir,
        &arguments,
        admin.clone(),
    )
}

/// 60 services whose checks all take a while, and fewer descriptors than checks: whatever could not be looked at stays.
#[tokio::test]
async fn too_few_descriptors_take_no_healthy_app_out() {
    const SERVICES: usize = 60;
    let host = Host::start().await;
    let admin = Bind::Tcp(format!("127.0.0.1:{}", free_port()));
    let mut config = host.config(&admin, &host.zookeeper.hosts(), &json!({}));
    let mut web = config["services"]["web"].take();
    web["checks"][0]["fall"] = json!(1);
    web["checks"][0]["timeout"] = json!(5);
    let services = (0..SERVICES).map(|number| {
        let mut service = web.clone();
        service["port"] = json!(3000 + number);
        (format!("s{number}"), service)
    });
    config["services"] = services.collect::<serde_json::Map<_, _>>().into();
    host.write(&config);
    host.app.set(Behaviour::Drip(Duration::from_millis(100)));
    let all = async || {
        eventually("all nodes", SOON * 6, async || match host.nodes().await {
            nodes if nodes.len() == SERVICES => Ok(nodes),
            nodes => Err(nodes.len()),
        })
        .await
    };

    // The soft limit is no limit.
    let mut nerve = limited(&host, "40:4096", &admin);
    all().await;
    assert_eq!(not_run(&nerve).await, 0.0);
    let pid = nerve.process().pid();
    let limits = std::fs::read_to_string(format!("/proc/{pid}/limits")).expect("it lives");
    let files: Vec<&str> = limits
        .lines()
        .find_map(|line| line.strip_prefix("Max open files"))
        .map(|line| line.split_whitespace().collect())
        .expect("the kernel tells");
    assert_eq!(files[..2], ["4096", "4096"]);
    nerve.signal(Signal::SIGTERM);
    assert_eq!(nerve.wait(SOON).await.code(), Some(0));
    assert_eq!(host.nodes().await, Vec::<String>::new());

    let mut nerve = limited(&host, "40:40", &admin);
    let nodes: BTreeSet<String> = all().await.into_iter().collect();
    let observer = Observer::start(&host).await;
    let before = not_run(&nerve).await;
    let ensemble = host.zookeeper.hosts();
    let written = writes(&nerve, &ensemble).await;
    let more = eventually("500 checks more could not run", SOON * 6, async || {
        match not_run(&nerve).await - before {
            more @ 500.0.. => Ok(more),
            fewer => Err(fewer),
        }
    })
    .await;
    assert_eq!(observer.sets(), [nodes], "a node came or went");
    assert_eq!(
        writes(&nerve, &ensemble).await,
        written,
        "nothing was to be written"
    );
    let withdrawn = format!(r#"nerve_zk_writes_total{{hosts="{ensemble}",result="withdrawn"}}"#);
    assert_eq!(nerve.metric(&withdrawn).await.unwrap_or_default(), 0.0);
    let log = nerve.process().log_tail();
    let log = std::fs::read_to_string(host.dir.join("nerve.log")).unwrap_or(log);
    for told in [
        "the limit of open files is too low for all checks at once",
        "no free file descriptor",
    ] {
        assert!(log.contains(told), "{told}");
    }
    let ended = ends_in_time(nerve).await;
    assert_eq!(host.nodes().await, Vec::<String>::new());
    println!(
        "fault: {SERVICES} services at a limit of 40 descriptors: {more} checks could not run, 0 withdrawals, 0 writes; the \
         registry had {SERVICES} nodes all the time; TERM in {ended:.1?}"
    );
}
