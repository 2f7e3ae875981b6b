//! Who publishes what: the latest value of each task, for every reader. Nothing is decided here.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use serde::Serialize;
use smartstack_common::clock::Moment;
use smartstack_common::zk::LinkStatus;
use tokio::sync::watch;
use tokio::time::Instant;

use crate::health::Health;
use crate::wanted::{Held, disables};

/// The latest value of each of several publishers, by name. Publishers change their own entry only.
pub(crate) type Board<T> = Arc<watch::Sender<BTreeMap<String, T>>>;

/// What a service's task knows.
#[derive(Debug, Clone)]
pub(crate) struct ServiceReport {
    /// Over all checks; `None` before the first results.
    pub(crate) health: Option<Health>,
    /// Whether a round has ended, be it that its checks could not run.
    pub(crate) checked: bool,
    /// Since when.
    pub(crate) since: Moment,
    /// In the order of the configuration.
    pub(crate) checks: Vec<CheckReport>,
    /// End of the last round, or the start of the task.
    pub(crate) progress: Instant,
    /// The longest time between two rounds that is not a standstill.
    pub(crate) window: Duration,
}

/// The last attempt of a check.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct CheckReport {
    pub(crate) name: String,
    pub(crate) health: Option<Health>,
    /// When it began.
    pub(crate) at: Option<Moment>,
    pub(crate) ms: Option<f64>,
    pub(crate) error: Option<String>,
    /// Since when it could not run, without a break.
    pub(crate) not_run_since: Option<Moment>,
}

/// What a registrar knows.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct EnsembleReport {
    pub(crate) link: LinkStatus,
    /// By key of the wish.
    pub(crate) registrations: BTreeMap<String, Registered>,
    /// Nodes of services that are no more.
    pub(crate) left_over: Vec<LeftOver>,
    /// Everything is to be absent, and nothing of ours is left.
    pub(crate) withdrawn: bool,
    /// Every wish is hands off, and no write is under way.
    pub(crate) at_rest: bool,
    /// Whether a successor of this process will know the session's nodes.
    pub(crate) remembered: bool,
}

/// All that a page is made of.
#[derive(Debug, Clone)]
pub(crate) struct Boards {
    pub(crate) services: Board<ServiceReport>,
    pub(crate) ensembles: Board<EnsembleReport>,
    /// Services that an operator has taken out.
    pub(crate) holds: Board<Held>,
    /// When the registrar of an ensemble last came round.
    pub(crate) rounds: Board<Instant>,
}

impl Boards {
    pub(crate) fn new() -> Self {
        Self {
            services: Arc::new(watch::Sender::new(BTreeMap::new())),
            ensembles: Arc::new(watch::Sender::new(BTreeMap::new())),
            holds: Arc::new(watch::Sender::new(BTreeMap::new())),
            rounds: Arc::new(watch::Sender::new(BTreeMap::new())),
        }
    }

    /// Whether the checks of a service rest.
    pub(crate) fn is_disabled(&self, service: &str) -> bool {
        disables(&self.holds.borrow(), service)
    }

    /// What keeps nerve from being ready: services whose checks have not all run once, those that rest apart. ZooKeeper
    /// is not waited for.
    pub(crate) fn missing(&self) -> Option<String> {
        let services = self.services.borrow();
        let waiting: Vec<&str> = services
            .iter()
            .filter(|(name, s)| !s.checked && !self.is_disabled(name))
            .map(|(n, _)| n.as_str())
            .collect();
        (!waiting.is_empty()).then(|| format!("not checked yet: {}", waiting.join(", ")))
    }
}

/// One registration in `/status`.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct Registered {
    pub(crate) service: String,
    pub(crate) path: String,
    /// `present`, `keep`, `leave` or `absent: <reason>`.
    pub(crate) wanted: String,
    /// The bytes that its node is to have.
    pub(crate) payload: Vec<u8>,
    /// `present`, `absent`, or `unknown` before the first look.
    pub(crate) observed: &'static str,
    pub(crate) node: Option<String>,
    /// The bytes that were seen in it.
    pub(crate) observed_payload: Option<Vec<u8>>,
    /// When that was seen.
    pub(crate) observed_at: Option<Instant>,
    /// Whether so observed on this connection, with nothing under way or to be done.
    pub(crate) confirmed: bool,
    /// Confirmed, and exactly as wanted.
    pub(crate) in_sync: bool,
    /// Since when it is so observed.
    pub(crate) since: Option<Instant>,
    pub(crate) error: Option<String>,
    /// Node and session of others under our name.
    pub(crate) twins: Vec<String>,
    /// Those of them that advertise the service's own address: while they stand, it is found there.
    pub(crate) elsewhere: Vec<String>,
}

/// A node of ours that no service of the configuration wants any more, as it was last seen.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct LeftOver {
    /// The service that it was made for, where that is known.
    pub(crate) service: Option<String>,
    pub(crate) path: String,
    pub(crate) node: String,
    pub(crate) observed_at: Option<Instant>,
}
