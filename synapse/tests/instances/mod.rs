//! Instances in the registry: how they come, how they go with a word and without one, and what the guard makes of it. Used
//! by the tests of the guard.

#![allow(dead_code, reason = "each test program uses its part")]
#![allow(clippy::unwrap_used, reason = "helpers of tests")]

use std::net::SocketAddr;

use serde_json::{Value, json};
use smartstack_common::testing::{ZooKeeper, eventually};
use tokio::task::JoinSet;
use zookeeper_client::{Acls, Client, CreateMode, CreateOptions};

use crate::rig::{Rig, SOON};

/// Where they are registered.
pub(crate) const PATH: &str = "/services/web";
const PERSISTENT: CreateOptions<'static> = CreateMode::Persistent.with_acls(Acls::anyone_all());

fn instance(address: SocketAddr) -> String {
    format!("i-{address}").replace(['.', ':'], "-")
}

/// The znode of an instance, named as a sequential one.
pub(crate) fn node(address: SocketAddr) -> String {
    format!("{PATH}/{}_{:010}", instance(address), address.port())
}

/// haproxy's NAME of it.
pub(crate) fn name(address: SocketAddr) -> String {
    format!("{}_{address}", instance(address))
}

pub(crate) fn names(addresses: &[SocketAddr]) -> Vec<String> {
    addresses.iter().copied().map(name).collect()
}

pub(crate) fn payload(address: SocketAddr, available: bool) -> Vec<u8> {
    let payload = json!({
        "host": address.ip().to_string(), "port": address.port(), "name": instance(address), "available": available,
        "announces": true,
    });
    payload.to_string().into_bytes()
}

pub(crate) async fn register(client: &Client, addresses: &[SocketAddr]) {
    for address in addresses {
        ZooKeeper::put(client, &node(*address), &payload(*address, true)).await;
    }
}

/// All nodes at once, as when their sessions expire together.
pub(crate) async fn vanish(client: &Client, addresses: &[SocketAddr]) {
    let mut multi = client.new_multi_writer();
    for address in addresses {
        multi.add_delete(&node(*address), None).unwrap();
    }
    multi.commit().await.unwrap();
}

/// As so many nerves withdraw, each in a transaction of its own that waits for no other.
pub(crate) async fn withdraw(client: &Client, addresses: &[SocketAddr]) {
    let mut nerves = JoinSet::new();
    for address in addresses.iter().copied() {
        let client = client.clone();
        nerves.spawn(async move {
            let mut multi = client.new_multi_writer();
            let data = payload(address, false);
            multi.add_set_data(&node(address), &data, None).unwrap();
            multi.add_delete(&node(address), None).unwrap();
            multi.commit().await.unwrap();
        });
    }
    nerves.join_all().await;
}

/// Each old instance makes room for a new one, in a transaction of its own that waits for no other.
pub(crate) async fn replace(client: &Client, old: &[SocketAddr], new: &[SocketAddr]) {
    let mut owners = JoinSet::new();
    for (old, new) in old.iter().copied().zip(new.iter().copied()) {
        let client = client.clone();
        owners.spawn(async move {
            let mut multi = client.new_multi_writer();
            let data = payload(new, true);
            multi.add_create(&node(new), &data, &PERSISTENT).unwrap();
            multi.add_delete(&node(old), None).unwrap();
            multi.commit().await.unwrap();
        });
    }
    owners.join_all().await;
}

/// Waits until so many servers of `web` are held.
pub(crate) async fn held(rig: &Rig, count: usize) -> Value {
    eventually(&format!("{count} servers are held"), SOON, async || {
        let service = rig.service("web").await;
        let servers = service["servers"].as_array().cloned().unwrap_or_default();
        let held = servers.iter().filter(|s| s["held"] == true).count();
        match held == count && service["guard"]["hold"].is_string() == (count > 0) {
            true => Ok(service),
            false => Err(format!("{service:#}\n{}", rig.log())),
        }
    })
    .await
}
