//! What the registrar of one ensemble does next: links, wants, looks and failures in, jobs out. Pure.
//!
//! Level-triggered: every cause (a new connection, another want, a touched node, a doubt, 60 s gone by) only makes a
//! group of registrations *due*; a due group is looked at, planned for ([`crate::registration::plan`]) and written, and
//! looked at again until the plan is empty. One job per group at a time; between two connections nothing is asked.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use smartstack_common::backoff::Backoff;
use tokio::time::Instant;

use crate::job::{Done, Job};
use crate::registration::{Change, Node, Owner, Plan, Want, plan};
use crate::registry::Found;
use crate::service::{Stance, Wanted};
use crate::throttle::Throttle;

/// How often a settled group is looked at all the same, against changes that no watch told.
const VERIFY: Duration = Duration::from_secs(60);
/// The same, the first time after a write: somebody else may have written the same at the same moment.
const VERIFY_SOON: Duration = Duration::from_secs(10);
/// How often the reconciler is asked at least.
const TICK: Duration = Duration::from_millis(500);
/// Asked this much later than that, the process has stood still (SIGSTOP, a paused machine): what the checks found
/// before says nothing about now.
const STANDSTILL: Duration = Duration::from_secs(1);
/// Pauses after failed writes and looks.
const RETRY: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(30));

/// All services' wishes, by [`Wanted::key`].
pub(crate) type Wants = BTreeMap<String, Wanted>;

/// The registrations below one parent.
#[derive(Debug)]
struct Group {
    /// Ids whose nodes are looked for: all that this process ever registered here.
    ids: BTreeSet<String>,
    /// When to look, if at all.
    due: Option<Instant>,
    running: bool,
    /// Look at least as new as the present: after a new connection or an unknown outcome.
    sync: bool,
    /// What to write in the next job.
    changes: Vec<Change>,
    parents: bool,
    /// The wishes the last plan was made for.
    planned: Vec<(String, Wanted, Stance)>,
    /// The last look, planned.
    plan: Option<Plan>,
    /// Whether something was ever created here, or may have been.
    wrote: bool,
    /// Whether it was found settled since the last write.
    calm: bool,
    error: Option<String>,
    retry: Backoff,
    /// When the standing of a service last changed, with its nodes then.
    since: BTreeMap<String, (Vec<String>, Instant)>,
}

impl Group {
    fn new() -> Self {
        Self {
            ids: BTreeSet::new(),
            due: None,
            running: false,
            sync: true,
            changes: Vec::new(),
            parents: false,
            planned: Vec::new(),
            plan: None,
            wrote: false,
            calm: false,
            error: None,
            retry: Backoff::new(RETRY.0, RETRY.1),
            since: BTreeMap::new(),
        }
    }

    fn is_bare(&self) -> bool {
        match &self.plan {
            Some(plan) => {
                plan.changes.is_empty() && plan.standings.iter().all(|s| s.nodes.is_empty())
            }
            None => !self.wrote,
        }
    }

    fn hurry(&mut self, at: Instant) {
        self.due = Some(self.due.map_or(at, |due| due.min(at)));
    }
}

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
    /// `path/node` and session of others under our name.
    pub(crate) twins: Vec<String>,
}

/// The registrar's memory.
#[derive(Debug)]
pub(crate) struct Reconciler {
    hosts: String,
    groups: BTreeMap<String, Group>,
    session: Option<i64>,
    connected: bool,
    former: BTreeSet<i64>,
    displaced: BTreeSet<i64>,
    throttle: Throttle,
    stale_since: BTreeMap<String, Instant>,
    /// Whether the report may differ from the last one taken.
    news: bool,
    last_tick: Instant,
    /// Older check results do not count.
    not_before: Instant,
    jitter: Duration,
    rng: fastrand::Rng,
}

impl Reconciler {
    pub(crate) fn new(
        hosts: &str,
        jitter: Duration,
        write_rate: u32,
        rng: fastrand::Rng,
        now: Instant,
    ) -> Self {
        Self {
            hosts: hosts.to_owned(),
            groups: BTreeMap::new(),
            session: None,
            connected: false,
            former: BTreeSet::new(),
            displaced: BTreeSet::new(),
            throttle: Throttle::new(write_rate, now),
            stale_since: BTreeMap::new(),
            news: true,
            last_tick: now,
            // The wishes may be older than their reader.
            not_before: now.checked_sub(Duration::from_secs(3600)).unwrap_or(now),
            jitter,
            rng,
        }
    }

    /// A connection is there: every group is due, spread over the jitter unless it is the first connection or the group
    /// has something to withdraw. `former` are the earlier sessions of this installation.
    pub(crate) fn connected(&mut self, session: i64, former: &BTreeSet<i64>, now: Instant) {
        self.news = true;
        let first = self.session.is_none();
        self.former.extend(former);
        if let Some(before) = self
            .session
            .replace(session)
            .filter(|before| *before != session)
        {
            self.former.insert(before);
            self.displaced.clear();
        }
        // A session number that comes back is ours again.
        self.former.remove(&session);
        self.connected = true;
        for group in self.groups.values_mut() {
            let withdrawing = group
                .planned
                .iter()
                .any(|(_, _, stance)| matches!(stance, Stance::Absent(_)));
            let spread = if first || withdrawing {
                Duration::ZERO
            } else {
                self.jitter.mul_f64(self.rng.f64())
            };
            group.running = false;
            group.sync = true;
            group.changes.clear();
            group.due = Some(now + spread);
        }
    }

    /// The connection is gone and with it all jobs, whose outcome is unknown.
    pub(crate) fn disconnected(&mut self) {
        self.news = true;
        self.connected = false;
        for group in self.groups.values_mut() {
            group.running = false;
            group.sync = true;
            group.changes.clear();
        }
    }

    /// A node below `path` was changed or deleted.
    pub(crate) fn touched(&mut self, path: &str, now: Instant) {
        if let Some(group) = self.groups.get_mut(path) {
            group.hurry(now);
        }
    }

    /// To be called before anything else each time the process gets to it, at the latest when [`Self::wake_at`] says.
    pub(crate) fn tick(&mut self, now: Instant) {
        let late = now.saturating_duration_since(self.last_tick + TICK);
        if late > STANDSTILL {
            self.not_before = now;
        }
        self.last_tick = now;
    }

    /// Takes the wishes as they are now, and returns the jobs that are to be started.
    pub(crate) fn jobs(&mut self, wants: &Wants, now: Instant) -> Vec<Job> {
        self.note_staleness(wants, now);
        for wanted in wants
            .values()
            .filter(|wanted| wanted.registration.hosts == self.hosts)
        {
            let group = self
                .groups
                .entry(wanted.registration.path.clone())
                .or_insert_with(Group::new);
            group.ids.insert(wanted.registration.instance_id.clone());
        }
        let mut now_wished: BTreeMap<&str, Vec<Wish<'_>>> = BTreeMap::new();
        for (service, wanted) in wants
            .iter()
            .filter(|(_, wanted)| wanted.registration.hosts == self.hosts)
        {
            let stance = wanted.stance(now, self.stale_since.get(service).copied());
            now_wished
                .entry(&wanted.registration.path)
                .or_default()
                .push((service, wanted, stance));
        }
        let mut jobs = Vec::new();
        for (path, group) in &mut self.groups {
            let wishes = now_wished.remove(path.as_str()).unwrap_or_default();
            if is_other(&group.planned, &wishes) {
                // Hands-off wishes alone, as before the first check result, are no reason to ask anything.
                if !wishes.iter().all(|(_, _, stance)| *stance == Stance::Leave)
                    || group.plan.is_some()
                {
                    group.hurry(now);
                }
                group.planned = owned(&wishes);
                self.news = true;
            }
            if self.connected && !group.running && group.due.is_some_and(|due| due <= now) {
                self.news = true;
                group.running = true;
                group.due = None;
                group.wrote |= group.changes.iter().any(|change| change.create.is_some());
                jobs.push(Job {
                    path: path.clone(),
                    ids: group.ids.clone(),
                    sync: std::mem::take(&mut group.sync),
                    parents: std::mem::take(&mut group.parents),
                    changes: std::mem::take(&mut group.changes),
                });
            }
        }
        jobs
    }

    fn note_staleness(&mut self, wants: &Wants, now: Instant) {
        self.stale_since
            .retain(|service, _| wants.contains_key(service));
        for (service, wanted) in wants {
            if wanted.is_fresh(now, self.not_before) {
                self.stale_since.remove(service);
            } else {
                self.stale_since.entry(service.clone()).or_insert(now);
            }
        }
    }

    /// Takes a job's end and plans what comes next.
    pub(crate) fn finished(&mut self, done: Done, wants: &Wants, now: Instant) {
        self.news = true;
        let here = |wanted: &Wanted| {
            wanted.registration.hosts == self.hosts && wanted.registration.path == done.path
        };
        let wishes: Vec<Wish<'_>> = wants
            .iter()
            .filter(|(_, wanted)| here(wanted))
            .map(|(service, wanted)| {
                let stance = wanted.stance(now, self.stale_since.get(service).copied());
                (service, wanted, stance)
            })
            .collect();
        let Some(group) = self.groups.get_mut(&done.path) else {
            return;
        };
        group.running = false;
        let found = match done.look {
            Ok(found) => found,
            Err(failure) => {
                group.error = Some(failure.to_string());
                group.sync = true;
                let pause = group.retry.next(&mut self.rng);
                group.hurry(now + pause);
                return;
            }
        };
        let observed: Vec<Node> = found
            .iter()
            .flatten()
            .map(|node| classify(node, self.session, &self.former))
            .collect();
        group.planned = owned(&wishes);
        let wants: Vec<Want<'_>> = group
            .planned
            .iter()
            .map(|(service, wanted, stance)| Want {
                service,
                registration: &wanted.registration,
                stance: *stance,
            })
            .collect();
        let mut plan = plan(&wants, &observed, &self.displaced);
        for standing in &plan.standings {
            let entry = group.since.get(&standing.service);
            if entry.is_none_or(|(nodes, _)| *nodes != standing.nodes) {
                group
                    .since
                    .insert(standing.service.clone(), (standing.nodes.clone(), now));
            }
        }
        let mut throttled = None;
        let mut changes = std::mem::take(&mut plan.changes);
        changes.retain(
            |change| match change.create.as_ref().map(|_| self.throttle.take(now)) {
                Some(Err(at)) => {
                    throttled = Some(at);
                    false
                }
                None | Some(Ok(())) => true,
            },
        );
        self.displaced
            .extend(changes.iter().filter_map(|change| change.displaces));
        group.parents = found.is_none() && changes.iter().any(|change| change.create.is_some());
        group.error = done.refused.as_ref().map(ToString::to_string);
        plan.changes.clone_from(&changes);
        group.plan = Some(plan);
        if changes.is_empty() {
            group.retry.reset();
            if wants.is_empty() && throttled.is_none() {
                self.groups.remove(&done.path);
                return;
            }
            let every = if std::mem::replace(&mut group.calm, true) {
                VERIFY
            } else {
                VERIFY_SOON
            };
            let again = every.mul_f64(0.5 + self.rng.f64());
            group.hurry(throttled.unwrap_or(now + again));
            return;
        }
        group.calm = false;
        group.changes = changes;
        // A write that was refused once is tried again at once, on the new look; then with pauses.
        let pause = done
            .refused
            .map_or(Duration::ZERO, |_| group.retry.next(&mut self.rng));
        group.due = Some(now + pause);
    }

    /// When to tick and ask for jobs again, if nothing happens before.
    pub(crate) fn wake_at(&self, wants: &Wants, now: Instant) -> Instant {
        let due = self
            .groups
            .values()
            .filter(|g| self.connected && !g.running)
            .filter_map(|g| g.due);
        let own = wants
            .iter()
            .filter(|(_, wanted)| wanted.registration.hosts == self.hosts);
        let aging = own.map(|(service, wanted)| {
            *self.stale_since.get(service).unwrap_or(&wanted.as_of)
                + wanted.window
                + Duration::from_millis(1)
        });
        let aging = aging.filter(|at| *at > now);
        due.chain(aging).fold(self.last_tick + TICK, Instant::min)
    }

    /// Nodes to be watched: all that carry our name, with their group.
    pub(crate) fn nodes(&self, path: &str) -> Vec<String> {
        let Some(plan) = self.groups.get(path).and_then(|group| group.plan.as_ref()) else {
            return Vec::new();
        };
        let own = plan
            .standings
            .iter()
            .flat_map(|standing| standing.nodes.iter().cloned());
        own.chain(plan.twins.iter().map(|twin| twin.node.clone()))
            .collect()
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
                let twins = group.plan.iter().flat_map(|p| &p.twins);
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
                            .or_else(|| group.error.clone()),
                        twins: twins
                            .map(|twin| format!("{} (session {:#x})", twin.node, twin.owner))
                            .collect(),
                    },
                );
            }
        }
        report
    }
}

/// A service, what it wants, and what that means now.
type Wish<'a> = (&'a String, &'a Wanted, Stance);

fn owned(wishes: &[Wish<'_>]) -> Vec<(String, Wanted, Stance)> {
    wishes
        .iter()
        .map(|(service, wanted, stance)| ((*service).clone(), (*wanted).clone(), *stance))
        .collect()
}

/// Whether the wishes need another plan: the age of a result alone does not.
fn is_other(planned: &[(String, Wanted, Stance)], wishes: &[Wish<'_>]) -> bool {
    let same = |(a, b): (&(String, Wanted, Stance), &Wish<'_>)| {
        (&a.0, &a.1.registration, a.2) == (b.0, &b.1.registration, b.2)
    };
    planned.len() != wishes.len() || !planned.iter().zip(wishes).all(same)
}

fn classify(found: &Found, session: Option<i64>, former: &BTreeSet<i64>) -> Node {
    let owner = match found.owner {
        owner if Some(owner) == session => Owner::Own,
        owner if former.contains(&owner) => Owner::Former,
        owner => Owner::Foreign(owner),
    };
    Node {
        name: found.name.clone(),
        owner,
        czxid: found.czxid,
        version: found.version,
        data: found.data.clone(),
    }
}

#[cfg(test)]
mod tests;
