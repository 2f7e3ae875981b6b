//! Facts 2, 3 and 4: how a server is added so that it is what the file would make of it, and how it goes.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use smartstack_common::testing::{Style, Traffic, eventually};

use crate::rig::SOON;
use crate::stage::Stage;

/// What haproxy tells of a server besides its traffic: its limits and how it is checked.
const TOLD: [&str; 8] = [
    "weight",
    "act",
    "bck",
    "slim",
    "qlimit",
    "check_rise",
    "check_fall",
    "mode",
];

async fn told(stage: &Stage, service: &str, server: &str) -> BTreeMap<String, String> {
    let text = stage.rig.haproxy.command("show stat").await;
    let columns: Vec<&str> = text
        .lines()
        .next()
        .unwrap()
        .trim_start_matches("# ")
        .split(',')
        .collect();
    let start = format!("{service},{server},");
    let row = text.lines().find(|line| line.starts_with(&start));
    let row: Vec<&str> = row
        .unwrap_or_else(|| panic!("{server}: {text}"))
        .split(',')
        .collect();
    let value =
        |name: &&str| row[columns.iter().position(|column| column == name).unwrap()].to_owned();
    TOLD.iter()
        .map(|name| ((*name).to_owned(), value(name)))
        .collect()
}

/// Fact 2: `add server` inherits nothing. What synapse adds is what the same line gives in the file, before and after a
/// reload; a bare `add server` is not.
pub(crate) async fn inherits(stage: &mut Stage) {
    let loaded = stage.registered["inherits"][0].clone();
    // From the file: it came at runtime as well.
    stage.foreign_reload().await;
    stage.settled().await;
    let raw = stage.server("inherits");
    stage
        .behind_its_back(&format!(
            "add server inherits/raw {} id 60003 check",
            raw.address
        ))
        .await;
    let bare = told(stage, "inherits", "raw").await;
    let file = told(stage, "inherits", &loaded.name).await;
    for (name, value) in [
        ("slim", "33"),
        ("qlimit", "44"),
        ("check_rise", "4"),
        ("check_fall", "5"),
    ] {
        assert_eq!(file[name], value, "{file:?}");
        assert_ne!(
            bare[name], value,
            "haproxy hands `default-server` down now: the merged form may go: {bare:?}"
        );
    }
    stage.behind_its_back("del server inherits/raw").await;
    let server = stage.add("inherits").await;
    assert_eq!(told(stage, "inherits", &server.name).await, file);
    let said = stage
        .gate
        .said(&format!("add server inherits/{} ", server.name));
    for word in [
        " id ",
        " weight 1 ",
        " pool-purge-delay 5s ",
        " pool-max-conn -1 ",
        " inter 700",
        " check",
    ] {
        assert!(said[0].command.contains(word), "{word}: {said:?}");
    }
    let row = stage.row("inherits", &server.name).await.unwrap();
    stage.foreign_reload().await;
    stage.settled().await;
    assert_eq!(told(stage, "inherits", &server.name).await, file);
    let again = stage.row("inherits", &server.name).await.unwrap();
    for column in [
        "srv_id",
        "srv_uweight",
        "srv_addr",
        "srv_port",
        "srv_admin_state",
        "srv_check_state",
    ] {
        assert_eq!(again[column], row[column], "{column}");
    }
}

/// Fact 3: with `enabled` haproxy shows a server as up and gives it nothing. synapse leaves the word out.
pub(crate) async fn enabled(stage: &mut Stage) {
    let raw = stage.server("plain");
    stage
        .behind_its_back(&format!(
            "add server plain/raw {} id 60004 weight 1 enabled",
            raw.address
        ))
        .await;
    let row = stage.row("plain", "raw").await.unwrap();
    assert_eq!(
        (
            row["srv_op_state"].as_str(),
            row["srv_admin_state"].as_str()
        ),
        ("2", "0"),
        "{row:?}"
    );
    let answers = stage.answers("plain", 30).await;
    assert!(
        !answers.contains_key(&raw.address.ip().to_string()),
        "haproxy gives it requests now: {answers:?}"
    );
    stage
        .behind_its_back("set server plain/raw state maint;del server plain/raw")
        .await;
    assert!(
        stage.rig.text().contains(" enabled"),
        "{}",
        stage.rig.text()
    );
    let server = stage.add("plain").await;
    let said = stage
        .gate
        .said(&format!("add server plain/{} ", server.name));
    let mut words = said[0].command.split(' ');
    assert!(words.all(|word| word != "enabled"), "{said:?}");
    let answers = stage.answers("plain", 30).await;
    assert!(
        answers.contains_key(&server.address.ip().to_string()),
        "{answers:?}"
    );
}

/// Fact 4: a removal is `weight 0`, `maint`, and a deletion later; no session is shut down, and no request fails.
pub(crate) async fn removed(stage: &mut Stage) {
    let target = SocketAddr::from(([127, 0, 0, 1], stage.port("removed")));
    let mut servers = Vec::new();
    for _ in 0..6 {
        servers.push(stage.add("removed").await);
    }
    let traffic =
        [Style::KeepAlive, Style::PerRequest].map(|style| Traffic::start(target, style, 4, 200.0));
    let enough = async |more: u64| {
        let before: Vec<u64> = traffic.iter().map(Traffic::answered).collect();
        eventually("requests are answered", SOON, async || {
            let now: Vec<u64> = traffic.iter().map(Traffic::answered).collect();
            if now
                .iter()
                .zip(&before)
                .all(|(now, before)| *now >= before + more)
            {
                Ok(())
            } else {
                Err(format!("{now:?}"))
            }
        })
        .await;
    };
    enough(50).await;
    for server in &servers {
        stage.withdraw("removed", server).await;
        stage.retired("removed", server).await;
        enough(10).await;
    }
    enough(50).await;
    for server in &servers {
        stage.absent("removed", &server.name).await;
        let b = format!("removed/{}", server.name);
        let said = stage.gate.said(&b);
        let said: Vec<&str> = said
            .iter()
            .map(|said| said.command.as_str())
            .skip_while(|command| !command.ends_with("state maint"))
            .collect();
        assert_eq!(
            said[..2],
            [
                format!("set server {b} state maint"),
                format!("set server {b} weight 0")
            ]
        );
        assert!(
            said[2..]
                .iter()
                .all(|command| *command == format!("del server {b}")),
            "{said:?}"
        );
    }
    for traffic in traffic {
        let stopped = tokio::task::spawn_blocking(|| traffic.stop()).await;
        assert_eq!(stopped.unwrap().1, []);
    }
}
