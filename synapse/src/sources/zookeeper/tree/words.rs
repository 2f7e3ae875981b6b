//! What goes into the copy of a path and what is asked of it: events, lists, reads. Plain data, used by [`super::Tree`] and
//! by those who drive it.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use crate::model::source::{Child, Children, is_sequential};

/// Data above this many bytes is not held (a payload of nerve is some hundred).
pub const MAX_DATA: usize = 64 * 1024;

/// A node event of the recursive watch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Event {
    /// `NodeCreated`.
    Created,
    /// `NodeDeleted`.
    Deleted,
    /// `NodeDataChanged`.
    Changed,
}

/// The path itself at the time of a listing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Parent {
    /// Transaction that created it.
    pub czxid: i64,
    /// When, in the servers' milliseconds since 1970.
    pub ctime: i64,
    /// Transaction of the last change of its children.
    pub pzxid: i64,
}

impl Parent {
    /// Whether both are one node: only then do their transactions, and the numbers in the names of their children, belong to
    /// one count. An ensemble that was wiped begins again, and the same steps give the same transactions; but not at the
    /// same millisecond. (One that was restored from a backup has the same parent: [`Known::is_witnessed`].)
    #[must_use]
    pub fn is_same_node(&self, other: &Self) -> bool {
        (self.czxid, self.ctime) == (other.czxid, other.ctime)
    }
}

/// What reading one child gave.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Read {
    /// Its data.
    Data(Child),
    /// There is no such child (any more).
    Gone,
    /// It cannot be held or read; the reason, and the transaction of its last change (0: unknown).
    Refused {
        /// In words.
        reason: String,
        /// Transaction that created it.
        czxid: i64,
        /// Transaction of its last change.
        mzxid: i64,
    },
    /// It was refused before and has not changed since.
    StillRefused,
    /// It is listed and [`Known::is_same`].
    Same,
}

/// How much of a full read may rest on what is known.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Trust {
    /// Every child is read.
    Nothing,
    /// A child that is proven to be the same node is taken to have the same data; the copy is not settled until a full
    /// read with [`Trust::Nothing`] has followed.
    Nodes,
}

/// What is known when a full read begins.
#[derive(Debug, Clone)]
pub struct Known {
    /// Children refused before, with the transaction of their last change then: to be read only if it moved.
    pub(super) refused: BTreeMap<String, i64>,
    /// The parent they were last seen below.
    pub(super) parent: Option<Parent>,
    /// Children that may be proven the same.
    pub(super) same: Option<BTreeSet<String>>,
    /// All children.
    pub(super) children: Arc<Children>,
}

impl Known {
    /// Whether a child listed below `parent` is the node that is known.
    #[must_use]
    pub fn is_same(&self, name: &str, parent: Parent) -> bool {
        self.same.as_ref().is_some_and(|names| {
            self.parent.is_some_and(|was| {
                was.is_same_node(&parent)
                    && names.contains(name)
                    && (is_sequential(name) || was.pzxid == parent.pzxid)
            })
        })
    }

    /// The children that were refused, with the transaction of their last change then: to be read below `parent` only if it
    /// moved.
    pub fn refused(&self, parent: Parent) -> impl Iterator<Item = (&String, i64)> {
        let known = self.parent.is_some_and(|was| was.is_same_node(&parent));
        let refused = self.refused.iter().filter(move |_| known);
        refused.map(|(name, mzxid)| (name, *mzxid))
    }

    /// Of children that are taken to be the same nodes, the one whose reading proves it for all of them: the last to be
    /// created.
    #[must_use]
    pub fn witness(&self, names: &[String]) -> Option<usize> {
        let created = |at: &usize| self.children.get(&names[*at]).map(|child| child.czxid);
        (0..names.len()).max_by_key(created)
    }

    /// Whether the witness was read as it is known. Then the history in which it was created is the servers', and the others,
    /// which are older, are in it. An ensemble restored from a backup has the same parent and gives out its numbers a second
    /// time.
    #[must_use]
    pub fn is_witnessed(&self, name: &str, read: &Read) -> bool {
        matches!(read, Read::Data(child) if self.children.get(name) == Some(child))
    }
}

impl Read {
    /// What a successful read of `data` means: above [`MAX_DATA`] it is refused.
    #[must_use]
    pub fn data(data: Vec<u8>, czxid: i64, mzxid: i64) -> Self {
        if data.len() > MAX_DATA {
            let reason = format!(
                "{} bytes of data, above the limit of {MAX_DATA}",
                data.len()
            );
            return Self::Refused {
                reason,
                czxid,
                mzxid,
            };
        }
        Self::Data(Child {
            data: data.into(),
            czxid,
            mzxid,
        })
    }
}

/// A listing that must not be used: it is older than what is already known (a server lagging behind).
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the list of children is older (pzxid {got:#x}) than the last one (pzxid {known:#x})")]
pub struct Stale {
    pub(super) got: i64,
    pub(super) known: i64,
}
