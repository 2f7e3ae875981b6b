//! Other workers: reloads by somebody else, an old worker that still answers, a haproxy that is gone.

use std::net::SocketAddr;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use smartstack_common::testing::{ask_once, eventually};

use crate::gate::Meddle;
use crate::rig::SOON;
use crate::stage::Stage;

/// Fact 6: when haproxy is told of a server, the file has it already; so a reload by anybody keeps it, and there is
/// nothing to be done after it.
pub(crate) async fn reloaded_by_somebody_else(stage: &mut Stage) {
    let server = stage.add("one").await;
    let said = stage.gate.said(&format!("add server one/{} ", server.name));
    assert_eq!(said.len(), 1);
    assert!(
        said[0].file.contains(&format!("server {} ", server.name)),
        "the file comes first: {}",
        said[0].file
    );
    stage.settled().await;
    let before = stage.status().await;
    let from = stage.gate.count();
    stage.foreign_reload().await;
    let status = stage.settled().await;
    assert_ne!(status["pid"], before["pid"]);
    assert_eq!(status["reloads"], before["reloads"]);
    assert!(status["foreign_reloads"].as_u64() > before["foreign_reloads"].as_u64());
    stage.up("one", &server).await;
    assert_eq!(
        stage.gate.changes_since(from),
        [""; 0],
        "nothing is sent to a worker that is right"
    );
}

/// The counterpart: what only the worker had been told is forgotten by a reload.
pub(crate) async fn a_reload_forgets_what_the_file_has_not(stage: &mut Stage) {
    let address = stage.server("one").address;
    stage
        .behind_its_back(&format!(
            "add server one/unwritten {address};set server one/unwritten state ready"
        ))
        .await;
    assert!(stage.row("one", "unwritten").await.is_some());
    stage.foreign_reload().await;
    stage.settled().await;
    assert_eq!(stage.row("one", "unwritten").await, None);
}

/// Fact 9: the old worker says "New server registered." for a server that nobody will use. synapse looks, on another
/// connection, and tells the one that serves.
pub(crate) async fn an_old_worker_says_yes(stage: &mut Stage) {
    let before = stage.status().await;
    let kept = stage.kept().await;
    stage.foreign_reload().await;
    stage.settled().await;
    let server = stage.server("one");
    let command = format!("add server one/{} ", server.name);
    stage.gate.meddle(command.clone(), 1, Meddle::Over(kept));
    stage.register("one", &server).await;
    stage.up("one", &server).await;
    let status = stage.settled().await;
    let said = stage.gate.said(&command);
    assert_eq!(said.len(), 2, "{said:?}");
    assert!(
        said.iter()
            .all(|said| said.reply.contains("New server registered.")),
        "{said:?}"
    );
    assert_eq!(status["reloads"], before["reloads"]);
    let answers = stage.answers("one", 30).await;
    assert!(
        answers.contains_key(&server.address.ip().to_string()),
        "{answers:?}"
    );
}

/// `No such backend.`: somebody has had a file loaded that lacks a service. The right one is written and loaded.
pub(crate) async fn no_such_backend(stage: &mut Stage) {
    let before = stage.status().await;
    let text = stage.rig.text();
    let mut fewer = String::new();
    let mut skips = false;
    for line in text.lines() {
        if !line.starts_with(['\t', ' ']) && !line.is_empty() {
            skips = line == "frontend two" || line == "backend two";
        }
        if !skips {
            fewer += &format!("{line}\n");
        }
    }
    assert!(
        fewer.len() < text.len() && fewer.contains("synapse="),
        "{fewer}"
    );
    let _path = stage.rig.dir.write("haproxy/haproxy.cfg", fewer);
    let target = SocketAddr::from(([127, 0, 0, 1], stage.port("two")));
    stage.foreign_reload().await;
    stage.replied("add server two/", "No such backend").await;
    stage
        .reloaded(before["reloads"].as_u64().unwrap() + 1)
        .await;
    let status = stage.settled().await;
    let reason = status["last_reload"]["reason"].to_string();
    assert!(reason.contains("No such backend"), "{reason}");
    assert!(
        status["fallbacks"]["two"].is_null(),
        "only that worker refused: {status:#}"
    );
    assert_eq!(stage.rig.text(), text);
    let body = tokio::task::spawn_blocking(move || ask_once(target))
        .await
        .unwrap();
    let address = stage.registered["two"][0].address;
    assert_eq!(body, Ok(address.ip().to_string()));
}

/// haproxy is gone: the file on disk is current, and the supervised one is started on it; there is nothing left to be
/// told.
pub(crate) async fn haproxy_is_gone(stage: &mut Stage) {
    let server = stage.add("one").await;
    stage.settled().await;
    let from = stage.gate.count();
    let before = stage.status().await["pid"].as_u64();
    for pid in stage.rig.haproxy.pids() {
        // Err = it went with the other.
        let _gone = kill(Pid::from_raw(i32::try_from(pid).unwrap()), Signal::SIGKILL).is_err();
    }
    eventually("another haproxy runs", SOON, async || {
        let status = stage.status().await;
        match status["pid"].as_u64() {
            Some(pid) if Some(pid) != before && status["state"] == "serving" => Ok(()),
            _ => Err(format!("{status:#}")),
        }
    })
    .await;
    stage.up("one", &server).await;
    stage.settled().await;
    assert_eq!(
        stage.gate.changes_since(from),
        [""; 0],
        "the file had everything"
    );
}
