//! What a re-read configuration changes: places replaced, former places let go once the new ones stand.

use std::time::Duration;

use crate::boards::Boards;
use crate::config::Config;
use crate::health::Verdict;
use crate::wanted::{Intent, PlaceKey, Places, Wanted};

/// How long a moved service stays registered at its old place while the new one is not confirmed (as Ruby).
const HANDOVER: Duration = Duration::from_secs(30);

/// Sets a service up at its places. Returns those that are no more: they stay as they are until they are let go.
pub(super) fn replace(all: &mut Places, service: &str, places: Places) -> Vec<PlaceKey> {
    let mut former = Vec::new();
    let own = all.iter_mut().filter(|(key, _)| key.service == service);
    for (key, placed) in own.filter(|(key, _)| !places.contains_key(key)) {
        if std::mem::replace(&mut placed.intent, Intent::Moving) != Intent::Moving {
            former.push(key.clone());
        }
    }
    all.extend(places);
    former
}

/// Returns when the successors of a moved registration stand, or are not to stand, or have had their time.
pub(super) async fn confirmed(name: String, successors: Vec<PlaceKey>, boards: Boards) {
    let (mut wishes, mut ensembles) = (boards.wishes(), boards.ensembles.subscribe());
    let stand = ensembles.wait_for(|ensembles| {
        let stands = |key: &PlaceKey| {
            let mut there = ensembles.values().filter_map(|e| e.registrations.get(key));
            there.any(|there| there.node.is_some())
        };
        successors.iter().all(stands)
    });
    let not_to_stand = async {
        let never = |wanted: &Wanted| wanted.verdict == Verdict::Down || wanted.hold.is_some();
        loop {
            let wants = wishes.read(None);
            let mut wanted = successors.iter().map(|key| wants.get(key));
            if wanted.any(|wanted| wanted.is_none_or(never)) {
                return;
            }
            wishes.changed().await;
        }
    };
    // Watch receives, and the function ends with the first.
    tokio::select! {
        _ = stand => {}
        () = not_to_stand => {}
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
