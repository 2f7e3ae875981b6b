//! What a job asks of a registry that leases nodes to sessions. Nothing is decided or retried behind it.
//!
//! A trait only so that a test can put a tree in memory in the place of real servers, which loses replies and expires
//! sessions on cue, as no real server does.

use std::collections::BTreeSet;

use smartstack_common::zk::Trouble;

use super::plan::Change;

/// A node below the parent whose name claims to be ours.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Found {
    pub(crate) name: String,
    /// `ephemeralOwner`.
    pub(crate) owner: i64,
    pub(crate) czxid: i64,
    pub(crate) version: i32,
    pub(crate) data: Vec<u8>,
}

/// A step that failed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("cannot {step} `{path}`: {reason}")]
pub(crate) struct Failure {
    pub(crate) step: &'static str,
    pub(crate) path: String,
    pub(crate) reason: String,
    pub(crate) trouble: Trouble,
}

impl Failure {
    /// Whether the tree may or may not have changed, or nothing can be asked any more.
    pub(crate) fn is_unknown(&self) -> bool {
        matches!(self.trouble, Trouble::Lost | Trouble::Terminal)
    }
}

/// A transaction that was not carried out, or perhaps was.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Refusal {
    /// Which change was refused, when the servers say.
    pub(crate) change: Option<usize>,
    pub(crate) failure: Failure,
}

pub(crate) trait Registry: Clone + Send + Sync + 'static {
    /// What is read afterwards is at least as new as this call.
    fn sync(&self) -> impl Future<Output = Result<(), Failure>> + Send;

    /// The children of `path` that claim to be of one of `ids`; `None` when `path` does not exist.
    fn look(
        &self,
        path: &str,
        ids: &BTreeSet<String>,
    ) -> impl Future<Output = Result<Option<Vec<Found>>, Failure>> + Send;

    /// Creates `path` and what is missing above it: persistent, empty.
    fn make_parents(&self, path: &str) -> impl Future<Output = Result<(), Failure>> + Send;

    /// Carries out changes below their paths in one transaction: all of them happen or none. Returns the paths of the
    /// created nodes.
    fn apply(
        &self,
        changes: &[(&str, &Change)],
    ) -> impl Future<Output = Result<Vec<String>, Refusal>> + Send;

    /// Returns when the node at `path` was changed or deleted, or the session is over; fails when that cannot be told. Keeps no
    /// hold on the session while it waits.
    fn touched(self, path: String) -> impl Future<Output = Result<(), Failure>> + Send;
}
