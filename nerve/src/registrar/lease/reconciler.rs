//! What the registrar of one ensemble does next: links, wants, looks and failures in, jobs out. Pure.
//!
//! Level-triggered: every cause (a new connection, another want, a touched node, a doubt, 60 s gone by) only makes a
//! group of registrations *due*; a due group is looked at, planned for ([`super::plan`]) and written, and
//! looked at again until the plan is empty. One job per group at a time, and one that registers per ensemble: what becomes due
//! together, or meanwhile, shares one transaction. Between two connections nothing is asked.

mod brake;
mod report;

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use smartstack_common::backoff::{Backoff, spread_after};
use tokio::time::Instant;

use self::brake::Brake;
use super::job::{Done, Job, Work};
use super::plan::{Change, Node, Owner, Plan, Want, plan};
use super::registry::Found;
use super::throttle::Throttle;
use crate::config::RateMode;
use crate::wanted::{PlaceKey, Registration, Stance, Wanted, Wants};

/// How often a settled group is looked at all the same, against changes that no watch told.
const VERIFY: Duration = Duration::from_secs(60);
/// The same, the first time after a write: somebody else may have written the same at the same moment.
const VERIFY_SOON: Duration = Duration::from_secs(10);
/// How often the reconciler is asked at least.
const TICK: Duration = Duration::from_millis(500);
/// Asked this much later than that, the process has stood still (SIGSTOP, a paused machine): what the checks found
/// before says nothing about now.
const STANDSTILL: Duration = Duration::from_secs(1);
/// How soon to look for a fresh result after a standstill: a younger result of the same kind wakes nobody.
const AWAITING: Duration = Duration::from_millis(20);
/// Pauses after failed writes and looks.
const RETRY: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(30));
/// Registrations that the rate holds back are let go in steps of this, so that they share transactions.
const STEP: Duration = Duration::from_millis(100);

/// How a reconciler goes about it.
#[derive(Debug, Clone)]
pub(crate) struct Manner {
    /// Spread after a reconnection; zero also turns off the one after an outage.
    pub(crate) jitter: Duration,
    /// Registrations per second.
    pub(crate) write_rate: u32,
    pub(crate) write_rate_mode: RateMode,
}

/// The registrations below one parent.
#[derive(Debug)]
struct Group {
    /// Ids whose nodes are looked for: all that this process ever registered here.
    ids: BTreeSet<String>,
    /// When to look, if at all.
    due: Option<Instant>,
    running: bool,
    /// Whether what runs creates something.
    registering: bool,
    /// Whether what comes next waits for the write rate.
    delayed: bool,
    /// Look at least as new as the present: after a new connection or an unknown outcome.
    sync: bool,
    /// What to write in the next job.
    changes: Vec<Change>,
    parents: bool,
    /// The wishes the last plan was made for.
    planned: Vec<(Wanted, Stance)>,
    /// The last look, planned.
    plan: Option<Plan>,
    /// When that was.
    looked: Option<Instant>,
    /// Whether something was ever created here, or may have been.
    wrote: bool,
    /// Whether it was found settled since the last write.
    calm: bool,
    /// Why it could not be looked at, or nodes of no service not be removed.
    error: Option<String>,
    /// Why the last write for a service was refused.
    refused: BTreeMap<String, String>,
    retry: Backoff,
    brake: Brake,
    /// When the standing of a service last changed, with its nodes then.
    since: BTreeMap<String, (Vec<String>, Instant)>,
}

impl Group {
    fn new() -> Self {
        Self {
            ids: BTreeSet::new(),
            due: None,
            running: false,
            registering: false,
            delayed: false,
            sync: true,
            changes: Vec::new(),
            parents: false,
            planned: Vec::new(),
            plan: None,
            looked: None,
            wrote: false,
            calm: false,
            error: None,
            refused: BTreeMap::new(),
            retry: Backoff::new(RETRY.0, RETRY.1),
            brake: Brake::default(),
            since: BTreeMap::new(),
        }
    }

    /// Whether nothing of ours is here, as far as was seen and done.
    fn is_bare(&self) -> bool {
        let Some(plan) = &self.plan else {
            return !self.wrote;
        };
        // One that only creates was not carried out where nothing was ever written.
        let is_past = |change: &Change| !self.wrote && change.removed().next().is_none();
        plan.standings.iter().all(|s| s.nodes.is_empty()) && plan.changes.iter().all(is_past)
    }

    /// Whether nothing is wished here, nothing was ever done, and nothing is to be.
    fn is_unused(&self) -> bool {
        self.planned.is_empty() && self.plan.is_none() && self.due.is_none() && !self.running
    }

    /// Whether the next job would create something.
    fn registers(&self) -> bool {
        self.changes.iter().any(|change| change.create.is_some())
    }

    /// The job, if any, is gone with its connection, and its outcome unknown.
    fn forget_job(&mut self) {
        self.running = false;
        self.registering = false;
        self.sync = true;
        self.changes.clear();
    }

    /// What is to be done next, which begins now; and whether it must be synced.
    fn start(&mut self, path: &str) -> (bool, Work) {
        self.running = true;
        self.due = None;
        self.registering = self.registers();
        self.wrote |= self.registering;
        let work = Work {
            path: path.to_owned(),
            ids: self.ids.clone(),
            parents: std::mem::take(&mut self.parents) && self.registering,
            changes: std::mem::take(&mut self.changes),
        };
        (std::mem::take(&mut self.sync), work)
    }

    fn hurry(&mut self, at: Instant) {
        self.due = Some(self.due.map_or(at, |due| due.min(at)));
    }
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
    manner: Manner,
    /// Registrations that were (or, in shadow mode, would have been) delayed since this was last asked.
    delayed: u64,
    /// Whether a job that registers is under way: further registrations gather behind it and go out together.
    registering: bool,
    /// Since when there is no connection.
    offline_since: Instant,
    stale_since: BTreeMap<PlaceKey, Instant>,
    /// Whether the report may differ from the last one taken.
    news: bool,
    last_tick: Instant,
    /// Older check results do not count.
    not_before: Instant,
    rng: fastrand::Rng,
}

impl Reconciler {
    pub(crate) fn new(hosts: &str, manner: Manner, rng: fastrand::Rng, now: Instant) -> Self {
        Self {
            hosts: hosts.to_owned(),
            groups: BTreeMap::new(),
            session: None,
            connected: false,
            former: BTreeSet::new(),
            displaced: BTreeSet::new(),
            throttle: Throttle::new(manner.write_rate, now),
            manner,
            delayed: 0,
            registering: false,
            offline_since: now,
            stale_since: BTreeMap::new(),
            news: true,
            last_tick: now,
            // The wishes may be older than their reader.
            not_before: now.checked_sub(Duration::from_secs(3600)).unwrap_or(now),
            rng,
        }
    }

    /// A connection is there: every group is due, all at the same moment, so that one transaction registers them. After an
    /// outage of the ensemble that moment is spread over all its nerves; a reconnection to the same session waits for the
    /// jitter; a new session after less than an outage is this nerve's own affair and registers at once, as does the first
    /// one. Withdrawals never wait. Without a connection for longer than `timeout`, the session's, was an outage of the
    /// ensemble, which others have seen as well. `former` are the earlier sessions of this installation.
    pub(crate) fn connected(
        &mut self,
        session: i64,
        timeout: Duration,
        former: &BTreeSet<i64>,
        now: Instant,
    ) {
        self.news = true;
        self.former.extend(former);
        let before = self.session.replace(session);
        let new = before != Some(session);
        if new {
            self.is_now(session, before);
        }
        self.connected = true;
        self.registering = false;
        let gap = now.saturating_duration_since(self.offline_since);
        let jitter = self.manner.jitter;
        let limit = match gap > timeout {
            _ if jitter.is_zero() => Duration::ZERO,
            true => spread_after(gap).max(jitter),
            false if new => Duration::ZERO,
            false => jitter,
        };
        let spread = limit.mul_f64(self.rng.f64());
        for group in self.groups.values_mut() {
            let withdrawing = group
                .planned
                .iter()
                .any(|(_, stance)| matches!(stance, Stance::Absent(_)));
            group.forget_job();
            group.due = Some(if withdrawing { now } else { now + spread });
        }
    }

    fn is_now(&mut self, session: i64, before: Option<i64>) {
        self.session = Some(session);
        self.former.extend(before);
        // A session number that comes back is ours again.
        self.former.remove(&session);
        self.displaced.clear();
        for group in self.groups.values_mut() {
            group.brake.release();
        }
    }

    /// The session that is believed to be ours on this connection.
    pub(crate) fn session(&self) -> Option<i64> {
        self.session
    }

    /// The connection is gone and with it all jobs, whose outcome is unknown.
    pub(crate) fn disconnected(&mut self, now: Instant) {
        self.news = true;
        self.connected = false;
        self.registering = false;
        self.offline_since = now;
        for group in self.groups.values_mut() {
            group.forget_job();
        }
    }

    /// A node below `path` was changed or deleted, or may have been by `at`.
    pub(crate) fn touched(&mut self, path: &str, at: Instant) {
        if let Some(group) = self.groups.get_mut(path) {
            group.hurry(at);
        }
    }

    /// To be called before anything else each time the process gets to it, at the latest when [`Self::wake_at`] says. `slept`
    /// is how long the machine has slept since, which `now` does not know of.
    pub(crate) fn tick(&mut self, now: Instant, slept: Duration) {
        let late = now.saturating_duration_since(self.last_tick + TICK);
        if late + slept > STANDSTILL {
            self.not_before = now;
        }
        self.last_tick = now;
    }

    /// Takes the wishes as they are now, and returns the jobs that are to be started.
    pub(crate) fn jobs(&mut self, wants: &Wants, now: Instant) -> Vec<Job> {
        self.note_staleness(wants, now);
        self.take_wishes(wants, now);
        let mut jobs = Vec::new();
        let mut together = Job {
            sync: false,
            works: Vec::new(),
        };
        for (path, group) in &mut self.groups {
            if !self.connected || group.running || group.due.is_none_or(|due| due > now) {
                continue;
            }
            self.news = true;
            if group.registers() {
                if self.registering {
                    continue;
                }
                let (mode, throttle) = (self.manner.write_rate_mode, &mut self.throttle);
                let (delayed, later) = admit(throttle, mode, &mut group.changes, now);
                if !std::mem::replace(&mut group.delayed, later.is_some()) {
                    self.delayed += delayed;
                }
                if let Some(at) = later {
                    group.due = Some(at);
                    continue;
                }
            }
            let displaces = group.changes.iter().filter_map(|change| change.displaces);
            self.displaced.extend(displaces);
            let (sync, work) = group.start(path);
            // A withdrawal waits for nobody else's work.
            if work.changes.iter().any(|change| change.create.is_none()) {
                jobs.push(Job {
                    sync,
                    works: vec![work],
                });
            } else {
                together.sync |= sync;
                together.works.push(work);
            }
        }
        if !together.works.is_empty() {
            jobs.push(together);
        }
        self.registering |= self.groups.values().any(|group| group.registering);
        jobs
    }

    /// Makes due what is wished otherwise than before.
    fn take_wishes(&mut self, wants: &Wants, now: Instant) {
        let mut wishes: BTreeMap<&str, Vec<Wish<'_>>> = BTreeMap::new();
        for (key, wanted) in wants {
            if wanted.registration.hosts != self.hosts {
                continue;
            }
            let Registration {
                path, instance_id, ..
            } = &wanted.registration;
            let group = self.groups.entry(path.clone()).or_insert_with(Group::new);
            group.ids.insert(instance_id.clone());
            let stance = wanted.stance(now, self.stale_since.get(key).copied());
            wishes.entry(path).or_default().push((wanted, stance));
        }
        for (path, group) in &mut self.groups {
            let wishes = wishes.remove(path.as_str()).unwrap_or_default();
            if !is_other(&group.planned, &wishes) {
                continue;
            }
            // Hands-off wishes alone, as before the first check result, are no reason to ask anything.
            if !wishes.iter().all(|(_, stance)| *stance == Stance::Leave) || group.plan.is_some() {
                group.hurry(now);
            }
            group.planned = owned(&wishes);
            // Planned for other wishes, and not begun.
            group.changes.clear();
            self.news = true;
        }
        let connected = self.connected;
        self.groups
            .retain(|_, group| !(connected && group.is_unused()));
    }

    fn note_staleness(&mut self, wants: &Wants, now: Instant) {
        self.stale_since.retain(|key, _| wants.contains_key(key));
        for (key, wanted) in wants {
            if wanted.is_fresh(now, self.not_before) {
                self.stale_since.remove(key);
            } else {
                self.stale_since.entry(key.clone()).or_insert(now);
            }
        }
    }

    /// Takes a job's end and plans what comes next.
    pub(crate) fn finished(&mut self, done: Vec<Done>, wants: &Wants, now: Instant) {
        self.news = true;
        self.learn(&done, now);
        for done in done {
            let group = self.groups.get_mut(&done.path);
            if group.is_some_and(|group| std::mem::take(&mut group.registering)) {
                self.registering = false;
            }
            self.plan_next(done, wants, now);
        }
    }

    /// Whose is what we have created, in the servers' words? They (and proxies that alter the handshake) may answer an
    /// attempt to resume a session with a new one, which the client does not tell. What stands of the session before is then
    /// a former one's.
    fn learn(&mut self, done: &[Done], now: Instant) {
        let owner = done.iter().find_map(|done| {
            let mut found = done.look.as_ref().ok()?.iter().flatten();
            let created = found.find(|node| done.created.contains(&node.name))?;
            Some(created.owner)
        });
        let (Some(owner), Some(believed)) = (owner, self.session) else {
            return;
        };
        if owner == believed {
            return;
        }
        self.is_now(owner, Some(believed));
        for group in self.groups.values_mut() {
            group.sync = true;
            group.hurry(now);
        }
    }

    fn plan_next(&mut self, done: Done, wants: &Wants, now: Instant) {
        let here = |wanted: &Wanted| {
            wanted.registration.hosts == self.hosts && wanted.registration.path == done.path
        };
        let wishes: Vec<Wish<'_>> = wants
            .iter()
            .filter(|(_, wanted)| here(wanted))
            .map(|(key, wanted)| {
                let stance = wanted.stance(now, self.stale_since.get(key).copied());
                (wanted, stance)
            })
            .collect();
        let Some(group) = self.groups.get_mut(&done.path) else {
            return;
        };
        group.running = false;
        let written = done.written.iter().chain(&done.unsure);
        written.for_each(|change| group.brake.wrote(change, now));
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
            .map(|(wanted, stance)| Want {
                service: &wanted.service,
                registration: &wanted.registration,
                stance: *stance,
            })
            .collect();
        let mut plan = plan(&wants, &observed, &self.displaced);
        let is_wanted = |service: &String| wants.iter().any(|want| want.service == service);
        group.since.retain(|service, _| is_wanted(service));
        group.brake.retain(is_wanted);
        for standing in &plan.standings {
            let entry = group.since.get(&standing.service);
            if entry.is_none_or(|(nodes, _)| *nodes != standing.nodes) {
                group
                    .since
                    .insert(standing.service.clone(), (standing.nodes.clone(), now));
            }
        }
        let changes = std::mem::take(&mut plan.changes);
        group.parents = found.is_none() && changes.iter().any(|change| change.create.is_some());
        // Nodes of no service: all of the path are told.
        let of_none = done.refused.iter().find(|(service, _)| service.is_none());
        group.error = of_none.map(|(_, failure)| failure.to_string());
        let refused = done.refused.iter();
        group.refused = refused
            .filter_map(|(service, failure)| Some((service.clone()?, failure.to_string())))
            .collect();
        plan.changes.clone_from(&changes);
        group.plan = Some(plan);
        group.looked = Some(now);
        if changes.is_empty() {
            group.retry.reset();
            if wants.is_empty() {
                self.groups.remove(&done.path);
                return;
            }
            let every = if std::mem::replace(&mut group.calm, true) {
                VERIFY
            } else {
                VERIFY_SOON
            };
            let again = every.mul_f64(0.5 + self.rng.f64());
            group.hurry(now + again);
            return;
        }
        group.calm = false;
        let braked = changes.iter().map(|change| group.brake.holds(change, now));
        let until: Vec<Option<Instant>> = braked.collect();
        let ready = changes.into_iter().zip(&until);
        let ready = ready.filter(|(_, until)| until.is_none());
        group.changes = ready.map(|(change, _)| change).collect();
        // What is held back is planned again then, on a new look.
        let nothing = group.changes.is_empty();
        let later = until.into_iter().flatten().min().filter(|_| nothing);
        // A write that was refused once is tried again at once, on the new look; then with pauses.
        let pause = match done.refused.is_empty() {
            true => Duration::ZERO,
            false => group.retry.next(&mut self.rng),
        };
        group.due = Some(later.unwrap_or(now).max(now + pause));
    }

    /// When to tick and ask for jobs again, if nothing happens before.
    pub(crate) fn wake_at(&self, wants: &Wants, now: Instant) -> Instant {
        let due = self
            .groups
            .values()
            .filter(|g| self.connected && !g.running)
            .filter(|g| !(self.registering && g.registers()))
            .filter_map(|g| g.due);
        let own = wants
            .iter()
            .filter(|(_, wanted)| wanted.registration.hosts == self.hosts);
        let aging = own.map(|(key, wanted)| match self.stale_since.get(key) {
            Some(since) if wanted.awaits_a_result() && now <= *since + wanted.window => {
                now + AWAITING
            }
            Some(since) => *since + wanted.window + Duration::from_millis(1),
            None => wanted.as_of + wanted.window + Duration::from_millis(1),
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
}

/// Takes from the rate what the changes create. What it does not allow now is left out, to be planned again; when that is
/// everything, the changes stay and the moment to ask again is returned. Also returns how many had to wait, or would have.
fn admit(
    throttle: &mut Throttle,
    mode: RateMode,
    changes: &mut Vec<Change>,
    now: Instant,
) -> (u64, Option<Instant>) {
    if mode == RateMode::Off {
        return (0, None);
    }
    let mut later = None;
    let mut delayed = 0;
    let (go, wait): (Vec<Change>, Vec<Change>) =
        std::mem::take(changes).into_iter().partition(|change| {
            let limited = change.create.is_some() && !change.pressing;
            let refused = limited.then(|| throttle.take(now).err()).flatten();
            delayed += u64::from(refused.is_some());
            later = later.or(refused);
            refused.is_none() || mode == RateMode::Shadow
        });
    let all_wait = go.is_empty();
    *changes = if all_wait { wait } else { go };
    let at = later.filter(|_| all_wait).map(|at| at.max(now + STEP));
    (delayed, at)
}

/// What a service wants, and what that means now.
type Wish<'a> = (&'a Wanted, Stance);

fn owned(wishes: &[Wish<'_>]) -> Vec<(Wanted, Stance)> {
    let owned = |(wanted, stance): &Wish<'_>| ((*wanted).clone(), *stance);
    wishes.iter().map(owned).collect()
}

/// Whether the wishes need another plan: the age of a result alone does not.
fn is_other(planned: &[(Wanted, Stance)], wishes: &[Wish<'_>]) -> bool {
    let same = |((a, stance), (b, now)): (&(Wanted, Stance), &Wish<'_>)| {
        (&a.service, &a.registration, stance) == (&b.service, &b.registration, now)
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
mod simulation;
#[cfg(test)]
mod tests;
