//! What an operator has said last of each server, as far as haproxy was told it, and who can know of it: the laws about
//! whose maint it is are judged by that, never by what the reconciler believes. Tests only.

use std::collections::{BTreeMap, BTreeSet};

use tokio::time::Instant;

/// Backend and NAME.
pub(crate) type Key = (String, String);

/// Whether the worker has a server in maint.
pub(crate) type Shown = BTreeMap<Key, bool>;

/// An operator's last word of a server.
#[derive(Debug)]
struct Word {
    maint: bool,
    /// When a look was answered that shows it.
    heard: Option<Instant>,
}

/// The operator's words.
#[derive(Debug, Default)]
pub(crate) struct Operator {
    words: BTreeMap<Key, Word>,
    /// Servers that may be in maint for an operator or for an agent, or not: their word was lost before anybody could hear
    /// it, came while the answer to a command about the same server was lost, or stood in an older file.
    maybe: BTreeSet<Key>,
    /// Everything was looked at; whether the same worker still answers is not known yet.
    looking: Option<u32>,
}

/// A server of a file that is loaded.
pub(crate) struct Loaded {
    pub(crate) key: Key,
    pub(crate) disabled: bool,
    pub(crate) parked: bool,
}

impl Operator {
    /// It was said; `unsure` = nobody can tell it from what was sent just before.
    pub(crate) fn says(&mut self, key: Key, maint: bool, unsure: bool) {
        self.maybe.remove(&key);
        self.words.remove(&key);
        if unsure {
            self.maybe.insert(key);
        } else {
            self.words.insert(key, Word { maint, heard: None });
        }
    }

    /// From now on nobody knows.
    pub(crate) fn may_be(&mut self, key: &Key) {
        self.words.remove(key);
        self.maybe.insert(key.clone());
    }

    /// In maint by an operator's word, for sure.
    pub(crate) fn holds(&self, key: &Key) -> bool {
        self.words.get(key).is_some_and(|word| word.maint)
    }

    /// In maint by somebody else's word, perhaps.
    pub(crate) fn may_hold(&self, key: &Key) -> bool {
        self.holds(key) || self.maybe.contains(key)
    }

    pub(crate) fn held(&self) -> BTreeSet<Key> {
        let held = self.words.iter().filter(|(_, word)| word.maint);
        held.map(|(key, _)| key.clone()).collect()
    }

    pub(crate) fn maybe(&self) -> BTreeSet<Key> {
        self.maybe.clone()
    }

    /// A look at everything, or at one backend, of this worker was answered.
    pub(crate) fn looked(&mut self, pid: u32, backend: Option<&str>, shown: &Shown) {
        match backend {
            None => self.looking = Some(pid),
            Some(_) => self.hear(backend, shown),
        }
    }

    /// This worker said who it is.
    pub(crate) fn is(&mut self, pid: u32, shown: &Shown) {
        if self.looking.take() == Some(pid) {
            self.hear(None, shown);
        }
    }

    fn hear(&mut self, backend: Option<&str>, shown: &Shown) {
        let now = Instant::now();
        let words = self.words.iter_mut();
        for (key, word) in words.filter(|(key, _)| backend.is_none_or(|name| key.0 == name)) {
            if shown.get(key) == Some(&word.maint) {
                word.heard.get_or_insert(now);
            }
        }
    }

    /// Who has heard is dead, and has left this as what the operator has put in maint. The worker may show the rest.
    pub(crate) fn forgotten(&mut self, noted: &BTreeSet<Key>, shown: &Shown) {
        self.looking = None;
        let mut lost = Vec::new();
        for (key, word) in &mut self.words {
            if word.maint == noted.contains(key) {
                continue;
            }
            word.heard = None;
            if shown.get(key) != Some(&word.maint) {
                lost.push(key.clone());
            }
        }
        lost.iter().for_each(|key| self.may_be(key));
    }

    /// A worker begins with a file. What nobody has heard is lost with the one before. Returns what the file of a reload
    /// of ours, which began then, says against what was heard.
    pub(crate) fn load(&mut self, servers: &[Loaded], began: Option<Instant>) -> Vec<String> {
        let mut broken = Vec::new();
        let there: BTreeMap<&Key, &Loaded> = servers.iter().map(|s| (&s.key, s)).collect();
        let keys: Vec<Key> = self.words.keys().cloned().collect();
        for key in keys {
            let Some(Word { maint, heard }) = self.words.get(&key) else {
                continue;
            };
            let found = there.get(&key).filter(|server| !server.parked);
            let in_time = heard.is_some_and(|heard| began.is_none_or(|began| heard <= began));
            let Some(found) = found.filter(|_| in_time) else {
                self.may_be(&key);
                continue;
            };
            if began.is_some() && found.disabled != *maint {
                broken.push(format!(
                    "a reload undoes what was heard of an operator: maint {maint} of {key:?}"
                ));
            } else if found.disabled && !maint {
                self.may_be(&key);
            }
        }
        for server in servers.iter().filter(|s| s.disabled && !s.parked) {
            if self.may_hold(&server.key) {
                continue;
            }
            if began.is_some() {
                let key = &server.key;
                broken.push(format!("a reload disables {key:?}, which nobody has said"));
            }
            self.may_be(&server.key);
        }
        broken
    }
}
