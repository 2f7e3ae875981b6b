//! Session swaps: the new node of an instance is made before the old one goes, in one transaction. haproxy must not be
//! told anything. Real ZooKeeper, real synapse, real haproxy.

#![expect(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

mod rig;

use std::collections::BTreeMap;

use rig::{Rig, SOON, settings};
use serde_json::json;
use smartstack_common::testing::{Dir, ZooKeeper, eventually, free_port};
use zookeeper_client::{Acls, Client, CreateMode, CreateOptions};

const PATH: &str = "/services/web";
const SEQUENTIAL: CreateOptions<'static> =
    CreateMode::PersistentSequential.with_acls(Acls::anyone_all());

fn payload(port: u16) -> Vec<u8> {
    json!({"host": "127.0.0.1", "port": port, "name": format!("i-{port}")})
        .to_string()
        .into_bytes()
}

/// Registers an instance anew and takes its `old` node away, in one transaction. Returns the new node's name.
async fn swap(client: &Client, port: u16, old: Option<&str>) -> String {
    let mut multi = client.new_multi_writer();
    let prefix = format!("{PATH}/i-{port}_");
    multi
        .add_create(&prefix, &payload(port), &SEQUENTIAL)
        .unwrap();
    if let Some(old) = old {
        multi.add_delete(&format!("{PATH}/{old}"), None).unwrap();
    }
    multi.commit().await.unwrap();
    let mut names = ZooKeeper::list(client, PATH).await;
    names.retain(|name| name.starts_with(&format!("i-{port}_")));
    assert_eq!(names.len(), 1, "{names:?}");
    names.remove(0)
}

#[tokio::test]
async fn four_hundred_session_swaps_are_no_business_of_haproxy() {
    let zookeeper = ZooKeeper::start().await;
    let client = zookeeper.connect().await;
    ZooKeeper::make_path(&client, PATH).await;
    let ports: Vec<u16> = (0..8).map(|_| free_port()).collect();
    let mut nodes: BTreeMap<u16, String> = BTreeMap::new();
    for port in &ports {
        nodes.insert(*port, swap(&client, *port, None).await);
    }
    let dir = Dir::new();
    let mut config = settings(&dir);
    config["services"]["web"] = json!({
        "discovery": {"method": "zookeeper", "hosts": [zookeeper.hosts()], "path": PATH},
        "haproxy": {"port": free_port(), "bind_address": "127.0.0.1"},
    });
    let mut rig = Rig::start(dir, &config).await;
    let names: Vec<String> = ports
        .iter()
        .map(|port| format!("i-{port}_127.0.0.1:{port}"))
        .collect();
    rig.serves("web", &names).await;
    rig.status_shows("agreed", |s| s["haproxy"]["divergence"] == 0)
        .await;
    let counts = async |rig: &Rig| {
        let mut counts = Vec::new();
        for name in ["synapse_runtime_ops_total", "synapse_reloads_total"] {
            counts.push(rig.synapse.metric(name).await.unwrap());
        }
        counts
    };
    let before = counts(&rig).await;
    for _ in 0..50 {
        for port in &ports {
            let new = swap(&client, *port, Some(&nodes[port])).await;
            nodes.insert(*port, new);
        }
    }
    eventually("every server stands on its newest node", SOON, async || {
        let service = rig.service("web").await;
        let znodes: Vec<&str> = service["servers"]
            .as_array()
            .unwrap()
            .iter()
            .filter_map(|server| server["znode"].as_str())
            .collect();
        if znodes.len() == 8 && nodes.values().all(|node| znodes.contains(&node.as_str())) {
            Ok(())
        } else {
            Err(format!("{service:#}"))
        }
    })
    .await;
    assert_eq!(counts(&rig).await, before, "commands to haproxy, reloads");
    let events = rig.synapse.metric("synapse_zk_events_total").await.unwrap();
    assert!(events >= 800.0, "{events} events: the swaps were seen");
    rig.serves("web", &names).await;
    rig.assert_sound("after the swaps");
}
