//! The funnel: from what a source says to the servers a service should have.
//!
//! Pure: the same input gives the same output. Order of the steps as in Ruby (`lib/synapse/service_watcher/base/base.rb`,
//! `set_backends` and `backends`): default servers joined, port override, duplicates, fallback to the default servers or
//! to the last set, label filters, leader election. Each znode stands for itself: one that is refused never affects
//! another. Called by the reconciler, for one service at a time.
//!
//! Where it differs from Ruby: of duplicates the one with the highest sequence number stays (the newest registration),
//! and they are looked for a second time by final server name; leader election with a missing id elects nobody.
//! Kept although it surprises: the port override does not apply to default servers that stand in for an empty registry;
//! default servers beat the previous set; filters come last, so that they can leave nothing.

mod steps;
#[cfg(test)]
mod tests;

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use crate::config::Service;
use crate::model::server::{Rejected, Server};
use crate::model::sorted::Walk;
use crate::model::source::{Child, Children, SourceView};
use crate::sources::decode;
use crate::sources::names;
use crate::wanted::gate::{Candidate, Gate};
use steps::{Entrant, Remarks, default_label, elect, filter, unique};

pub(crate) use steps::discovery_order;

/// Everything the funnel looks at.
#[derive(Clone, Copy)]
pub struct Input<'a> {
    /// The service.
    pub service: &'a Service,
    /// Its source; the default value for a service without one.
    pub view: &'a SourceView,
    /// Znodes of the view that the registry does not have any more: the guard holds them.
    pub held: &'a BTreeSet<String>,
    /// What the last run for this service returned as [`ServiceDesired::previous`].
    pub previous: &'a Previous,
    /// Addresses of hosts that are names; `None` = never resolved.
    pub resolved: &'a dyn Fn(&str) -> Option<IpAddr>,
    /// Hosts that are names and have not been looked up yet: nobody can say that they do not resolve.
    pub awaited: &'a dyn Fn(&str) -> bool,
    /// `haproxy.allowed_server_options`.
    pub allowed_options: &'a [String],
    /// Why a server at this address would be sent its own requests; `None` = it would not.
    pub circle: &'a dyn Fn(IpAddr, u16) -> Option<String>,
    /// What earlier runs with the same configuration have found. Changes nothing but the time it takes.
    pub memo: &'a RefCell<Memo>,
}

/// The last input that gave servers: what `use_previous_backends` falls back to. The caller keeps it.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum Previous {
    /// There was none.
    #[default]
    None,
    /// Registry data; it runs through the funnel again, so that configuration edits apply to it.
    Children(Arc<Children>),
    /// Servers found elsewhere (a running haproxy, its file): already filtered, taken as they are.
    Servers(Arc<[Arc<Server>]>),
}

/// Where the servers of a service come from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Origin {
    /// The registry, read by this process.
    Live,
    /// The registry as remembered: not yet confirmed by this process.
    Snapshot,
    /// The default servers, because nothing is registered.
    Defaults,
    /// The last set, because nothing is registered and `use_previous_backends` is true.
    Held,
}

impl Origin {
    /// As in `/status`.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Live => "live",
            Self::Snapshot => "snapshot",
            Self::Defaults => "defaults",
            Self::Held => "held",
        }
    }
}

/// Something worth telling about a znode that is used all the same.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Note {
    /// The znode, or `default_servers[N]`.
    pub znode: String,
    /// In words.
    pub text: String,
}

/// What the funnel gives.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServiceDesired {
    /// In order of discovery: by sequence number and znode, then the default servers. Names are unique.
    pub servers: Vec<Arc<Server>>,
    /// Entries that are not used, and why; sorted.
    pub rejected: Vec<Rejected>,
    /// Duplicates; sorted.
    pub notes: Vec<Note>,
    /// Options and weights of entries that are used without them; sorted.
    pub left_out: Vec<Note>,
    /// Znodes that say `available: false`, or are dead members of a serverset.
    pub withdrawn: Vec<String>,
    /// Servers that a label filter took away, or that are not the leader: NAME and why.
    pub filtered: Vec<(String, String)>,
    /// NAMEs of servers that are only held.
    pub held: BTreeSet<String>,
    /// Hosts in the registry that are names, also of entries that are not used.
    pub names: BTreeSet<String>,
    /// Where the servers come from.
    pub origin: Origin,
    /// To be kept by the caller and given back next time.
    pub previous: Previous,
}

/// Runs the funnel for one service.
#[must_use]
pub fn funnel(input: Input<'_>) -> ServiceDesired {
    let service = input.service;
    let mut remarks = Remarks::default();
    remarks
        .rejected
        .extend(input.view.skipped.iter().map(|(znode, reason)| Rejected {
            znode: znode.clone(),
            reason: reason.clone(),
        }));

    let discovered = discover(&input, &input.view.children, &mut remarks);
    let previous = if discovered.is_empty() {
        input.previous.clone()
    } else {
        Previous::Children(Arc::clone(&input.view.children))
    };
    let source = if input.view.confirmed {
        Origin::Live
    } else {
        Origin::Snapshot
    };

    let found = assemble(&input, discovered, &mut remarks);
    let (entrants, origin) = if !found.is_empty() {
        (found, source)
    } else if !service.default_servers.is_empty() {
        // Raw, without the port override, as in Ruby.
        (
            unique(defaults(&input, false, &mut remarks), &mut remarks),
            Origin::Defaults,
        )
    } else if service.use_previous_backends {
        match &previous {
            Previous::None => (Vec::new(), source),
            Previous::Children(children) => {
                // What is wrong with remembered znodes was said when they were there.
                let mut unsaid = Remarks::default();
                let remembered = discover(&input, children, &mut unsaid);
                remarks.names.append(&mut unsaid.names);
                (assemble(&input, remembered, &mut unsaid), Origin::Held)
            }
            Previous::Servers(servers) => {
                let held = servers.iter().map(|s| s.name.clone()).collect();
                return finish(servers.to_vec(), remarks, (Origin::Held, held), previous);
            }
        }
    } else {
        (Vec::new(), source)
    };

    let filtered = filter(service, entrants, &mut remarks);
    let elected = if service.leader_election {
        elect(filtered, &mut remarks)
    } else {
        filtered
    };
    let held = |e: &&Entrant| e.held || origin == Origin::Held;
    let held: BTreeSet<String> = elected
        .iter()
        .filter(held)
        .map(|e| e.server.name.clone())
        .collect();
    let origin = match origin {
        Origin::Live if !held.is_empty() && held.len() == elected.len() => Origin::Held,
        origin => origin,
    };
    finish(
        elected.into_iter().map(|entrant| entrant.server).collect(),
        remarks,
        (origin, held),
        previous,
    )
}

fn finish(
    servers: Vec<Arc<Server>>,
    mut remarks: Remarks,
    (origin, held): (Origin, BTreeSet<String>),
    previous: Previous,
) -> ServiceDesired {
    remarks.rejected.sort();
    remarks.notes.sort();
    remarks.left_out.sort();
    let Remarks {
        rejected,
        notes,
        left_out,
        withdrawn,
        filtered,
        names,
    } = remarks;
    ServiceDesired {
        servers,
        rejected,
        notes,
        left_out,
        withdrawn,
        filtered,
        held,
        names,
        origin,
        previous,
    }
}

/// What examining a child gave.
#[derive(Debug, Clone)]
enum Found {
    Withdrawn,
    Rejected(String),
    /// This host's first lookup has not ended.
    Awaited(String),
    Used(Entrant, Arc<[String]>),
}

/// What was found in the children of a large service: those that have not changed are not examined again. Valid for one
/// configuration. Kept by the caller; what depends on more than the child (a host that is a name) is not in it.
#[derive(Debug, Default)]
pub struct Memo(BTreeMap<String, (Arc<[u8]>, Found)>);

/// Services with fewer children are examined whole: that is quick, and the memory is worth more.
const WORTH_A_MEMO: usize = 100;

impl Memo {
    fn keep(&mut self, children: &Children, examined: Vec<(String, Arc<[u8]>, Found)>) {
        if children.len() < WORTH_A_MEMO {
            return self.0.clear();
        }
        for (znode, data, found) in examined {
            self.0.insert(znode, (data, found));
        }
        if self.0.len() > 2 * children.len() {
            self.0.retain(|znode, _| children.contains_key(znode));
        }
    }
}

/// Examines one child, with the port override.
fn examine(input: &Input<'_>, znode: &str, child: &Child, names: &mut BTreeSet<String>) -> Found {
    let gate = Gate {
        resolved: input.resolved,
        allowed_options: input.allowed_options,
    };
    let decode = crate::config::sources::decode(&input.service.discovery);
    let instance = match decode::child(znode, &child.data, decode) {
        Ok(instance) => instance,
        Err(reason) => return Found::Rejected(reason),
    };
    if names::is_name(&instance.host) {
        names.insert(instance.host.clone());
    }
    if !instance.available {
        return Found::Withdrawn;
    }
    let port = input.service.backend_port_override.unwrap_or(instance.port);
    match gate.admit(&Candidate::from_instance(znode, &instance, port)) {
        Err(_) if (input.awaited)(&instance.host) => Found::Awaited(instance.host),
        Err(reason) => Found::Rejected(reason),
        Ok((server, left_out)) => {
            let left_out = instance.weight_problem.into_iter().chain(left_out);
            let entrant = Entrant::new(server, instance.name.map(Arc::from), instance.labels);
            Found::Used(entrant, left_out.collect())
        }
    }
}

/// The usable entries among the children.
fn discover(input: &Input<'_>, children: &Children, remarks: &mut Remarks) -> Vec<Entrant> {
    let mut entrants = Vec::with_capacity(children.len());
    let mut examined = Vec::new();
    let mut memo = input.memo.borrow_mut();
    let mut known = Walk::of(&memo.0);
    for (znode, child) in children {
        let found = match known.get(znode) {
            Some((data, found)) if Arc::ptr_eq(data, &child.data) => found.clone(),
            _ => {
                let found = examine(input, znode, child, &mut remarks.names);
                let literal = |e: &Entrant| e.server.host.parse::<IpAddr>().is_ok();
                if matches!(&found, Found::Used(entrant, _) if literal(entrant)) {
                    examined.push((znode.clone(), Arc::clone(&child.data), found.clone()));
                }
                found
            }
        };
        // Not in the memo: it depends on other services.
        let circle = match &found {
            Found::Used(entrant, _) => (input.circle)(entrant.server.address, entrant.server.port),
            Found::Withdrawn | Found::Rejected(_) | Found::Awaited(_) => None,
        };
        match circle.map_or(found, Found::Rejected) {
            Found::Withdrawn => remarks.withdrawn.push(znode.clone()),
            Found::Rejected(reason) => remarks.rejected.push(Rejected {
                znode: znode.clone(),
                reason,
            }),
            Found::Awaited(host) => remarks.awaits(znode.clone(), &host),
            Found::Used(entrant, left_out) => {
                let left_out = left_out.iter().cloned();
                remarks.left_out.extend(left_out.map(|text| Note {
                    znode: znode.clone(),
                    text,
                }));
                entrants.push(Entrant {
                    held: input.held.contains(znode),
                    czxid: child.czxid,
                    ..entrant
                });
            }
        }
    }
    memo.keep(children, examined);
    // Those with one sequence number are in the order of their znodes already.
    entrants.sort_by_cached_key(|e| discovery_order(&e.server).0);
    entrants
}

/// Joins the default servers when they are kept, and removes duplicates.
fn assemble(
    input: &Input<'_>,
    mut discovered: Vec<Entrant>,
    remarks: &mut Remarks,
) -> Vec<Entrant> {
    if input.service.keep_default_servers {
        discovered.extend(defaults(input, true, remarks));
    }
    unique(discovered, remarks)
}

fn defaults(input: &Input<'_>, override_port: bool, remarks: &mut Remarks) -> Vec<Entrant> {
    let gate = Gate {
        resolved: input.resolved,
        allowed_options: input.allowed_options,
    };
    let mut entrants = Vec::new();
    for (index, default) in input.service.default_servers.iter().enumerate() {
        let port = input
            .service
            .backend_port_override
            .filter(|_| override_port)
            .unwrap_or(default.port);
        let admitted = gate.admit(&Candidate::from_default(default, port));
        let admitted = admitted.and_then(|(server, notes)| {
            match (input.circle)(server.address, server.port) {
                Some(circle) => Err(circle),
                None => Ok((server, notes)),
            }
        });
        match admitted {
            Err(_) if (input.awaited)(&default.host) => {
                remarks.awaits(default_label(index), &default.host);
            }
            Err(reason) => remarks.rejected.push(Rejected {
                znode: default_label(index),
                reason,
            }),
            Ok((server, left_out)) => {
                remarks
                    .left_out
                    .extend(left_out.into_iter().map(|text| Note {
                        znode: default_label(index),
                        text,
                    }));
                let published = default.name.as_deref().map(Arc::from);
                entrants.push(Entrant {
                    default: Some(index),
                    ..Entrant::new(server, published, default.labels.clone())
                });
            }
        }
    }
    entrants
}
