//! `/status` (schema 1), `/ready` and `/`: a view over what the tasks last published. Nothing is decided here.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use serde::Serialize;
use serde_json::{Value, json};
use smartstack_common::admin::{Answer, Routes};
use smartstack_common::clock::Moment;
use smartstack_common::telemetry;
use smartstack_common::zk::LinkStatus;
use tokio::sync::watch;
use tokio::time::Instant;

use crate::hysteresis::Health;
use crate::metrics;
use crate::reconcile::{LeftOver, Registered};
use crate::service::Hold;
use crate::state::{Held, Holds};

/// The latest value of each of several publishers, by name. Publishers change their own entry only.
pub(crate) type Board<T> = Arc<watch::Sender<BTreeMap<String, T>>>;

/// What a service's task knows.
#[derive(Debug, Clone)]
pub(crate) struct ServiceReport {
    /// Over all checks; `None` before the first results.
    pub(crate) health: Option<Health>,
    /// Whether a round has ended, be it that its checks could not run.
    pub(crate) checked: bool,
    /// Since when.
    pub(crate) since: Moment,
    /// In the order of the configuration.
    pub(crate) checks: Vec<CheckReport>,
    /// End of the last round, or the start of the task.
    pub(crate) progress: Instant,
    /// The longest time between two rounds that is not a standstill.
    pub(crate) window: Duration,
}

/// The last attempt of a check.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct CheckReport {
    pub(crate) name: String,
    pub(crate) health: Option<Health>,
    /// When it began.
    pub(crate) at: Option<Moment>,
    pub(crate) ms: Option<f64>,
    pub(crate) error: Option<String>,
    /// Since when it could not run, without a break.
    pub(crate) not_run_since: Option<Moment>,
}

/// What a registrar knows.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct EnsembleReport {
    pub(crate) link: LinkStatus,
    /// By key of the wish.
    pub(crate) registrations: BTreeMap<String, Registered>,
    /// Nodes of services that are no more.
    pub(crate) left_over: Vec<LeftOver>,
    /// Everything is to be absent, and nothing of ours is left.
    pub(crate) withdrawn: bool,
    /// Every wish is hands off, and no write is under way.
    pub(crate) at_rest: bool,
    /// Whether a successor of this process will know the session's nodes.
    pub(crate) remembered: bool,
}

/// Whether the holds make a service's checks rest.
pub(crate) fn disables(holds: &Holds, service: &str) -> bool {
    holds
        .get(service)
        .is_some_and(|held| held.by == Hold::Disable)
}

/// All that a page is made of.
#[derive(Debug, Clone)]
pub(crate) struct Boards {
    pub(crate) services: Board<ServiceReport>,
    pub(crate) ensembles: Board<EnsembleReport>,
    /// Services that an operator has taken out.
    pub(crate) holds: Board<Held>,
    /// When the registrar of an ensemble last came round.
    pub(crate) rounds: Board<Instant>,
}

impl Boards {
    pub(crate) fn new() -> Self {
        Self {
            services: Arc::new(watch::Sender::new(BTreeMap::new())),
            ensembles: Arc::new(watch::Sender::new(BTreeMap::new())),
            holds: Arc::new(watch::Sender::new(BTreeMap::new())),
            rounds: Arc::new(watch::Sender::new(BTreeMap::new())),
        }
    }

    /// Whether the checks of a service rest.
    pub(crate) fn is_disabled(&self, service: &str) -> bool {
        disables(&self.holds.borrow(), service)
    }

    /// What keeps nerve from being ready: services whose checks have not all run once, those that rest apart. ZooKeeper
    /// is not waited for.
    pub(crate) fn missing(&self) -> Option<String> {
        let services = self.services.borrow();
        let waiting: Vec<&str> = services
            .iter()
            .filter(|(name, s)| !s.checked && !self.is_disabled(name))
            .map(|(n, _)| n.as_str())
            .collect();
        (!waiting.is_empty()).then(|| format!("not checked yet: {}", waiting.join(", ")))
    }

    fn status(&self, started: Moment) -> Value {
        let (services, ensembles) = (self.services.borrow(), self.ensembles.borrow());
        let holds = self.holds.borrow();
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
            "ready": self.missing().is_none(),
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
}

fn registration(hosts: &str, registered: &Registered) -> Value {
    json!({
        "hosts": hosts,
        "path": registered.path,
        "wanted": registered.wanted,
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
        "/status" => Some(Answer::json(&boards.status(started))),
        "/" => Some(Answer {
            content_type: "text/html; charset=utf-8",
            ..Answer::text(include_str!("status/page.html"))
        }),
        _ => None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn schema_1() {
        let boards = Boards::new();
        let health = Some(Health::Up);
        let check = CheckReport {
            name: "noop".to_owned(),
            health,
            at: Some(Moment::now()),
            ms: Some(0.1),
            error: None,
            not_run_since: None,
        };
        boards.services.send_modify(|services| {
            let now = Moment::now();
            let (progress, window) = (Instant::now(), Duration::ZERO);
            let up = ServiceReport {
                health,
                checked: true,
                since: now,
                checks: vec![check],
                progress,
                window,
            };
            services.insert("web".to_owned(), up);
        });
        let twins = vec!["i_0000000001 (session 0x7)".to_owned()];
        let registered = Registered {
            service: "web".to_owned(),
            confirmed: true,
            path: "/s".to_owned(),
            wanted: "present".to_owned(),
            payload: br#"{"port":1}"#.to_vec(),
            observed: "present",
            observed_payload: Some(b"\xff".to_vec()),
            observed_at: Some(Instant::now()),
            in_sync: false,
            node: Some("i_0000000002".to_owned()),
            since: Some(Instant::now()),
            error: None,
            twins,
            elsewhere: Vec::new(),
        };
        boards.ensembles.send_modify(|ensembles| {
            let link = LinkStatus {
                hosts: "z:1".to_owned(),
                state: "live",
                session: Some("0x1".to_owned()),
                epoch: Some(1),
                session_timeout: None,
                since: Some(2.0),
                error: None,
            };
            let registrations = BTreeMap::from([("web at z:1/s".to_owned(), registered)]);
            ensembles.insert(
                "z:1".to_owned(),
                EnsembleReport {
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
                },
            );
        });
        let status = boards.status(Moment::now());
        assert_eq!(status["schema"], 1);
        assert_eq!(status["ready"], true);
        assert_eq!(status["services"]["web"]["health"], "up");
        assert_eq!(status["services"]["web"]["checks"][0]["ms"], 0.1);
        assert_eq!(
            status["services"]["web"]["registrations"][0]["node"],
            "i_0000000002"
        );
        assert_eq!(status["zookeeper"][0]["state"], "live");
        let place = &status["services"]["web"]["registrations"][0];
        assert_eq!(place["in_sync"], false);
        assert_eq!(place["payload"], json!({"port": 1}));
        assert_eq!(place["observed_payload"], "\u{fffd}");
        assert!(place["observed_at"].is_number());
        assert_eq!(status["left_over"][0]["node"], "i_0000000009");
        assert_eq!(
            status["warnings"],
            json!([
                "`/t/i_0000000009` of the removed service `old` still stands: it is withdrawn when z:1 (live) allows it, or \
                 goes with its session",
                "two nerves claim `/s/i_0000000001 (session 0x7)`",
            ])
        );
        assert_eq!(status["services"]["web"]["held"], Value::Null);
        let held = Held {
            by: Hold::Disable,
            since: 1.5,
        };
        let held = Holds::from([("web".to_owned(), held)]);
        boards.holds.send_replace(held);
        let status = boards.status(Moment::now());
        assert_eq!(
            status["services"]["web"]["held"],
            json!({"by": "disable", "since": 1.5})
        );
    }
}
