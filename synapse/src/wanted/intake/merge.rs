//! Several sets made one. Pure.
//!
//! Each address comes from one source: one that agrees with its ensemble before one that does not, registered before held,
//! then in order. Znodes are named `<source>/<znode>`, and their payloads brought into one form.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use serde_json::{Map, Value, json};
use smartstack_common::instance::Instance;

use crate::config::Decode;
use crate::config::sources::Watched;
use crate::model::member::Address;
use crate::model::source::{Child, Children};
use crate::sources::decode;
use crate::wanted::guard::{Held, Registry};

/// What one source has to give.
pub(super) struct Contribution<'a> {
    pub(super) watched: &'a Watched,
    /// It agrees with its ensemble.
    pub(super) fresh: bool,
    /// It does, or did a moment ago.
    pub(super) connected: bool,
    pub(super) children: &'a Children,
    pub(super) registry: &'a Registry,
    pub(super) held: Vec<(&'a Address, &'a Held)>,
    /// Whether it may contribute an address.
    pub(super) allowed: Box<dyn Fn(&Address) -> bool + 'a>,
}

/// A set, and which of its znodes are only held.
#[derive(Debug, Clone)]
pub(super) struct Merged {
    pub(super) children: Arc<Children>,
    pub(super) held: Arc<BTreeSet<String>>,
}

/// The name of a source's znode among several sources.
pub(super) fn label(source: &str, znode: &str) -> String {
    match source {
        "" => znode.to_owned(),
        source => format!("{source}/{znode}"),
    }
}

/// One source's children and what is held of it.
pub(super) fn with_held<'a>(
    children: &Arc<Children>,
    held: impl Iterator<Item = (&'a Address, &'a Held)>,
) -> Merged {
    let mut all = Arc::clone(children);
    let set = Arc::make_mut(&mut all);
    let mut names = BTreeSet::new();
    for (_, held) in held {
        let mut name = held.member.znode.to_string();
        if set.contains_key(&name) {
            // The registry was emptied and counts from the beginning again.
            name = format!("held/{name}");
        }
        set.insert(name.clone(), held.member.child.clone());
        names.insert(name);
    }
    Merged {
        children: all,
        held: Arc::new(names),
    }
}

/// The first source that is connected and has something; else the first that has something; else the first.
pub(super) fn first(mut all: Vec<Contribution<'_>>) -> Vec<Contribution<'_>> {
    let has =
        |c: &Contribution<'_>| !c.held.is_empty() || c.registry.addresses().any(|a| (c.allowed)(a));
    let chosen = all
        .iter()
        .position(|c| c.connected && has(c))
        .or_else(|| all.iter().position(has))
        .unwrap_or(0);
    if all.is_empty() {
        return all;
    }
    vec![all.swap_remove(chosen)]
}

/// What any source has.
pub(super) fn union(all: &[Contribution<'_>]) -> Merged {
    let mut order: Vec<(usize, &Contribution<'_>)> = all.iter().enumerate().collect();
    order.sort_by_key(|(_, c)| !c.fresh);
    let mut taken: BTreeMap<Address, usize> = BTreeMap::new();
    let mut children = Children::new();
    for (index, source) in &order {
        for (znode, child) in source.children {
            if let Some(address) = source.registry.address_of(znode) {
                // Twins within one source are the funnel's business.
                let of_another = taken.get(address).is_some_and(|by| by != index);
                if of_another || !(source.allowed)(address) {
                    continue;
                }
                taken.insert(address.clone(), *index);
            }
            if let Some(child) = one_form(znode, child, source.watched) {
                children.insert(label(&source.watched.name, znode), child);
            }
        }
    }
    let mut held_names = BTreeSet::new();
    for (index, source) in &order {
        for (address, held) in &source.held {
            if taken.contains_key(*address) {
                continue;
            }
            taken.insert((*address).clone(), *index);
            let member = &held.member;
            let Some(child) = one_form(&member.znode, &member.child, source.watched) else {
                continue;
            };
            let mut name = label(&source.watched.name, &member.znode);
            if children.contains_key(&name) {
                name = format!("held/{name}");
            }
            children.insert(name.clone(), child);
            held_names.insert(name);
        }
    }
    Merged {
        children: Arc::new(children),
        held: Arc::new(held_names),
    }
}

/// The payload as nerve writes it, whatever its source's encoding; `None` when a label filter of the source says no.
fn one_form(znode: &str, child: &Child, watched: &Watched) -> Option<Child> {
    let plain = watched.decode == Decode::Nerve && !znode.starts_with("base64_");
    if plain && watched.label_filters.is_empty() {
        return Some(child.clone());
    }
    let Ok(instance) = decode::child(znode, &child.data, &watched.decode) else {
        return Some(child.clone());
    };
    let passes = watched.label_filters.iter().all(|filter| {
        let value = instance.labels.get(&filter.label).unwrap_or(&Value::Null);
        (*value == filter.value) == filter.equals
    });
    if !passes {
        return None;
    }
    if plain {
        return Some(child.clone());
    }
    Some(Child {
        data: payload(instance).to_string().into_bytes().into(),
        ..*child
    })
}

fn payload(instance: Instance) -> Value {
    let labels: Map<String, Value> = instance.labels.into_iter().collect();
    json!({
        "host": instance.host,
        "port": instance.port,
        "name": instance.name,
        "weight": instance.weight,
        "haproxy_server_options": instance.haproxy_server_options,
        "labels": labels,
        "available": instance.available,
    })
}
