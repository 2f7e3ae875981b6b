//! How things stand, as others see it: `/status`, the stop, the control socket. Decides nothing.

use std::collections::BTreeMap;

use super::super::plan::Twin;
use super::{Group, Reconciler};
use crate::boards::{LeftOver, Observed, Registered};
use crate::wanted::{PlaceKey, Stance, Wanted};

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
            let is_wanted = |service: &String| {
                let mut planned = group.planned.iter();
                planned.any(|(wanted, _)| wanted.service == *service)
            };
            for standing in plan.standings.iter().filter(|s| !is_wanted(&s.service)) {
                let service = Some(standing.service.as_str());
                left_over.extend(standing.nodes.iter().map(|node| left(service, node)));
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
                    .all(|(_, stance)| matches!(stance, Stance::Absent(_)))
        })
    }

    /// Whether nothing is wished here and nothing of ours is left, or it was never reached. While connected, what may be
    /// left is looked at first.
    pub(crate) fn is_vacant(&self) -> bool {
        let bare = |group: &Group| !group.running && group.planned.is_empty() && group.is_bare();
        match self.connected {
            true => self.groups.is_empty(),
            false => self.groups.values().all(bare),
        }
    }

    /// Whether every wish is hands off and nothing is under way: what stands now stays.
    pub(crate) fn is_at_rest(&self) -> bool {
        self.groups.values().all(|group| {
            let hands_off = |(_, stance): &(Wanted, Stance)| *stance == Stance::Leave;
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
    pub(crate) fn report(&self) -> BTreeMap<PlaceKey, Registered> {
        let mut report = BTreeMap::new();
        for (path, group) in &self.groups {
            let confirmed = self.connected
                && !group.running
                && !group.sync
                && group.changes.is_empty()
                && group.plan.is_some();
            for (wanted, stance) in &group.planned {
                let service = &wanted.service;
                let standing = group
                    .plan
                    .iter()
                    .flat_map(|p| &p.standings)
                    .find(|s| s.service == *service);
                let node = standing.and_then(|s| s.nodes.last().cloned());
                let settled = standing.map(|standing| standing.settled);
                let unsettled = settled == Some(false);
                let twins = group.plan.iter().flat_map(|p| &p.twins);
                let shown = |twin: &Twin| format!("{} (session {:#x})", twin.node, twin.owner);
                let elsewhere = twins
                    .clone()
                    .filter(|twin| twin.advertises.contains(service));
                report.insert(
                    wanted.key(),
                    Registered {
                        service: service.clone(),
                        confirmed,
                        in_sync: confirmed && settled == Some(true),
                        path: path.clone(),
                        payload: wanted.registration.payload.clone(),
                        observed_payload: standing.and_then(|s| s.payload.clone()),
                        observed_at: standing.and(group.looked),
                        wanted: *stance,
                        observed: match (standing, &node) {
                            (None, _) => Observed::Unknown,
                            (Some(_), Some(_)) => Observed::Present,
                            (Some(_), None) => Observed::Absent,
                        },
                        node,
                        since: group.since.get(service).map(|(_, since)| *since),
                        error: standing
                            .and_then(|s| s.conflict.clone())
                            .or_else(|| group.brake.words(service).filter(|_| unsettled))
                            .or_else(|| group.refused.get(service).cloned())
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
