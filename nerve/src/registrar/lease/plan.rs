//! Plans what to write below one parent znode: wanted registrations and observed nodes in, changes out. Pure.
//!
//! Whose node is it? Ours = made by our session, or by a former one of this installation. Only those are swapped or
//! deleted; whatever else carries our name is left alone and reported. One exception: a node with a *fixed* name that
//! advertises our own address is swapped once per foreign session, because nothing else could take the name back.
//! Laws, tested: an applied plan leaves exactly one own node per present want and none per absent one; it never
//! deletes a foreign node (but for that swap); a second plan is empty; swaps of sequential nodes never leave a moment
//! without a node.
//!
//! Every deliberate removal is announced ([`Withdrawal`]): one transaction marks the node and deletes it. A recursive
//! watch delivers both events together, `NodeDataChanged` and `NodeDeleted`; that pair is what tells consumers that no
//! instance was lost (nobody need read the mark, and mostly nobody can any more). What a swap deletes is not announced:
//! the instance stays.

use std::collections::BTreeSet;

use smartstack_common::instance::withdrawn;

use crate::config::NodeType;
use crate::wanted::{Registration, Stance};

/// Who made a node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Owner {
    /// Our present session.
    Own,
    /// A session this installation had before; the node dies with it, sooner or later.
    Former,
    /// Somebody else's session; 0 for a node that is not ephemeral.
    Foreign(i64),
}

/// An observed node whose name claims to be ours.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Node {
    /// Name below the parent.
    pub(crate) name: String,
    /// Who made it.
    pub(crate) owner: Owner,
    /// Transaction that made it: the order of creation.
    pub(crate) czxid: i64,
    /// How often its data was set.
    pub(crate) version: i32,
    /// Its bytes.
    pub(crate) data: Vec<u8>,
}

/// One service's wish.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Want<'a> {
    /// Name of the service.
    pub(crate) service: &'a str,
    /// The node.
    pub(crate) registration: &'a Registration,
    /// What to do about it.
    pub(crate) stance: Stance,
}

/// One transaction: all of it happens or nothing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Change {
    /// The service it is for; `None` for the removal of nodes no service claims any more.
    pub(crate) service: Option<String>,
    /// The node to create. Sequential ones are created before the deletions, fixed ones after.
    pub(crate) create: Option<Create>,
    /// Names of the nodes to delete without a word: what they stand for lives on in another node.
    pub(crate) delete: Vec<String>,
    /// Nodes to delete on purpose, announced: their data is marked first, in the same transaction.
    pub(crate) withdraw: Vec<Withdrawal>,
    /// The foreign session whose fixed-name node is swapped.
    pub(crate) displaces: Option<i64>,
    /// Whether it replaces a node of a former session, which goes with that session: to wait would leave a gap.
    pub(crate) pressing: bool,
}

/// A node to withdraw.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Withdrawal {
    /// Its name.
    pub(crate) name: String,
    /// Its data's version as it was seen: another one means that somebody wrote to it since, and nothing happens.
    pub(crate) version: i32,
    /// Its data at the end: the payload with `available: false` and the reason.
    pub(crate) mark: Vec<u8>,
}

impl Withdrawal {
    fn new(node: &Node, reason: &dyn std::fmt::Display) -> Self {
        Self {
            name: node.name.clone(),
            version: node.version,
            mark: withdrawn(&node.data, &reason.to_string()),
        }
    }
}

impl Change {
    /// The names of all nodes it takes away.
    pub(crate) fn removed(&self) -> impl Iterator<Item = &str> {
        let withdrawn = self.withdraw.iter().map(|node| &*node.name);
        self.delete.iter().map(String::as_str).chain(withdrawn)
    }

    /// About how many bytes and operations a transaction of it has.
    #[must_use]
    pub(crate) fn size(&self) -> (usize, usize) {
        const OVERHEAD: usize = 256;
        let create = self
            .create
            .iter()
            .map(|c| c.prefix.len() + c.payload.len() + OVERHEAD);
        let delete = self.delete.iter().map(|name| name.len() + OVERHEAD);
        let withdraw = self
            .withdraw
            .iter()
            .map(|w| 2 * (w.name.len() + OVERHEAD) + w.mark.len());
        let operations = create.len() + delete.len() + 2 * withdraw.len();
        (create.chain(delete).chain(withdraw).sum(), operations)
    }
}

/// A node to create.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Create {
    /// Name, or its prefix for a sequential node.
    pub(crate) prefix: String,
    /// Sequential or fixed.
    pub(crate) node_type: NodeType,
    /// The bytes.
    pub(crate) payload: Vec<u8>,
}

/// Where a service stands, as observed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Standing {
    /// Name of the service.
    pub(crate) service: String,
    /// Names of its nodes, own and former.
    pub(crate) nodes: Vec<String>,
    /// The bytes of the last of them.
    pub(crate) payload: Option<Vec<u8>>,
    /// Exactly as wanted (for [`Stance::Leave`]: whatever is there).
    pub(crate) settled: bool,
    /// Why its fixed name cannot be had.
    pub(crate) conflict: Option<String>,
}

/// A node of somebody else under our name.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub(crate) struct Twin {
    /// Name of the node.
    pub(crate) node: String,
    /// Session that made it.
    #[serde(serialize_with = "hex")]
    pub(crate) owner: i64,
    /// Services whose address it advertises.
    #[serde(skip)]
    pub(crate) advertises: Vec<String>,
}

fn hex<S: serde::Serializer>(session: &i64, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(&format!("{session:#x}"))
}

/// What is to be written, and how things stand.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct Plan {
    /// Removals first.
    pub(crate) changes: Vec<Change>,
    /// One for each want, in their order.
    pub(crate) standings: Vec<Standing>,
    /// Left alone, to be reported.
    pub(crate) twins: Vec<Twin>,
}

/// Plans for one parent. `observed` holds every node below it whose name claims to be ours; `displaced` the foreign
/// sessions whose fixed-name node this session has swapped already.
#[must_use]
pub(crate) fn plan(wants: &[Want<'_>], observed: &[Node], displaced: &BTreeSet<i64>) -> Plan {
    let (assigned, surplus) = assign(wants, observed);
    let mut plan = Plan::default();
    if !surplus.is_empty() {
        plan.changes.push(Change {
            service: None,
            create: None,
            delete: Vec::new(),
            withdraw: surplus
                .iter()
                .map(|node| Withdrawal::new(node, &"removed from the configuration"))
                .collect(),
            displaces: None,
            pressing: false,
        });
    }
    for (want, nodes) in wants.iter().zip(assigned) {
        let (change, conflict) = plan_one(want, &nodes, observed, displaced);
        plan.standings.push(Standing {
            service: want.service.to_owned(),
            nodes: nodes.iter().map(|node| node.name.clone()).collect(),
            payload: nodes.last().map(|node| node.data.clone()),
            settled: change.is_none() && conflict.is_none(),
            conflict,
        });
        plan.changes.extend(change);
    }
    plan.changes.sort_by_key(|change| change.create.is_some());
    plan.twins = observed
        .iter()
        .filter_map(|node| match node.owner {
            Owner::Foreign(owner) => Some(Twin {
                node: node.name.clone(),
                owner,
                advertises: wants
                    .iter()
                    .filter(|want| want.registration.has_endpoint_of(&node.data))
                    .map(|want| want.service.to_owned())
                    .collect(),
            }),
            Owner::Own | Owner::Former => None,
        })
        .collect();
    plan
}

/// Gives each of our nodes to a want: by its exact form and bytes, by address, and what is left to wants without any
/// (their address changed). Of several that it fits, one that has none yet takes it, and of those first one that is to be
/// present, last one that is not: services may have equal payloads, what is withdrawn must not be the other's, and a want
/// that is met must not lose its node to one that only leaves what it finds. Returns also those nobody takes.
fn assign<'n>(wants: &[Want<'_>], observed: &'n [Node]) -> (Vec<Vec<&'n Node>>, Vec<&'n Node>) {
    let mut ours: Vec<&Node> = observed
        .iter()
        .filter(|node| !matches!(node.owner, Owner::Foreign(_)))
        .collect();
    // Own before former and older before younger, so that what is right already is found first and stays.
    ours.sort_by_key(|node| (node.owner == Owner::Former, node.czxid));
    let mut assigned: Vec<Vec<&Node>> = vec![Vec::new(); wants.len()];
    type Fits = fn(&Want<'_>, &Node) -> bool;
    let exactly: Fits = |want, node| want.registration.is_met_by(&node.name, &node.data);
    let by_address: Fits = |want, node| want.registration.has_endpoint_of(&node.data);
    for (fits, only_empty) in [
        (exactly, true),
        (by_address, false),
        (|want, _| !matches!(want.stance, Stance::Absent(_)), true),
    ] {
        ours.retain(|node| {
            let takers = (0..wants.len())
                .filter(|i| fits(&wants[*i], node))
                .filter(|i| !only_empty || assigned[*i].is_empty());
            let rank = |i: usize| match wants[i].stance {
                Stance::Present => 0,
                Stance::Keep => 1,
                Stance::Leave => 2,
                Stance::Absent(_) => 3,
            };
            match takers.min_by_key(|i| (assigned[*i].len(), rank(*i))) {
                Some(taker) => {
                    assigned[taker].push(node);
                    false
                }
                None => true,
            }
        });
    }
    (assigned, ours)
}

fn plan_one(
    want: &Want<'_>,
    nodes: &[&Node],
    observed: &[Node],
    displaced: &BTreeSet<i64>,
) -> (Option<Change>, Option<String>) {
    let registration = want.registration;
    let change = |create: Option<Create>, delete: Vec<String>, displaces| {
        let empty = create.is_none() && delete.is_empty();
        (!empty).then(|| Change {
            service: Some(want.service.to_owned()),
            pressing: create.is_some() && nodes.iter().any(|n| n.owner == Owner::Former),
            create,
            delete,
            withdraw: Vec::new(),
            displaces,
        })
    };
    let names = |keep: Option<&Node>| -> Vec<String> {
        nodes
            .iter()
            .filter(|n| keep.is_none_or(|k| k.name != n.name))
            .map(|n| n.name.clone())
            .collect()
    };
    match want.stance {
        Stance::Leave => return (None, None),
        Stance::Absent(_) if nodes.is_empty() => return (None, None),
        Stance::Absent(reason) => {
            let withdraw = nodes
                .iter()
                .map(|node| Withdrawal::new(node, &reason))
                .collect();
            let change = Change {
                service: Some(want.service.to_owned()),
                create: None,
                delete: Vec::new(),
                withdraw,
                displaces: None,
                pressing: false,
            };
            return (Some(change), None);
        }
        Stance::Keep if nodes.is_empty() => return (None, None),
        Stance::Keep | Stance::Present => {}
    }
    let right = nodes
        .iter()
        .find(|n| n.owner == Owner::Own && registration.is_met_by(&n.name, &n.data));
    if let Some(right) = right {
        return (change(None, names(Some(right)), None), None);
    }
    let create = Create {
        prefix: registration.prefix.clone(),
        node_type: registration.node_type,
        payload: registration.payload.clone(),
    };
    let mut delete = names(None);
    let blocking = observed.iter().find_map(|node| match node.owner {
        Owner::Foreign(owner) if node.name == registration.prefix => Some((node, owner)),
        _ => None,
    });
    let Some((blocking, owner)) =
        blocking.filter(|_| registration.node_type == NodeType::Ephemeral)
    else {
        return (change(Some(create), delete, None), None);
    };
    let conflict = |why: &str| {
        (
            None,
            Some(format!(
                "`{}` is held by session {owner:#x}, {why}",
                blocking.name
            )),
        )
    };
    if !registration.has_endpoint_of(&blocking.data) {
        return conflict("which advertises another address: two hosts with one instance_id");
    }
    if displaced.contains(&owner) {
        return conflict("which took it back: two nerves with one configuration");
    }
    delete.push(blocking.name.clone());
    (change(Some(create), delete, Some(owner)), None)
}

#[cfg(test)]
mod tests;
