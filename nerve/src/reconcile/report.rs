//! How things stand, as others see it: `/status`, the stop, the control socket. Decides nothing.

use std::collections::BTreeMap;

use tokio::time::Instant;

use super::Reconciler;
use crate::registration::Twin;
use crate::service::{Stance, Wanted};

/// One registration in `/status`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Registered {
    pub(crate) service: String,
    pub(crate) path: String,
    /// `present`, `keep`, `leave` or `absent: <reason>`.
    pub(crate) wanted: String,
    /// `present`, `absent`, or `unknown` before the first look.
    pub(crate) observed: &'static str,
    pub(crate) node: Option<String>,
    /// Whether so observed on this connection, with nothing under way or to be done.
    pub(crate) confirmed: bool,
    /// Since when it is so observed.
    pub(crate) since: Option<Instant>,
    pub(crate) error: Option<String>,
    /// Node and session of others under our name.
    pub(crate) twins: Vec<String>,
    /// Those of them that advertise the service's own address: while they stand, it is found there.
    pub(crate) elsewhere: Vec<String>,
}

impl Reconciler {
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
                let unsettled = standing.is_some_and(|standing| !standing.settled);
                let twins = group.plan.iter().flat_map(|p| &p.twins);
                let shown = |twin: &Twin| format!("{} (session {:#x})", twin.node, twin.owner);
                let elsewhere = twins.clone().filter(|twin| twin.advertises.contains(key));
                report.insert(
                    key.clone(),
                    Registered {
                        service: wanted.service.clone(),
                        confirmed,
                        path: path.clone(),
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
