//! What synapse tells about itself: `/status` (schema 1: fields are only ever added within a number) and `/metrics`.
//! Plain data, built by the reconciler after each pass; the admin listener only prints it.

use smartstack_common::clock::Moment;
use std::collections::BTreeMap;
use std::sync::{Arc, PoisonError, RwLock};

use serde::Serialize;
use serde_json::Value;
use smartstack_common::telemetry;

use crate::model::server::Rejected;

/// The number in `schema`.
pub const SCHEMA: u32 = 1;

/// The services as last published, each on its own: a change of one does not touch the others. Shared by the reconciler,
/// which writes, and the admin listener.
#[derive(Debug, Default)]
pub struct Board(RwLock<BTreeMap<String, Arc<ServiceView>>>);

impl Board {
    /// Takes another view of a service, and gives back the one before.
    pub fn put(&self, service: &str, view: Arc<ServiceView>) -> Option<Arc<ServiceView>> {
        let mut services = self.0.write().unwrap_or_else(PoisonError::into_inner);
        services.insert(service.to_owned(), view)
    }

    /// A service is not configured any more.
    pub fn remove(&self, service: &str) {
        let mut services = self.0.write().unwrap_or_else(PoisonError::into_inner);
        services.remove(service);
    }

    /// All of them, by name.
    #[must_use]
    pub fn services(&self) -> BTreeMap<String, Arc<ServiceView>> {
        let services = self.0.read().unwrap_or_else(PoisonError::into_inner);
        services.clone()
    }
}

/// Everything else the reconciler knows; the listener adds the services and the ZooKeeper links.
#[derive(Debug, Clone, Default, Serialize)]
pub struct View {
    /// haproxy answers and serves what is wanted; or did once, and serves an earlier structure of ours until its reload.
    pub ready: bool,
    /// Why it is not ready.
    pub not_ready: Option<String>,
    /// haproxy has served what was wanted, once since our start.
    pub has_served: bool,
    /// haproxy itself.
    pub haproxy: HaproxyView,
    /// Files that cannot be written, sockets that cannot be used: each in words.
    pub problems: Vec<String>,
}

/// One service.
#[derive(Debug, Clone, Default, Serialize)]
pub struct ServiceView {
    /// `live`, `snapshot`, `defaults` or `held`.
    pub origin: &'static str,
    /// When its source last agreed with the registry, seconds since 1970; null = never. While it is fresh that is now.
    pub agreed_at: Option<Moment>,
    /// Its source agrees now.
    pub fresh: bool,
    /// The backend section's name.
    pub backend: Option<String>,
    /// Wanted servers, and what haproxy has beside them.
    pub servers: Vec<ServerView>,
    /// Registry entries that are not used.
    pub rejected: Vec<Rejected>,
    /// What is odd about entries: twins, ids that are taken, and everything of `left_out`.
    pub notes: Vec<Rejected>,
    /// Options and weights of registry entries that are used without them.
    pub left_out: Vec<Rejected>,
    /// Znodes that say of themselves that they are withdrawn.
    pub withdrawn: Vec<String>,
    /// Servers that a label filter or the election took away, and why.
    pub filtered: BTreeMap<String, String>,
    /// Why an empty registry does not empty the backend.
    pub hold: Option<String>,
    /// Why this service is not rendered as configured.
    pub quarantined: Option<String>,
    /// Why the registry cannot be read at the moment.
    pub problem: Option<String>,
    /// Bytes of data on the watched path itself.
    pub parent_data: usize,
    /// Configuration in that data which Ruby's synapse would apply, by its keys; it is not honoured.
    pub parent_config: Vec<String>,
    /// What its guards hold, and have held.
    pub guard: HoldView,
    /// Its sources, each with its own age.
    pub sources: Vec<SourceStatus>,
}

/// The guards of a service.
#[derive(Debug, Clone, Default, Serialize)]
pub struct HoldView {
    /// Why servers are held although the registry does not name them.
    pub hold: Option<String>,
    /// In shadow: why they would be.
    pub shadow: Option<String>,
    /// When the first of them was lost, seconds since 1970.
    pub since: Option<Moment>,
    /// When the last of them leaves at the latest, seconds since 1970; null = not while nothing is registered.
    pub until: Option<Moment>,
    /// Times servers began to be held since the start.
    pub trips: u64,
    /// Times they would have been, in shadow.
    pub shadow_trips: u64,
    /// Servers that would be held, in shadow.
    pub would_hold: usize,
}

/// One source of a service.
#[derive(Debug, Clone, Default, Serialize)]
pub struct SourceStatus {
    /// Its name among several; empty for the only one.
    pub name: String,
    /// The ensemble.
    pub hosts: String,
    /// The watched path.
    pub path: String,
    /// When it last agreed with the ensemble, seconds since 1970; null = never. While it is fresh that is now.
    pub agreed_at: Option<Moment>,
    /// It agrees now.
    pub fresh: bool,
    /// Its znodes.
    pub registered: usize,
    /// Why it cannot be read at the moment.
    pub problem: Option<String>,
}

impl SourceStatus {
    /// Why it cannot be read, with its name.
    #[must_use]
    pub fn problem(&self) -> Option<String> {
        let problem = self.problem.as_ref()?;
        Some(match self.name.as_str() {
            "" => problem.clone(),
            name => format!("{name}: {problem}"),
        })
    }
}

/// One server.
#[derive(Debug, Clone, Serialize)]
pub struct ServerView {
    /// haproxy's name for it.
    pub name: String,
    /// Address.
    pub address: String,
    /// Port.
    pub port: u16,
    /// haproxy's id.
    pub id: Option<u32>,
    /// Wanted weight, if the registry sets it.
    pub weight: Option<u16>,
    /// The znode it comes from.
    pub znode: Option<String>,
    /// The registry (or the seed) wants it.
    pub wanted: bool,
    /// haproxy's word: `up`, `down`, `maint`, `drain`, `retired` (taken out by us), `checking` (to be
    /// admitted by its first passed check), or null when haproxy has none.
    pub haproxy: Option<&'static str>,
    /// Its weight in haproxy, where that is neither the file's nor one that synapse has set: an operator's or its agent's.
    pub other_weight: Option<u16>,
    /// Kept although the registry does not name it.
    pub held: bool,
}

/// haproxy itself.
#[derive(Debug, Clone, Default, Serialize)]
pub struct HaproxyView {
    /// `serving`, `other generation`, `not answering` (nothing comes from the stats socket: all below is as of `states_at`),
    /// `unreachable` or `unconfirmed` (no stats socket that can be used).
    pub state: &'static str,
    /// Since when the stats socket has given no answer, seconds since 1970.
    pub silent_since: Option<Moment>,
    /// No server's state is older than this, seconds since 1970.
    pub states_at: Option<Moment>,
    /// The worker's pid.
    pub pid: Option<u32>,
    /// Its version.
    pub version: Option<String>,
    /// The generation it serves.
    pub generation: Option<String>,
    /// The generation it should serve.
    pub wanted_generation: Option<String>,
    /// Servers in which haproxy and the wanted state differ at the moment.
    pub divergence: usize,
    /// Differences found by looking that nobody had told of, since the start, by kind: `missing`, `extra`, `address`, `id`,
    /// `weight`, `state` (servers), `generation`, `file`. All were repaired, or left to their owner.
    pub differences: BTreeMap<&'static str, u64>,
    /// Reloads since the start: succeeded.
    pub reloads: u64,
    /// Reloads since the start: failed.
    pub reload_failures: u64,
    /// Workers that appeared without us.
    pub foreign_reloads: u64,
    /// Replaced workers that go on for their old connections.
    pub lingering: Arc<Vec<LingeringView>>,
    /// Changes made over the stats socket.
    pub runtime_ops: u64,
    /// The last one.
    pub last_reload: Option<ReloadView>,
    /// Backends in which something needs a reload that the stats socket does elsewhere, and why: a new server, a weight, ...
    pub fallbacks: BTreeMap<String, String>,
}

/// A worker that was replaced and has not ended.
#[derive(Debug, Clone, Serialize)]
pub struct LingeringView {
    /// Its pid.
    pub pid: u32,
    /// When it was replaced, seconds since 1970.
    pub since: Moment,
    /// `backend/NAME` of servers that its connections may still reach and the current worker would not.
    pub servers: Vec<String>,
}

/// One reload.
#[derive(Debug, Clone, Serialize)]
pub struct ReloadView {
    /// Seconds since 1970.
    pub at: Moment,
    /// Why.
    pub reason: String,
    /// Whether the new worker was seen to serve the new generation.
    pub ok: bool,
    /// From start to proof, milliseconds.
    pub ms: u64,
    /// haproxy's words when it failed.
    pub error: Option<String>,
}

/// While it is fresh, what agreed once agrees now.
fn agreed_at(fresh: bool, agreed_at: Option<Moment>, now: Moment) -> Option<Moment> {
    agreed_at.map(|at| if fresh { now } else { at })
}

impl ServiceView {
    /// When its source last agreed with the registry, asked at `now`.
    #[must_use]
    pub fn agreed_at(&self, now: Moment) -> Option<Moment> {
        agreed_at(self.fresh, self.agreed_at, now)
    }
}

/// `/status`: the views in their envelope.
#[must_use]
pub fn document(
    view: &View,
    services: &BTreeMap<String, Arc<ServiceView>>,
    started: Moment,
    zookeeper: Value,
) -> Value {
    let now = Moment::now();
    let service = |view: &ServiceView| {
        let mut view = view.clone();
        view.agreed_at = view.agreed_at(now);
        for source in &mut view.sources {
            source.agreed_at = agreed_at(source.fresh, source.agreed_at, now);
        }
        view
    };
    let services: BTreeMap<&String, ServiceView> = services
        .iter()
        .map(|(name, view)| (name, service(view)))
        .collect();
    let mut document = serde_json::json!({
        "schema": SCHEMA,
        "program": "synapse",
        "version": smartstack_common::BUILD,
        "pid": std::process::id(),
        "started": started,
        "ready": view.ready,
        "zookeeper": zookeeper,
        "log_lines_dropped": telemetry::dropped().get(),
        "services": serde_json::to_value(services).expect("plain data always serialises"),
    });
    let body = serde_json::to_value(view).expect("plain data always serialises");
    if let (Value::Object(document), Value::Object(body)) = (&mut document, body) {
        document.extend(body);
    }
    document
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_fresh_agrees_now_and_what_is_not_agreed_last_when_it_was() {
        let now = Moment::now();
        let before = Moment::ago(std::time::Duration::from_secs(100));
        assert_eq!(agreed_at(true, Some(before), now), Some(now));
        assert_eq!(agreed_at(false, Some(before), now), Some(before));
        for fresh in [true, false] {
            assert_eq!(agreed_at(fresh, None, now), None, "never confirmed");
        }
    }
}
