//! Whose maint it is: synapse's own, an operator's, or one that was found in a haproxy of somebody else.

use std::time::Duration;

use nix::sys::signal::Signal;
use serde_json::json;
use smartstack_common::testing::{App, eventually};
use tokio::time::sleep;

use crate::pair::{Pair, SOON, Traffic, Way, in_step, reloaded_by_hand, status};

/// haproxy's name for an app's server.
fn name(app: &App) -> String {
    format!("web/i-{}_{}", app.name, app.address)
}

/// Two audits have passed.
async fn audited() {
    sleep(Duration::from_millis(2200)).await;
}

#[tokio::test]
async fn an_operators_maint_stays_whatever_its_weight_and_whoever_restarts() {
    let mut pair = Pair::start(Way::Master).await;
    pair.config["audit_interval"] = json!("1s");
    let (a, b) = (App::start("a").await, App::start("b").await);
    pair.register(&a).await;
    pair.register(&b).await;
    let mut synapse = pair.serving().await;
    pair.until(&b, "ready").await;
    in_step(&synapse).await;
    let traffic = Traffic::start(pair.port).await;
    traffic.reaches(&b).await;
    let out = |app: &App| {
        format!(
            "set server {0} weight 0;set server {0} state maint",
            name(app)
        )
    };
    // As operators do it; while synapse runs, and while it does not.
    for down in [false, true] {
        if down {
            synapse.signal(Signal::SIGKILL);
            synapse.wait(SOON).await;
        }
        pair.haproxy.command(&out(&b)).await;
        if down {
            synapse = pair.serving().await;
        }
        in_step(&synapse).await;
        audited().await;
        assert_eq!(pair.state(&b).await, "retired");
        traffic.avoids(&b).await;
        eventually("its line says so", SOON, async || {
            let file = pair.file();
            if file.contains("disabled") {
                Ok(())
            } else {
                Err(file)
            }
        })
        .await;
        reloaded_by_hand(&pair, &synapse).await;
        in_step(&synapse).await;
        audited().await;
        assert_eq!(pair.state(&b).await, "maint");
        traffic.avoids(&b).await;
        let ready = format!("set server {} state ready", name(&b));
        pair.haproxy.command(&ready).await;
        traffic.reaches(&b).await;
        eventually("its line does not say so", SOON, async || {
            let file = pair.file();
            if file.contains("disabled") {
                Err(file)
            } else {
                Ok(())
            }
        })
        .await;
    }
    traffic.unharmed().await;
}

/// The registry says nothing of weights: they are the operator's, and shown.
#[tokio::test]
async fn an_operators_weight_stays_where_the_registry_gives_none() {
    let mut pair = Pair::start(Way::Supervise).await;
    pair.config["audit_interval"] = json!("1s");
    let a = App::start("a").await;
    pair.register_in(crate::pair::WEB, &a, &json!({"weight": 5}))
        .await;
    let mut synapse = pair.serving().await;
    pair.until(&a, "ready").await;
    in_step(&synapse).await;
    let weight = async || {
        let rows = pair.haproxy.servers_state().await;
        let row = rows.iter().find(|row| row["be_name"] == "web");
        row.map(|row| row["srv_uweight"].clone())
    };
    pair.haproxy
        .command(&format!("set server {} weight 7", name(&a)))
        .await;
    let shown =
        |status: &serde_json::Value| status["services"]["web"]["servers"][0]["other_weight"] == 7;
    status(&synapse, "the weight is shown", shown).await;
    audited().await;
    assert_eq!(weight().await.as_deref(), Some("7"));
    assert_eq!(in_step(&synapse).await["haproxy"]["divergence"], 0);
    synapse.signal(Signal::SIGKILL);
    synapse.wait(SOON).await;
    synapse = pair.serving().await;
    in_step(&synapse).await;
    audited().await;
    assert_eq!(weight().await.as_deref(), Some("7"));

    // With the registry's weights it is put right.
    pair.config["haproxy"]["use_nerve_weights"] = json!(true);
    let _path = pair.configure();
    synapse.signal(Signal::SIGHUP);
    eventually("the registry's weight", SOON, async || {
        match weight().await {
            Some(weight) if weight == "5" => Ok(()),
            other => Err(format!("{other:?}")),
        }
    })
    .await;
}

/// Killed between a removal and everything that follows it, or at any other time: what synapse took out comes back.
#[tokio::test]
async fn what_synapse_took_out_comes_back_after_its_death() {
    let mut pair = Pair::start(Way::Supervise).await;
    // A removed server stays in the worker: before haproxy 3.0 such a backend takes none at runtime, so none is deleted.
    pair.config["services"]["web"]["haproxy"]["backend"] = json!(["cookie SERVER insert indirect"]);
    pair.config["guard"] = json!("off");
    let (a, b) = (App::start("a").await, App::start("b").await);
    pair.register(&a).await;
    let node = pair.register(&b).await;
    let mut synapse = pair.serving().await;
    pair.until(&b, "ready").await;
    in_step(&synapse).await;
    for round in 0..4 {
        pair.withdraw(&node).await;
        pair.until(&b, "retired").await;
        if round % 2 == 0 {
            in_step(&synapse).await;
        }
        synapse.signal(Signal::SIGKILL);
        synapse.wait(SOON).await;
        pair.register(&b).await;
        synapse = pair.serving().await;
        pair.until(&b, "ready").await;
        in_step(&synapse).await;
    }
    let traffic = Traffic::start(pair.port).await;
    traffic.reaches(&b).await;
    traffic.unharmed().await;
}

/// Ruby's synapse disables what has vanished, at runtime and in its file: such servers come back with the registry.
#[tokio::test]
async fn what_rubys_synapse_disabled_is_served_when_it_is_registered() {
    for running in [true, false] {
        let mut pair = Pair::start(Way::Command).await;
        pair.config["audit_interval"] = json!("1s");
        let (a, b, c) = (
            App::start("a").await,
            App::start("b").await,
            App::start("c").await,
        );
        let server = |app: &App, options: &str| {
            format!("\tserver {} {} {options}\n", &name(app)[4..], app.address)
        };
        // Two are away: one in maint by command, one `disabled` in the file.
        let text = format!(
            "global\n\tstats socket {} mode 600 level admin expose-fd listeners\ndefaults\n\tmode http\n\ttimeout connect 1s\n\ttimeout client 30s\n\ttimeout server 30s\nfrontend web\n\tbind 127.0.0.1:{}\n\tdefault_backend web\nbackend web\n{}{}{}",
            pair.dir.join("stats.sock").display(),
            pair.port,
            server(&a, ""),
            server(&b, if running { "" } else { "disabled" }),
            server(&c, "disabled"),
        );
        let _path = pair.dir.write("haproxy.cfg", text);
        if running {
            pair.start_haproxy().await;
            pair.haproxy
                .command(&format!("disable server {}", name(&b)))
                .await;
            assert_eq!(pair.state(&b).await, "maint");
        }
        pair.register(&a).await;
        // It is back before synapse comes; the other one after.
        pair.register(&c).await;
        let mut synapse = pair.serving().await;
        in_step(&synapse).await;
        pair.until(&c, "ready").await;
        let traffic = Traffic::start(pair.port).await;
        traffic.reaches(&c).await;
        pair.register(&b).await;
        traffic.reaches(&b).await;
        in_step(&synapse).await;
        synapse.signal(Signal::SIGKILL);
        synapse.wait(SOON).await;
        let synapse = pair.serving().await;
        in_step(&synapse).await;
        traffic.reaches(&b).await;
        let log = pair.log();
        let told = log
            .lines()
            .filter(|line| line.contains("no operator's order"))
            .count();
        assert!(told >= 1 && log.contains(&name(&c)), "{log}");
        assert!(!pair.file().contains("disabled"), "{}", pair.file());
        // An operator's own word to our worker counts as ever.
        pair.haproxy
            .command(&format!("set server {} state maint", name(&b)))
            .await;
        status(&synapse, "it is shown", |status| {
            let servers = status["services"]["web"]["servers"].as_array().unwrap();
            servers.iter().any(|server| server["haproxy"] == "maint")
        })
        .await;
        in_step(&synapse).await;
        assert_eq!(pair.state(&b).await, "maint");
        traffic.unharmed().await;
    }
}
