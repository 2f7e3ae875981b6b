//! `/metrics`: the view and the counters as OpenMetrics text. Names begin with `synapse_`; times are seconds.
//!
//! Made anew for each scrape from what was last published: nothing is counted twice, nothing can be forgotten.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use prometheus_client::encoding::text::encode as encode_text;
use prometheus_client::metrics::counter::{ConstCounter, Counter};
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::{ConstGauge, Gauge};
use prometheus_client::registry::{Registry, Unit};
use smartstack_common::clock::Moment;
use smartstack_common::program::Results;
use smartstack_common::telemetry;
use smartstack_common::zk::LinkStatus;

use crate::report::status::{ServiceView, View};
use crate::snapshot;
use crate::sources::zookeeper;

type Labels = Vec<(&'static str, String)>;
type Gauges = Family<Labels, Gauge>;
type Fractions = Family<Labels, Gauge<f64, AtomicU64>>;

/// The text.
#[must_use]
pub fn encode(
    view: &View,
    services: &BTreeMap<String, Arc<ServiceView>>,
    links: &[LinkStatus],
    discovery: &zookeeper::Counters,
    snapshot: &snapshot::Counters,
    reloads: &Results,
) -> String {
    let mut all = Registry::with_prefix("synapse");
    reloads.register(&mut all);
    of_services(&mut all, services);
    haproxy(&mut all, view);
    let connected = Gauges::default();
    for link in links {
        connected
            .get_or_create(&vec![("hosts", link.hosts.clone())])
            .set(i64::from(link.state == "live"));
    }
    all.register(
        "zk_connected",
        "Whether the session to an ensemble is live",
        connected,
    );
    let counters = [
        ("zk_events", "Node events received", &discovery.events),
        (
            "zk_requests",
            "Requests sent: listings, multi-reads, verifications",
            &discovery.requests,
        ),
        ("zk_watches", "Watches armed", &discovery.watches),
        (
            "zk_full_reads",
            "Full reads that succeeded",
            &discovery.full_reads,
        ),
        (
            "zk_lists",
            "Of these, those that read new children only",
            &discovery.lists,
        ),
        (
            "zk_differences",
            "Children a comparison found different without an event: defects",
            &discovery.differences,
        ),
        (
            "zk_read_failures",
            "Reads or watches that failed",
            &discovery.failures,
        ),
        (
            "zk_tests",
            "Requests suspected of taking connections down, tested on one of their own",
            &discovery.tests,
        ),
        (
            "zk_tests_lost",
            "Of these tests, those that lost their connection",
            &discovery.tests_lost,
        ),
        (
            "snapshot_writes",
            "Snapshot files written",
            &snapshot.writes,
        ),
        (
            "snapshot_write_failures",
            "Snapshot writes that failed",
            &snapshot.failures,
        ),
    ];
    for (name, help, counter) in counters {
        all.register(
            name,
            help,
            ConstCounter::new(counter.load(Ordering::Relaxed)),
        );
    }
    all.register(
        "log_lines_dropped",
        telemetry::DROPPED_HELP,
        telemetry::dropped(),
    );
    let mut text = String::new();
    match encode_text(&mut text, &all) {
        Ok(()) => text,
        Err(error) => format!("# {error}\n# EOF\n"),
    }
}

fn of_services(all: &mut Registry, services: &BTreeMap<String, Arc<ServiceView>>) {
    let (wanted, serving, rejected) = (Gauges::default(), Gauges::default(), Gauges::default());
    let left_out = Gauges::default();
    let (held, quarantined, age) = (Gauges::default(), Gauges::default(), Fractions::default());
    let now = Moment::now();
    let (held_servers, shadowed) = (Gauges::default(), Gauges::default());
    let (trips, shadow_trips) = (
        Family::<Labels, Counter>::default(),
        Family::<Labels, Counter>::default(),
    );
    for (name, service) in services {
        let labels = vec![("service", name.clone())];
        let count = |n: usize| i64::try_from(n).unwrap_or(i64::MAX);
        let of = |wanted: bool| move |s: &&crate::report::status::ServerView| s.wanted == wanted;
        wanted
            .get_or_create(&labels)
            .set(count(service.servers.iter().filter(of(true)).count()));
        let up = service
            .servers
            .iter()
            .filter(|s| s.haproxy == Some("up"))
            .count();
        serving.get_or_create(&labels).set(count(up));
        rejected
            .get_or_create(&labels)
            .set(count(service.rejected.len()));
        left_out
            .get_or_create(&labels)
            .set(count(service.left_out.len()));
        held.get_or_create(&labels)
            .set(i64::from(service.hold.is_some()));
        let holding = service.servers.iter().filter(|s| s.held).count();
        held_servers.get_or_create(&labels).set(count(holding));
        shadowed
            .get_or_create(&labels)
            .set(count(service.guard.would_hold));
        trips.get_or_create(&labels).inc_by(service.guard.trips);
        shadow_trips
            .get_or_create(&labels)
            .inc_by(service.guard.shadow_trips);
        quarantined
            .get_or_create(&labels)
            .set(i64::from(service.quarantined.is_some()));
        if let Some(agreed_at) = service.agreed_at(now) {
            age.get_or_create(&labels)
                .set(agreed_at.age().as_secs_f64());
        }
    }
    all.register("servers_wanted", "Servers the sources name", wanted);
    all.register(
        "servers_up",
        "Servers that haproxy sends requests to",
        serving,
    );
    all.register(
        "znodes_rejected",
        "Registry entries that are not used",
        rejected,
    );
    all.register(
        "options_left_out",
        "Options and weights of registry entries that are not used, while their servers are",
        left_out,
    );
    all.register(
        "guard_held_servers",
        "Servers served although the registry does not name them",
        held_servers,
    );
    all.register(
        "guard_shadow_held_servers",
        "Servers a guard in shadow would hold",
        shadowed,
    );
    all.register("guard_trips", "Times a guard began to hold", trips);
    all.register(
        "guard_shadow_trips",
        "Times a guard in shadow would have begun to hold",
        shadow_trips,
    );
    all.register("hold", "Whether an empty registry is held back", held);
    all.register(
        "quarantined",
        "Whether a service is not rendered as configured",
        quarantined,
    );
    let help = "Time since the service's source last agreed with the registry";
    all.register_with_unit("snapshot_age", help, Unit::Seconds, age);
}

fn haproxy(all: &mut Registry, view: &View) {
    let haproxy = &view.haproxy;
    let divergence = i64::try_from(haproxy.divergence).unwrap_or(i64::MAX);
    all.register(
        "divergence",
        "Changes that haproxy still lacks",
        ConstGauge::new(divergence),
    );
    let lingering = i64::try_from(haproxy.lingering.len()).unwrap_or(i64::MAX);
    all.register(
        "lingering_workers",
        "Replaced workers that go on for their old connections",
        ConstGauge::new(lingering),
    );
    all.register(
        "haproxy_answers",
        "Whether haproxy answers on its stats socket; states of servers are of when it last did",
        ConstGauge::new(i64::from(
            haproxy.pid.is_some() && haproxy.silent_since.is_none(),
        )),
    );
    if let Some(at) = haproxy.states_at {
        let age = Fractions::default();
        age.get_or_create(&Labels::new())
            .set(at.age().as_secs_f64());
        all.register_with_unit(
            "haproxy_states_age",
            "No state of a server is older than this",
            Unit::Seconds,
            age,
        );
    }
    all.register(
        "ready",
        "Whether haproxy answers and serves what is wanted, or its last structure until a reload",
        ConstGauge::new(i64::from(view.ready)),
    );
    let differences = Family::<Labels, Counter>::default();
    for (kind, count) in &haproxy.differences {
        let labels = vec![("kind", (*kind).to_owned())];
        differences.get_or_create(&labels).inc_by(*count);
    }
    all.register(
        "differences",
        "Differences between haproxy or its file and what was believed, found by looking",
        differences,
    );
    let problems = i64::try_from(view.problems.len()).unwrap_or(i64::MAX);
    all.register(
        "problems",
        "Problems listed in /status",
        ConstGauge::new(problems),
    );
    let counters = [
        ("reloads", "Reloads that took", haproxy.reloads),
        (
            "reload_failures",
            "Reloads that failed",
            haproxy.reload_failures,
        ),
        (
            "foreign_reloads",
            "Workers that appeared without us",
            haproxy.foreign_reloads,
        ),
        (
            "runtime_ops",
            "Changes made over the stats socket",
            haproxy.runtime_ops,
        ),
    ];
    for (name, help, value) in counters {
        all.register(name, help, ConstCounter::new(value));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_has_names_units_and_an_end() {
        let mut view = View::default();
        let service = ServiceView {
            agreed_at: Some(Moment::ago(std::time::Duration::from_secs(10))),
            left_out: vec![crate::model::server::Rejected {
                znode: "a_1".to_owned(),
                reason: "option `cookie` left out".to_owned(),
            }],
            ..ServiceView::default()
        };
        let services = BTreeMap::from([("web".to_owned(), Arc::new(service))]);
        view.haproxy.reloads = 3;
        let text = encode(
            &view,
            &services,
            &[],
            &zookeeper::Counters::default(),
            &snapshot::Counters::default(),
            &Results::default(),
        );
        assert!(text.ends_with("# EOF\n"), "{text}");
        for line in [
            "synapse_reloads_total 3",
            "synapse_divergence 0",
            "synapse_servers_wanted{service=\"web\"} 0",
            "synapse_options_left_out{service=\"web\"} 1",
        ] {
            assert!(text.lines().any(|l| l == line), "no `{line}` in:\n{text}");
        }
        assert!(
            text.contains("synapse_snapshot_age_seconds{service=\"web\"} 1"),
            "{text}"
        );
    }
}
