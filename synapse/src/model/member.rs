//! A member of a source: its address, what stands behind it, and what is known of its checks.

use std::sync::Arc;

use crate::model::source::Child;

/// What is registered: by address as published, before any resolving.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Address {
    /// Address or name.
    pub host: Arc<str>,
    /// Port.
    pub port: u16,
}

impl std::fmt::Display for Address {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}:{}", self.host, self.port)
    }
}

/// The znode behind an address.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Member {
    /// Its name.
    pub znode: Arc<str>,
    /// Its data.
    pub child: Child,
}

/// What haproxy's check says of a server.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Evidence {
    /// An enabled check has passed since the loss and the server is up.
    Passing,
    /// An enabled check has taken the server down.
    Failing,
    /// A check is enabled; it has said nothing since the loss.
    Pending,
    /// There is no check, or no such server.
    Nothing,
    /// There is no word yet and nothing speaks against it: haproxy could not be asked since the loss or since this start, or
    /// a check is under way.
    Awaited,
}

/// Why an address is held.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Why {
    /// Too many were lost at once.
    Share,
    /// Nothing is registered any more.
    Empty,
    /// It was among the last ones, and withdrawn on purpose.
    Last,
}
