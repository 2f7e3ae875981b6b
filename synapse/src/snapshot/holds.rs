//! What of a guard outlives the program: the holds, and the losses of the window. In the snapshot's field `guards`, by
//! service and source: `{"boot", "whole", "held": [...], "losses": [...]}`, times in milliseconds since boot, so that a
//! restart neither drops a hold nor renews it.

use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::model::member::{Address, Why};
use crate::snapshot::Payload;

/// A guard on disk.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Saved {
    /// The boot its times belong to.
    pub boot: String,
    /// Size of the set before the loss.
    #[serde(default)]
    pub whole: usize,
    /// Held addresses.
    #[serde(default)]
    pub held: Vec<SavedMember>,
    /// Unannounced losses of the window that are not held.
    #[serde(default)]
    pub losses: Vec<SavedMember>,
    /// Addresses this source has removed while another source of the service could not be asked.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub removed: Vec<(Arc<str>, u16)>,
}

/// An address that was lost.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct SavedMember {
    /// As published.
    pub host: Arc<str>,
    /// Port.
    pub port: u16,
    /// The znode it had.
    pub znode: Arc<str>,
    /// Its data.
    pub data: Payload,
    /// When it was lost, ms.
    pub since: u64,
    /// See [`crate::wanted::guard::Held::judged_from`], ms.
    #[serde(default)]
    pub judged_from: u64,
    /// When its hold ends, ms; absent: without end.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub until: Option<u64>,
    /// Why it is held; absent: it is not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub why: Option<Why>,
    /// Another service had it when it was lost.
    #[serde(default)]
    pub shared: bool,
    /// The loss was believed, since its registrar announces nothing.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub believed: bool,
}

impl Saved {
    /// Whether there is anything worth writing.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.held.is_empty() && self.losses.is_empty() && self.removed.is_empty()
    }
}

pub(crate) fn ms(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

impl SavedMember {
    pub(crate) fn address(&self) -> Address {
        Address {
            host: Arc::clone(&self.host),
            port: self.port,
        }
    }
}
