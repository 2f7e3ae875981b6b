//! Discovery: keeps a [`SourceView`](crate::model::source::SourceView) of every watched path in step with ZooKeeper.
//!
//! One task per source ([`follow()`]), each the only writer of its view. Never decides what a payload means
//! (that is the funnel's) nor whether a loss is believed (the guard's), and never waits for the registry on behalf of
//! anybody: receivers hold the latest whole view. Started by the program's wiring, which also starts one session
//! supervisor per [`Shard`].
//!
//! ```text
//! tree       pure: events, listings and reads in, complete children out
//! chunks     pure: how many names go into one multi-read
//! suspects   pure: which requests take connections down, and how they are found out
//! reads      the requests: watch, list, chunked multi-read
//! armed      one-shot watches of old servers, which nobody may ask to remove one
//! shared     what the followers of one client share: places for reads, a connection for suspected requests
//! zookeeper  the task: arm, read, follow events, again after every connection
//! ```

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use smartstack_common::backoff::spread_after;
use smartstack_common::units::Ensemble;

use crate::model::source::SourceKey;

pub mod chunks;
pub mod follow;
mod reads;
mod shared;
pub mod suspects;
pub mod tree;

pub use follow::{Source, follow};
pub use shared::Shared;
pub use tree::Validity;

/// How sources are followed.
#[derive(Debug, Clone)]
pub struct Settings {
    /// After a short interruption the children that are known are read again within 0..this (the watch is armed and the
    /// list read at once); see [`Pace`]. Zero turns every spread off, also the one after an outage.
    pub jitter: Duration,
    /// Mean time between full comparisons with the registry, ± 50 %.
    pub compare: Duration,
    /// By what changes are learnt.
    pub watch: Watch,
    /// Longest pause before what only an administrator can lift is tried again: no right to read, a server too old.
    pub refused: Duration,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            jitter: Duration::from_millis(500),
            compare: Duration::from_secs(600),
            watch: Watch::default(),
            refused: Duration::from_secs(30),
        }
    }
}

/// By what changes of a path are learnt.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Watch {
    /// One recursive watch; with servers that do not know it, as [`Watch::Children`].
    #[default]
    Recursive,
    /// For servers before 3.6: one watch of the children, and after each change of them the list and what is new in it. A
    /// change of data in place is found by reading everything, every tenth of [`Settings::compare`]. Never a watch for each
    /// instance: the paths of some thousand would keep the client from reconnecting.
    Children,
}

/// Over what times the reads of a connection are spread, counted from when its watch is armed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Pace {
    /// The list, and the children that are new in it.
    pub list: Duration,
    /// Counted from the list: everything. `None`: the list and everything are one.
    pub verify: Option<Duration>,
}

impl Pace {
    /// Everything, without a pause.
    pub const AT_ONCE: Self = Self {
        list: Duration::ZERO,
        verify: None,
    };
}

/// The first verification after an outage is spread over so many times the spread of the lists.
const VERIFY_SPREAD: u32 = 3;

impl Settings {
    /// How to read after `away` without a connection. Longer than the session time-out is an outage that others have seen
    /// as well: a server that has just come back would be asked by all of them at once. A shorter one is over for this
    /// client alone, or for those of one server, and the list is to agree at once. `known`: there is a set to rest on.
    ///
    /// What an outage of 40 s or more costs 10,000 hosts that watch 100 services of 100 instances each: lists of
    /// 10,000 × 100 × 2.4 kB = 2.4 GB, over 10 s 240 MB/s; everything 10,000 × 100 × 21 kB = 21 GB, over 30 s 700 MB/s,
    /// shared by the servers of the ensemble. At once it would be 23 GB as fast as the network goes.
    #[must_use]
    pub fn pace(&self, away: Duration, session_timeout: Duration, known: bool) -> Pace {
        if self.jitter.is_zero() {
            return Pace::AT_ONCE;
        }
        let (list, verify) = if away > session_timeout {
            let list = spread_after(away);
            (list, list * VERIFY_SPREAD)
        } else {
            (Duration::ZERO, self.jitter)
        };
        Pace {
            list,
            verify: known.then_some(verify),
        }
    }
}

/// What discovery has done since the start, over all sources that share it. For `/metrics`.
#[derive(Debug, Default)]
pub struct Counters {
    /// Node events received.
    pub events: AtomicU64,
    /// Requests sent: listings, multi-reads, verifications. Arming a watch is counted apart.
    pub requests: AtomicU64,
    /// Watches armed.
    pub watches: AtomicU64,
    /// Full reads that succeeded.
    pub full_reads: AtomicU64,
    /// Of these, those that read new children only.
    pub lists: AtomicU64,
    /// Children that a comparison found different although no event had told so. Each is a defect somewhere.
    pub differences: AtomicU64,
    /// Reads or watches that failed (also because the connection went).
    pub failures: AtomicU64,
    /// Listings older than one seen before.
    pub stale_lists: AtomicU64,
    /// Requests suspected of taking connections down that were tested on a connection of their own.
    pub tests: AtomicU64,
    /// Of these tests, those that lost it.
    pub tests_lost: AtomicU64,
}

impl Counters {
    fn add(counter: &AtomicU64, n: usize) {
        counter.fetch_add(u64::try_from(n).unwrap_or(u64::MAX), Ordering::Relaxed);
    }
}

/// Bytes of watched paths one client may carry: above 128 KiB its reconnections fail until the session expires
/// (zookeeper-client 0.11.2 sends the list of watches in pieces and then refuses the second answer).
pub const PATH_BUDGET: usize = 100_000;

/// The sources that share one client.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Shard {
    /// Their ensemble.
    pub ensemble: Ensemble,
    /// They, sorted.
    pub sources: Vec<SourceKey>,
}

/// Distributes sources over clients: one per ensemble, more by a stable hash of the path where the watched paths of one
/// would exceed `budget` bytes. A source stays with its neighbours as long as the number of clients does.
#[must_use]
pub fn shards(sources: &[SourceKey], budget: usize) -> Vec<Shard> {
    let mut by_ensemble: BTreeMap<&Ensemble, Vec<&SourceKey>> = BTreeMap::new();
    for source in sources {
        by_ensemble
            .entry(&source.ensemble)
            .or_default()
            .push(source);
    }
    let mut all = Vec::new();
    for (ensemble, mut sources) in by_ensemble {
        sources.sort_unstable();
        sources.dedup();
        let total: usize = sources.iter().map(|s| path_bytes(s)).sum();
        let mut count = total.div_ceil(budget.max(1)).max(1);
        let parts = loop {
            let mut parts: Vec<Vec<&SourceKey>> = vec![Vec::new(); count];
            for source in &sources {
                parts[stable_hash(source.path.as_str().as_bytes()) % count].push(source);
            }
            let fits = |part: &Vec<&SourceKey>| {
                part.len() <= 1 || part.iter().map(|s| path_bytes(s)).sum::<usize>() <= budget
            };
            if count >= sources.len() || parts.iter().all(fits) {
                break parts;
            }
            count += 1;
        };
        all.extend(
            parts
                .into_iter()
                .filter(|part| !part.is_empty())
                .map(|part| Shard {
                    ensemble: ensemble.clone(),
                    sources: part.into_iter().cloned().collect(),
                }),
        );
    }
    all
}

fn path_bytes(source: &SourceKey) -> usize {
    source.ensemble.chroot().len() + source.path.as_str().len()
}

/// FNV-1a: the same on every build and machine.
fn stable_hash(bytes: &[u8]) -> usize {
    let hash = bytes.iter().fold(0xcbf2_9ce4_8422_2325_u64, |h, b| {
        (h ^ u64::from(*b)).wrapping_mul(0x0100_0000_01b3)
    });
    // The low bits of FNV are its weak ones.
    usize::try_from(hash >> 33).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;
    use smartstack_common::units::ZkPath;

    fn keys(ensemble: &str, count: usize) -> Vec<SourceKey> {
        let ensemble = Ensemble::new(&[ensemble]).unwrap();
        let path = |n| ZkPath::new(&format!("/services/number-{n:06}/instances")).unwrap();
        (0..count)
            .map(|n| SourceKey {
                ensemble: ensemble.clone(),
                path: path(n),
            })
            .collect()
    }

    #[test]
    fn only_after_an_outage_the_list_waits() {
        let settings = Settings::default();
        let pace = |away: f64, known| {
            let away = Duration::from_secs_f64(away);
            let pace = settings.pace(away, Duration::from_secs(10), known);
            (pace.list.as_millis(), pace.verify.map(|v| v.as_millis()))
        };
        assert_eq!(pace(0.1, true), (0, Some(500)));
        assert_eq!(pace(9.0, true), (0, Some(500)));
        assert_eq!(pace(0.1, false), (0, None));
        assert_eq!(pace(20.0, true), (5000, Some(15_000)));
        assert_eq!(pace(3600.0, true), (10_000, Some(30_000)));
        assert_eq!(pace(3600.0, false), (10_000, None));
        let tests = Settings {
            jitter: Duration::ZERO,
            ..Settings::default()
        };
        let pace = tests.pace(Duration::from_secs(3600), Duration::from_secs(10), true);
        assert_eq!((pace.list, pace.verify), (Duration::ZERO, None));
    }

    #[test]
    fn one_client_per_ensemble_within_the_budget() {
        let sources = [keys("a:1", 20), keys("b:1/root", 1)].concat();
        let shards = shards(&sources, PATH_BUDGET);
        assert_eq!(shards.len(), 2);
        assert_eq!(shards[0].sources.len(), 20);
    }

    #[test]
    fn several_clients_each_within_the_budget_and_nobody_lost() {
        let sources = keys("a:1", 10_000);
        let split = shards(&sources, PATH_BUDGET);
        let bytes = |shard: &Shard| shard.sources.iter().map(path_bytes).sum::<usize>();
        assert!(split.len() >= 4 && split.len() <= 8, "{}", split.len());
        assert!(split.iter().all(|s| bytes(s) <= PATH_BUDGET));
        let mut back: Vec<SourceKey> = split.iter().flat_map(|s| s.sources.clone()).collect();
        back.sort();
        assert_eq!(back, sources);
        assert_eq!(shards(&sources, PATH_BUDGET), split, "stable");
    }

    #[test]
    fn a_single_path_above_the_budget_stands_alone() {
        assert_eq!(
            shards(&keys("a:1", 3), 10)
                .iter()
                .map(|s| s.sources.len())
                .sum::<usize>(),
            3
        );
    }
}
