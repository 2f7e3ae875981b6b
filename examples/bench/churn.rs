//! Many changes: 300 in 60 s under clients that never retry, then as many as will go.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use smartstack_common::testing::{Failure, Style, Traffic};

use crate::cost::synapse_cpu;
use crate::site::Site;

/// Changes of an address (one server goes, another comes), and the time for them.
const CHANGES: u32 = 300;
const TIME: Duration = Duration::from_secs(60);
/// Requests per second of each kind of client.
const RATE: f64 = 750.0;
/// Clients of each kind.
const CLIENTS: u32 = 4;
/// How long changes are made as fast as ZooKeeper takes them.
const RUSH: Duration = Duration::from_secs(10);

/// 300 changes under load.
#[derive(Debug)]
pub(crate) struct Loaded {
    pub(crate) changes: u32,
    pub(crate) seconds: f64,
    /// By synapse's counter.
    pub(crate) reloads: f64,
    /// The worker is the one of the beginning.
    pub(crate) same_worker: bool,
    pub(crate) requests: BTreeMap<Style, u64>,
    pub(crate) failures: Vec<Failure>,
}

/// As fast as it goes.
#[derive(Debug)]
pub(crate) struct Rush {
    /// znodes created or deleted.
    pub(crate) changes: u32,
    pub(crate) made: Duration,
    /// Until haproxy's table was the registry.
    pub(crate) settled: Duration,
    pub(crate) reloads: f64,
    /// Milliseconds of CPU per change: synapse and the children it has waited for.
    pub(crate) synapse: f64,
}

async fn reloads(site: &Site) -> f64 {
    let reloads = site.synapse.metric("synapse_reloads_total").await;
    reloads.expect("synapse counts reloads")
}

/// 300 changes in 60 s: the oldest server of a service goes, another one comes.
pub(crate) async fn under_load(site: &mut Site) -> Loaded {
    site.settled().await;
    let (before, worker) = (reloads(site).await, site.haproxy.worker_pid().await);
    let port = site.frontend(0);
    let load = [Style::KeepAlive, Style::PerRequest]
        .map(|style| (style, Traffic::start(port, style, CLIENTS, RATE)));
    let began = Instant::now();
    let mut ticks = tokio::time::interval(TIME / CHANGES);
    for _ in 0..CHANGES {
        ticks.tick().await;
        // Where the load goes: the service whose servers change.
        exchange(site, 0).await;
    }
    ticks.tick().await;
    let seconds = began.elapsed().as_secs_f64();
    site.settled().await;
    let (mut requests, mut failures) = (BTreeMap::new(), Vec::new());
    for (style, traffic) in load {
        let stopped = tokio::task::spawn_blocking(|| traffic.stop()).await;
        let (answered, failed) = stopped.expect("clients stop");
        requests.insert(style, answered + failed.len() as u64);
        failures.extend(failed);
    }
    Loaded {
        changes: CHANGES,
        seconds,
        reloads: reloads(site).await - before,
        same_worker: site.haproxy.worker_pid().await == worker,
        requests,
        failures,
    }
}

async fn exchange(site: &mut Site, service: u32) {
    let oldest = site.servers[&service].first().cloned();
    let oldest = oldest.expect("a service keeps its number of servers");
    site.remove(&oldest).await;
    site.add(service, None).await;
}

/// Changes without a pause, all over the services.
pub(crate) async fn unthrottled(site: &mut Site) -> Rush {
    let (before, spent) = (reloads(site).await, synapse_cpu(site));
    let began = Instant::now();
    let mut changes = 0;
    while began.elapsed() < RUSH {
        let service = site.service();
        exchange(site, service).await;
        changes += 2;
    }
    let made = began.elapsed();
    let settled = site.settled().await - began;
    Rush {
        changes,
        made,
        settled,
        reloads: reloads(site).await - before,
        synapse: (synapse_cpu(site) - spent) / f64::from(changes),
    }
}
