//! Answers that come late, in part, or not at all: what was done is read back, and nothing is reloaded for it.

#![expect(clippy::print_stdout, reason = "how far it has come")]

use std::time::Duration;

use smartstack_common::testing::eventually;

use crate::gate::Meddle;
use crate::rig::SOON;
use crate::stage::Stage;

/// Each way in which the answer to an addition, or to what follows it, can be lost. The server is there in the end, was
/// added once, and takes requests.
pub(crate) async fn lost_answers(stage: &mut Stage) {
    let before = stage.reloads().await;
    for (what, needle, meddle) in [
        (
            "no answer to `add server`",
            "add server silent/",
            Meddle::Silence,
        ),
        ("no answer to `state ready`", "state ready", Meddle::Silence),
        (
            "closed before the answer",
            "add server silent/",
            Meddle::Cut(0),
        ),
        (
            "closed within the answer",
            "add server silent/",
            Meddle::Cut(9),
        ),
        (
            "closed before the second answer",
            "state ready",
            Meddle::Cut(0),
        ),
        (
            "closed before haproxy had it",
            "add server silent/",
            Meddle::Drop,
        ),
        (
            "an answer after the time limit",
            "add server silent/",
            Meddle::Late(Duration::from_secs(3)),
        ),
        (
            "no answer when it is looked at",
            "show servers state silent",
            Meddle::Silence,
        ),
    ] {
        println!("  {what}");
        stage.gate.meddle(needle, 1, meddle);
        let server = stage.add("silent").await;
        stage.settled().await;
        assert_eq!(stage.gate.left(), 0, "{what}: it was not meddled with");
        let added = stage
            .gate
            .said(&format!("add server silent/{} ", server.name));
        assert_eq!(added.len(), 1, "{what}: {added:?}");
        assert_eq!(stage.reloads().await, before, "{what}");
        let answers = stage.answers("silent", 30).await;
        assert!(
            answers.contains_key(&server.address.ip().to_string()),
            "{what}: {answers:?}"
        );
    }
    let told = "the stats socket gives no answer; nothing is reloaded for that";
    assert!(stage.rig.whole_log().contains(told));
}

/// The same for a removal: whether it was done is read back.
pub(crate) async fn a_lost_removal(stage: &mut Stage) {
    let before = stage.reloads().await;
    for meddle in [Meddle::Silence, Meddle::Cut(3), Meddle::Drop] {
        let server = stage.add("silent").await;
        stage.settled().await;
        let command = format!("set server silent/{} state maint", server.name);
        stage.gate.meddle(command.clone(), 1, meddle);
        stage.withdraw("silent", &server).await;
        stage.retired("silent", &server).await;
        stage.settled().await;
        assert_eq!(stage.gate.left(), 0, "it was not meddled with");
        // However often it is said, it is the same.
        assert!(!stage.gate.said(&command).is_empty());
    }
    assert_eq!(stage.reloads().await, before);
}

/// A socket that stays silent: told in `/status`, haproxy.cfg follows, nothing is reloaded; then everything is caught
/// up with.
pub(crate) async fn long_silence(stage: &mut Stage) {
    let before = stage.status().await;
    stage.gate.meddle("", usize::MAX, Meddle::Silence);
    let leaving = stage.registered["silent"].last().unwrap().clone();
    stage.withdraw("silent", &leaving).await;
    let server = stage.server("silent");
    stage.register("silent", &server).await;
    eventually("it is told", SOON, async || {
        let status = stage.rig.synapse.status().await;
        let problems = status["problems"].to_string();
        if problems.contains("did not answer within") {
            Ok(())
        } else {
            Err(problems)
        }
    })
    .await;
    // Four attempts more, which is what the design once took for a reason to reload.
    let asked = stage.gate.count();
    eventually("it is asked again and again", SOON, async || {
        match stage.gate.count() {
            now if now >= asked + 4 => Ok(()),
            now => Err(format!("{now} of {}", asked + 4)),
        }
    })
    .await;
    let status = stage.status().await;
    for count in ["reloads", "reload_failures"] {
        assert_eq!(status[count], before[count], "{status:#}");
    }
    assert_eq!(status["pid"], before["pid"]);
    stage.gate.behave();
    stage.up("silent", &server).await;
    let status = stage.settled().await;
    for count in ["reloads", "reload_failures", "pid"] {
        assert_eq!(status[count], before[count], "{status:#}");
    }
}

/// Nobody listens where haproxy should.
pub(crate) async fn refused(stage: &mut Stage) {
    let before = stage.status().await;
    stage.gate.close();
    let server = stage.server("silent");
    stage.register("silent", &server).await;
    eventually("it is told", SOON, async || match stage.status().await {
        status if status["state"] == "unreachable" => Ok(()),
        status => Err(format!("{status:#}")),
    })
    .await;
    eventually("an attempt has failed", SOON, async || {
        let status = stage.status().await;
        if status["reload_failures"].as_u64() > before["reload_failures"].as_u64() {
            Ok(())
        } else {
            Err(format!("{status:#}"))
        }
    })
    .await;
    // What would be started now is current.
    assert!(stage.rig.text().contains(&server.name));
    crate::rig::accepted(&stage.rig.config_file()).unwrap();
    stage.gate.reopen();
    stage.up("silent", &server).await;
    let status = stage.settled().await;
    let attempts = |status: &serde_json::Value| {
        let count = |name: &str| status[name].as_u64().unwrap();
        count("reloads") + count("reload_failures")
    };
    // The time limit of each is 5 s: they back off.
    assert!(attempts(&status) <= attempts(&before) + 3, "{status:#}");
}

/// A haproxy that answers in another form than it should: its name, version and words are told at once, every change is a
/// reload, and the stats socket is used again once it can be.
pub(crate) async fn cannot_be_talked_to(stage: &mut Stage) {
    let before = stage.status().await;
    let version = before["version"].as_str().unwrap().to_owned();
    // Not in interactive mode it answers one line and closes.
    let other_form = Meddle::Replace("prompt\n", "show version\n");
    stage.gate.meddle("prompt\n", usize::MAX, other_form);
    let told = format!("cannot talk to this haproxy (HAProxy {version}): stats socket");
    carried_by_reloads(stage, &told).await;
    stage.gate.behave();
    used_again(stage).await;
}

async fn carried_by_reloads(stage: &mut Stage, told: &str) {
    stage
        .rig
        .status_shows("it is told", |status| {
            let problems = status["problems"].to_string();
            problems.contains(told) && problems.contains("every change is a reload")
        })
        .await;
    assert!(stage.rig.whole_log().contains(told));
    for _ in 0..2 {
        let reloads = stage.reloads().await;
        let server = stage.server("silent");
        stage.register("silent", &server).await;
        stage.up("silent", &server).await;
        stage
            .rig
            .status_shows("it is a reload, and known to be done", |status| {
                let haproxy = &status["haproxy"];
                haproxy["reloads"].as_u64().unwrap() > reloads && haproxy["state"] == "unconfirmed"
            })
            .await;
        let answers = stage.answers("silent", 30).await;
        assert!(
            answers.contains_key(&server.address.ip().to_string()),
            "{answers:?}"
        );
    }
    // A withdrawn server as well.
    let leaving = stage.registered["silent"].last().unwrap().clone();
    stage.withdraw("silent", &leaving).await;
    stage.absent("silent", &leaving.name).await;
}

async fn used_again(stage: &mut Stage) {
    stage.settled().await;
    let reloads = stage.reloads().await;
    stage.add("silent").await;
    stage.settled().await;
    assert_eq!(stage.reloads().await, reloads);
}
