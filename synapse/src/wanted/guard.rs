//! The guard: whether a loss is believed. Pure.
//!
//! One for each service and source, between what the source says and the funnel, on raw registry sets by (host, port):
//! before override, filters and election. A source that two services use has two guards: each service's settings and its
//! backend's checks decide for that service. Owned and stepped by [`crate::wanted::intake`]; never talks to anybody, `now` is
//! handed in.
//!
//! | what happens | what the guard does |
//! |---|---|
//! | a removal its owner announced, a node that says `available: false`, a node that moved to another address | it counts on neither side of the share; gone at once |
//! | an address in no znode any more, unannounced, of a registrar that announces (`"announces": true` in its payload) | a *loss*, remembered for `window` |
//! | the same of one that does not (Ruby's nerve, serversets) | `unannounced: believe`: it counts on neither side, as if announced, but as a loss when nothing is left; `unannounced: hold`: a loss |
//! | an address that was in none before | an *addition*: it matches one loss (a replacement) |
//! | the set is as large as the largest that stood in the window | the losses until then were replaced: they are forgotten |
//! | more than `min_loss` losses beyond the additions of the window, and the set is smaller than (1 − `max_loss`) × the largest of the window | trips: every loss of the window is held |
//! | the set is empty by a loss | all are held: without end while `use_previous_backends` is true, else until `hold` |
//! | the set is empty by announcements | `use_previous_backends`: the last set is held until checks fail or `hold` ends |
//! | the set is empty or small, and there are `default_servers` | only the share rule holds: as in Ruby, defaults come before the previous set |
//!
//! A held address leaves when it is registered again (then it is held no more), when haproxy's check of it fails, 30 s
//! after the loss when no check vouches for it, after `hold`, when another service registers it, when its fixed-name node
//! appears with another address, when the set is as large as before the loss, or by release. What an empty set holds
//! without end leaves by none of these but the re-use, the recovery and the release; once the set has a member again, the
//! others have `hold` from there.
//!
//! `shadow` does all of it and changes nothing; it has no checks to ask, so that its holds end after 30 s.

use std::time::Duration;

use crate::model::member::{Member, Why};

mod machine;
mod registry;
#[cfg(test)]
mod simulation;
#[cfg(test)]
mod tests;

pub use crate::snapshot::holds::{Saved, SavedMember};
pub use machine::{Facts, Guard};
pub use registry::{Change, Gone, Registry};
pub use smartstack_common::clock::Clock;

/// What an empty registry means to the service.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WhenEmpty {
    /// `use_previous_backends`: the last set stays.
    Keep,
    /// It becomes empty, after `hold`.
    Empty,
    /// There are `default_servers`: they stand in.
    Defaults,
}

/// An address that is served although the registry does not name it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Held {
    /// As it was registered.
    pub member: Member,
    /// When it was lost.
    pub since: Duration,
    /// Without a check that vouches for it, it leaves 30 s after this.
    pub judged_from: Duration,
    /// When it leaves at the latest; `None` = not while the set is empty.
    pub until: Option<Duration>,
    /// Why it is held.
    pub why: Why,
    /// Another service had this address already when it was lost: that is no re-use.
    pub shared: bool,
}

/// Without a check a lost server is held this long.
pub const NO_EVIDENCE: Duration = Duration::from_secs(30);
/// A remembered set older than this is replaced by the first read without being guarded.
pub const OLD_SEED: Duration = Duration::from_secs(3600);
