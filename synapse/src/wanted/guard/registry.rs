//! The raw registry set by address, and how it changed since the last look. Pure.
//!
//! Only znodes that changed are decoded again.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use crate::config::Decode;
use crate::model::member::{Address, Member};
use crate::model::sorted::Walk;
use crate::model::source::{Child, Children, Farewell, SourceView};
use crate::sources::decode;

/// A source's set by address.
#[derive(Debug, Clone)]
pub struct Registry {
    decode: Decode,
    /// As last looked at.
    children: Arc<Children>,
    /// The address of each znode that registers one and is available.
    known: BTreeMap<Arc<str>, Known>,
    /// The same by address: twins may share one.
    members: BTreeMap<Address, BTreeSet<Arc<str>>>,
    /// Removals up to this number have been looked at.
    removal: u64,
}

/// What a znode registers.
#[derive(Debug, Clone)]
struct Known {
    address: Address,
    announces: bool,
}

/// What is said of an address that has left: by its removals, else by what was known of its znodes.
#[derive(Debug, Clone, Copy, Default)]
struct Word {
    announced: bool,
    /// A znode that went without a word would have had one.
    announces: bool,
}

/// What differs from the last look.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Change {
    /// Addresses that no znode has any more.
    pub gone: Vec<Gone>,
    /// Addresses that no znode had, and the znode that has them now.
    pub new: Vec<(Address, Arc<str>)>,
    /// Addresses in the set.
    pub size: usize,
}

/// An address that has left the set.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Gone {
    /// The address.
    pub address: Address,
    /// As it was registered.
    pub member: Member,
    /// Its owner withdrew it.
    pub announced: bool,
    /// Its registrar announces what it withdraws: without a word it is a loss.
    pub announces: bool,
}

impl Registry {
    /// A set that begins with `children`, without these being a change.
    #[must_use]
    pub fn new(decode: Decode, children: &Arc<Children>) -> Self {
        let mut registry = Self {
            decode,
            children: Arc::default(),
            known: BTreeMap::new(),
            members: BTreeMap::new(),
            removal: 0,
        };
        let begin = SourceView {
            children: Arc::clone(children),
            ..SourceView::default()
        };
        let _known = registry.look(&begin);
        registry
    }

    /// How payloads are read.
    #[must_use]
    pub fn decode(&self) -> &Decode {
        &self.decode
    }

    /// The addresses in the set.
    pub fn addresses(&self) -> impl Iterator<Item = &Address> {
        self.members.keys()
    }

    /// Whether a znode has this address.
    #[must_use]
    pub fn has(&self, address: &Address) -> bool {
        self.members.contains_key(address)
    }

    /// The address a znode of the set registers.
    #[must_use]
    pub fn address_of(&self, znode: &str) -> Option<&Address> {
        self.known.get(znode).map(|known| &known.address)
    }

    /// Whether a look at this view would find nothing new.
    #[must_use]
    pub fn is_current(&self, view: &SourceView) -> bool {
        Arc::ptr_eq(&self.children, &view.children) && self.removal == view.removals.last()
    }

    /// Takes the view over and says what changed.
    pub fn look(&mut self, view: &SourceView) -> Change {
        let last = std::mem::replace(&mut self.children, Arc::clone(&view.children));
        let now = &view.children;
        // Addresses touched, with a znode that had each at the last look, and whether any of those that left announces.
        let mut touched: BTreeMap<Address, (Option<Arc<str>>, bool)> = BTreeMap::new();
        let mut there = Walk::of(now);
        for (name, child) in last.iter() {
            if there.get(name).is_some_and(|now| same(now, child)) {
                continue;
            }
            if let Some((name, known)) = self.known.remove_entry(name.as_str()) {
                if let Some(znodes) = self.members.get_mut(&known.address) {
                    znodes.remove(&name);
                    if znodes.is_empty() {
                        self.members.remove(&known.address);
                    }
                }
                let (znode, announces) = touched.entry(known.address).or_default();
                *znode = Some(name);
                *announces |= known.announces;
            }
        }
        let mut withdrawn = BTreeSet::new();
        let mut there = Walk::of(&last);
        for (name, child) in now.iter() {
            if there.get(name).is_some_and(|last| same(last, child)) {
                continue;
            }
            let Some((known, available)) = self.read(name, child) else {
                continue;
            };
            if !available {
                withdrawn.insert(known.address);
                continue;
            }
            let name: Arc<str> = name.as_str().into();
            let address = known.address.clone();
            self.known.insert(Arc::clone(&name), known);
            let znodes = self.members.entry(address.clone()).or_default();
            touched
                .entry(address)
                .or_insert_with(|| (znodes.first().cloned(), false));
            znodes.insert(name);
        }
        let words = self.words(view);
        let mut change = Change {
            size: self.members.len(),
            ..Change::default()
        };
        for (address, (before, announces)) in touched {
            match (before, self.members.get(&address)) {
                (None, Some(znodes)) => {
                    let znode = znodes.first().cloned();
                    change.new.extend(znode.map(|znode| (address, znode)));
                }
                (Some(znode), None) => {
                    // The same node may register another address: its owner's doing as well.
                    let moved = || {
                        now.get(&*znode)
                            .is_some_and(|c| self.read(&znode, c).is_some())
                    };
                    let silent = Word {
                        announced: false,
                        announces,
                    };
                    let word = words.get(&address).copied().unwrap_or(silent);
                    let announced = word.announced || withdrawn.contains(&address) || moved();
                    if let Some(child) = last.get(&*znode).cloned() {
                        change.gone.push(Gone {
                            address,
                            member: Member { znode, child },
                            announced,
                            announces: word.announces,
                        });
                    }
                }
                _ => {}
            }
        }
        change
    }

    /// What a znode registers, and whether it is available there.
    fn read(&self, name: &str, child: &Child) -> Option<(Known, bool)> {
        let instance = decode::child(name, &child.data, &self.decode).ok()?;
        let known = Known {
            address: Address {
                host: instance.host.as_str().into(),
                port: instance.port,
            },
            announces: instance.announces,
        };
        Some((known, instance.available))
    }

    /// The last word on each address removed since the last look: announced or not.
    fn words(&mut self, view: &SourceView) -> BTreeMap<Address, Word> {
        if view.removals.last() < self.removal {
            self.removal = 0;
        }
        let mut words: BTreeMap<Address, Word> = BTreeMap::new();
        for removal in view.removals.since(self.removal) {
            if let Ok(instance) = decode::child(&removal.znode, &removal.data, &self.decode) {
                let address = Address {
                    host: instance.host.as_str().into(),
                    port: instance.port,
                };
                let word = words.entry(address).or_default();
                word.announced = removal.said == Farewell::Announced || !instance.available;
                // Nobody is silent who could not be heard.
                let heard = removal.said != Farewell::Unheard;
                word.announces |= heard && !word.announced && instance.announces;
            }
        }
        self.removal = view.removals.last();
        words
    }
}

fn same(one: &Child, other: &Child) -> bool {
    Arc::ptr_eq(&one.data, &other.data) || one.data == other.data
}
