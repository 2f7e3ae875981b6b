//! nerve's metrics, OpenMetrics text on `/metrics`. Names begin with `nerve_`, units are seconds.

use std::fmt::Write as _;

use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::Registry;
use smartstack_common::telemetry;

use crate::check::Finding;
use crate::wanted::{Hold, Holds};

/// Label names and values.
pub(crate) type Labels = Vec<(&'static str, String)>;

const SECONDS: [f64; 9] = [0.001, 0.0025, 0.005, 0.01, 0.025, 0.1, 0.25, 1.0, 5.0];

/// Handles to all of them; cheap to clone.
#[derive(Debug, Clone)]
pub(crate) struct Metrics {
    pub(crate) service_up: Family<Labels, Gauge>,
    pub(crate) checks: Family<Labels, Counter>,
    pub(crate) check_seconds: Family<Labels, Histogram>,
    pub(crate) registered: Family<Labels, Gauge>,
    pub(crate) in_sync: Family<Labels, Gauge>,
    pub(crate) twins: Family<Labels, Gauge>,
    pub(crate) writes: Family<Labels, Counter>,
    pub(crate) delayed: Family<Labels, Counter>,
    pub(crate) connected: Family<Labels, Gauge>,
    pub(crate) held: Family<Labels, Gauge>,
    pub(crate) state_failures: Counter,
    pub(crate) heartbeat_failures: Counter,
    pub(crate) restarts: Family<Labels, Counter>,
}

impl Metrics {
    /// All metrics, and the registry that prints them.
    pub(crate) fn new() -> (Self, Registry) {
        let metrics = Self {
            service_up: Family::default(),
            checks: Family::default(),
            check_seconds: Family::new_with_constructor(|| Histogram::new(SECONDS)),
            registered: Family::default(),
            in_sync: Family::default(),
            twins: Family::default(),
            writes: Family::default(),
            delayed: Family::default(),
            connected: Family::default(),
            held: Family::default(),
            state_failures: Counter::default(),
            heartbeat_failures: Counter::default(),
            restarts: Family::default(),
        };
        let mut all = Registry::with_prefix("nerve");
        let m = &metrics;
        all.register(
            "service_up",
            "Whether the checks of a service are up",
            m.service_up.clone(),
        );
        all.register(
            "checks",
            "Check attempts by service, check and result: pass, fail, not_run (this host could not run it)",
            m.checks.clone(),
        );
        all.register(
            "check_duration_seconds",
            "Time of one check attempt",
            m.check_seconds.clone(),
        );
        all.register(
            "registered",
            "Whether a service's own node stands at a place in ZooKeeper",
            m.registered.clone(),
        );
        all.register(
            "in_sync",
            "Whether what is at a place in ZooKeeper is exactly as wanted, as seen on this connection",
            m.in_sync.clone(),
        );
        all.register("twins", "Nodes of others under our name", m.twins.clone());
        all.register(
            "zk_writes",
            "Writes by ensemble and result: registered, withdrawn, failed",
            m.writes.clone(),
        );
        all.register(
            "zk_registrations_delayed",
            "Registrations above zookeeper.write_rate: held back, or in shadow mode only counted",
            m.delayed.clone(),
        );
        all.register(
            "zk_connected",
            "Whether the session to an ensemble is live",
            m.connected.clone(),
        );
        all.register(
            "service_held",
            "Services that an operator has taken out, by command",
            m.held.clone(),
        );
        all.register(
            "state_failures",
            "Failed writes of state_path",
            m.state_failures.clone(),
        );
        all.register(
            "heartbeat_failures",
            "Failed touches of heartbeat_path",
            m.heartbeat_failures.clone(),
        );
        all.register(
            "task_restarts",
            "Service tasks that ended and were started again",
            m.restarts.clone(),
        );
        all.register(
            "log_lines_dropped",
            telemetry::DROPPED_HELP,
            telemetry::dropped(),
        );
        let build: Family<Labels, Gauge> = Family::default();
        build
            .get_or_create(&vec![("version", smartstack_common::BUILD.to_owned())])
            .set(1);
        all.register("build_info", "The running build", build);
        (metrics, all)
    }

    /// Forgets what is labelled with a service that is no more.
    pub(crate) fn forget(&self, service: &str, checks: &[crate::check::Check]) {
        let labels = of_service(service);
        let _known = [
            self.service_up.remove(&labels),
            self.check_seconds.remove(&labels),
            self.restarts.remove(&labels),
        ];
        for check in checks {
            for finding in [Finding::Passed, Finding::Failed, Finding::NotRun] {
                self.checks.remove(&of_check(service, &check.name, finding));
            }
        }
    }

    /// Forgets what is labelled with an ensemble that no service names any more.
    pub(crate) fn forget_ensemble(&self, hosts: &str) {
        let labels = of_hosts(hosts);
        let _known = [
            self.connected.remove(&labels),
            self.twins.remove(&labels),
            self.delayed.remove(&labels),
        ];
        for result in ["registered", "withdrawn", "failed"] {
            self.writes.remove(&of_write(hosts, result));
        }
    }

    /// Shows which services are held out.
    pub(crate) fn show_holds(&self, holds: &Holds) {
        self.held.clear();
        for (service, held) in holds {
            self.held.get_or_create(&of_hold(service, held.by)).set(1);
        }
    }
}

/// The text of `/metrics`.
pub(crate) fn text(registry: &Registry) -> String {
    let mut text = String::new();
    if let Err(error) = encode(&mut text, registry) {
        // Only a formatter that refuses text can fail, and a String does not.
        let _written = writeln!(text, "# {error}").is_ok();
    }
    text
}

pub(crate) fn of_service(service: &str) -> Labels {
    vec![("service", service.to_owned())]
}

pub(crate) fn of_hosts(hosts: &str) -> Labels {
    vec![("hosts", hosts.to_owned())]
}

pub(crate) fn of_registration(service: &str, hosts: &str, path: &str) -> Labels {
    let place = [("hosts", hosts.to_owned()), ("path", path.to_owned())];
    of_service(service).into_iter().chain(place).collect()
}

pub(crate) fn of_hold(service: &str, hold: Hold) -> Labels {
    let by = ("by", hold.word().to_owned());
    of_service(service).into_iter().chain([by]).collect()
}

pub(crate) fn of_write(hosts: &str, result: &str) -> Labels {
    vec![("hosts", hosts.to_owned()), ("result", result.to_owned())]
}

pub(crate) fn of_check(service: &str, check: &str, finding: Finding) -> Labels {
    let result = match finding {
        Finding::Passed => "pass",
        Finding::Failed => "fail",
        Finding::NotRun => "not_run",
    };
    vec![
        ("service", service.to_owned()),
        ("check", check.to_owned()),
        ("result", result.to_owned()),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_has_names_units_and_an_end() {
        let (metrics, registry) = Metrics::new();
        metrics
            .checks
            .get_or_create(&of_check("web", "http-x:1/", Finding::Passed))
            .inc();
        let text = text(&registry);
        assert!(
            text.contains(r#"nerve_checks_total{service="web",check="http-x:1/",result="pass"} 1"#),
            "{text}"
        );
        assert!(text.ends_with("# EOF\n"));
        metrics.forget("web", &[]);
    }
}
