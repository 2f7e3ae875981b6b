//! The maintained copy of one path: watch events, listings and reads in, complete [`Children`] out. Pure.
//!
//! Owns the rules by which a copy may change; never talks to a server and never looks at a clock. Driven by
//! [`follow()`](crate::sources::zookeeper::follow()) as follows, after the recursive watch is armed:
//!
//! - [`Tree::note`] for every event at any time, [`Tree::absorb`] once the queue has been drained for a moment;
//! - a full read: [`Tree::begin_full`], list and read everything, [`Tree::replace`];
//! - a read of what became dirty: [`Tree::begin_read`], read those, [`Tree::apply`]. One read at a time.
//!
//! What makes it converge although reads and events overtake each other: a connection delivers events and replies in
//! the order of the transactions behind them. So a change noted since a read began may belong to a state before or after
//! the reply, and its name is read once more; a deletion noted since then wins over the reply, because what came into
//! being again after it makes an event of its own.
//!
//! After a reconnection the watch is armed at once and the list read later, spread over everybody who lost the same server.
//! Events count from the start. A list gives names only, so what proves that a child it names has not changed?
//! - For a sequential name, that the parent is still the same node (czxid and ctime): its numbers are not given out twice. But
//!   by an ensemble that was restored from a backup: the newest of those that would be trusted is read, and proves the rest.
//! - For a fixed name, that the parent's children have not changed either (pzxid): deleted and made again moves it.
//! - For its data, nothing: a change in place leaves no trace in the parent, `exists` cannot be sent in bulk, and the one
//!   bulk read that gives a stat gives the data with it. But whoever registers as nerve does never changes data in place
//!   (it makes the new node and deletes the old one), and its announcement deletes the node in the same transaction.
//!
//! So a child that is proven the same so far is not read with that list ([`Known::is_same`], [`Read::Same`]), which makes the
//! list a ninth of the full read (23 of some 210 bytes a child), and what others may have changed in place is found by a full
//! read that is spread over a longer time and until which the copy does not call itself settled: [`Trust`].
//!
//! A session swap makes the new node first and deletes the old one after it. Both must be published together, so an
//! unannounced deletion waits for the reads outstanding when it is absorbed; one that is announced never waits.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use crate::model::source::{Child, Children, is_sequential};

#[cfg(test)]
mod simulation;
#[cfg(test)]
mod tests;
mod words;

pub use words::{Event, Known, MAX_DATA, Parent, Read, Stale, Trust};

/// A deletion waits for this many reads at most.
const MAX_WAITED_READS: u8 = 8;

/// Whether data of a child (name, bytes) can be used as it is.
///
/// Only asked to decide if a *changed* payload replaces a usable one of the same znode.
pub type Validity = Arc<dyn Fn(&str, &[u8]) -> bool + Send + Sync>;

/// Why a child is not read again.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Skip {
    mzxid: i64,
    reason: String,
}

/// The copy of one path.
#[derive(Clone)]
pub struct Tree {
    /// The path with a trailing slash, as events name it.
    prefix: String,
    valid: Validity,
    parent: Option<Parent>,
    children: Arc<Children>,
    skipped: BTreeMap<String, Skip>,
    /// Last event per child since the last [`Tree::absorb`].
    noted: BTreeMap<String, Event>,
    /// Children whose noted deletion came with a change of data: withdrawn on purpose.
    announced: BTreeSet<String>,
    /// The path itself was deleted since the last [`Tree::absorb`].
    uprooted: bool,
    dirty: BTreeSet<String>,
    reading: Reading,
    /// Children deleted since the outstanding read began.
    deleted: BTreeSet<String>,
    /// Children whose change of data is to be read or being read: a deletion that follows makes the pair of an
    /// announcement, although the first half has been absorbed.
    changed: BTreeSet<String>,
    /// Children deleted without an announcement that stay until nothing is left to be read, which may be what replaces
    /// them; and how many reads they have waited for.
    leaving: BTreeMap<String, u8>,
    /// What has left the set since [`Tree::take_removed`].
    removed: Vec<Removed>,
    /// No list has been taken over since the watch was armed: what was missed may replace what an event removes.
    unlisted: bool,
    /// The last list was taken over with [`Trust::Nodes`].
    unverified: bool,
    /// Children that something was known about, or was being asked about, when the connection went.
    unsure: BTreeSet<String>,
}

/// A child that has left the set.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Removed {
    /// Its name.
    pub name: String,
    /// Its last data.
    pub child: Child,
    /// Its deletion came with a change of its data: its owner withdrew it on purpose.
    pub announced: bool,
}

/// The outstanding read.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
enum Reading {
    #[default]
    Nothing,
    Names(BTreeSet<String>),
    All,
}

impl Tree {
    /// A copy of `path` (absolute, chroot included) that begins with `children` from elsewhere (a snapshot), or none.
    #[must_use]
    pub fn new(path: &str, valid: Validity, children: Arc<Children>) -> Self {
        Self {
            prefix: format!("{path}/"),
            valid,
            parent: None,
            children,
            skipped: BTreeMap::new(),
            noted: BTreeMap::new(),
            announced: BTreeSet::new(),
            uprooted: false,
            dirty: BTreeSet::new(),
            reading: Reading::Nothing,
            deleted: BTreeSet::new(),
            changed: BTreeSet::new(),
            leaving: BTreeMap::new(),
            removed: Vec::new(),
            unlisted: true,
            unverified: false,
            unsure: BTreeSet::new(),
        }
    }

    /// The complete set.
    #[must_use]
    pub fn children(&self) -> &Arc<Children> {
        &self.children
    }

    /// Children left out or held at an older value, with the reason.
    #[must_use]
    pub fn skipped(&self) -> BTreeMap<String, String> {
        self.skipped
            .iter()
            .map(|(name, skip)| (name.clone(), skip.reason.clone()))
            .collect()
    }

    /// Whether nothing is known to be outstanding: no event unabsorbed, no name to read or being read.
    #[must_use]
    pub fn is_settled(&self) -> bool {
        self.noted.is_empty()
            && !self.uprooted
            && self.dirty.is_empty()
            && self.leaving.is_empty()
            && self.reading == Reading::Nothing
            && !self.unlisted
            && !self.unverified
    }

    /// Whether a full read with [`Trust::Nothing`] is owed.
    #[must_use]
    pub fn is_unverified(&self) -> bool {
        self.unverified
    }

    /// No full read is owed after all: there is another way to learn what changes in place.
    pub fn accept(&mut self) {
        self.unverified = false;
    }

    /// Whether a list has been taken over since the watch was armed.
    #[must_use]
    pub fn is_listed(&self) -> bool {
        !self.unlisted
    }

    /// Children whose reason to be left out may go without an event: no right to read them, or a suspicion.
    #[must_use]
    pub fn left_out(&self) -> Vec<String> {
        let unknown = self.skipped.iter().filter(|(_, skip)| skip.mzxid == 0);
        unknown.map(|(name, _)| name.clone()).collect()
    }

    /// What has left the set since the last call, in order.
    pub fn take_removed(&mut self) -> Vec<Removed> {
        std::mem::take(&mut self.removed)
    }

    /// Whether names wait for [`Tree::begin_read`].
    #[must_use]
    pub fn is_dirty(&self) -> bool {
        !self.dirty.is_empty()
    }

    /// Forgets what was outstanding: a full read follows. Called before the watch is armed.
    pub fn restart(&mut self) {
        let noted = self.noted.keys().chain(&self.dirty);
        self.unsure
            .extend(noted.chain(self.leaving.keys()).cloned());
        if let Reading::Names(names) = &mut self.reading {
            self.unsure.append(names);
        }
        if self.uprooted {
            self.parent = None;
        }
        self.unlisted = true;
        self.noted.clear();
        self.announced.clear();
        self.uprooted = false;
        self.dirty.clear();
        self.changed.clear();
        self.leaving.clear();
        self.reading = Reading::Nothing;
    }

    /// Takes note of an event. Anything but the path and its children is ignored.
    pub fn note(&mut self, event: Event, path: &str) {
        let Some(name) = path.strip_prefix(&self.prefix) else {
            self.uprooted |= event == Event::Deleted && self.prefix.strip_suffix('/') == Some(path);
            return;
        };
        if name.is_empty() || name.contains('/') {
            return;
        }
        let before = self.noted.insert(name.to_owned(), event);
        let half_noted = before.is_none() && self.changed.contains(name);
        if event == Event::Deleted && (before == Some(Event::Changed) || half_noted) {
            self.announced.insert(name.to_owned());
        } else {
            self.announced.remove(name);
        }
    }

    /// Acts on the noted events, the last one of each name counting: announced deletions at once, others as soon as no
    /// read is outstanding, the rest makes dirty. Returns whether the set changed.
    ///
    /// A fixed name deleted without an announcement may be the first half of a swap, whose second half was seen to arrive
    /// milliseconds later. It is read like a change: the server has done both halves before it tells of the first.
    pub fn absorb(&mut self) -> bool {
        let mut gone: BTreeSet<String> = BTreeSet::new();
        if std::mem::take(&mut self.uprooted) {
            // ZooKeeper deletes a node only after its children, so all that is not noted anew has gone.
            self.parent = None;
            gone.extend(self.children.keys().chain(self.skipped.keys()).cloned());
        }
        let announced = std::mem::take(&mut self.announced);
        for (name, event) in std::mem::take(&mut self.noted) {
            let half_a_swap = !is_sequential(&name)
                && !announced.contains(&name)
                && !gone.contains(&name)
                && self.children.contains_key(&name);
            if event == Event::Deleted && !half_a_swap {
                gone.insert(name);
            } else {
                gone.remove(&name);
                self.leaving.remove(&name);
                if event == Event::Changed {
                    self.changed.insert(name.clone());
                } else {
                    self.changed.remove(&name);
                }
                self.dirty.insert(name);
            }
        }
        for name in &gone {
            self.dirty.remove(name);
            self.changed.remove(name);
        }
        // The read that is under way, and the one of what is dirty.
        let reads = u8::from(self.reading != Reading::Nothing)
            + u8::from(!self.dirty.is_empty())
            + u8::from(self.unlisted);
        let mut changed = false;
        for name in gone {
            if reads == 0 || announced.contains(&name) || !self.children.contains_key(&name) {
                self.leaving.remove(&name);
                changed |= self.forget(&name, announced.contains(&name));
            } else {
                self.leaving.entry(name.clone()).or_insert(0);
            }
            self.deleted.insert(name);
        }
        if reads == 0 {
            // What they waited for has been deleted before it was read.
            changed |= self.finish_leaving();
        }
        changed
    }

    /// These are to be read (again) although no event says so.
    pub fn reread(&mut self, names: Vec<String>) {
        self.dirty.extend(names);
    }

    /// Hands out the dirty names; [`Tree::apply`] is to follow.
    pub fn begin_read(&mut self) -> Vec<String> {
        let names = std::mem::take(&mut self.dirty);
        let list = names.iter().cloned().collect();
        self.reading = Reading::Names(names);
        self.deleted.clear();
        list
    }

    /// Applies what [`Tree::begin_read`] asked for. Returns whether the set changed.
    pub fn apply(&mut self, read: Vec<(String, Read)>) -> bool {
        let Reading::Names(asked) = std::mem::take(&mut self.reading) else {
            return false;
        };
        if self.unlisted {
            // Of this history; and what else is known may be of another.
            self.unsure.extend(asked.iter().cloned());
        }
        let mut changed = false;
        for (name, read) in read {
            if !self.dirty.contains(&name) {
                self.changed.remove(&name);
            }
            if asked.contains(&name) && !self.was_deleted(&name) {
                changed |= self.set(&name, read);
            }
        }
        self.finish_leaving() | changed
    }

    /// Something is known to have come into being, or to have changed, that is not read yet.
    fn has_unread(&self) -> bool {
        !self.dirty.is_empty() || self.noted.values().any(|event| *event != Event::Deleted)
    }

    /// A read is done: what has waited for it leaves, unless there is more to read.
    fn finish_leaving(&mut self) -> bool {
        let mut changed = false;
        let unread = self.has_unread();
        for (name, reads) in std::mem::take(&mut self.leaving) {
            if self.unlisted {
                self.leaving.insert(name, 0);
            } else if unread && reads + 1 < MAX_WAITED_READS {
                self.leaving.insert(name, reads + 1);
            } else {
                changed |= self.forget(&name, false);
            }
        }
        changed
    }

    /// Begins a full read. Returns what need not be read, if it is found to be the same.
    pub fn begin_full(&mut self, trust: Trust) -> Known {
        self.reading = Reading::All;
        self.deleted.clear();
        let refused =
            |(name, skip): (&String, &Skip)| (skip.mzxid > 0).then(|| (name.clone(), skip.mzxid));
        let refused = self.skipped.iter().filter_map(refused).collect();
        let same = match trust {
            Trust::Nodes => {
                // Of a snapshot (czxid 0) only the bytes are known.
                let sure = |(name, child): &(&String, &Child)| {
                    child.czxid > 0 && !self.skipped.contains_key(*name) && !self.is_unsure(name)
                };
                let names = self.children.iter().filter(sure);
                Some(names.map(|(name, _)| name.clone()).collect())
            }
            Trust::Nothing => None,
        };
        Known {
            refused,
            parent: self.parent,
            same,
            children: Arc::clone(&self.children),
        }
    }

    fn is_unsure(&self, name: &str) -> bool {
        self.is_noted(name) || self.unsure.contains(name)
    }

    /// Replaces the set by a full read: names not in it are gone. Returns the names that differed from the copy although
    /// no event about them is noted or outstanding.
    ///
    /// # Errors
    /// When the list is older than what is known: nothing has changed then.
    pub fn replace(
        &mut self,
        parent: Option<Parent>,
        read: Vec<(String, Read)>,
    ) -> Result<Vec<String>, Stale> {
        self.reading = Reading::Nothing;
        self.listed(parent)?;
        self.unlisted = false;
        self.unsure.clear();
        let read: BTreeMap<String, Read> = read.into_iter().collect();
        self.unverified = read.values().any(|read| *read == Read::Same);
        let known: BTreeSet<String> = self
            .children
            .keys()
            .chain(self.skipped.keys())
            .cloned()
            .collect();
        let mut differed: Vec<String> = Vec::new();
        // What came into being during the read may replace what is not listed any more.
        let unread = self.has_unread();
        let mut waiting = Vec::new();
        for name in known.into_iter().filter(|name| !read.contains_key(name)) {
            let known = self.is_noted(&name);
            let announced = self.announced.contains(&name);
            self.leaving.remove(&name);
            if !known {
                differed.push(name.clone());
            }
            if unread && !announced && self.children.contains_key(&name) {
                waiting.push(name);
            } else {
                self.forget(&name, announced);
            }
        }
        for (name, read) in read {
            if !self.was_deleted(&name) && self.set(&name, read) && !self.is_noted(&name) {
                differed.push(name);
            }
        }
        self.changed.retain(|name| self.dirty.contains(name));
        self.finish_leaving();
        self.leaving
            .extend(waiting.into_iter().map(|name| (name, 0)));
        Ok(differed)
    }

    /// The next list is current, whatever its transactions are: an ensemble that was wiped, or restored from a backup,
    /// counts from an earlier one.
    pub fn forget_parent(&mut self) {
        self.parent = None;
        self.forget_nodes();
    }

    /// Judges a listing (`None`: the path is absent).
    ///
    /// # Errors
    /// When the list is older than what is known: it must not be used.
    fn listed(&mut self, parent: Option<Parent>) -> Result<(), Stale> {
        if let (Some(known), Some(got)) = (self.parent, parent) {
            let older = match got.is_same_node(&known) {
                true => got.pzxid < known.pzxid,
                // Another node, and perhaps another ensemble.
                false => got.czxid < known.czxid,
            };
            if older {
                return Err(Stale {
                    got: got.pzxid,
                    known: known.pzxid,
                });
            }
        }
        let another = |known: Parent| parent.is_some_and(|got| !got.is_same_node(&known));
        if self.parent.is_some_and(another) {
            self.forget_nodes();
        }
        self.parent = parent;
        Ok(())
    }

    /// The children that are known are below another node, perhaps in another ensemble: what has their names and even their
    /// transactions is not them.
    fn forget_nodes(&mut self) {
        for child in Arc::make_mut(&mut self.children).values_mut() {
            child.czxid = ANOTHER;
        }
        for skip in self.skipped.values_mut() {
            skip.mzxid = 0;
        }
    }

    /// Whether a deletion since the outstanding read began overrules its reply.
    fn was_deleted(&self, name: &str) -> bool {
        self.deleted.contains(name) || self.noted.get(name) == Some(&Event::Deleted)
    }

    fn is_noted(&self, name: &str) -> bool {
        self.uprooted
            || self.noted.contains_key(name)
            || self.dirty.contains(name)
            || self.leaving.contains_key(name)
    }

    fn forget(&mut self, name: &str, announced: bool) -> bool {
        let skipped = self.skipped.remove(name).is_some();
        if !self.children.contains_key(name) {
            return skipped;
        }
        if let Some(child) = Arc::make_mut(&mut self.children).remove(name) {
            self.removed.push(Removed {
                name: name.to_owned(),
                child,
                announced,
            });
        }
        true
    }

    fn set(&mut self, name: &str, read: Read) -> bool {
        match read {
            Read::Gone => self.forget(name, false),
            Read::StillRefused => false,
            Read::Same if self.children.contains_key(name) => false,
            Read::Same => {
                // It went while the list was on its way, and nobody has said that it is back.
                self.dirty.insert(name.to_owned());
                false
            }
            Read::Refused {
                reason,
                czxid,
                mzxid,
            } => self.skip(name, czxid, mzxid, reason),
            Read::Data(child) => {
                self.leaving.remove(name);
                if let Some(parent) = self.parent.as_mut().filter(|_| !self.unlisted) {
                    // Its creation changed the parent: no list from before it may be used.
                    parent.pzxid = parent.pzxid.max(child.czxid);
                }
                let old = self.children.get(name);
                if old == Some(&child) {
                    // Still the same, and whatever was refused in between has been taken back.
                    return self.skipped.remove(name).is_some();
                }
                if let Some(old) = old
                    && old.data != child.data
                    && same_node(old, child.czxid)
                    && !(self.valid)(name, &child.data)
                    && (self.valid)(name, &old.data)
                {
                    let reason = "its data was changed in place to something invalid; the last valid value is kept".to_owned();
                    return self.skip(name, child.czxid, child.mzxid, reason);
                }
                let same = old.is_some_and(|old| old.czxid == ANOTHER && old.data == child.data);
                let unskipped = self.skipped.remove(name).is_some();
                Arc::make_mut(&mut self.children).insert(name.to_owned(), child);
                unskipped || !same
            }
        }
    }

    /// Notes that the present data of a child is not used. A valid older value of the same znode stays.
    fn skip(&mut self, name: &str, czxid: i64, mzxid: i64, reason: String) -> bool {
        let mut changed = false;
        let keep =
            |old: &Child| (czxid == 0 || same_node(old, czxid)) && (self.valid)(name, &old.data);
        if self.children.get(name).is_some_and(|old| !keep(old)) {
            Arc::make_mut(&mut self.children).remove(name);
            changed = true;
        }
        let skip = Skip { mzxid, reason };
        changed |= self.skipped.get(name) != Some(&skip);
        self.skipped.insert(name.to_owned(), skip);
        changed
    }
}

/// The transaction of children below another parent: no node was created by it.
const ANOTHER: i64 = -1;

/// A child from a snapshot has no transaction: its name decides.
fn same_node(old: &Child, czxid: i64) -> bool {
    old.czxid == 0 || old.czxid == czxid
}
