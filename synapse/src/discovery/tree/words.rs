//! What goes into the copy of a path and what is asked of it: events, lists, reads. Plain data, used by [`super::Tree`] and
//! by those who drive it.

use std::collections::{BTreeMap, BTreeSet};

use super::is_sequential;
use crate::source::Child;

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
    /// Transaction of the last change of its children.
    pub pzxid: i64,
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
    pub refused: BTreeMap<String, i64>,
    /// Children that may be proven the same, and the parent they were last seen below.
    pub(super) same: Option<(Parent, BTreeSet<String>)>,
}

impl Known {
    /// Whether a child listed below `parent` is the node that is known.
    #[must_use]
    pub fn is_same(&self, name: &str, parent: Parent) -> bool {
        self.same.as_ref().is_some_and(|(was, names)| {
            was.czxid == parent.czxid
                && names.contains(name)
                && (is_sequential(name) || was.pzxid == parent.pzxid)
        })
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
