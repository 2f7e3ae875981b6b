//! What a re-read configuration changes: wishes replaced, former places let go once the new ones stand.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::boards::{Board, Boards};
use crate::config::Config;
use crate::health::Verdict;
use crate::wanted::{Wanted, Wants};

/// How long a moved service stays registered at its old place while the new one is not confirmed (as Ruby).
const HANDOVER: Duration = Duration::from_secs(30);

/// Puts the wishes of a service in the place of its former ones. What its checks said goes on when they are the same.
/// Returns the keys of places that are no more: these stay as they are until they are let go.
pub(super) fn replace(
    wants: &mut Wants,
    service: &str,
    places: BTreeMap<String, Wanted>,
    same_checks: bool,
) -> Vec<String> {
    let keys = Wanted::keys_of(service);
    let before: Vec<(String, Wanted)> = wants
        .iter()
        .filter(|(key, wanted)| key.starts_with(&keys) && wanted.verdict != Verdict::Held)
        .map(|(key, wanted)| (key.clone(), wanted.clone()))
        .collect();
    let mut former = Vec::new();
    for (key, _) in &before {
        if let Some(wanted) = wants.get_mut(key).filter(|_| !places.contains_key(key)) {
            wanted.verdict = Verdict::Held;
            former.push(key.clone());
        }
    }
    let known = before.first().filter(|_| same_checks);
    for (key, fresh) in places {
        let wanted = match known {
            Some((_, known)) => Wanted {
                verdict: known.verdict,
                as_of: known.as_of,
                ..fresh
            },
            None => fresh,
        };
        wants.insert(key, wanted);
    }
    former
}

/// Returns when the successors of a moved registration stand, or are not to stand, or have had their time.
pub(super) async fn confirmed(
    name: String,
    successors: Vec<String>,
    wants: Board<Wanted>,
    boards: Boards,
) {
    let mut wants = wants.subscribe();
    let mut ensembles = boards.ensembles.subscribe();
    let stand = ensembles.wait_for(|ensembles| {
        let stands = |key: &String| {
            let mut there = ensembles.values().filter_map(|e| e.registrations.get(key));
            there.any(|there| there.node.is_some())
        };
        successors.iter().all(stands)
    });
    let not_to_stand = wants.wait_for(|wants| {
        let never = |wanted: &Wanted| wanted.verdict == Verdict::Down || wanted.hold.is_some();
        successors
            .iter()
            .any(|key| wants.get(key).is_none_or(never))
    });
    // Both are watch receives, and the function ends with the first.
    tokio::select! {
        _ = stand => {}
        _ = not_to_stand => {}
        () = tokio::time::sleep(HANDOVER) => tracing::warn!(service = name, "moved, and not confirmed at its new place in 30 s"),
    }
}

pub(super) fn warn_of_restart_keys(old: &Config, new: &Config) {
    let keys = [
        ("heartbeat_path", old.heartbeat_path != new.heartbeat_path),
        (
            "zookeeper.session_timeout",
            old.session_timeout != new.session_timeout,
        ),
        ("zookeeper.jitter", old.jitter != new.jitter),
        ("zookeeper.write_rate", old.write_rate != new.write_rate),
        (
            "zookeeper.write_rate_mode",
            old.write_rate_mode != new.write_rate_mode,
        ),
        ("admin", old.listeners != new.listeners),
        ("state_path", old.state_path != new.state_path),
    ];
    let changed: Vec<&str> = keys
        .iter()
        .filter(|(_, changed)| *changed)
        .map(|(key, _)| *key)
        .collect();
    if !changed.is_empty() {
        tracing::warn!(
            keys = changed.join(", "),
            "takes effect when nerve is started again"
        );
    }
}
