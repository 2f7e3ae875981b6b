//! From what haproxy runs and what it should run to what has to be done: nothing, runtime commands, or a reload.
//!
//! Pure. A plan is data: it can be printed, replayed and tested. Law: applying `plan(a, b)` to `a` gives `b`, except for
//! servers in maint that await their deletion and for the operator's states; `plan(x, x)` is `Unchanged`.
//! Called by the reconciler for each change and by the audit; executed through [`crate::runtime_api`].
//!
//! Who owns what: membership and address belong to the registry, the weight too unless an agent-check sets it, maint and
//! drain to the operator. Our removal is `weight 0` and maint; maint with another weight is the operator's and is never
//! undone.

use std::collections::BTreeMap;
use std::fmt;
use std::net::SocketAddr;
use std::sync::Arc;

use crate::effective::{Backend, Effective};
use crate::generation::Generation;

mod reason;

pub use reason::{Difference, ReloadReason};

/// What haproxy should run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Desired {
    /// Of the rendered structure.
    pub generation: Generation,
    /// Every backend of the file that holds our servers or may.
    pub backends: BTreeMap<String, Arc<Backend>>,
}

/// What the current worker runs. Only what was read back or confirmed stands here.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Running {
    /// Of the loaded file; `None` = a file without our mark.
    pub generation: Option<Generation>,
    /// All backends of the process, ours or not.
    pub backends: BTreeMap<String, BTreeMap<String, RunningServer>>,
}

/// A server as the worker shows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RunningServer {
    /// `None` = not resolved, or no address.
    pub address: Option<SocketAddr>,
    /// haproxy's id.
    pub id: u32,
    /// Configured or set weight, 0..256 (`srv_uweight`).
    pub weight: u16,
    /// Administrative state.
    pub state: State,
    /// Digest of the options it was loaded with, by this worker; `None` = not known.
    pub digest: Option<String>,
}

/// Administrative state of a server, by owner. Up and down (the checks') is not part of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum State {
    /// Takes requests if its checks pass.
    Ready,
    /// Taken out by us: maint and weight 0. Awaits its return or its deletion.
    Retired,
    /// Put in maint by an operator, on the socket or by `disabled` in the file.
    OperatorMaint,
    /// Drained by an operator.
    OperatorDrain,
}

/// One runtime change of one server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Op {
    /// Its backend.
    pub backend: String,
    /// Its name.
    pub server: String,
    /// What happens to it.
    pub change: Change,
}

/// What happens to a server.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Change {
    /// Weight 0, then maint: no new requests, requests in flight finish.
    Retire,
    /// A retired server takes requests again; `None` = its initial weight (an agent sets it).
    Return {
        /// Weight to set first.
        weight: Option<u16>,
    },
    /// Another weight, or of a retired server that an operator had put in maint: back to being the operator's.
    Weight {
        /// 0..256.
        weight: u16,
    },
}

/// What has to be done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Plan {
    /// Nothing.
    Unchanged,
    /// These commands, in this order.
    Runtime(Vec<Op>),
    /// A reload.
    Reload {
        /// Why, for status and logs.
        reason: ReloadReason,
        /// What is done at once and does not wait for the reload: removals and weights.
        first: Vec<Op>,
    },
}

impl fmt::Display for Op {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            backend,
            server,
            change,
        } = self;
        match change {
            Change::Retire => write!(f, "retire {backend}/{server}"),
            Change::Return {
                weight: Some(weight),
            } => write!(f, "return {backend}/{server} weight {weight}"),
            Change::Return { weight: None } => write!(f, "return {backend}/{server}"),
            Change::Weight { weight } => write!(f, "weight {backend}/{server} {weight}"),
        }
    }
}

/// Compares everything.
#[must_use]
pub fn plan(running: &Running, desired: &Desired) -> Plan {
    plan_backends(running, desired, desired.backends.iter())
}

/// Compares only the named backends (and the generation): for a change whose reach is known.
#[must_use]
pub fn plan_some<'a>(
    running: &Running,
    desired: &Desired,
    backends: impl IntoIterator<Item = &'a String>,
) -> Plan {
    plan_backends(
        running,
        desired,
        backends
            .into_iter()
            .filter_map(|name| desired.backends.get_key_value(name)),
    )
}

fn plan_backends<'a>(
    running: &Running,
    desired: &Desired,
    backends: impl Iterator<Item = (&'a String, &'a Arc<Backend>)>,
) -> Plan {
    let mut draft = Draft::default();
    if running.generation.as_ref() != Some(&desired.generation) {
        draft.reload(ReloadReason::Structure {
            running: running.generation.clone(),
            desired: desired.generation.clone(),
        });
    }
    for (name, backend) in backends {
        match running.backends.get(name) {
            Some(servers) => draft.compare(name, servers, backend),
            // `show servers state` does not name a backend without servers.
            None => draft.compare(name, &BTreeMap::new(), backend),
        }
    }
    draft.finish()
}

/// A plan being made. Ops go out in the order of the fields.
#[derive(Default)]
struct Draft {
    returns: Vec<Op>,
    weights: Vec<Op>,
    retires: Vec<Op>,
    /// Removals that wait for the reload because they would empty their backend before its new servers are there.
    waiting: bool,
    added: usize,
    first_added: Option<(String, String)>,
    reason: Option<ReloadReason>,
}

impl Draft {
    fn reload(&mut self, reason: ReloadReason) {
        self.reason.get_or_insert(reason);
    }

    fn compare(
        &mut self,
        name: &str,
        running: &BTreeMap<String, RunningServer>,
        desired: &Backend,
    ) {
        let op = |server: &str, change| Op {
            backend: name.to_owned(),
            server: server.to_owned(),
            change,
        };
        let mut gains = 0_usize;
        // Servers that keep taking requests whatever becomes of the others.
        let mut stays = desired
            .structural
            .iter()
            .any(|s| running.get(s).is_some_and(|s| s.state == State::Ready));
        for (server, wanted) in &desired.servers {
            let Some(found) = running.get(server) else {
                gains += 1;
                self.added += 1;
                self.first_added
                    .get_or_insert_with(|| (name.to_owned(), server.clone()));
                continue;
            };
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
            stays |=
                found.state == State::Ready || (found.state == State::Retired && !wanted.disabled);
            self.keep(op, server, found, wanted);
        }
        let gone = |(server, found): &(&String, &RunningServer)| {
            !desired.servers.contains_key(*server)
                && !desired.structural.contains(*server)
                // An operator's maint takes no requests and is never touched.
                && matches!(found.state, State::Ready | State::OperatorDrain)
        };
        let gone: Vec<&String> = running
            .iter()
            .filter(gone)
            .map(|(server, _)| server)
            .collect();
        match gone.first() {
            None => {}
            Some(server) if desired.unreadable => {
                self.reload(ReloadReason::RemovalUnsure {
                    backend: name.to_owned(),
                    server: (*server).clone(),
                });
            }
            Some(_) if gains > 0 && !stays => self.waiting = true,
            Some(_) => self
                .retires
                .extend(gone.into_iter().map(|server| op(server, Change::Retire))),
        }
    }

    /// A server that both have.
    fn keep(
        &mut self,
        op: impl Fn(&str, Change) -> Op,
        server: &str,
        found: &RunningServer,
        wanted: &Effective,
    ) {
        let weight = (!wanted.weight_is_agents()).then_some(wanted.weight);
        match found.state {
            State::Retired if !wanted.disabled => {
                self.returns.push(op(server, Change::Return { weight }))
            }
            // Weight above 0 makes it the operator's again, who had disabled it.
            State::Retired => self.weights.extend((wanted.weight > 0).then(|| {
                op(
                    server,
                    Change::Weight {
                        weight: wanted.weight,
                    },
                )
            })),
            // Weight 0 in maint would read as our removal.
            State::OperatorMaint if wanted.weight == 0 => {}
            State::OperatorMaint | State::OperatorDrain | State::Ready => {
                let other = weight.filter(|w| *w != found.weight);
                self.weights
                    .extend(other.map(|weight| op(server, Change::Weight { weight })));
            }
        }
    }

    fn finish(mut self) -> Plan {
        if let Some((backend, server)) = self.first_added.take() {
            let count = self.added;
            self.reload(ReloadReason::ServersAdded {
                count,
                backend,
                server,
            });
        }
        debug_assert!(
            !self.waiting || self.reason.is_some(),
            "only a reload can be waited for"
        );
        let ops: Vec<Op> = [self.returns, self.weights, self.retires]
            .into_iter()
            .flatten()
            .collect();
        match self.reason {
            Some(reason) => Plan::Reload { reason, first: ops },
            None if ops.is_empty() => Plan::Unchanged,
            None => Plan::Runtime(ops),
        }
    }
}

fn difference(found: &RunningServer, wanted: &Effective) -> Option<Difference> {
    if found.address != Some(wanted.address) {
        return Some(Difference::Address);
    }
    if wanted.id.is_some_and(|id| id != found.id) {
        return Some(Difference::Id);
    }
    match &found.digest {
        None => Some(Difference::OptionsUnknown),
        Some(digest) if *digest != wanted.digest => Some(Difference::Options),
        Some(_) => None,
    }
}

impl Running {
    /// What the worker runs once it has confirmed the operation. Servers it does not have are left alone.
    pub fn apply(&mut self, op: &Op) {
        let Some(server) = self
            .backends
            .get_mut(&op.backend)
            .and_then(|b| b.get_mut(&op.server))
        else {
            return;
        };
        match op.change {
            Change::Retire => (server.weight, server.state) = (0, State::Retired),
            Change::Return { weight } => {
                server.weight = weight.unwrap_or(server.weight);
                server.state = State::Ready;
            }
            Change::Weight { weight } => {
                server.weight = weight;
                if server.state == State::Retired && weight > 0 {
                    server.state = State::OperatorMaint;
                }
            }
        }
    }

    /// What a worker runs right after loading the file. Backends that the file does not name are gone; structural
    /// servers are not part of it until they are read back.
    #[must_use]
    pub fn loaded(desired: &Desired) -> Self {
        let server = |wanted: &Effective| RunningServer {
            address: Some(wanted.address),
            id: wanted.id.unwrap_or_default(),
            weight: wanted.weight,
            state: if wanted.disabled {
                State::OperatorMaint
            } else {
                State::Ready
            },
            digest: Some(wanted.digest.clone()),
        };
        let backends = desired.backends.iter().map(|(name, backend)| {
            (
                name.clone(),
                backend
                    .servers
                    .iter()
                    .map(|(name, wanted)| (name.clone(), server(wanted)))
                    .collect(),
            )
        });
        Self {
            generation: Some(desired.generation.clone()),
            backends: backends.collect(),
        }
    }
}

#[cfg(test)]
mod tests;
