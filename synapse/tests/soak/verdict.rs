//! What is right and what is not: haproxy's table beside the registry, failed requests beside the kills.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Instant;

use smartstack_common::testing::Failure;

/// A server as haproxy has it: address, weight, whether it takes requests.
pub(crate) type Row = (String, u16, bool);
/// By backend and name.
pub(crate) type Table = BTreeMap<(String, String), Row>;

/// From a kill until haproxy answered again.
pub(crate) type Window = (Instant, Instant);

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

/// Failures that no kill explains, and the number of the others by kind. A kill explains a request that was under way, or
/// began, between it and the first answer after it.
pub(crate) fn judge(
    failures: Vec<Failure>,
    windows: &[Window],
) -> (Vec<Failure>, BTreeMap<String, u32>) {
    let (mut unexplained, mut explained) = (Vec::new(), BTreeMap::new());
    for failure in failures {
        if windows
            .iter()
            .any(|(from, to)| failure.began <= *to && failure.ended >= *from)
        {
            *explained.entry(failure.kind).or_default() += 1;
        } else {
            unexplained.push(failure);
        }
    }
    (unexplained, explained)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use smartstack_common::testing::Style;

    use super::*;

    #[test]
    fn a_failure_away_from_every_kill_is_not_explained() {
        let start = Instant::from(tokio::time::Instant::now());
        let at = |ms: u64| start + Duration::from_millis(ms);
        let failure = |began, ended| Failure {
            style: Style::KeepAlive,
            began: at(began),
            ended: at(ended),
            kind: "reset".to_owned(),
        };
        let windows = [(at(100), at(200)), (at(500), at(600))];
        let cases = [
            (0, 99, false),
            (0, 100, true),
            (150, 160, true),
            (200, 300, true),
            (201, 499, false),
            (601, 700, false),
        ];
        for (began, ended, explained) in cases {
            let (unexplained, by_kind) = judge(vec![failure(began, ended)], &windows);
            assert_eq!(unexplained.is_empty(), explained, "{began}..{ended}");
            assert_eq!(by_kind.contains_key("reset"), explained);
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
