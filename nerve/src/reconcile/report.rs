//! How things stand, as others see it: `/status`, the stop, the control socket. Decides nothing.

use std::collections::BTreeMap;

use tokio::time::Instant;

use super::Reconciler;
use crate::registration::Twin;
use crate::service::{Stance, Wanted};

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

impl Reconciler {
    /// Nodes of services that were removed from the configuration, until they are known to be gone.
    pub(crate) fn left_over(&self) -> Vec<LeftOver> {
        let mut left_over = Vec::new();
        for (path, group) in &self.groups {
            let left = |service: Option<&str>, node: &str| LeftOver {
                service: service.map(str::to_owned),
                path: path.clone(),
                node: node.to_owned(),
                observed_at: group.looked,
            };
            let Some(plan) = &group.plan else { continue };
            let is_wanted = |key: &str| group.planned.iter().any(|(wanted, ..)| wanted == key);
            for standing in plan.standings.iter().filter(|s| !is_wanted(&s.service)) {
                let service = Wanted::service_of(&standing.service);
                left_over.extend(standing.nodes.iter().map(|node| left(Some(service), node)));
            }
            let of_none = plan
                .changes
                .iter()
                .filter(|change| change.service.is_none());
            left_over.extend(
                of_none
                    .flat_map(|c| c.removed())
                    .map(|node| left(None, node)),
            );
        }
        left_over
    }

    /// Whether every wish is to be absent, and nothing of ours is left (or ever was).
    pub(crate) fn is_withdrawn(&self) -> bool {
        self.groups.values().all(|group| {
            !group.running
                && group.is_bare()
                && group
                    .planned
                    .iter()
                    .all(|(_, _, stance)| matches!(stance, Stance::Absent(_)))
        })
    }

    /// Whether every wish is hands off and nothing is under way: what stands now stays.
    pub(crate) fn is_at_rest(&self) -> bool {
        self.groups.values().all(|group| {
            let hands_off = |(_, _, stance): &(String, Wanted, Stance)| *stance == Stance::Leave;
            !group.running && group.planned.iter().all(hands_off)
        })
    }

    /// How many registrations were delayed (in shadow mode: would have been) since this was last asked.
    pub(crate) fn take_delayed(&mut self) -> u64 {
        std::mem::take(&mut self.delayed)
    }

    /// Whether [`Self::report`] may have changed since this was last asked.
    pub(crate) fn take_news(&mut self) -> bool {
        std::mem::take(&mut self.news)
    }

    /// How every wish stands.
    pub(crate) fn report(&self) -> BTreeMap<String, Registered> {
        let mut report = BTreeMap::new();
        for (path, group) in &self.groups {
            let confirmed = self.connected
                && !group.running
                && !group.sync
                && group.changes.is_empty()
                && group.plan.is_some();
            for (key, wanted, stance) in &group.planned {
                let standing = group
                    .plan
                    .iter()
                    .flat_map(|p| &p.standings)
                    .find(|s| s.service == *key);
                let node = standing.and_then(|s| s.nodes.last().cloned());
                let settled = standing.map(|standing| standing.settled);
                let unsettled = settled == Some(false);
                let twins = group.plan.iter().flat_map(|p| &p.twins);
                let shown = |twin: &Twin| format!("{} (session {:#x})", twin.node, twin.owner);
                let elsewhere = twins.clone().filter(|twin| twin.advertises.contains(key));
                report.insert(
                    key.clone(),
                    Registered {
                        service: wanted.service.clone(),
                        confirmed,
                        in_sync: confirmed && settled == Some(true),
                        path: path.clone(),
                        payload: wanted.registration.payload.clone(),
                        observed_payload: standing.and_then(|s| s.payload.clone()),
                        observed_at: standing.and(group.looked),
                        wanted: match stance {
                            Stance::Present => "present".to_owned(),
                            Stance::Keep => "keep".to_owned(),
                            Stance::Leave => "leave".to_owned(),
                            Stance::Absent(reason) => format!("absent: {reason}"),
                        },
                        observed: match (standing, &node) {
                            (None, _) => "unknown",
                            (Some(_), Some(_)) => "present",
                            (Some(_), None) => "absent",
                        },
                        node,
                        since: group.since.get(key).map(|(_, since)| *since),
                        error: standing
                            .and_then(|s| s.conflict.clone())
                            .or_else(|| group.brake.words(key).filter(|_| unsettled))
                            .or_else(|| group.refused.get(key).cloned())
                            .or_else(|| group.error.clone()),
                        twins: twins.map(shown).collect(),
                        elsewhere: elsewhere.map(shown).collect(),
                    },
                );
            }
        }
        report
    }
}
