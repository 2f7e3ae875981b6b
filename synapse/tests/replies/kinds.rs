//! Every kind of command refused for good: one reload does it instead, haproxy is not asked again and again, and the other
//! service changes and is reloaded as before. Clients never retry.

use std::net::SocketAddr;
use std::time::Duration;

use serde_json::{Value, json};
use smartstack_common::testing::{Load, SteadyClient, eventually};

use crate::gate::Meddle;
use crate::rig::SOON;
use crate::stage::{Server, Stage};

/// Clients of these services, over connections of their own.
pub(crate) struct Clients(Vec<(String, SteadyClient)>);

impl Clients {
    pub(crate) fn start(stage: &Stage, services: &[&str]) -> Self {
        let client = |service: &&str| {
            let target = SocketAddr::from(([127, 0, 0, 1], stage.port(service)));
            let load = Load {
                rate: 50.0,
                clients: 2,
                keep_alive: true,
                ..Load::new(target)
            };
            ((*service).to_owned(), SteadyClient::start(load))
        };
        Self(services.iter().map(client).collect())
    }

    /// Nobody has lost a request.
    pub(crate) async fn unharmed(&self, what: &str) {
        for (service, client) in &self.0 {
            let tally = client.more(20, SOON).await;
            println!(
                "  {what}: {service}: {} requests, {} failed",
                tally.ok(),
                tally.failed()
            );
            assert_eq!(tally.failed(), 0, "{what}, {service}: {tally}");
        }
    }
}

/// The same server with another weight.
pub(crate) async fn reweigh(
    stage: &mut Stage,
    service: &str,
    server: &Server,
    weight: u16,
) -> Server {
    let mut other = server.clone();
    other.weight = weight;
    other.node += "1";
    stage.register(service, &other).await;
    stage.withdraw(service, server).await;
    other
}

/// How often a command with `needle` was refused since `from`, and what haproxy said.
fn refused(stage: &Stage, needle: &str, from: usize) -> Vec<String> {
    let said = stage.gate.said("");
    said[from..]
        .iter()
        .filter(|said| said.command.contains(needle) && said.reply.contains("[3]"))
        .map(|said| format!("{}: {}", said.command, said.reply))
        .collect()
}

/// After a refusal: one reload with this reason, the commands with `needle` refused no more than twice, the other service
/// changed meanwhile without a reload.
async fn one_reload(stage: &mut Stage, what: &str, (needle, from): (&str, usize), before: u64) {
    let other = stage.registered["other"].last().unwrap().clone();
    let weight = if other.weight == 3 { 4 } else { 3 };
    reweigh(stage, "other", &other, weight).await;
    stage.reloaded(before + 1).await;
    let status = stage.settled().await;
    let reason = status["last_reload"]["reason"].to_string();
    assert!(reason.contains(what), "{what}: {reason}");
    assert!(reason.contains("kinds/"), "{what}: {reason}");
    let refused = refused(stage, needle, from);
    println!("  {what}: {reason}; {refused:?}");
    assert!((1..=2).contains(&refused.len()), "{what}: {refused:?}");
}

/// Weight, removal, return, checks, address: each word is exchanged on the way for one that haproxy refuses.
pub(crate) async fn each_kind(stage: &mut Stage) {
    let clients = Clients::start(stage, &["kinds", "other"]);
    stage.add("kinds").await;
    let mut server = stage.add("kinds").await;
    stage.settled().await;

    let (before, from) = (stage.reloads().await, stage.gate.count());
    let rule = Meddle::Replace(" weight 7", " weight 777");
    stage.gate.meddle("kinds/", usize::MAX, rule);
    server = reweigh(stage, "kinds", &server, 7).await;
    one_reload(stage, "weight of server", ("weight 777", from), before).await;
    stage.up("kinds", &server).await;
    clients.unharmed("weight").await;

    let (before, from) = (stage.reloads().await, stage.gate.count());
    stage.gate.behave();
    let rule = Meddle::Replace(" state maint", " state elsewhere");
    stage.gate.meddle("kinds/", usize::MAX, rule);
    stage.withdraw("kinds", &server).await;
    one_reload(stage, "removal of server", ("elsewhere", from), before).await;
    stage.absent("kinds", &server.name).await;
    clients.unharmed("removal").await;

    let (before, from) = (stage.reloads().await, stage.gate.count());
    stage.gate.behave();
    let rule = Meddle::Replace(" state ready", " state steady");
    stage.gate.meddle("kinds/", usize::MAX, rule);
    let server = stage.server("kinds");
    stage.register("kinds", &server).await;
    one_reload(stage, "addition of server", ("steady", from), before).await;
    stage.up("kinds", &server).await;
    clients.unharmed("state ready of an added server").await;

    stage.gate.behave();
    stage.withdraw("kinds", &server).await;
    stage.retired("kinds", &server).await;
    let (before, from) = (stage.reloads().await, stage.gate.count());
    let rule = Meddle::Replace(" state ready", " state steady");
    stage.gate.meddle("kinds/", usize::MAX, rule);
    stage.register("kinds", &server).await;
    one_reload(stage, "return of server", ("steady", from), before).await;
    stage.up("kinds", &server).await;
    clients.unharmed("return").await;

    let (before, from) = (stage.reloads().await, stage.gate.count());
    stage.gate.behave();
    let rule = Meddle::Replace("enable health kinds/", "enable wealth kinds/");
    stage.gate.meddle("enable health kinds/", usize::MAX, rule);
    let server = stage.server("kinds");
    stage.register("kinds", &server).await;
    stage.reloaded(before + 1).await;
    let row = stage.up("kinds", &server).await;
    let status = stage.settled().await;
    println!("  checks: {}", status["last_reload"]["reason"]);
    let checks: u32 = row["srv_check_state"].parse().unwrap();
    assert_eq!(checks & 4, 4, "its checks are on: {row:?}");
    let asked = stage.gate.said("enable wealth kinds/").len();
    assert_eq!(asked, 1, "from {from}");
    clients.unharmed("checks").await;

    let (before, from) = (stage.reloads().await, stage.gate.count());
    stage.gate.behave();
    let rule = Meddle::Replace(" addr ", " adder ");
    stage.gate.meddle("kinds/", usize::MAX, rule);
    let elsewhere = stage.server("kinds").address;
    let (ip, port) = (elsewhere.ip(), elsewhere.port());
    let command = format!("set server kinds/{} addr {ip} port {port}", server.name);
    let _told = stage.rig.haproxy.command(&command).await;
    one_reload(stage, "address of server", ("adder", from), before).await;
    stage.up("kinds", &server).await;
    clients.unharmed("address").await;
    stage.gate.behave();
}

/// A deletion that is refused for good: the server stays in maint, is not asked for again, and costs no reload; the next
/// one takes it along.
pub(crate) async fn a_deletion(stage: &mut Stage) {
    let server = stage.add("kinds").await;
    stage.settled().await;
    let before = stage.reloads().await;
    let rule = Meddle::Replace("del server kinds/", "del server nowhere/");
    stage.gate.meddle("del server kinds/", usize::MAX, rule);
    stage.withdraw("kinds", &server).await;
    stage.retired("kinds", &server).await;
    let status = |words: &'static str| {
        move |status: &Value| {
            status["haproxy"]["fallbacks"]["kinds"]
                .to_string()
                .contains(words)
        }
    };
    stage
        .rig
        .status_shows("it is shown", status("deletion: "))
        .await;
    let asked = stage.gate.said("del server nowhere/").len();
    assert!((1..=2).contains(&asked), "{asked}");
    // What comes after it is done as ever.
    let other = stage.add("kinds").await;
    stage.withdraw("kinds", &other).await;
    stage.retired("kinds", &other).await;
    stage.settled().await;
    assert_eq!(stage.gate.said("del server nowhere/").len(), asked);
    assert_eq!(stage.reloads().await, before);
    stage.gate.behave();
    let sections = json!({"backend another": ["mode http"]});
    stage.config["haproxy"]["extra_sections"] = sections;
    stage.rig.configure(&stage.config);
    stage.reloaded(before + 1).await;
    stage.absent("kinds", &server.name).await;
    stage.settled().await;
}

/// Algorithms that keep the weights of the file: what is known of them is not asked for, and where a line hides it, haproxy
/// says it once for all workers with that structure.
pub(crate) async fn static_algorithms(stage: &mut Stage) {
    let services = ["static_rr", "static_source", "static_uri", "hidden"];
    let clients = Clients::start(stage, &services);
    for service in services {
        let before = stage.reloads().await;
        let first = stage.registered[service][0].clone();
        let from = stage.gate.count();
        let mut last = reweigh(stage, service, &first, 5).await;
        stage.up(service, &last).await;
        last = reweigh(stage, service, &last, 9).await;
        stage.up(service, &last).await;
        let status = stage.settled().await;
        assert_eq!(status["reloads"].as_u64(), Some(before + 2), "{status:#}");
        let reason = status["last_reload"]["reason"].to_string();
        assert!(reason.contains("weight of server"), "{reason}");
        let asked = refused(stage, " weight ", from);
        println!("  {service}: {reason}; asked {asked:?}");
        if service == "hidden" {
            assert_eq!(asked.len(), 1, "{asked:?}");
            let told = status["fallbacks"][service].to_string();
            assert!(told.contains("weight: haproxy refuses it"), "{told}");
        } else {
            assert_eq!(asked, [""; 0]);
        }
    }
    clients.unharmed("static algorithms").await;
}

/// A socket below level admin: everything leaves and comes by reload, told once, until the level is right.
pub(crate) async fn level_operator(stage: &mut Stage) {
    let clients = Clients::start(stage, &["kinds", "other"]);
    let leaving = stage.add("kinds").await;
    stage.settled().await;
    let line = |level: &str| {
        let socket = stage.real().display().to_string();
        json!([format!(
            "stats socket {socket} mode 600 level {level} expose-fd listeners"
        )])
    };
    let (operator, admin) = (line("operator"), line("admin"));
    let before = stage.reloads().await;
    stage.config["haproxy"]["global"] = operator;
    stage.rig.configure(&stage.config);
    stage.reloaded(before + 1).await;
    stage.settled().await;
    let (from, said) = (stage.gate.count(), refused(stage, "", 0).len());

    stage.withdraw("kinds", &leaving).await;
    stage.absent("kinds", &leaving.name).await;
    let first = stage.registered["other"].last().unwrap().clone();
    let changed = reweigh(stage, "other", &first, 6).await;
    stage.up("other", &changed).await;
    let added = stage.server("kinds");
    stage.register("kinds", &added).await;
    stage.up("kinds", &added).await;
    let status = stage
        .rig
        .status_shows("the level is told", |status| {
            status["problems"]
                .to_string()
                .contains("level is below admin")
                && status["haproxy"]["divergence"] == 0
        })
        .await;
    assert_eq!(status["ready"], true);
    let refused_since = refused(stage, "", from);
    println!("  level operator: {said} before, then {refused_since:?}");
    assert!((1..=3).contains(&refused_since.len()), "{refused_since:?}");
    assert!(
        refused_since
            .iter()
            .all(|said| said.contains("Permission denied"))
    );
    let log = stage.rig.whole_log();
    let told = log
        .matches("haproxy refuses every change over its stats socket")
        .count();
    assert_eq!(told, 1, "{}", stage.rig.log());
    clients.unharmed("level operator").await;

    stage.config["haproxy"]["global"] = admin;
    stage.rig.configure(&stage.config);
    eventually("the problem is gone", SOON, async || {
        let status = stage.rig.synapse.status().await;
        match status["problems"].as_array().map(Vec::len) {
            Some(0) => Ok(()),
            _ => Err(format!("{status:#}")),
        }
    })
    .await;
    stage.settled().await;
    let before = stage.reloads().await;
    stage.add("kinds").await;
    stage.settled().await;
    assert_eq!(stage.reloads().await, before);
    clients.unharmed("level admin again").await;
}

/// An operator's maint is seen within 2 s, on the stats socket or not looked for by anything else (printed; asserted at
/// ten times that).
pub(crate) async fn states_are_fresh(stage: &mut Stage) {
    let server = stage.add("other").await;
    stage.settled().await;
    for (state, word) in [
        ("maint", "maint"),
        ("ready", "up"),
        ("drain", "drain"),
        ("ready", "up"),
    ] {
        let b = format!("other/{}", server.name);
        let command = format!("set server {b} state {state}");
        let _told = stage.rig.haproxy.command(&command).await;
        let began = tokio::time::Instant::now();
        eventually(
            &format!("/status says {word}"),
            Duration::from_secs(20),
            async || {
                let service = stage.rig.service("other").await;
                let servers = service["servers"].as_array().unwrap().clone();
                let found = servers.iter().find(|s| s["name"] == json!(server.name));
                match found.map(|s| s["haproxy"].clone()) {
                    Some(found) if found == word => Ok(()),
                    found => Err(format!("{found:?}")),
                }
            },
        )
        .await;
        println!(
            "  {word} is told after {:.1} s",
            began.elapsed().as_secs_f64()
        );
    }
}
