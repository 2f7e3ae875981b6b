//! Servers that are not as others: that accept sessions and do not know them, that grant another time-out, that are old.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use nix::sys::signal::Signal;
use serde_json::{Value, json};
use smartstack_common::testing::{
    Behaviour, Fate, Options, Program, Request, ZooKeeper, eventually, rewriting,
};
use tokio::time::Instant;

use crate::live;
use crate::rig::{Host, PARENT, SOON, ends_in_time};

const MULTI: i32 = 14;
/// `KeeperException.Code.SESSIONEXPIRED`.
const EXPIRED: i32 = -112;

/// The first entry of `zookeeper` in the status.
async fn session(nerve: &Program) -> Value {
    nerve.status().await["zookeeper"][0].clone()
}

/// Waits until the status explains itself with these words, and returns how many sessions it took, by `count`.
async fn explained(nerve: &Program, words: &str) -> Value {
    eventually(
        &format!("the status says `{words}`"),
        2 * SOON,
        async || {
            let session = session(nerve).await;
            match session["error"].as_str() {
                Some(error) if error.contains(words) => Ok(session),
                _ => Err(session.to_string()),
            }
        },
    )
    .await
}

/// A member that gives out sessions and answers each write with "expired": each costs a session, and the next comes later.
#[tokio::test]
async fn sessions_that_do_not_last_are_opened_ever_more_rarely() {
    const OBSERVED: Duration = Duration::from_secs(6);
    let host = Host::start().await;
    let (forgetful, writes) = (Arc::new(AtomicBool::new(true)), Arc::new(AtomicU64::new(0)));
    let (forgets, counts) = (Arc::clone(&forgetful), Arc::clone(&writes));
    let decide = move |request: &Request<'_>| {
        if request.operation != MULTI || !forgets.load(Ordering::Acquire) {
            return Fate::Pass;
        }
        counts.fetch_add(1, Ordering::AcqRel);
        request.fails(EXPIRED)
    };
    let (hosts, _relay) = rewriting(&host.zookeeper.hosts(), decide, |granted| granted).await;
    let began = Instant::now();
    let (nerve, _) = host.nerve_with(&hosts, &json!({})).await;
    let session = explained(&nerve, "localSessionsUpgradingEnabled").await;
    tokio::time::sleep_until(began + OBSERVED).await;
    let tries = writes.load(Ordering::Acquire);
    // The first may have been unlucky, the second says how it is: from there on at most one a second.
    let most = 2 + OBSERVED.as_secs();
    assert!((3..=most).contains(&tries), "{tries} writes");
    // It ends in time also while no session can write; the next one goes on where it was.
    let observed = began.elapsed();
    let ended = ends_in_time(nerve).await;
    println!(
        "fault: a server that says `expired` at each write: {tries} sessions and writes in {observed:.1?}: {session}; TERM in \
         {ended:.1?}"
    );
    let (nerve, _) = host.nerve_with(&hosts, &json!({})).await;
    explained(&nerve, "localSessionsUpgradingEnabled").await;
    forgetful.store(false, Ordering::Release);
    eventually(
        "one node",
        4 * SOON,
        async || match &host.nodes().await[..] {
            [one] => Ok(one.clone()),
            other => Err(format!("{other:?}")),
        },
    )
    .await;
    live(&nerve).await;
    // The session has lasted.
    eventually("no error", SOON, async || match nerve.status().await {
        status if status["zookeeper"][0]["error"].is_null() => Ok(()),
        status => Err(status["zookeeper"].to_string()),
    })
    .await;
}

/// The real thing: an ensemble with sessions of the members' own, which must not be turned into common ones.
#[tokio::test]
async fn local_sessions_that_may_not_be_upgraded_are_named() {
    let zookeeper = ZooKeeper::start_with(Options {
        servers: 3,
        settings: vec![
            "localSessionsEnabled=true".to_owned(),
            "localSessionsUpgradingEnabled=false".to_owned(),
        ],
        ..Options::default()
    })
    .await;
    let host = Host::start_beside(zookeeper).await;
    let (nerve, _) = host.nerve().await;
    // As the session of a member that is not the leader, or as the error of the registration.
    eventually("the setting is named", 2 * SOON, async || {
        match nerve.status().await.to_string() {
            status if status.contains("localSessionsUpgradingEnabled") => Ok(()),
            status => Err(status),
        }
    })
    .await;
    println!("{} connections", session(&nerve).await);
    assert_eq!(host.nodes().await, Vec::<String>::new());
}

/// What cannot be watched is looked at, and watched as soon as that can be done: whatever the server says about it.
#[tokio::test]
async fn a_watch_that_failed_is_armed_again() {
    const EXISTS: i32 = 3;
    /// Runtime inconsistency, and codes that no client knows.
    const ERRORS: [i32; 3] = [-2, -999, -4321];
    let host = Host::start().await;
    let (refused, armed) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicU64::new(0)));
    let (refuses, arms) = (Arc::clone(&refused), Arc::clone(&armed));
    let decide = move |request: &Request<'_>| {
        let watches = request.operation == EXISTS && request.frame.ends_with(&[1]);
        match refuses.load(Ordering::Acquire) {
            number if watches && number < 3 => {
                refuses.fetch_add(1, Ordering::AcqRel);
                request.fails(ERRORS[usize::try_from(number).unwrap()])
            }
            _ => {
                arms.fetch_add(u64::from(watches), Ordering::AcqRel);
                Fate::Pass
            }
        }
    };
    let (hosts, _relay) = rewriting(&host.zookeeper.hosts(), decide, |granted| granted).await;
    let began = Instant::now();
    let (nerve, _) = host.nerve_with(&hosts, &json!({})).await;
    let node = host.one_node("").await;
    eventually("it is watched", 6 * SOON, async || {
        match (
            refused.load(Ordering::Acquire),
            armed.load(Ordering::Acquire),
        ) {
            (3, 1) => Ok(()),
            other => Err(format!("{other:?}")),
        }
    })
    .await;
    let watched = began.elapsed();
    let deleted = Instant::now();
    let path = format!("{PARENT}/{node}");
    host.client.delete(&path, None).await.unwrap();
    host.one_node(&node).await;
    println!(
        "three times refused, watched after {watched:?}; deleted, it was back after {:?}",
        deleted.elapsed()
    );
    assert!(
        deleted.elapsed() < Duration::from_secs(5),
        "its watch has told"
    );
    assert_eq!(session(&nerve).await["epoch"], 1);
}

/// The counter of a path stays at its end, where each further node has the same name: what is ours is replaced all the same,
/// and what is not is named.
#[tokio::test]
async fn a_counter_at_its_end_gives_one_name_for_ever() {
    let mut host = Host::start().await;
    ZooKeeper::make_path(&host.client, PARENT).await;
    host.zookeeper.set_counter(PARENT, i32::MAX - 1).await;
    host.client = host.zookeeper.connect().await;
    let (nerve, admin) = host.nerve().await;
    assert!(host.one_node("").await.ends_with("_2147483646"));
    let payload = async || {
        let node = host.one_node("").await;
        let data = host.client.get_data(&format!("{PARENT}/{node}")).await;
        (node, data.map(|(data, _)| String::from_utf8(data).unwrap()))
    };
    for weight in 3..7 {
        let config = host.config(&admin, &host.zookeeper.hosts(), &json!({"weight": weight}));
        host.write(&config);
        nerve.signal(Signal::SIGHUP);
        let words = format!("\"weight\":{weight}");
        eventually(&words, SOON, async || match payload().await {
            (node, Ok(data)) if data.contains(&words) && node.ends_with("_2147483647") => Ok(()),
            other => Err(format!("{other:?}: {}", nerve.status().await["services"])),
        })
        .await;
    }
    let place = nerve.status().await["services"]["web"]["registrations"][0].clone();
    assert_eq!(place["error"], Value::Null, "{place}");
    // Withdrawn, and its name taken by somebody else.
    host.app.set(Behaviour::Unhealthy);
    host.no_node().await;
    let node = format!("{PARENT}/i-0a1b2c3d_2147483647");
    ZooKeeper::put(&host.client, &node, b"{}").await;
    host.app.set(Behaviour::Healthy);
    let place = eventually("it says why", SOON, async || {
        let place = nerve.status().await["services"]["web"]["registrations"][0].clone();
        match place["error"].as_str() {
            Some(error) if error.contains("counter of the path is at its end") => Ok(place),
            _ => Err(place.to_string()),
        }
    })
    .await;
    println!("{place}");
    host.client.delete(&node, None).await.unwrap();
    eventually("registered", 4 * SOON, async || match payload().await {
        (_, Ok(data)) if data.contains("10.0.0.12") => Ok(()),
        other => Err(format!("{other:?}")),
    })
    .await;
}
