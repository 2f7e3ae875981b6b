//! Why a plan needs a reload, as data and in words.
//!
//! Pure. Made by [`super::plan`], shown in status and logs.

use std::fmt;

use super::Kind;
use crate::outputs::haproxy::cfg::generation::Generation;

/// Why the stats socket is not enough. The first that applies, in this order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ReloadReason {
    /// The worker has loaded another structure.
    Structure {
        /// Of the worker; `None` = not ours.
        running: Option<Generation>,
        /// Of the file.
        desired: Generation,
    },
    /// A server's id or options differ, or its options are not known.
    ServerChanged {
        /// Its backend.
        backend: String,
        /// Its name.
        server: String,
        /// What differs.
        what: Difference,
    },
    /// Servers that the worker does not have and cannot be given over the stats socket.
    ServersAdded {
        /// How many, in all backends.
        count: usize,
        /// One of them: backend.
        backend: String,
        /// One of them: name.
        server: String,
        /// Why the stats socket is not enough for that one.
        why: String,
    },
    /// So many servers at a time that haproxy's checks of them have to be spread.
    ManyAdded {
        /// How many, in all backends.
        count: usize,
    },
    /// A change of a server that haproxy does not take over the stats socket.
    NotTaken {
        /// Its backend.
        backend: String,
        /// Its name.
        server: String,
        /// What it is.
        what: Kind,
        /// Why not.
        why: String,
    },
    /// A server to remove may be one of the user's own lines, whose names cannot be read.
    RemovalUnsure {
        /// Its backend.
        backend: String,
        /// Its name.
        server: String,
    },
}

/// What differs in a server that keeps its name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Difference {
    /// haproxy's id.
    Id,
    /// Options.
    Options,
    /// It is not known with which options the worker loaded it.
    OptionsUnknown,
}

impl fmt::Display for ReloadReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Structure {
                running: Some(running),
                desired,
            } => write!(f, "structure changed from `{running}` to `{desired}`"),
            Self::Structure {
                running: None,
                desired,
            } => write!(
                f,
                "haproxy runs a file without our generation, ours is `{desired}`"
            ),
            Self::ServerChanged {
                backend,
                server,
                what,
            } => write!(f, "{what} of server `{backend}/{server}`"),
            Self::ServersAdded {
                count: 1,
                backend,
                server,
                why,
            } => write!(f, "server `{backend}/{server}` added: {why}"),
            Self::ServersAdded {
                count,
                backend,
                server,
                why,
            } => write!(
                f,
                "{count} servers added, such as `{backend}/{server}`: {why}"
            ),
            Self::ManyAdded { count } => {
                write!(
                    f,
                    "{count} servers added at once, more than there are: haproxy spreads the checks of a file"
                )
            }
            Self::NotTaken {
                backend,
                server,
                what,
                why,
            } => write!(f, "{what} of server `{backend}/{server}`: {why}"),
            Self::RemovalUnsure { backend, server } => {
                write!(
                    f,
                    "server `{backend}/{server}` is gone from a backend whose own server lines cannot be read"
                )
            }
        }
    }
}

impl fmt::Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Id => "another id",
            Self::Options => "other options",
            Self::OptionsUnknown => "unknown options",
        })
    }
}
