//! Services that a HUP takes out of the configuration, and a folder of services that is empty when it comes.

use nix::sys::signal::Signal;
use serde_json::{Value, json};
use smartstack_common::testing::{Dir, ZooKeeper, eventually, free_port};

use crate::rig::{Rig, SOON, fixed, server, settings};

/// Of ensembles that were reached or not, that haproxy refuses in whole or for one entry, that have names for hosts: what a
/// HUP takes out leaves no line in the pages, in the files, in the sessions; what is left is served.
#[tokio::test]
async fn removed_services_leave_no_line() {
    let mut zookeeper = ZooKeeper::start().await;
    let client = zookeeper.connect().await;
    let nowhere = format!("127.0.0.1:{}", free_port());
    let dir = Dir::new();
    let mut config = settings(&dir);
    config["services"]["kept"] = fixed(free_port(), &[1, 2]);
    let kept_alone = config.clone();
    let of = |hosts: &str, path: &str| {
        json!({
            "discovery": {"method": "zookeeper", "hosts": [hosts], "path": path},
            "haproxy": {"port": free_port(), "bind_address": "127.0.0.1"},
        })
    };
    let hosts = zookeeper.hosts();
    config["services"]["reachable"] = of(&hosts, "/of-reachable");
    config["services"]["unreachable"] = of(&nowhere, "/of-unreachable");
    config["services"]["spoilt"] = fixed(free_port(), &[3]);
    config["services"]["spoilt"]["haproxy"]["backend"] = json!(["nosuchword"]);
    let node = |host: &str, options: &str| {
        json!({"host": host, "port": 7, "name": "node", "haproxy_server_options": options})
            .to_string()
    };
    for (name, data) in [
        ("a_0000000001", node("10.9.8.7", "")),
        ("b_0000000002", node("localhost", "")),
        ("c_0000000003", node("10.9.8.6", "resolvers not-there")),
    ] {
        let path = format!("/of-reachable/{name}");
        ZooKeeper::make_ephemeral(&client, &path, data.as_bytes()).await;
    }
    let mut rig = Rig::start(dir, &config).await;
    let words = [
        "reachable",
        "spoilt",
        "localhost",
        "10.9.8",
        &hosts,
        &nowhere,
    ];
    rig.status_shows("they are there", |status| {
        let spoilt = &status["services"]["spoilt"]["quarantined"];
        let servers = status["services"]["reachable"]["servers"].as_array();
        spoilt.to_string().contains("nosuchword") && servers.is_some_and(|all| all.len() >= 2)
    })
    .await;
    let snapshot = rig.dir.join("state/snapshot.json");
    let pages = async |rig: &Rig| {
        let status = rig.synapse.status().await;
        let metrics = rig.synapse.get("/metrics").await.unwrap().body;
        let lines = metrics.lines().filter(|line| !line.starts_with('#'));
        let metrics: Vec<String> = lines.map(str::to_owned).collect();
        let files = [&snapshot, &rig.config_file()].map(|p| std::fs::read_to_string(p).unwrap());
        (status, metrics, files)
    };
    eventually("the snapshot knows them", SOON, async || {
        match pages(&rig).await.2[0].contains("10.9.8.7") {
            true => Ok(()),
            false => Err("not yet"),
        }
    })
    .await;

    rig.configure(&kept_alone);
    eventually("nothing names what was removed", SOON, async || {
        let (mut status, metrics, files) = pages(&rig).await;
        // What has happened stays told: the reason of the reload that took them out.
        status["haproxy"]["last_reload"] = Value::Null;
        for word in words {
            let status = status.to_string();
            if status.contains(word) {
                return Err(format!("`{word}` in {status}"));
            }
            let lines = metrics.iter().chain(&files);
            if let Some(line) = lines.into_iter().find(|line| line.contains(word)) {
                return Err(format!("`{word}`: {line}"));
            }
        }
        Ok(())
    })
    .await;
    rig.serves("kept", &[server(1), server(2)]).await;
    eventually("no session is left", SOON, async || {
        // The test's own.
        match zookeeper.mntr(0, "zk_num_alive_connections").await {
            connections if connections <= 2.0 => Ok(()),
            connections => Err(connections),
        }
    })
    .await;

    // It comes back, and the ensemble that was not reached can be by then.
    rig.configure(&config);
    rig.status_shows("it is served again", |status| {
        let servers = status["services"]["reachable"]["servers"].as_array();
        servers.is_some_and(|all| all.len() >= 2) && status["services"]["unreachable"].is_object()
    })
    .await;
    rig.assert_sound("at the end");
    zookeeper.stop_all();
}

/// A folder that is not mounted, or that is being filled anew, looks like one from which all services were removed.
#[tokio::test]
async fn an_emptied_folder_of_services_changes_nothing() {
    let dir = Dir::new();
    let mut config = settings(&dir);
    let (port, other) = (free_port(), free_port());
    config["service_conf_dir"] = json!(dir.join("services"));
    let file = dir.write("services/web.json", fixed(port, &[1, 2]).to_string());
    let mut rig = Rig::start(dir, &config).await;
    rig.serves("web", &[server(1), server(2)]).await;
    let refusals = |rig: &Rig| {
        rig.whole_log()
            .matches("no service is there any more")
            .count()
    };
    let before = rig.text();
    for count in [1, 2] {
        match count {
            1 => std::fs::remove_file(&file).unwrap(),
            _ => drop(rig.dir.write("services/web.txt", "no service")),
        }
        rig.synapse.signal(Signal::SIGHUP);
        eventually("it is refused", SOON, async || match refusals(&rig) {
            n if n == count => Ok(()),
            n => Err(n),
        })
        .await;
        rig.serves("web", &[server(1), server(2)]).await;
        assert_eq!(rig.text(), before, "the file is as it was");
        assert_eq!(rig.synapse.status().await["ready"], true);
    }
    // The last good one stays over a restart of haproxy, too.
    rig.kill_haproxy().await;
    rig.serves("web", &[server(1), server(2)]).await;

    // One that is filled anew is taken, and no services where there were none by this folder is no mistake.
    let _file = rig
        .dir
        .write("services/other.json", fixed(other, &[3]).to_string());
    rig.synapse.signal(Signal::SIGHUP);
    rig.serves("other", &[server(3)]).await;
    rig.serves("web", &[]).await;
    rig.assert_sound("at the end");
}
