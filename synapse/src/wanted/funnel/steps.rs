//! The steps of the funnel after discovery: duplicates, label filters, leader election; and what they report.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::hash::{DefaultHasher, Hash, Hasher as _};
use std::sync::Arc;

use serde_json::Value;

use super::Note;
use crate::config::{LabelFilter, Service};
use crate::model::server::{Rejected, Server};

/// A server on its way through the funnel, with what only the funnel needs.
#[derive(Debug, Clone)]
pub(super) struct Entrant {
    pub(super) server: Arc<Server>,
    /// The published name before mapping: part of Ruby's triple.
    pub(super) published: Option<Arc<str>>,
    pub(super) labels: Arc<BTreeMap<String, Value>>,
    /// Transaction that created the znode.
    pub(super) czxid: i64,
    /// Position in `default_servers`.
    pub(super) default: Option<usize>,
    /// The registry does not have it any more.
    pub(super) held: bool,
    /// Hashes of what may be in one service only once: its triple, its name.
    pub(super) hashes: [u64; 2],
}

fn hash(value: impl Hash) -> u64 {
    let mut hasher = DefaultHasher::new();
    value.hash(&mut hasher);
    hasher.finish()
}

impl Entrant {
    pub(super) fn new(
        server: Server,
        published: Option<Arc<str>>,
        labels: BTreeMap<String, Value>,
    ) -> Self {
        let mut entrant = Self {
            server: Arc::new(server),
            published,
            labels: Arc::new(labels),
            czxid: 0,
            default: None,
            held: false,
            hashes: [0; 2],
        };
        entrant.hashes = [hash(entrant.triple()), hash(&entrant.server.name)];
        entrant
    }

    fn triple(&self) -> (&str, u16, &str) {
        let published = self.published.as_deref().unwrap_or("");
        (&self.server.host, self.server.port, published)
    }

    /// Among duplicates the greatest stays: registry before defaults, then the newest.
    fn rank(&self) -> impl Ord + '_ {
        (
            self.default.is_none(),
            self.server.sequence,
            self.czxid,
            self.server.znode.as_deref(),
            std::cmp::Reverse(self.default),
        )
    }

    fn label(&self) -> String {
        match (&self.server.znode, self.default) {
            (Some(znode), _) => znode.clone(),
            (None, Some(index)) => default_label(index),
            (None, None) => self.server.name.clone(),
        }
    }

    fn passes(&self, filter: &LabelFilter) -> bool {
        let value = self.labels.get(&filter.label).unwrap_or(&Value::Null);
        (*value == filter.value) == filter.equals
    }
}

/// What is reported besides the servers.
#[derive(Default)]
pub(super) struct Remarks {
    pub(super) rejected: Vec<Rejected>,
    pub(super) notes: Vec<Note>,
    pub(super) left_out: Vec<Note>,
    pub(super) withdrawn: Vec<String>,
    pub(super) filtered: Vec<(String, String)>,
    /// Hosts that are names.
    pub(super) names: BTreeSet<String>,
}

impl Remarks {
    pub(super) fn note(&mut self, znode: String, text: String) {
        self.notes.push(Note { znode, text });
    }

    pub(super) fn awaits(&mut self, znode: String, host: &str) {
        self.note(
            znode,
            format!("not used yet: host `{host}` is being looked up"),
        );
    }
}

/// By sequence number, unnumbered ones last, then by znode.
pub(crate) fn discovery_order(server: &Server) -> (u64, Option<&str>) {
    (server.sequence.unwrap_or(u64::MAX), server.znode.as_deref())
}

pub(super) fn default_label(index: usize) -> String {
    format!("default_servers[{index}]")
}

/// One entrant for each (host, port, published name), then one for each server name. Order is kept.
pub(super) fn unique(entrants: Vec<Entrant>, remarks: &mut Remarks) -> Vec<Entrant> {
    if all_differ(&entrants) {
        return entrants;
    }
    let best = strongest(&entrants, Entrant::triple, remarks);
    let entrants = keep(entrants, &best);
    let best = strongest(&entrants, |e| &e.server.name, remarks);
    keep(entrants, &best)
}

/// Whether no two can be the same: nearly always so, and quickly known.
fn all_differ(entrants: &[Entrant]) -> bool {
    [0, 1].into_iter().all(|which| {
        let mut hashes: Vec<u64> = entrants.iter().map(|e| e.hashes[which]).collect();
        hashes.sort_unstable();
        hashes.windows(2).all(|pair| pair[0] != pair[1])
    })
}

/// Which entrants stay when only one may have each key.
fn strongest<'a, K: Eq + Hash>(
    entrants: &'a [Entrant],
    key: impl Fn(&'a Entrant) -> K,
    remarks: &mut Remarks,
) -> Vec<bool> {
    let mut holders: HashMap<K, usize> = HashMap::with_capacity(entrants.len());
    let mut stays = vec![true; entrants.len()];
    for (index, entrant) in entrants.iter().enumerate() {
        let holder = holders.entry(key(entrant)).or_insert(index);
        if *holder == index {
            continue;
        }
        let loser = if entrant.rank() > entrants[*holder].rank() {
            std::mem::replace(holder, index)
        } else {
            index
        };
        stays[loser] = false;
        let text = format!(
            "same server as `{}`, which is used",
            entrants[*holder].label().escape_debug()
        );
        remarks.note(entrants[loser].label(), text);
    }
    stays
}

fn keep(entrants: Vec<Entrant>, stays: &[bool]) -> Vec<Entrant> {
    entrants
        .into_iter()
        .zip(stays)
        .filter_map(|(entrant, stays)| stays.then_some(entrant))
        .collect()
}

pub(super) fn filter(
    service: &Service,
    entrants: Vec<Entrant>,
    remarks: &mut Remarks,
) -> Vec<Entrant> {
    let refusal = |entrant: &Entrant| {
        service
            .label_filters
            .iter()
            .find(|filter| !entrant.passes(filter))
    };
    entrants
        .into_iter()
        .filter(|entrant| match refusal(entrant) {
            None => true,
            Some(filter) => {
                let sign = if filter.equals {
                    "equals"
                } else {
                    "not-equals"
                };
                let why = format!(
                    "label `{}` {sign} `{}` does not hold",
                    filter.label, filter.value
                );
                remarks.filtered.push((entrant.server.name.clone(), why));
                false
            }
        })
        .collect()
}

/// The smallest id; nobody when an id is missing (Ruby then returns everybody, most of the time).
pub(super) fn elect(entrants: Vec<Entrant>, remarks: &mut Remarks) -> Vec<Entrant> {
    if let Some(nameless) = entrants.iter().find(|e| e.server.sequence.is_none()) {
        let why = format!(
            "no leader: `{}` has no sequence number",
            nameless.label().escape_debug()
        );
        remarks.filtered.extend(
            entrants
                .iter()
                .map(|e| (e.server.name.clone(), why.clone())),
        );
        return Vec::new();
    }
    // What the registry does not have any more is not elected; where it has nobody, the one who was stays.
    let registered = entrants.iter().any(|e| !e.held);
    let Some(leader) = entrants
        .iter()
        .filter(|e| !(registered && e.held))
        .min_by_key(|e| discovery_order(&e.server))
        .cloned()
    else {
        return Vec::new();
    };
    let why = format!("not the leader, which is `{}`", leader.server.name);
    remarks.filtered.extend(
        entrants
            .into_iter()
            .filter(|e| e.server.name != leader.server.name)
            .map(|e| (e.server.name.clone(), why.clone())),
    );
    vec![leader]
}
