//! A check by name, and a name server of every temper. The resolver is the system's own, on another `resolv.conf`.

use std::collections::BTreeSet;

use nix::sys::signal::Signal;
use serde_json::json;
use smartstack_common::admin::Bind;
use smartstack_common::testing::{NameServer, Program, Temper, eventually, free_port};

use super::not_run;
use crate::rig::{Host, Observer, SOON, ends_in_time, writes};

const NAME: &str = "app.smartstack.test";

#[tokio::test]
async fn a_resolver_that_does_not_answer_takes_no_healthy_app_out() {
    let (host, server) = (Host::start().await, NameServer::start().await);
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
    let path = host.dir.join("nerve.json");
    let by = server.used_by(&host.dir);
    let by: Vec<&str> = by.iter().map(String::as_str).collect();
    let arguments = ["-c", path.to_str().unwrap()];
    let mut nerve = Program::start_by(&by, "nerve", &host.dir, &arguments, admin.clone());
    nerve.ready(SOON).await;
    let node = host.one_node("").await;
    let observer = Observer::start(&host).await;
    let ensemble = host.zookeeper.hosts();
    let written = writes(&nerve, &ensemble).await;

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
    assert_eq!(
        writes(&nerve, &ensemble).await,
        written,
        "nothing was to be written"
    );
    println!(
        "fault: a resolver that hangs, then one that cannot tell: {} checks could not run, 0 withdrawals, 0 writes; the \
         registry had the node all the time",
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
    // Questions that nobody answers do not hold it up.
    server.set(Temper::Silent);
    let before = not_run(&nerve).await;
    eventually("it asks", SOON, async || {
        let more = not_run(&nerve).await - before;
        if more >= 1.0 { Ok(()) } else { Err(more) }
    })
    .await;
    println!(
        "fault: TERM while a resolver hangs: ended in {:.1?}",
        ends_in_time(nerve).await
    );
    assert_eq!(host.nodes().await, Vec::<String>::new());
}
