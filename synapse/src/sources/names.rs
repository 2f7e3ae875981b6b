//! Hosts that are names: resolved beside the main path, so that no lookup ever delays a change.
//!
//! Owns the map name → addresses. A name keeps its last addresses when a lookup fails (also across a restart, through the
//! snapshot). Never looks up IP addresses, never decides which server is used: the funnel takes the first address.

use crate::model::source::Resolved;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::Instant;
use tracing::{debug, info, warn};

#[cfg(test)]
mod tests;

/// Time limit of one lookup.
const LIMIT: Duration = Duration::from_secs(2);
/// Pause between the lookups of one name.
const PERIOD: Duration = Duration::from_secs(30);
/// Lookups at the same time (each may hold a thread of the blocking pool).
const CONCURRENT: usize = 8;

/// The answers of a lookup in the order that makes the first one the same on every host: A before AAAA, each sorted.
#[must_use]
pub fn in_order(answers: impl IntoIterator<Item = IpAddr>) -> Vec<IpAddr> {
    // `IpAddr` orders every IPv4 address before every IPv6 one.
    answers
        .into_iter()
        .collect::<BTreeSet<_>>()
        .into_iter()
        .collect()
}

/// Which of the hosts need a lookup: those that are not IP addresses (with or without brackets).
#[must_use]
pub fn is_name(host: &str) -> bool {
    let bare = host
        .strip_prefix('[')
        .and_then(|h| h.strip_suffix(']'))
        .unwrap_or(host);
    !host.is_empty() && bare.parse::<IpAddr>().is_err()
}

/// Takes one lookup's result into the map. Returns whether the map changed: a failure or an empty answer takes no address
/// away.
pub fn merge(resolved: &mut Resolved, name: &str, answer: Result<Vec<IpAddr>, String>) -> bool {
    let addresses = answer.map(in_order).unwrap_or_default();
    let known = resolved.get(name);
    let changes = match addresses.is_empty() {
        true => known.is_none(),
        false => known != Some(&addresses),
    };
    if changes {
        resolved.insert(name.to_owned(), addresses);
    }
    changes
}

/// One lookup: the answers, or the reason in words.
pub type Lookup =
    fn(String) -> std::pin::Pin<Box<dyn Future<Output = Result<Vec<IpAddr>, String>> + Send>>;

/// The system's resolver (`getaddrinfo` on a blocking thread).
#[must_use]
pub fn system() -> Lookup {
    |name| {
        Box::pin(async move {
            let found = tokio::net::lookup_host((name.as_str(), 0))
                .await
                .map_err(|e| e.to_string())?;
            Ok(found.map(|address| address.ip()).collect())
        })
    }
}

/// Resolves the names in `wanted`, at once when they appear and every 30 s, until `wanted`'s sender is gone; run it beside
/// a shutdown signal and drop it to stop. `resolved` holds at first what the snapshot knows, then the latest map; names no
/// longer wanted leave it. IP addresses in `wanted` are ignored.
pub async fn resolve(
    mut wanted: watch::Receiver<Arc<BTreeSet<String>>>,
    resolved: watch::Sender<Arc<Resolved>>,
    lookup: Lookup,
) {
    let mut round = Round::default();
    let mut lookups: JoinSet<(String, Result<Vec<IpAddr>, String>)> = JoinSet::new();
    wanted.mark_changed();
    loop {
        while lookups.len() < CONCURRENT
            && let Some(name) = round.next(Instant::now())
        {
            lookups.spawn(async move {
                let answer = match tokio::time::timeout(LIMIT, lookup(name.clone())).await {
                    Ok(answer) => answer,
                    Err(_) => Err(format!("no answer within {LIMIT:?}")),
                };
                (name, answer)
            });
        }
        // Cancel-safe: a watch, a set of running tasks, a deadline kept outside.
        tokio::select! {
            changed = wanted.changed() => {
                if changed.is_err() {
                    return;
                }
                let names = wanted.borrow_and_update().clone();
                round.want(&names);
                resolved.send_if_modified(|map| {
                    let obsolete = map.keys().any(|name| !names.contains(name));
                    if obsolete {
                        Arc::make_mut(map).retain(|name, _| names.contains(name));
                    }
                    obsolete
                });
            }
            Some(Ok((name, answer))) = lookups.join_next() => {
                round.done(&name, answer.as_ref().err(), Instant::now());
                if round.is_wanted(&name) {
                    let mut map = resolved.borrow().as_ref().clone();
                    if merge(&mut map, &name, answer) {
                        if let Some(address) = map.get(&name).filter(|found| !found.is_empty()) {
                            info!(name, ?address, "a host's name has been resolved");
                        }
                        resolved.send_replace(Arc::new(map));
                    }
                }
            }
            () = wait(round.due()), if lookups.len() < CONCURRENT => {}
        }
    }
}

async fn wait(deadline: Option<Instant>) {
    match deadline {
        Some(deadline) => tokio::time::sleep_until(deadline).await,
        None => std::future::pending().await,
    }
}

/// Which name is looked up when.
#[derive(Debug, Default)]
struct Round {
    /// Not being looked up, the earliest first.
    queue: VecDeque<(Instant, String)>,
    /// Wanted names and whether their last lookup failed (so that a failure is told once).
    wanted: BTreeMap<String, bool>,
    running: BTreeSet<String>,
}

impl Round {
    fn want(&mut self, names: &BTreeSet<String>) {
        let names: BTreeSet<&String> = names.iter().filter(|name| is_name(name)).collect();
        self.wanted.retain(|name, _| names.contains(name));
        self.queue.retain(|(_, name)| names.contains(name));
        for name in names {
            if !self.wanted.contains_key(name) {
                self.wanted.insert(name.clone(), false);
                if !self.running.contains(name) {
                    self.queue.push_front((Instant::now(), name.clone()));
                }
            }
        }
    }

    fn is_wanted(&self, name: &str) -> bool {
        self.wanted.contains_key(name)
    }

    fn due(&self) -> Option<Instant> {
        self.queue.front().map(|(due, _)| *due)
    }

    fn next(&mut self, now: Instant) -> Option<String> {
        let (_, name) = self.queue.pop_front_if(|(due, _)| *due <= now)?;
        self.running.insert(name.clone());
        Some(name)
    }

    fn done(&mut self, name: &str, error: Option<&String>, now: Instant) {
        self.running.remove(name);
        let Some(failed) = self.wanted.get_mut(name) else {
            return;
        };
        match (std::mem::replace(failed, error.is_some()), error) {
            (false, Some(error)) => warn!(
                name,
                error, "a host's name cannot be resolved; its last address stays, if it has one"
            ),
            (true, None) => debug!(name, "a host's name can be resolved again"),
            _ => {}
        }
        self.queue.push_back((now + PERIOD, name.to_owned()));
    }
}
