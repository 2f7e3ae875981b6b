//! The rules of this house: see the map in `lib.rs`.

use std::path::Path;

use smartstack_common::testing::house::{Floor, House};

const RULES: House<'_> = House {
    floors: &[
        Floor {
            within: "",
            rooms: &[
                "program", "outputs", "wanted", "report", "sources", "snapshot", "config", "model",
            ],
        },
        Floor {
            within: "outputs::haproxy",
            rooms: &[
                "reconciler",
                "load",
                "process",
                "backend",
                "disk",
                "file",
                "host",
                "socket",
                "render",
                "plan",
                "cfg",
                "version",
            ],
        },
        Floor {
            within: "wanted",
            rooms: &["keeper", "service", "funnel", "gate", "intake", "guard"],
        },
    ],
    apart: &[("sources", "outputs")],
    families: true,
    pure: &[
        "wanted::guard",
        "wanted::intake",
        "wanted::funnel",
        "wanted::gate",
        "wanted::service",
        "outputs::haproxy::plan",
        "outputs::haproxy::render",
        "outputs::haproxy::cfg",
        "outputs::haproxy::load::blame",
        "outputs::haproxy::backend",
        "outputs::haproxy::file",
        "config::lines",
        "config::keyword",
        "config::listen",
    ],
    exceptions: &[
        (
            "config::Haproxy",
            "to be split: what the program takes, where its files are, how it is reloaded",
        ),
        ("config::read::read", "one line for each key"),
        ("config::read::read_haproxy", "one line for each key"),
        ("config::service::read_haproxy", "one line for each key"),
        (
            "circle config::read, config::service",
            "to be split: the readers of single values apart from those of sections",
        ),
        (
            "outputs::haproxy::plan::draft::Draft::compare",
            "to be split",
        ),
        (
            "outputs::haproxy::reconciler::jobs::Reconciler::finish_job",
            "to be split with the reconciler",
        ),
        (
            "outputs::haproxy::reconciler::publish::Reconciler::service_view",
            "to be split with the reconciler",
        ),
        (
            "circle outputs::haproxy::reconciler::marks, outputs::haproxy::reconciler::observed",
            "to be split: what is known of a worker apart from reading it",
        ),
        (
            "outputs::haproxy::socket::command::Command::of",
            "one case for each command",
        ),
        (
            "outputs::haproxy::socket::command::Command::text",
            "one case for each command",
        ),
        ("program::run::run", "to be split"),
        (
            "report::metrics::encode",
            "one call for each metric, with its description",
        ),
        (
            "report::metrics::of_services",
            "one call for each metric, with its description",
        ),
        (
            "report::status::ServiceView",
            "one field for each of the documented schema",
        ),
        (
            "report::status::HaproxyView",
            "one field for each of the documented schema",
        ),
        ("sources::zookeeper::follow::Follower", "to be split"),
        ("sources::zookeeper::tree::Tree", "to be split"),
        ("wanted::guard::registry::Registry::look", "to be split"),
    ],
};

#[test]
fn house() {
    let faults = RULES.faults(&Path::new(env!("CARGO_MANIFEST_DIR")).join("src"));
    let told: Vec<String> = faults.iter().map(ToString::to_string).collect();
    assert!(faults.is_empty(), "{}", told.join("\n"));
}
