//! What consumers see when nerve takes a node away: every deliberate removal is announced, nothing else is.

#![expect(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

mod rig;

use std::collections::BTreeSet;

use nix::sys::signal::Signal;
use serde_json::json;
use smartstack_common::testing::{Behaviour, ZooKeeper, eventually};
use zookeeper_client::{Acl, Acls, AuthId, Client, Permission};

use self::rig::{Host, PARENT, SOON, What, Witness};

/// The two events of an announced removal.
fn announced(node: &str) -> Vec<(What, String)> {
    vec![
        (What::Changed, node.to_owned()),
        (What::Deleted, node.to_owned()),
    ]
}

/// What the announcement rests on: a recursive watch delivers both events of one transaction, in order, wherever the
/// watcher is connected.
async fn both_events_in_order(zookeeper: &ZooKeeper, servers: usize, rounds: usize) {
    let writer = zookeeper.connect().await;
    ZooKeeper::make_path(&writer, PARENT).await;
    let mut witnesses = Vec::new();
    for server in 0..servers {
        let client = Client::connect(&zookeeper.host(server)).await.unwrap();
        witnesses.push(Witness::start(client).await);
    }
    let mut expected = Vec::new();
    for round in 0..rounds {
        let node = format!("n{round}");
        let path = format!("{PARENT}/{node}");
        ZooKeeper::make_ephemeral(&writer, &path, b"{}").await;
        let mut multi = writer.new_multi_writer();
        multi
            .add_set_data(&path, b"{\"available\":false}", Some(0))
            .unwrap();
        multi.add_delete(&path, Some(1)).unwrap();
        multi.commit().await.unwrap();
        expected.push((What::Created, node.clone()));
        expected.extend(announced(&node));
    }
    for (server, witness) in witnesses.iter().enumerate() {
        assert_eq!(
            witness.wait(expected.len()).await,
            expected,
            "server {server}"
        );
    }
}

#[tokio::test]
async fn a_recursive_watch_delivers_both_events_of_a_multi() {
    both_events_in_order(&ZooKeeper::start().await, 1, 300).await;
}

#[tokio::test]
async fn a_recursive_watch_on_every_member_delivers_both_events_of_a_multi() {
    both_events_in_order(&ZooKeeper::start_ensemble().await, 3, 100).await;
}

#[tokio::test]
async fn deliberate_removals_are_announced_and_swaps_are_not() {
    let host = Host::start().await;
    let witness = Witness::start(host.zookeeper.connect().await).await;
    let (mut nerve, admin) = host.nerve().await;
    let node = |number: u32| format!("i-0a1b2c3d_{number:010}");
    let created = |number| (What::Created, node(number));
    let mut expected = vec![created(0)];
    assert_eq!(witness.wait(1).await, expected);

    host.app.set(Behaviour::Unhealthy);
    expected.extend(announced(&node(0)));
    assert_eq!(witness.wait(expected.len()).await, expected, "unhealthy");
    host.app.set(Behaviour::Healthy);
    expected.push(created(1));
    assert_eq!(witness.wait(expected.len()).await, expected);

    let hosts = host.zookeeper.hosts();
    host.write(&host.config(&admin, &hosts, &json!({"weight": 9})));
    nerve.signal(Signal::SIGHUP);
    expected.extend([created(2), (What::Deleted, node(1))]);
    assert_eq!(
        witness.wait(expected.len()).await,
        expected,
        "another weight"
    );

    let mut empty = host.config(&admin, &hosts, &json!({}));
    empty["services"] = json!({});
    host.write(&empty);
    nerve.signal(Signal::SIGHUP);
    expected.extend(announced(&node(2)));
    assert_eq!(
        witness.wait(expected.len()).await,
        expected,
        "not configured any more"
    );
    host.write(&host.config(&admin, &hosts, &json!({})));
    nerve.signal(Signal::SIGHUP);
    expected.push(created(3));
    assert_eq!(witness.wait(expected.len()).await, expected);

    let elsewhere = json!({"zk_path": "/moved/web"});
    host.write(&host.config(&admin, &hosts, &elsewhere));
    nerve.signal(Signal::SIGHUP);
    expected.extend(announced(&node(3)));
    assert_eq!(witness.wait(expected.len()).await, expected, "another path");
    host.write(&host.config(&admin, &hosts, &json!({})));
    nerve.signal(Signal::SIGHUP);
    expected.push(created(4));
    assert_eq!(witness.wait(expected.len()).await, expected);

    nerve.signal(Signal::SIGTERM);
    assert_eq!(nerve.wait(SOON).await.code(), Some(0));
    expected.extend(announced(&node(4)));
    assert_eq!(witness.wait(expected.len()).await, expected, "stopped");
}

/// Somebody wrote to the node: it is withdrawn all the same, and announced.
#[tokio::test]
async fn a_node_that_somebody_wrote_to_is_withdrawn_announced() {
    let host = Host::start().await;
    let (_nerve, _) = host.nerve().await;
    let node = host.one_node("").await;
    let witness = Witness::start(host.zookeeper.connect().await).await;
    // Its own bytes again: right as it is, at another version.
    let path = format!("{PARENT}/{node}");
    let (data, _) = host.client.get_data(&path).await.unwrap();
    host.client.set_data(&path, &data, None).await.unwrap();
    witness.wait(1).await;
    host.app.set(Behaviour::Unhealthy);
    host.no_node().await;
    let told = witness.wait(3).await;
    assert_eq!(told[1..], announced(&node));
    let standing: BTreeSet<_> = witness.events().pop().unwrap().standing;
    assert!(standing.is_empty());
    eventually("unhealthy in the status", SOON, async || {
        let status = _nerve.status().await;
        let wanted = &status["services"]["web"]["registrations"][0]["wanted"];
        if wanted == "absent: unhealthy" {
            Ok(())
        } else {
            Err(status.to_string())
        }
    })
    .await;
}

/// USR2: the nodes stay, the successor swaps them; consumers never see a moment without a node.
#[tokio::test]
async fn a_leave_hands_over_without_a_gap() {
    let host = Host::start().await;
    let (mut nerve, _) = host.nerve().await;
    let old = host.one_node("").await;
    let witness = Witness::start(host.zookeeper.connect().await).await;
    for round in 1..=3 {
        nerve.signal(Signal::SIGUSR2);
        assert_eq!(nerve.wait(SOON).await.code(), Some(0));
        (nerve, _) = host.nerve().await;
        witness.wait(2 * round).await;
    }
    let node = |number: u32| format!("i-0a1b2c3d_{number:010}");
    let swap = |number| {
        [
            (What::Created, node(number + 1)),
            (What::Deleted, node(number)),
        ]
    };
    assert_eq!(node(0), old);
    let mut expected: Vec<_> = (0..3).flat_map(swap).collect();
    assert_eq!(witness.wait(6).await, expected);
    let events = witness.events();
    for pair in events.windows(2).step_by(2) {
        let both = pair[1].at - pair[0].at;
        println!("both nodes stood for {both:?}");
        assert!(both < SOON / 10, "{pair:?}");
    }
    assert!(events.iter().all(|e| !e.standing.is_empty()), "{events:?}");

    host.app.set(Behaviour::Unhealthy);
    expected.extend(announced(&node(3)));
    assert_eq!(witness.wait(expected.len()).await, expected);
    host.app.set(Behaviour::Healthy);
    host.one_node(&node(3)).await;
    nerve.signal(Signal::SIGTERM);
    assert_eq!(nerve.wait(SOON).await.code(), Some(0));
    expected.push((What::Created, node(4)));
    expected.extend(announced(&node(4)));
    assert_eq!(witness.wait(expected.len()).await, expected);
}

#[tokio::test]
async fn a_leave_does_not_wait_for_zookeeper() {
    let mut host = Host::start().await;
    let (mut nerve, _) = host.nerve().await;
    host.one_node("").await;
    host.zookeeper.stop_all();
    nerve.signal(Signal::SIGUSR2);
    assert_eq!(nerve.wait(SOON).await.code(), Some(0));
}

/// The path's ACL forbids to delete below it (a nerve without credentials can do nothing about that): the status says so,
/// and the node goes once it is allowed. That the pauses grow is tested on the reconciler.
#[tokio::test]
async fn a_withdrawal_that_is_denied_is_reported_and_done_once_it_is_allowed() {
    let host = Host::start().await;
    let (nerve, _) = host.nerve().await;
    host.one_node("").await;
    let but_delete = Permission::CREATE | Permission::READ | Permission::WRITE | Permission::ADMIN;
    let no_delete = [Acl::new(but_delete, AuthId::anyone())];
    let no_delete = Acls::new(&no_delete);
    host.client.set_acl(PARENT, &no_delete, None).await.unwrap();
    host.app.set(Behaviour::Unhealthy);
    eventually("the denial in the status", SOON, async || {
        let status = nerve.status().await;
        let there = &status["services"]["web"]["registrations"][0];
        let error = there["error"].as_str().unwrap_or_default();
        let told = error.contains("not authorized (its ACL") && error.contains(PARENT);
        if told && there["observed"] == "present" {
            Ok(())
        } else {
            Err(status.to_string())
        }
    })
    .await;
    let all = Acls::anyone_all();
    host.client.set_acl(PARENT, &all, None).await.unwrap();
    host.no_node().await;
}
