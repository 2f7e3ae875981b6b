//! A check by name, and a name server of every temper. The resolver is the system's own, on another `resolv.conf`.

use std::collections::BTreeSet;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};

use nix::sys::signal::Signal;
use serde_json::json;
use smartstack_common::admin::Bind;
use smartstack_common::testing::{Program, eventually, free_port};
use tokio::net::UdpSocket;
use tokio::task::JoinSet;

use super::not_run;
use crate::rig::{Host, Observer, SOON};

const NAME: &str = "app.smartstack.test";

/// What the name server does: a response code of DNS, or nothing.
#[derive(Clone, Copy)]
enum Temper {
    /// Every name is 127.0.0.1.
    Answers = 0,
    CannotTell = 2,
    NoSuchName = 3,
    Silent = 255,
}

struct NameServer {
    address: Ipv4Addr,
    temper: Arc<AtomicU8>,
    _task: JoinSet<()>,
}

impl NameServer {
    /// Port 53 of a loopback address of its own: `resolv.conf` knows no other port.
    async fn start() -> Self {
        let address = Ipv4Addr::new(127, 53, fastrand::u8(..), fastrand::u8(1..255));
        let socket = UdpSocket::bind(SocketAddr::from((address, 53))).await;
        let socket = socket.expect("port 53 needs root");
        let temper = Arc::new(AtomicU8::new(Temper::Answers as u8));
        let (mut task, now) = (JoinSet::new(), Arc::clone(&temper));
        task.spawn(async move {
            let mut query = [0; 512];
            while let Ok((length, from)) = socket.recv_from(&mut query).await {
                let temper = now.load(Ordering::Acquire);
                if temper != Temper::Silent as u8 {
                    // Whoever asked may have gone.
                    let _gone = socket.send_to(&reply(&query[..length], temper), from).await;
                }
            }
        });
        Self {
            address,
            temper,
            _task: task,
        }
    }

    fn set(&self, temper: Temper) {
        self.temper.store(temper as u8, Ordering::Release);
    }
}

/// RFC 1035: the header with `code`, the question, and one address if it is asked for and to be had.
fn reply(query: &[u8], code: u8) -> Vec<u8> {
    let name = query[12..].iter().position(|byte| *byte == 0);
    let question = &query[12..12 + name.expect("a name ends") + 5];
    let is_address = question.ends_with(&[0, 1, 0, 1]);
    let answers = u8::from(code == 0 && is_address);
    let mut reply = vec![
        query[0],
        query[1],
        0x81,
        0x80 | code,
        0,
        1,
        0,
        answers,
        0,
        0,
        0,
        0,
    ];
    reply.extend_from_slice(question);
    if answers == 1 {
        reply.extend_from_slice(&[0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 0, 0, 4, 127, 0, 0, 1]);
    }
    reply
}

#[tokio::test]
async fn a_resolver_that_does_not_answer_takes_no_healthy_app_out() {
    let (host, server) = (Host::start().await, NameServer::start().await);
    let resolver = format!(
        "nameserver {}\noptions timeout:1 attempts:2\n",
        server.address
    );
    let resolver = host.dir.write("resolv.conf", resolver);
    let admin = Bind::Tcp(format!("127.0.0.1:{}", free_port()));
    let config = |grace: &str| {
        let mut config = host.config(&admin, &host.zookeeper.hosts(), &json!({}));
        let service = &mut config["services"]["web"];
        service["check_grace"] = json!(grace);
        service["checks"][0]["host"] = json!(NAME);
        service["checks"][0]["open_timeout"] = json!(0.2);
        config
    };
    host.write(&config("10m"));
    let (script, path) = (
        r#"mount --bind "$0" /etc/resolv.conf && exec "$@""#,
        host.dir.join("nerve.json"),
    );
    let by = [
        "unshare",
        "-m",
        "sh",
        "-c",
        script,
        resolver.to_str().unwrap(),
    ];
    let arguments = ["-c", path.to_str().unwrap()];
    let mut nerve = Program::start_by(&by, "nerve", &host.dir, &arguments, admin.clone());
    nerve.ready(SOON).await;
    let node = host.one_node("").await;
    let observer = Observer::start(&host).await;

    for (temper, words) in [
        (Temper::Silent, "the resolver did not answer"),
        (Temper::CannotTell, "Temporary failure"),
    ] {
        server.set(temper);
        let before = not_run(&nerve).await;
        let check = eventually("checks could not run", SOON, async || {
            let more = not_run(&nerve).await - before;
            let check = nerve.status().await["services"]["web"]["checks"][0].take();
            let told = check["error"]
                .as_str()
                .is_some_and(|error| error.contains(words));
            if more >= 15.0 && told {
                Ok(check)
            } else {
                Err(format!("{more} {check}"))
            }
        })
        .await;
        assert_eq!(check["health"], "up", "{check}");
        assert!(check["not_run_since"].is_number(), "{check}");
        // One question at a time: each may take 2 s, and five attempts are made in a second.
        let pid = nerve.process().pid();
        let threads = std::fs::read_dir(format!("/proc/{pid}/task"))
            .unwrap()
            .count();
        assert!(threads <= 6, "{threads} threads");
    }
    server.set(Temper::Answers);
    eventually("it runs again", SOON, async || {
        let check = nerve.status().await["services"]["web"]["checks"][0].take();
        if check["error"].is_null() {
            Ok(())
        } else {
            Err(check.to_string())
        }
    })
    .await;
    assert_eq!(observer.sets(), [BTreeSet::from([node.clone()])]);
    println!(
        "fault: a resolver that hangs, then one that cannot tell: {} checks could not run, 0 withdrawals; the registry had \
         the node all the time",
        not_run(&nerve).await
    );

    // It is no cause to register either: what comes up while nobody can look waits.
    server.set(Temper::NoSuchName);
    host.no_node().await;
    server.set(Temper::Silent);
    let before = not_run(&nerve).await;
    eventually("checks could not run", SOON, async || {
        let more = not_run(&nerve).await - before;
        if more >= 5.0 { Ok(()) } else { Err(more) }
    })
    .await;
    assert_eq!(host.nodes().await, Vec::<String>::new());
    server.set(Temper::Answers);
    let node = host.one_node(&node).await;

    // The time is over.
    server.set(Temper::Silent);
    host.write(&config("1s"));
    nerve.signal(Signal::SIGHUP);
    host.no_node().await;
    server.set(Temper::Answers);
    host.one_node(&node).await;
    nerve.signal(Signal::SIGTERM);
    assert_eq!(nerve.wait(SOON).await.code(), Some(0));
}
