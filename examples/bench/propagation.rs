//! How long a change in ZooKeeper takes to arrive. Each round makes one change of each kind, so that synapse and the
//! floor meet the same machine: an addition and a removal seen by the port, the same seen by the table, the same two for
//! the floor. Between two changes nothing happens for a random 100 to 300 ms: each is a change of its own, not a burst.

use std::collections::{BTreeMap, HashSet};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use synapse::model::server::Server as Wanted;
use synapse::outputs::haproxy::backend::ids::allocate;

use crate::probe::{Probe, Seen};
use crate::site::{Server, Site, WEIGHT, service_name};

/// Rounds before the first that counts: the ensemble's code is compiled while it runs.
const WARM_UP: usize = 5;
/// Highest id synapse hands out by default.
const MAX_ID: u32 = 65_535;

/// Times of one kind of change at one size, in milliseconds.
#[derive(Debug, Default)]
pub(crate) struct Times {
    pub(crate) synapse: Vec<f64>,
    pub(crate) floor: Vec<f64>,
    /// Mean time between two looks.
    pub(crate) step: Vec<f64>,
}

/// What is measured, in the order in which it is printed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Kind {
    AddPort,
    AddTable,
    RemovePort,
    RemoveTable,
}

pub(crate) type Rows = BTreeMap<Kind, Times>;

/// Makes the changes.
pub(crate) async fn measure(site: &mut Site, rounds: usize) -> Rows {
    let mut rows = Rows::new();
    for round in 0..rounds + WARM_UP {
        if round == WARM_UP {
            rows.clear();
        }
        by_port(site, &mut rows).await;
        floor(site, &mut rows).await;
        by_table(site, &mut rows).await;
    }
    let settled = site.settled();
    settled.await;
    rows
}

async fn pause(site: &mut Site) {
    let pause = Duration::from_millis(site.rng.u64(100..300));
    tokio::time::sleep(pause).await;
}

/// Milliseconds from a change to what was seen of it. None when a removed server happened to have had no turn any more
/// between the call and its effect: balancing gives the light servers their turns in a row.
fn since(began: Instant, at: Instant) -> Option<f64> {
    let time = at.checked_duration_since(began);
    time.map(|time| time.as_secs_f64() * 1000.0)
}

fn keep(rows: &mut Rows, kind: Kind, began: Instant, seen: Seen, turns: u64) {
    let row = rows.entry(kind).or_default();
    row.synapse.extend(since(began, seen.at));
    row.step
        .push(seen.step.as_secs_f64() * 1000.0 * turns as f64);
}

fn keep_floor(rows: &mut Rows, kind: Kind, began: Instant, at: Instant) {
    rows.entry(kind).or_default().floor.extend(since(began, at));
}

/// Requests between two turns of a server with [`WEIGHT`] among others of weight 1.
fn turns(site: &Site) -> u64 {
    u64::from((site.size.servers + u32::from(WEIGHT)).div_ceil(u32::from(WEIGHT)))
}

async fn by_port(site: &mut Site, rows: &mut Rows) {
    let service = site.service();
    let (port, turns) = (site.frontend(service), turns(site));
    pause(site).await;
    let probe = Probe::first_answer(port, site.upcoming(service).address.ip()).await;
    let (began, server) = site.add(service, Some(WEIGHT)).await;
    keep(rows, Kind::AddPort, began, probe.seen().await, turns);
    pause(site).await;
    let probe = Probe::last_answer(port, server.address.ip(), 20 * turns).await;
    let began = site.remove(&server).await;
    keep(rows, Kind::RemovePort, began, probe.seen().await, turns);
}

async fn floor(site: &mut Site, rows: &mut Rows) {
    let (port, turns) = (site.floor.frontend(), turns(site));
    pause(site).await;
    let probe = Probe::first_answer(port, site.floor.upcoming().ip()).await;
    let (began, added) = site.floor.add().await;
    let (seen, replied) = (probe.seen().await, site.floor.replied().await);
    keep_floor(rows, Kind::AddPort, began, seen.at);
    keep_floor(rows, Kind::AddTable, began, replied);
    pause(site).await;
    let probe = Probe::last_answer(port, added.address.ip(), 20 * turns).await;
    let began = site.floor.remove(&added).await;
    let (seen, replied) = (probe.seen().await, site.floor.replied().await);
    keep_floor(rows, Kind::RemovePort, began, seen.at);
    keep_floor(rows, Kind::RemoveTable, began, replied);
}

async fn by_table(site: &mut Site, rows: &mut Rows) {
    let service = site.service();
    let stats: PathBuf = site.dir.join("main/stats.sock");
    let (backend, id) = upcoming_id(site, service).await;
    pause(site).await;
    let probe = Probe::table(&stats, &backend, id, true).await;
    let (began, server) = site.add(service, Some(WEIGHT)).await;
    keep(rows, Kind::AddTable, began, probe.seen().await, 1);
    pause(site).await;
    let probe = Probe::table(&stats, &backend, id, false).await;
    let began = site.remove(&server).await;
    keep(rows, Kind::RemoveTable, began, probe.seen().await, 1);
}

/// The backend's id, and the one that its next server will have: a look at one server is cheap, one at all of them is not, and
/// haproxy finds one only by its id.
async fn upcoming_id(site: &mut Site, service: u32) -> (String, u32) {
    let name = service_name(service);
    let mut rows = site.haproxy.servers_state().await;
    rows.retain(|row| row["be_name"] == name);
    // The frontend has the same name.
    let backend = rows.first().map(|row| row["be_id"].clone());
    let backend = backend.expect("a backend has servers");
    let taken: HashSet<u32> = rows
        .iter()
        .filter_map(|row| row["srv_id"].parse().ok())
        .collect();
    loop {
        let wanted = wanted(&site.upcoming(service));
        let (none, nobody) = (HashSet::new(), BTreeMap::new());
        let ids = allocate(|_| None, &none, &nobody, &[wanted], none.clone(), MAX_ID).ids;
        match ids.into_iter().next() {
            Some(id) if !taken.contains(&id) => return (backend, id),
            _ => site.skip(),
        }
    }
}

fn wanted(server: &Server) -> Wanted {
    Wanted {
        name: server.name.clone(),
        host: server.address.ip().to_string(),
        address: server.address.ip(),
        port: server.address.port(),
        weight: None,
        options: None,
        explicit_id: None,
        znode: None,
        sequence: None,
        disabled: false,
    }
}
