//! Making a plan: one backend after the other.
//!
//! Pure.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use super::{
    Addition, Admit, Change, Checks, Desired, Difference, Kind, Op, Plan, Reach, Refuses,
    ReloadReason, Return, Running, RunningServer, State, wants,
};
use crate::model::sorted::Walk;
use crate::outputs::haproxy::cfg::effective::{Backend, Effective};

/// More additions at a time than this, and than there are servers, go by the file. haproxy spreads the first checks of a
/// file's servers and begins those of added ones at once: 10,000 in one second ran into its `maxconn` and put a fifth of
/// them down (measured on 2.6).
pub(crate) const MANY: usize = 256;

/// Servers that may take requests.
fn serving(running: &Running) -> usize {
    let servers = running.backends.values().flat_map(BTreeMap::values);
    servers.filter(|s| s.state == State::Ready).count()
}

/// A plan being made. Ops go out in the order of the fields.
pub(super) struct Draft<'a> {
    refuses: &'a Refuses,
    admits_checked: &'a BTreeSet<String>,
    /// The registry gives weights.
    weighted: bool,
    adds: Vec<Op>,
    /// Other addresses, each with what goes around it.
    readdressed: Vec<Op>,
    returns: Vec<Op>,
    weights: Vec<Op>,
    retires: Vec<Op>,
    /// Removals that would empty their backend before its new servers are there.
    late: Vec<Op>,
    /// Servers that the worker does not have.
    missing: usize,
    reason: Option<ReloadReason>,
    running: &'a Running,
    /// The first server that cannot be added over the stats socket, and why: backend, name, reason.
    unadded: Option<(String, String, String)>,
}

impl<'a> Draft<'a> {
    pub(super) fn new(running: &'a Running, desired: &'a Desired) -> Self {
        Self {
            refuses: &running.refuses,
            admits_checked: &desired.admits_checked,
            weighted: desired.weights,
            adds: Vec::new(),
            readdressed: Vec::new(),
            returns: Vec::new(),
            weights: Vec::new(),
            retires: Vec::new(),
            late: Vec::new(),
            missing: 0,
            reason: None,
            running,
            unadded: None,
        }
    }

    pub(super) fn reload(&mut self, reason: ReloadReason) {
        self.reason.get_or_insert(reason);
    }

    /// A change that haproxy does not take over the stats socket comes with the reload.
    fn by_reload(&mut self, backend: &str, server: &str, what: Kind, why: &str) {
        self.reload(ReloadReason::NotTaken {
            backend: backend.to_owned(),
            server: server.to_owned(),
            what,
            why: why.to_owned(),
        });
    }

    pub(super) fn compare(
        &mut self,
        name: &str,
        reach: &Reach,
        running: &BTreeMap<String, RunningServer>,
        desired: &Backend,
    ) {
        let op = |server: &str, change| Op {
            backend: name.to_owned(),
            server: server.to_owned(),
            change,
        };
        let refuses = self.refuses;
        let unfinished = refuses.servers.get(name);
        let mut gains = 0_usize;
        let before = self.adds.len();
        let mut elsewhere = Vec::new();
        // Servers that keep taking requests whatever becomes of the others.
        let mut stays = desired
            .structural
            .iter()
            .any(|s| running.get(s).is_some_and(|s| s.state == State::Ready));
        let named_only = |(.., wanted): &(_, _, &Effective)| wanted.is_parked();
        let all = wanted_of(reach, running, desired).into_iter();
        for (server, found, wanted) in all.filter(|server| !named_only(server)) {
            let Some(found) = found else {
                gains += 1;
                self.missing += 1;
                match self.addition(name, running, desired, wanted) {
                    Ok(addition) => self.adds.push(op(server, Change::Add(addition))),
                    Err(why) => {
                        self.unadded
                            .get_or_insert_with(|| (name.to_owned(), server.clone(), why));
                    }
                }
                continue;
            };
            if found.address != Some(wanted.address) {
                elsewhere.push((server, found, wanted));
            }
            if let Some((what, why)) = unfinished.and_then(|servers| servers.get(server)) {
                self.by_reload(name, server, *what, why);
            }
            if let Some(what) = difference(found, wanted) {
                self.reload(ReloadReason::ServerChanged {
                    backend: name.to_owned(),
                    server: server.clone(),
                    what,
                });
                if found.state == State::Retired {
                    // Its return comes with the reload.
                    gains += 1;
                    continue;
                }
            }
            let returns = found.state == State::Retired && !wanted.disabled && !found.awaits_check;
            let not_back = refuses.returns(name, desired, found, Return::of(wanted));
            if let Some(why) = not_back.filter(|_| returns) {
                self.by_reload(name, server, Kind::Return, why);
                gains += 1;
                continue;
            }
            stays |= found.state == State::Ready || returns;
            self.keep(op, (name, desired), server, found, wanted);
        }
        let stays_there = |name: &String| {
            let found = running.get(name).map(|found| found.state);
            found == Some(State::Ready) && elsewhere.iter().all(|(other, ..)| *other != name)
        };
        let mut wanted = desired.servers.keys().filter(|name| wants(desired, name));
        let others = !elsewhere.is_empty() && wanted.any(stays_there);
        for (server, found, wanted) in &elsewhere {
            let around = (others && found.state == State::Ready).then(|| Return::of(wanted));
            let address = wanted.address;
            let not_back = around.and_then(|after| refuses.returns(name, desired, found, after));
            if let Some(why) = refuses.of(name, Kind::Readdress).or(not_back) {
                self.by_reload(name, server, Kind::Readdress, why);
                continue;
            }
            let follows = wanted.options.follows(address.ip());
            let change = Change::Readdress {
                address,
                around,
                follows,
            };
            self.readdressed.push(op(server, change));
        }
        let gone = unwanted_of(reach, running, desired);
        let Some(first) = gone.first() else {
            return;
        };
        if desired.unreadable {
            return self.reload(ReloadReason::RemovalUnsure {
                backend: name.to_owned(),
                server: (*first).clone(),
            });
        }
        if let Some(why) = refuses.of(name, Kind::Retire) {
            // One that is only named is in maint after a reload as it is now, its agent listened to: that would have no end.
            let is_as_written = |server: &str| {
                let out = running.get(server).map(|found| found.state) == Some(State::Retired);
                out && desired.servers.contains_key(server)
            };
            if let Some(first) = gone.iter().find(|server| !is_as_written(server)) {
                self.by_reload(name, first, Kind::Retire, why);
            }
            return;
        }
        let agent = |server: &str| running.get(server).is_some_and(|s| s.agent.is_some());
        let retires = gone.iter().map(|server| {
            let agent = agent(server);
            op(server, Change::Retire { agent })
        });
        if gains > 0 && !stays && !unreached_stays(reach, running, desired) {
            // Where nothing is added, those that come do so with the reload, and these go with it.
            if self.adds.len() > before {
                self.late.extend(retires);
            }
        } else {
            self.retires.extend(retires);
        }
    }

    /// What `add server` needs, or why it would not do.
    fn addition(
        &self,
        backend: &str,
        running: &BTreeMap<String, RunningServer>,
        desired: &Backend,
        wanted: &Effective,
    ) -> Result<Addition, String> {
        let all = self.refuses.changes.as_ref();
        if let Some(why) = all.or_else(|| self.refuses.reason(backend, desired)) {
            return Err(why.clone());
        }
        let id = wanted
            .id
            .ok_or("its line has no `id`, which hash balancing needs")?;
        if let Some((other, _)) = running.iter().find(|(_, found)| found.id == id) {
            return Err(format!("its id {id} is still that of server `{other}`"));
        }
        Ok(Addition {
            address: wanted.address,
            id,
            weight: wanted.weight,
            options: Arc::clone(&wanted.options),
            digest: wanted.digest.clone(),
            admit: if wanted.disabled {
                Admit::Disabled
            } else if self.admits_checked.contains(backend) && wanted.options.has("check") {
                Admit::Checked
            } else {
                Admit::Ready
            },
        })
    }

    /// A server that both have.
    fn keep(
        &mut self,
        op: impl Fn(&str, Change) -> Op,
        (name, desired): (&str, &Backend),
        server: &str,
        found: &RunningServer,
        wanted: &Effective,
    ) {
        let not_out = self.refuses.of(name, Kind::Maint);
        match found.state {
            State::Retired if found.awaits_check => return,
            State::Retired if !wanted.disabled => {
                let change = Change::Return(Return::of(wanted));
                return self.returns.push(op(server, change));
            }
            // It is the operator's again, who had disabled it.
            State::Retired => match not_out {
                Some(why) => self.by_reload(name, server, Kind::Maint, why),
                None => {
                    let agent = false;
                    self.weights.push(op(server, Change::Maint { agent }));
                }
            },
            State::OperatorMaint | State::OperatorDrain | State::Ready => {
                if let Some(why) = not_out.filter(|_| wanted.disabled && found.is_serving()) {
                    self.by_reload(name, server, Kind::Maint, why);
                }
            }
        }
        // What the file gives is not what the file and we have given it: ours to change, whoever has changed it since.
        let ours = self.weighted || wanted.weight != found.given || found.state == State::Retired;
        if wanted.weight_is_agents() || wanted.weight == found.weight || !ours {
            return;
        }
        // Sessions that its maint would end are not worth a queue.
        let kept = !wanted.options.has("on-marked-down");
        let change = Change::Weight {
            weight: wanted.weight,
            queue: found.state == State::Ready && found.weight == 0 && kept,
        };
        match self.refuses.weight(name, desired, found, wanted.weight) {
            Some(why) => self.by_reload(name, server, Kind::Weight, why),
            None => self.weights.push(op(server, change)),
        }
    }

    pub(super) fn finish(mut self) -> Plan {
        if let Some((backend, server, why)) = self.unadded.take() {
            let count = self.missing;
            self.reload(ReloadReason::ServersAdded {
                count,
                backend,
                server,
                why,
            });
        }
        if self.adds.len() > MANY && self.adds.len() > serving(self.running) {
            self.reload(ReloadReason::ManyAdded {
                count: self.adds.len(),
            });
        }
        let at_once = [self.readdressed, self.returns, self.weights, self.retires].concat();
        match self.reason {
            Some(reason) => {
                let same_structure = !matches!(reason, ReloadReason::Structure { .. });
                let meanwhile = if same_structure {
                    [self.adds, self.late].concat()
                } else {
                    Vec::new()
                };
                Plan::Reload {
                    reason,
                    first: at_once,
                    meanwhile,
                }
            }
            None => {
                let ops = [self.adds, at_once, self.late].concat();
                if ops.is_empty() {
                    Plan::Unchanged
                } else {
                    Plan::Runtime(ops)
                }
            }
        }
    }
}

/// The wanted servers that a change has reached, each with what the worker has.
fn wanted_of<'a>(
    reach: &Reach,
    running: &'a BTreeMap<String, RunningServer>,
    desired: &'a Backend,
) -> Vec<(&'a String, Option<&'a RunningServer>, &'a Effective)> {
    match reach {
        Reach::Backend => {
            let mut there = Walk::of(running);
            let wanted = desired.servers.iter();
            wanted
                .map(|(name, wanted)| (name, there.get(name), wanted))
                .collect()
        }
        Reach::Servers(names) => names
            .iter()
            .filter_map(|name| desired.servers.get_key_value(name))
            .map(|(name, wanted)| (name, running.get(name), wanted))
            .collect(),
    }
}

/// The servers in the worker that a change has reached, that may take requests, and that nobody wants. One that we took out
/// may, as long as its agent is listened to. An operator's maint takes none and is never touched.
fn unwanted_of<'a>(
    reach: &Reach,
    running: &'a BTreeMap<String, RunningServer>,
    desired: &Backend,
) -> Vec<&'a String> {
    let may_take = |found: &RunningServer| match found.state {
        State::Ready | State::OperatorDrain => true,
        State::Retired => found.agent == Some(true),
        State::OperatorMaint => false,
    };
    match reach {
        Reach::Backend => {
            let mut wanted = Walk::of(&desired.servers);
            let gone = running.iter().filter(|(name, found)| {
                wanted.get(*name).is_none_or(Effective::is_parked)
                    && may_take(found)
                    && !desired.structural.contains(*name)
            });
            gone.map(|(name, _)| name).collect()
        }
        Reach::Servers(names) => names
            .iter()
            .filter(|name| !wants(desired, name))
            .filter_map(|name| running.get_key_value(name))
            .filter(|(_, found)| may_take(found))
            .map(|(name, _)| name)
            .collect(),
    }
}

/// Whether a wanted server takes requests that the change has not reached.
fn unreached_stays(
    reach: &Reach,
    running: &BTreeMap<String, RunningServer>,
    desired: &Backend,
) -> bool {
    let Reach::Servers(names) = reach else {
        return false;
    };
    running.iter().any(|(name, found)| {
        found.state == State::Ready && wants(desired, name) && !names.contains(name)
    })
}

impl Return {
    fn of(wanted: &Effective) -> Self {
        Self {
            weight: (!wanted.weight_is_agents()).then_some(wanted.weight),
            checks: Checks::of(&wanted.options),
        }
    }
}

fn difference(found: &RunningServer, wanted: &Effective) -> Option<Difference> {
    if wanted.id.is_some_and(|id| id != found.id) {
        return Some(Difference::Id);
    }
    match &found.digest {
        None => Some(Difference::OptionsUnknown),
        Some(digest) if *digest != wanted.digest => Some(Difference::Options),
        Some(_) => None,
    }
}
