//! What is right and what is not: haproxy's table beside the registry, failed requests beside the kills.

use std::collections::{BTreeMap, BTreeSet};

use smartstack_common::testing::Failure;

use crate::kills::Kill;

/// A server as haproxy has it: address, weight, whether it takes requests.
pub(crate) type Row = (String, u16, bool);
/// By backend and name.
pub(crate) type Table = BTreeMap<(String, String), Row>;

/// haproxy's table; servers of ours that only wait to be deleted (maint, weight 0) are not in it.
pub(crate) fn live(rows: &[BTreeMap<String, String>]) -> Table {
    rows.iter()
        .filter(|row| row["srv_admin_state"] == "0" || row["srv_uweight"] != "0")
        .map(|row| {
            let ready = row["srv_admin_state"] == "0" && row["srv_op_state"] == "2";
            let address = format!("{}:{}", row["srv_addr"], row["srv_port"]);
            let key = (row["be_name"].clone(), row["srv_name"].clone());
            (key, (address, row["srv_uweight"].parse().unwrap(), ready))
        })
        .collect()
}

pub(crate) fn differences(wanted: &Table, live: &Table) -> Vec<String> {
    let keys: BTreeSet<_> = wanted.keys().chain(live.keys()).collect();
    keys.into_iter()
        .filter(|key| wanted.get(key) != live.get(key))
        .map(|key| {
            format!(
                "{key:?}: wanted {:?}, haproxy {:?}",
                wanted.get(key),
                live.get(key)
            )
        })
        .collect()
}

/// Failures that no kill explains, and the number of the others by what they met. See the header of this program.
pub(crate) fn judge(
    failures: Vec<Failure>,
    kills: &[Kill],
) -> (Vec<Failure>, BTreeMap<String, u32>) {
    let (mut unexplained, mut explained) = (Vec::new(), BTreeMap::new());
    for failure in failures {
        match kills.iter().find_map(|kill| excuse(&failure, kill)) {
            Some(name) => *explained.entry(name).or_default() += 1,
            None => unexplained.push(failure),
        }
    }
    (unexplained, explained)
}

/// What a kill has to do with a failure; `None` = nothing.
fn excuse(failure: &Failure, kill: &Kill) -> Option<String> {
    let kind = failure.kind.as_str();
    let named = match (failure.connected, kind) {
        // Its connection was the killed one's, and it was under way when that ended.
        (Some(connected), "reset" | "closed") => connected <= kill.dead && failure.ended >= kill.at,
        // It was in the queue of the listening socket that ended.
        (None, "reset") => failure.began <= kill.dead && failure.ended >= kill.at,
        // It tried while nobody listened.
        (None, "refused") => failure.began <= kill.listens && failure.ended >= kill.at,
        _ => false,
    };
    let met = match kind {
        "refused" => "while nobody listened",
        _ => "in flight on the killed process",
    };
    named.then(|| format!("{met}: {kind}"))
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use smartstack_common::testing::Style;

    use super::*;

    /// Killed at 100, dead at 110, listening again at 200.
    #[test]
    fn only_what_met_the_killed_process_or_nobody_is_excused() {
        let start = Instant::from(tokio::time::Instant::now());
        let at = |ms: u64| start + Duration::from_millis(ms);
        let kill = Kill {
            at: at(100),
            dead: at(110),
            listens: at(200),
        };
        let cases = [
            // Established, began, ended.
            (Some(50), 90, 101, "reset", true),
            (Some(50), 90, 101, "closed", true),
            (Some(105), 104, 111, "reset", true),
            (Some(50), 90, 99, "reset", false),
            (Some(150), 149, 160, "reset", false),
            (Some(205), 204, 206, "closed", false),
            (Some(50), 90, 101, "status 503", false),
            (Some(50), 90, 101, "timeout", false),
            (Some(210), 150, 300, "status 503", false),
            (None, 109, 112, "reset", true),
            (None, 90, 99, "reset", false),
            (None, 111, 112, "reset", false),
            (None, 120, 120, "refused", true),
            (None, 200, 201, "refused", true),
            (None, 99, 99, "refused", false),
            (None, 201, 201, "refused", false),
            (None, 120, 10_120, "timeout", false),
        ];
        for (connected, began, ended, kind, excused) in cases {
            let failure = Failure {
                style: Style::KeepAlive,
                began: at(began),
                connected: connected.map(at),
                ended: at(ended),
                kind: kind.to_owned(),
            };
            let (unexplained, by_kind) = judge(vec![failure.clone()], &[kill]);
            assert_eq!(unexplained.is_empty(), excused, "{failure:?}");
            assert_eq!(by_kind.values().sum::<u32>(), u32::from(excused));
        }
    }

    #[test]
    fn every_difference_between_table_and_registry_is_found() {
        let table = |rows: &[(&str, &str, u16, bool)]| -> Table {
            rows.iter()
                .map(|(name, address, weight, ready)| {
                    (
                        ("web".to_owned(), (*name).to_owned()),
                        ((*address).to_owned(), *weight, *ready),
                    )
                })
                .collect()
        };
        let wanted = table(&[("a", "127.1.1.1:80", 1, true)]);
        assert!(differences(&wanted, &wanted).is_empty());
        for other in [
            table(&[]),
            table(&[("b", "127.1.1.1:80", 1, true)]),
            table(&[("a", "127.1.1.2:80", 1, true)]),
            table(&[("a", "127.1.1.1:80", 2, true)]),
            table(&[("a", "127.1.1.1:80", 1, false)]),
            table(&[
                ("a", "127.1.1.1:80", 1, true),
                ("b", "127.1.1.2:80", 1, true),
            ]),
        ] {
            assert!(!differences(&wanted, &other).is_empty(), "{other:?}");
        }
    }
}
