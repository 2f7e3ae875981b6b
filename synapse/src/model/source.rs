//! A source: one registry path of one ensemble, as read. Raw data only; meaning is given by the funnel.

use std::collections::{BTreeMap, VecDeque};
use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use smartstack_common::clock::Moment;

use smartstack_common::sequence;
use smartstack_common::units::{Ensemble, ZkPath};
use tokio::time::Instant;

/// Addresses by name, as `in_order` leaves them; the first is the one to use. A name that has been looked up in vain has
/// none; one whose first lookup is under way is absent.
pub type Resolved = BTreeMap<String, Vec<IpAddr>>;

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
    pub agreed_at: Option<Moment>,
    /// It agrees now: connected, watch armed, no read outstanding.
    pub fresh: bool,
    /// Children left out before they were read, with the reason (data above the limit).
    pub skipped: Arc<BTreeMap<String, String>>,
    /// Bytes of data on the path itself.
    pub parent_data: usize,
    /// Keys of that data, where it is a map: Airbnb's synapse takes configuration from there; this one does not.
    pub parent_config: Arc<[String]>,
    /// Why the registry cannot be read at the moment, in words.
    pub problem: Option<String>,
    /// What has left the set lately.
    pub removals: Arc<Removals>,
}

/// Removals are remembered this long, so that a receiver that slept still learns which of them were announced.
const REMEMBERED: Duration = Duration::from_secs(60);
/// And at most so many of them.
const MOST_REMEMBERED: usize = 20_000;

/// The latest removals of a source, oldest first. A receiver that has missed views finds here what happened in between;
/// one that has slept for longer than the memory takes what it misses as unannounced.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Removals {
    last: u64,
    kept: VecDeque<Removal>,
}

/// A child that has left the set.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Removal {
    /// Counts up from 1, over the life of the follower.
    pub number: u64,
    /// Its name.
    pub znode: Arc<str>,
    /// Its last data.
    pub data: Arc<[u8]>,
    /// What its owner has said.
    pub said: Farewell,
    at: Instant,
}

/// What was heard of the owner of a child when it left the set.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Farewell {
    /// It withdrew it on purpose.
    Announced,
    /// It would have been heard, and was not.
    Silent,
    /// It could not have been heard: servers without recursive watches do not tell of the change that announces it.
    Unheard,
}

impl Removals {
    /// Adds one and forgets what is old.
    pub fn push(&mut self, znode: &str, data: Arc<[u8]>, said: Farewell, now: Instant) {
        while self.kept.len() >= MOST_REMEMBERED
            || self
                .kept
                .front()
                .is_some_and(|r| now.duration_since(r.at) > REMEMBERED)
        {
            self.kept.pop_front();
        }
        self.last += 1;
        self.kept.push_back(Removal {
            number: self.last,
            znode: znode.into(),
            data,
            said,
            at: now,
        });
    }

    /// The number of the latest one; 0 = none yet.
    #[must_use]
    pub fn last(&self) -> u64 {
        self.last
    }

    /// Those with a higher number, oldest first.
    pub fn since(&self, number: u64) -> impl Iterator<Item = &Removal> {
        let from = self.kept.partition_point(|r| r.number <= number);
        self.kept.range(from..)
    }
}

impl SourceView {
    /// What is known before the registry has answered: the snapshot's set, as old as it says.
    #[must_use]
    pub fn seeded(children: Arc<Children>, agreed_at: Option<Moment>) -> Self {
        Self {
            children,
            agreed_at,
            ..Self::default()
        }
    }
}

/// Whether the name ends as ZooKeeper ends sequential ones: `_` and its number.
pub(crate) fn is_sequential(name: &str) -> bool {
    name.rsplit_once('_')
        .is_some_and(|(_, number)| sequence::parse(number).is_some())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn removals_are_numbered_bounded_and_forgotten() {
        let data: Arc<[u8]> = b"{}"[..].into();
        let now = Instant::now();
        let said = |announced| match announced {
            true => Farewell::Announced,
            false => Farewell::Silent,
        };
        let mut removals = Removals::default();
        for n in 0..3 {
            removals.push(&format!("n{n}"), data.clone(), said(n == 1), now);
        }
        let since = |r: &Removals, n| r.since(n).map(|r| r.number).collect::<Vec<_>>();
        assert_eq!(since(&removals, 0), [1, 2, 3]);
        assert_eq!(since(&removals, 2), [3]);
        assert!(since(&removals, 3).is_empty() && removals.last() == 3);
        assert!(
            removals
                .since(1)
                .next()
                .is_some_and(|r| r.said == Farewell::Announced)
        );
        removals.push("n3", data.clone(), said(true), now + REMEMBERED * 2);
        assert_eq!(since(&removals, 0), [4]);
        for n in 0..MOST_REMEMBERED * 2 {
            removals.push(&n.to_string(), data.clone(), said(false), now);
        }
        assert_eq!(removals.since(0).count(), MOST_REMEMBERED);
    }
}
