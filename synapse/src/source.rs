//! A source: one registry path of one ensemble, as read. Raw data only; meaning is given by the funnel.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;
use std::time::SystemTime;

use smartstack_common::units::{Ensemble, ZkPath};

/// Which path of which ensemble. Printed as `<sorted hosts>|<path>`, the key in the snapshot and in `/status`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SourceKey {
    /// The ensemble (its text includes a chroot).
    pub ensemble: Ensemble,
    /// The watched path.
    pub path: ZkPath,
}

impl fmt::Display for SourceKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}|{}", self.ensemble, self.path)
    }
}

/// One child znode, as read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Child {
    /// Its data.
    pub data: Arc<[u8]>,
    /// Transaction that created it (0 when it comes from a snapshot).
    pub czxid: i64,
    /// Transaction of its last change (0 when it comes from a snapshot).
    pub mzxid: i64,
}

/// The children of a path by znode name. Always a complete set, never half-read.
pub type Children = BTreeMap<String, Child>;

/// What is known of a source. Published whole; receivers hold the latest.
#[derive(Debug, Clone, Default)]
pub struct SourceView {
    /// The last complete set: read from the registry, or from the snapshot until then.
    pub children: Arc<Children>,
    /// This process has read the registry at least once.
    pub confirmed: bool,
    /// When the set was last known to agree with the registry (`None`: never).
    pub agreed_at: Option<SystemTime>,
    /// It agrees now: connected, watch armed, no read outstanding.
    pub fresh: bool,
    /// Children left out before they were read, with the reason (data above the limit).
    pub skipped: Arc<BTreeMap<String, String>>,
    /// Bytes of data on the path itself (Airbnb publishes haproxy options there; not honoured yet).
    pub parent_data: usize,
    /// Why the registry cannot be read at the moment, in words.
    pub problem: Option<String>,
}

impl SourceView {
    /// What is known before the registry has answered: the snapshot's set, as old as it says.
    #[must_use]
    pub fn seeded(children: Arc<Children>, agreed_at: Option<SystemTime>) -> Self {
        Self {
            children,
            agreed_at,
            ..Self::default()
        }
    }
}
