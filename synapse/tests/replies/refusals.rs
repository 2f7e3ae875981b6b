//! What haproxy refuses, row by row, and what synapse does then.

use std::net::SocketAddr;

use serde_json::{Value, json};
use smartstack_common::admin::Bind;
use smartstack_common::testing::{App, Behaviour, eventually, get};

use crate::gate::Meddle;
use crate::rig::SOON;
use crate::stage::{Server, Stage};

/// Ends in what one later change of another kind must look like: the backend takes servers at runtime as before.
async fn takes_servers(stage: &mut Stage, service: &str) {
    let before = stage.reloads().await;
    let other = stage.add(service).await;
    assert_eq!(
        stage
            .gate
            .said(&format!("add server {service}/{} ", other.name))
            .len(),
        1
    );
    let status = stage.settled().await;
    assert_eq!(status["reloads"].as_u64(), Some(before), "{status:#}");
    assert!(status["fallbacks"][service].is_null(), "{status:#}");
}

/// One reload brings a server whose name, or whose id, somebody else has given away; until then nothing else changes.
async fn one_reload(stage: &mut Stage, service: &str, server: &Server, words: &str, why: &str) {
    let before = stage.reloads().await;
    stage.register(service, server).await;
    let command = format!("add server {service}/{} ", server.name);
    stage.replied(&command, words).await;
    stage.up(service, server).await;
    stage.reloaded(before + 1).await;
    let status = stage.settled().await;
    let reason = status["last_reload"]["reason"].to_string();
    assert!(reason.contains(why), "{reason}");
    assert_eq!(stage.gate.said(&command).len(), 1, "it is not asked again");
    let answers = stage.answers(service, 20).await;
    assert!(
        answers.contains_key(&server.address.ip().to_string()),
        "{answers:?}"
    );
}

/// `Already exists a server with the same name`, at the right address, with another id.
pub(crate) async fn a_taken_name(stage: &mut Stage) {
    let server = stage.server("name");
    let b = format!("name/{}", server.name);
    stage
        .behind_its_back(&format!(
            "add server {b} {} id 60001;set server {b} state ready",
            server.address
        ))
        .await;
    one_reload(stage, "name", &server, "Already exists", "another id").await;
    let row = stage.row("name", &server.name).await.unwrap();
    assert_ne!(row["srv_id"], "60001");
    takes_servers(stage, "name").await;
}

/// The same at another address: that one is put right at once, the rest by the reload.
pub(crate) async fn a_taken_name_elsewhere(stage: &mut Stage) {
    let (server, elsewhere) = (stage.server("name"), stage.server("name"));
    let b = format!("name/{}", server.name);
    let wrong = elsewhere.address;
    stage
        .behind_its_back(&format!(
            "add server {b} {wrong} id 60002;set server {b} state ready"
        ))
        .await;
    one_reload(stage, "name", &server, "Already exists", "another id").await;
    let answers = stage.answers("name", 40).await;
    assert!(
        !answers.contains_key(&wrong.ip().to_string()),
        "{answers:?}"
    );
    takes_servers(stage, "name").await;
}

/// `custom id N already used`, by a server that somebody else has added: it is taken out and goes.
pub(crate) async fn a_taken_id(stage: &mut Stage) {
    let server = stage.add("id").await;
    let id = stage.row("id", &server.name).await.unwrap()["srv_id"].clone();
    stage.withdraw("id", &server).await;
    stage.absent("id", &server.name).await;
    stage.settled().await;
    let other = stage.server("id").address;
    stage
        .behind_its_back(&format!(
            "add server id/intruder {other} id {id};set server id/intruder state ready"
        ))
        .await;
    let before = stage.reloads().await;
    let asked = stage
        .gate
        .said(&format!("add server id/{} ", server.name))
        .len();
    stage.register("id", &server).await;
    stage
        .replied(&format!("add server id/{} ", server.name), "already used")
        .await;
    stage.up("id", &server).await;
    stage.absent("id", "intruder").await;
    let status = stage.settled().await;
    assert_eq!(status["reloads"].as_u64(), Some(before + 1), "{status:#}");
    let reason = status["last_reload"]["reason"].to_string();
    assert!(
        reason.contains("still that of server `intruder`"),
        "{reason}"
    );
    let said = stage.gate.said(&format!("add server id/{} ", server.name));
    assert_eq!(said.len(), asked + 1, "it is not asked again");
    takes_servers(stage, "id").await;
}

/// The id of a server that cannot be deleted yet is not given to another one, whatever its own would be: of three ids
/// in all, each new server gets a free one.
pub(crate) async fn the_id_of_a_server_that_waits(stage: &mut Stage) {
    let before = stage.reloads().await;
    let (app, server, requests) = hanging(stage, "waits").await;
    let id = stage.row("waits", &server.name).await.unwrap()["srv_id"].clone();
    stage.withdraw("waits", &server).await;
    stage.retired("waits", &server).await;
    for _ in 0..6 {
        let other = stage.add("waits").await;
        let row = stage.row("waits", &other.name).await.unwrap();
        assert_ne!(row["srv_id"], id);
        let said = stage
            .gate
            .said(&format!("add server waits/{} ", other.name));
        assert_eq!(said.len(), 1);
        assert!(said[0].reply.contains("registered"), "{said:?}");
    }
    stage.retired("waits", &server).await;
    assert_eq!(stage.reloads().await, before);
    app.set(Behaviour::Healthy);
    finished(requests).await;
    stage.absent("waits", &server.name).await;
    stage.settled().await;
}

/// `No such server.` to a removal: it is gone, as wanted. It may be asked for again until haproxy has been looked at, which
/// waits for the file that is being written; never after that.
pub(crate) async fn removed_already(stage: &mut Stage) {
    let server = stage.add("gone").await;
    stage.settled().await;
    let before = stage.reloads().await;
    delete_behind(stage, "gone", &server).await;
    stage.withdraw("gone", &server).await;
    let command = format!("set server gone/{} state maint", server.name);
    stage.replied(&command, "No such server").await;
    stage.settled().await;
    let asked = stage.gate.said(&command).len();
    takes_servers(stage, "gone").await;
    assert_eq!(stage.gate.said(&command).len(), asked);
    assert_eq!(stage.reloads().await, before);
}

/// `No such server.` to a change of a wanted one: it is added again.
pub(crate) async fn a_wanted_one_is_gone(stage: &mut Stage) {
    let mut server = stage.add("gone").await;
    stage.settled().await;
    let before = stage.reloads().await;
    delete_behind(stage, "gone", &server).await;
    let old = server.clone();
    server.weight = 7;
    server.node += "1";
    stage.register("gone", &server).await;
    stage.withdraw("gone", &old).await;
    stage
        .replied(
            &format!("set server gone/{} weight 7", server.name),
            "No such server",
        )
        .await;
    stage.up("gone", &server).await;
    stage.settled().await;
    let added = stage
        .gate
        .said(&format!("add server gone/{} ", server.name));
    assert_eq!(added.len(), 2, "{added:?}");
    assert_eq!(stage.reloads().await, before);
}

/// `No such server.` to a deletion: nothing is left to be done. Returns the command, which must not come again.
pub(crate) async fn deleted_already(stage: &mut Stage) -> String {
    let server = stage.add("gone").await;
    stage.withdraw("gone", &server).await;
    stage.retired("gone", &server).await;
    let b = format!("gone/{}", server.name);
    stage.behind_its_back(&format!("del server {b}")).await;
    let command = format!("del server {b}");
    stage.replied(&command, "No such server").await;
    stage.settled().await;
    command
}

/// `still has connections attached`: the request in flight ends, then the server goes; nothing else is done about it.
pub(crate) async fn with_connections(stage: &mut Stage) {
    let before = stage.reloads().await;
    let (app, server, requests) = hanging(stage, "busy").await;
    stage.withdraw("busy", &server).await;
    stage.retired("busy", &server).await;
    let command = format!("del server busy/{}", server.name);
    eventually("haproxy refuses twice", SOON, async || {
        match stage.gate.said(&command).len() {
            2.. => Ok(()),
            found => Err(found),
        }
    })
    .await;
    stage.retired("busy", &server).await;
    let answers = stage.answers("busy", 20).await;
    assert!(!answers.contains_key(&app.name), "{answers:?}");
    app.set(Behaviour::Healthy);
    finished(requests).await;
    stage.absent("busy", &server.name).await;
    stage.replied(&command, "Server deleted.").await;
    let said = stage.gate.said(&command);
    let (last, refused) = said.split_last().unwrap();
    assert!(last.reply.contains("Server deleted."), "{last:?}");
    assert!(
        refused
            .iter()
            .all(|said| said.reply.contains("still has connections")),
        "{refused:?}"
    );
    stage.settled().await;
    assert_eq!(stage.reloads().await, before);
}

/// `cannot be removed at runtime due to other configuration elements pointing to it`: it stays in maint until a reload.
pub(crate) async fn pointed_to(stage: &mut Stage) {
    let server = stage.add("tracked").await;
    let tracker = format!("server t 127.0.0.1:9 track tracked/{}", server.name);
    let before = structure(stage, json!({"backend tracker": ["mode http", tracker]})).await;
    stage.withdraw("tracked", &server).await;
    stage.retired("tracked", &server).await;
    let command = format!("del server tracked/{}", server.name);
    stage
        .replied(&command, "cannot be removed at runtime")
        .await;
    takes_servers(stage, "tracked").await;
    stage.retired("tracked", &server).await;
    let said = stage.gate.said(&command);
    assert_eq!(said.len(), 1, "it is not asked again: {said:?}");
    assert_eq!(stage.reloads().await, before);
    assert_eq!(structure(stage, json!({})).await, before + 1);
    assert_eq!(stage.row("tracked", &server.name).await, None);
}

/// Other extra sections, loaded. Returns the number of reloads then.
async fn structure(stage: &mut Stage, sections: Value) -> u64 {
    let before = stage.reloads().await;
    stage.config["haproxy"]["extra_sections"] = sections;
    stage.rig.configure(&stage.config);
    stage.reloaded(before + 1).await;
    stage.settled().await["reloads"].as_u64().unwrap()
}

/// A refusal that says "only from the file": one reload, the reason in `/status`, and from then on nobody is asked.
async fn only_from_the_file(stage: &mut Stage, service: &str, reply: &str, words: &str) {
    let before = stage.reloads().await;
    let first = stage.server(service);
    stage.register(service, &first).await;
    let added = format!("add server {service}/{} ", first.name);
    stage.replied(&added, reply).await;
    stage.up(service, &first).await;
    let status = stage.settled().await;
    assert_eq!(status["reloads"].as_u64(), Some(before + 1), "{status:#}");
    for told in [
        &status["fallbacks"][service],
        &status["last_reload"]["reason"],
    ] {
        assert!(told.to_string().contains(words), "{words}: {status:#}");
    }
    assert_eq!(stage.gate.said(&added).len(), 1);
    let second = stage.add(service).await;
    let status = stage.settled().await;
    assert_eq!(status["reloads"].as_u64(), Some(before + 2), "{status:#}");
    assert_eq!(
        stage
            .gate
            .said(&format!("add server {service}/{} ", second.name))
            .len(),
        0
    );
    // What needs no file goes at once, as everywhere.
    stage.withdraw(service, &second).await;
    stage.retired(service, &second).await;
    let status = stage.settled().await;
    assert_eq!(status["reloads"].as_u64(), Some(before + 2), "{status:#}");
}

/// `Backend must use a dynamic load balancing`: the line that would make it so stands under a condition.
pub(crate) async fn not_dynamic(stage: &mut Stage) {
    let reply = "must use a dynamic load balancing";
    only_from_the_file(stage, "no_static", reply, "takes no servers at runtime").await;
}

/// `'x' option is not accepted for dynamic server`.
pub(crate) async fn not_accepted(stage: &mut Stage) {
    let words = "is not accepted for dynamic server";
    only_from_the_file(stage, "no_keyword", words, words).await;
}

/// `unknown keyword 'x'`, as a worker of another version would say it: a word is exchanged on the way.
pub(crate) async fn unknown(stage: &mut Stage) {
    let other = Meddle::Replace("pool-purge-delay", "pool-purge-later");
    stage.gate.meddle("add server no_unknown/", 1, other);
    only_from_the_file(stage, "no_unknown", "unknown keyword", "unknown keyword").await;
}

/// A server of the service with a request in flight that is answered when its app is healthy again, and that request
/// among others.
async fn hanging(
    stage: &mut Stage,
    service: &str,
) -> (App, Server, Vec<tokio::task::JoinHandle<u16>>) {
    let app = App::start("busy").await;
    let server = stage.server_at(service, app.address);
    stage.register(service, &server).await;
    stage.up(service, &server).await;
    app.set(Behaviour::Hang);
    let bind = Bind::Tcp(SocketAddr::from(([127, 0, 0, 1], stage.port(service))).to_string());
    let mut requests = Vec::new();
    for _ in 0..20 {
        let bind = bind.clone();
        requests.push(tokio::spawn(async move {
            get(&bind, "/").await.unwrap().status
        }));
    }
    eventually("a request is in flight", SOON, async || {
        match app.state.requests() {
            0 => Err("not yet"),
            _ => Ok(()),
        }
    })
    .await;
    (app, server, requests)
}

async fn finished(requests: Vec<tokio::task::JoinHandle<u16>>) {
    for request in requests {
        assert_eq!(request.await.unwrap(), 200);
    }
}

async fn delete_behind(stage: &Stage, service: &str, server: &Server) {
    let b = format!("{service}/{}", server.name);
    stage
        .behind_its_back(&format!("set server {b} state maint;del server {b}"))
        .await;
    stage.absent(service, &server.name).await;
}
