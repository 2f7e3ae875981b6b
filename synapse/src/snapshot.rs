//! The snapshot: what synapse knew, on disk, so that a restart needs nobody else. Format 1.
//!
//! Owns the file's format, its writing behind (task [`write_behind`]) and its reading at the start ([`read`]). Holds raw
//! registry data, before guard and funnel, so that configuration edits apply to it. Never fatal: a file that cannot be
//! written is a warning and a counter, one that cannot be used is set aside and treated as none. Never merges: a source
//! whose hosts or path changed finds no entry. [`lock`] keeps a second synapse away.
//!
//! ```json
//! {"format":1,"sha256":"<hex of the exact bytes of body>","body":{
//!   "machine":"<machine id>",
//!   "worker":{"pid":4242,"start":123456,"options":{"backend/NAME":"hash"}},
//!   "resolved":{"host":["10.0.0.1"]},
//!   "ids":{"backend":{"NAME":1}},
//!   "operator":{"backend/NAME":"maint"},
//!   "holds":{"service":{"source":"<hosts>|<path>","children":{"znode":"payload"}}},
//!   "guards":{"service":{"<hosts>|<path>":{"boot":"…","whole":100,"held":[…],"losses":[…]}}},
//!   "sources":{"<hosts>|<path>":{"agreed_at":1700000000.125,"children":{"znode":"payload","other":{"base64":"/w=="}}}}}}
//! ```
//! `agreed_at` is in seconds since 1970, null = never confirmed; a payload that is not UTF-8 is `{"base64": …}`.

pub mod holds;

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use smartstack_common::clock::Moment;

use crate::model::server::Digest;
use crate::model::source::{Children, SourceKey, SourceView};

mod file;
pub mod lock;
mod writer;

pub use crate::model::payload::Payload;
pub use file::{Loaded, Unusable, peek, read};
pub use holds::Saved;
pub use lock::{Lock, LockError};
pub use writer::{Counters, write_behind};

/// The version this program writes and reads.
pub const FORMAT: u32 = 1;

/// haproxy's ids by backend and server name. The identity of an inner map tells whether it must be serialised anew.
pub type Ids = BTreeMap<String, Arc<BTreeMap<String, u32>>>;

/// Digests of server options by backend and server name; identity as in [`Ids`].
pub type Digests = BTreeMap<String, Arc<BTreeMap<String, Digest>>>;

/// Everything in the snapshot. Published whole by the reconciler; cheap to clone.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Snapshot {
    /// `/etc/machine-id` of the writer: on another machine (a copied image) nothing of it is believed.
    pub machine: String,
    /// The boot that its times since boot belong to; empty: not known.
    pub boot: String,
    /// Raw children by [`crate::model::source::SourceKey`] as text.
    pub sources: BTreeMap<String, SourceRecord>,
    /// The last address of each host that is a name.
    pub resolved: Arc<BTreeMap<String, Vec<IpAddr>>>,
    /// haproxy's ids by backend and server name.
    pub ids: Ids,
    /// States set by an operator (`maint`, `drain`), by `backend/NAME`.
    pub operator: Arc<BTreeMap<String, String>>,
    /// By service: the last non-empty set while an empty one is being held back.
    pub holds: BTreeMap<String, Hold>,
    /// Holds of the guards, by service and source.
    pub guards: BTreeMap<String, BTreeMap<String, Saved>>,
    /// The haproxy worker this synapse last agreed with.
    pub worker: Option<Arc<Worker>>,
}

/// One source.
#[derive(Debug, Clone, PartialEq)]
pub struct SourceRecord {
    /// When the set last agreed with the registry (see [`follow()`](crate::sources::zookeeper::follow())).
    pub agreed_at: Option<SystemTime>,
    /// The same by the clock since boot, which nobody sets: what is decided by age is decided by this one.
    pub agreed_boot: Option<Duration>,
    /// It agrees at this moment: written as "agreed when the file was written".
    pub fresh: bool,
    /// The set. Its identity (the `Arc`) tells whether it must be serialised anew.
    pub children: Arc<Children>,
}

/// The set that is served while the registry says "empty".
#[derive(Debug, Clone, PartialEq)]
pub struct Hold {
    /// The source's key as text: a hold of another source is not believed.
    pub source: String,
    /// Its last non-empty set.
    pub children: Arc<Children>,
}

/// A haproxy worker and what only we know about its servers.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Worker {
    /// Its pid.
    pub pid: u32,
    /// Its start in clock ticks since boot, where known: pids are used again.
    pub start: Option<u64>,
    /// Digest of the options each server was added with (`show servers state` does not tell them).
    pub options: Digests,
}

impl Snapshot {
    /// What is known of a source; nothing once its hosts or path differ. Raw data: whatever decoding, filters and port
    /// override say today applies to it.
    #[must_use]
    pub fn source(&self, key: &SourceKey) -> Option<&SourceRecord> {
        self.sources.get(&key.to_string())
    }

    /// The set held for a service while its source was empty, if it still has that source.
    #[must_use]
    pub fn hold(&self, service: &str, source: &str) -> Option<&Arc<Children>> {
        self.holds
            .get(service)
            .filter(|hold| hold.source == source)
            .map(|hold| &hold.children)
    }

    /// The view a source begins with.
    #[must_use]
    pub fn view(&self, key: &SourceKey) -> SourceView {
        match self.source(key) {
            Some(record) => {
                let agreed_at = record.agreed_at.map(Moment::of_wall);
                SourceView::seeded(record.children.clone(), agreed_at)
            }
            None => SourceView::default(),
        }
    }
}

impl From<&SourceView> for SourceRecord {
    fn from(view: &SourceView) -> Self {
        Self {
            agreed_at: view.agreed_at.map(Moment::wall),
            agreed_boot: None,
            fresh: view.fresh,
            children: view.children.clone(),
        }
    }
}

#[cfg(test)]
mod tests;
