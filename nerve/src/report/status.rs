//! `/status` (schema 1), `/ready` and `/`: a view over what the tasks last published. Nothing is decided here.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde_json::{Value, json};
use smartstack_common::admin::{Answer, Routes};
use smartstack_common::clock::Moment;
use smartstack_common::telemetry;
use tokio::time::Instant;

use super::metrics;
use crate::boards::{Boards, EnsembleReport, LeftOver, Registered, ServiceReport};
use crate::wanted::{Hold, Holds};

/// The page `/status`.
fn status(boards: &Boards, started: Moment) -> Value {
    let (services, ensembles) = (boards.services.borrow(), boards.ensembles.borrow());
    let holds = boards.holds.borrow();
    let service = |(name, report): (&String, &ServiceReport)| {
        let registrations: Vec<Value> = ensembles
            .iter()
            .flat_map(|(hosts, e)| e.registrations.values().map(move |r| (hosts, r)))
            .filter(|(_, r)| r.service == *name)
            .map(|(hosts, r)| registration(hosts, r))
            .collect();
        let body = json!({
            "health": report.health,
            "since": report.since,
            "checks": report.checks,
            "registrations": registrations,
            "held": holds.get(name),
        });
        (name.clone(), body)
    };
    json!({
        "schema": 1,
        "program": "nerve",
        "version": smartstack_common::BUILD,
        "pid": std::process::id(),
        "started": started,
        "ready": boards.missing().is_none(),
        "zookeeper": ensembles.values().map(|e| &e.link).collect::<Vec<_>>(),
        "services": services.iter().map(service).collect::<serde_json::Map<_, _>>(),
        "left_over": ensembles
            .iter()
            .flat_map(|(hosts, e)| e.left_over.iter().map(move |left| left_over(hosts, left)))
            .collect::<Vec<_>>(),
        "warnings": warnings(&ensembles, &holds),
        "log_lines_dropped": telemetry::dropped().get(),
    })
}

fn registration(hosts: &str, registered: &Registered) -> Value {
    json!({
        "hosts": hosts,
        "path": registered.path,
        "wanted": registered.wanted.to_string(),
        "observed": registered.observed,
        "in_sync": registered.in_sync,
        "node": registered.node,
        "payload": payload(&registered.payload),
        "observed_payload": registered.observed_payload.as_deref().map(payload),
        "observed_at": registered.observed_at.map(moment),
        "since": registered.since.map(moment),
        "error": registered.error,
        "twins": registered.twins,
    })
}

fn moment(at: Instant) -> Moment {
    Moment::ago(at.elapsed())
}

/// JSON as nerve writes it; anything else as text.
fn payload(bytes: &[u8]) -> Value {
    let text = || Value::from(String::from_utf8_lossy(bytes));
    serde_json::from_slice(bytes).unwrap_or_else(|_| text())
}

fn left_over(hosts: &str, left: &LeftOver) -> Value {
    json!({
        "hosts": hosts,
        "path": left.path,
        "node": left.node,
        "service": left.service,
        "observed_at": left.observed_at.map(moment),
    })
}

fn warnings(ensembles: &BTreeMap<String, EnsembleReport>, holds: &Holds) -> Vec<String> {
    let doubted = holds.iter().filter(|(_, held)| held.by == Hold::Unknown);
    let doubted = doubted.map(|(service, _)| {
        format!("not known whether `{service}` was drained or disabled: `nerve enable` or `nerve drain` it")
    });
    let mut warnings: Vec<String> = ensembles
        .values()
        .flat_map(|e| e.registrations.values())
        .flat_map(|r| {
            let twins = r
                .twins
                .iter()
                .map(|twin| format!("two nerves claim `{}/{twin}`", r.path));
            twins.chain(r.error.clone())
        })
        .chain(doubted)
        .collect();
    for (hosts, ensemble) in ensembles {
        let state = ensemble.link.state;
        warnings.extend(ensemble.left_over.iter().map(|left| {
            let service = left.service.as_deref().unwrap_or("no known service");
            format!(
                "`{}/{}` of the removed service `{service}` still stands: it is withdrawn when {hosts} ({state}) allows it, or \
                 goes with its session",
                left.path, left.node
            )
        }));
    }
    warnings.sort();
    warnings.dedup();
    warnings
}

/// The pages of the admin listener.
pub(crate) fn routes(boards: Boards, registry: prometheus_client::registry::Registry) -> Routes {
    let started = Moment::now();
    Arc::new(move |path| match path {
        "/ready" => Some(Answer::ready(boards.missing())),
        "/metrics" => Some(Answer::metrics(metrics::text(&registry))),
        "/status" => Some(Answer::json(&status(&boards, started))),
        "/" => Some(Answer::html(include_str!("page.html"))),
        _ => None,
    })
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use smartstack_common::zk::LinkStatus;

    use super::*;
    use crate::boards::{CheckReport, Observed};
    use crate::health::Health;
    use crate::wanted::{Held, PlaceKey, Stance};

    #[test]
    fn schema_1() {
        let (boards, senders) = Boards::new();
        let health = Some(Health::Up);
        let check = CheckReport {
            name: "noop".to_owned(),
            health,
            at: Some(Moment::now()),
            ms: Some(0.1),
            error: None,
            not_run_since: None,
        };
        let up = ServiceReport {
            health,
            checked: true,
            checks: vec![check],
            ..ServiceReport::new(Duration::ZERO)
        };
        boards.services.entry("web").post(up);
        let twins = vec!["i_0000000001 (session 0x7)".to_owned()];
        let registered = Registered {
            service: "web".to_owned(),
            confirmed: true,
            path: "/s".to_owned(),
            wanted: Stance::Present,
            payload: br#"{"port":1}"#.to_vec(),
            observed: Observed::Present,
            observed_payload: Some(b"\xff".to_vec()),
            observed_at: Some(Instant::now()),
            in_sync: false,
            node: Some("i_0000000002".to_owned()),
            since: Some(Instant::now()),
            error: None,
            twins,
            elsewhere: Vec::new(),
        };
        let link = LinkStatus {
            hosts: "z:1".to_owned(),
            state: "live",
            session: Some("0x1".to_owned()),
            epoch: Some(1),
            session_timeout: None,
            since: Some(2.0),
            error: None,
        };
        let key = PlaceKey {
            service: "web".to_owned(),
            hosts: "z:1".to_owned(),
            path: "/s".to_owned(),
        };
        let registrations = BTreeMap::from([(key, registered)]);
        boards.ensembles.entry("z:1").post(EnsembleReport {
            link,
            registrations,
            left_over: vec![LeftOver {
                service: Some("old".to_owned()),
                path: "/t".to_owned(),
                node: "i_0000000009".to_owned(),
                observed_at: None,
            }],
            withdrawn: false,
            at_rest: false,
            remembered: true,
        });
        let page = status(&boards, Moment::now());
        assert_eq!(page["schema"], 1);
        assert_eq!(page["ready"], true);
        assert_eq!(page["services"]["web"]["health"], "up");
        assert_eq!(page["services"]["web"]["checks"][0]["ms"], 0.1);
        assert_eq!(
            page["services"]["web"]["registrations"][0]["node"],
            "i_0000000002"
        );
        assert_eq!(page["zookeeper"][0]["state"], "live");
        let place = &page["services"]["web"]["registrations"][0];
        assert_eq!(place["in_sync"], false);
        assert_eq!(place["payload"], json!({"port": 1}));
        assert_eq!(place["observed_payload"], "\u{fffd}");
        assert!(place["observed_at"].is_number());
        assert_eq!(page["left_over"][0]["node"], "i_0000000009");
        assert_eq!(
            page["warnings"],
            json!([
                "`/t/i_0000000009` of the removed service `old` still stands: it is withdrawn when z:1 (live) allows it, or \
                 goes with its session",
                "two nerves claim `/s/i_0000000001 (session 0x7)`",
            ])
        );
        assert_eq!(page["services"]["web"]["held"], Value::Null);
        let held = Held {
            by: Hold::Disable,
            since: 1.5,
        };
        let held = Holds::from([("web".to_owned(), held)]);
        senders.holds.send_replace(held);
        let page = status(&boards, Moment::now());
        assert_eq!(
            page["services"]["web"]["held"],
            json!({"by": "disable", "since": 1.5})
        );
    }
}
