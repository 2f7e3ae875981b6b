//! What the tasks publish.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::Serialize;
use smartstack_common::clock::Moment;
use smartstack_common::zk::LinkStatus;
use tokio::time::Instant;

use crate::health::{Health, Verdict};
use crate::wanted::{PlaceKey, Stance};

/// What a service's task knows.
#[derive(Debug, Clone)]
pub(crate) struct ServiceReport {
    /// What its checks say of its registration.
    pub(crate) verdict: Verdict,
    /// Begin of the round behind the verdict; before the first one, when the service was set up.
    pub(crate) as_of: Instant,
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
    /// How long a result is fresh: the longest time between two rounds that is not a standstill.
    pub(crate) window: Duration,
}

impl ServiceReport {
    /// Of a service that is set up now.
    pub(crate) fn new(window: Duration) -> Self {
        let now = Instant::now();
        Self {
            verdict: Verdict::Unknown,
            as_of: now,
            health: None,
            checked: false,
            since: Moment::now(),
            checks: Vec::new(),
            progress: now,
            window,
        }
    }
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
    pub(crate) registrations: BTreeMap<PlaceKey, Registered>,
    /// Nodes of services that are no more.
    pub(crate) left_over: Vec<LeftOver>,
    /// Everything is to be absent, and nothing of ours is left.
    pub(crate) withdrawn: bool,
    /// Every wish is hands off, and no write is under way.
    pub(crate) at_rest: bool,
    /// Whether a successor of this process will know the session's nodes.
    pub(crate) remembered: bool,
}

/// Whether there is a node of ours.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Observed {
    Present,
    Absent,
    /// Not looked at yet.
    Unknown,
}

/// One registration in `/status`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Registered {
    pub(crate) service: String,
    pub(crate) path: String,
    pub(crate) wanted: Stance,
    /// The bytes that its node is to have.
    pub(crate) payload: Vec<u8>,
    pub(crate) observed: Observed,
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
