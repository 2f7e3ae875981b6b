//! The rules of this house: see the map in `lib.rs`.

use std::path::Path;

use smartstack_common::testing::house::{Floor, House};

const RULES: House<'_> = House {
    floors: &[
        Floor {
            within: "",
            rooms: &[
                "program",
                "operator",
                "registrar",
                "watch",
                "report",
                "boards",
                "state",
                "wanted",
                "health",
                "config",
                "check",
            ],
        },
        Floor {
            within: "registrar",
            rooms: &["zookeeper", "lease"],
        },
        Floor {
            within: "registrar::lease",
            rooms: &["reconciler", "job", "registry", "plan", "throttle"],
        },
    ],
    apart: &[
        ("check", "registrar"),
        ("health", "registrar"),
        ("watch", "registrar"),
    ],
    families: false,
    pure: &[
        "health",
        "wanted",
        "registrar::lease::plan",
        "registrar::lease::reconciler",
        "registrar::lease::throttle",
    ],
    exceptions: &[
        (
            "registrar::lease::plan::plan_one",
            "one table of cases: who owns the nodes against what is wanted",
        ),
        (
            "registrar::lease::reconciler::Group",
            "to be split: what is due, what was planned, what went wrong",
        ),
        (
            "registrar::lease::reconciler::Reconciler",
            "to be split: session and pace apart from the groups",
        ),
        (
            "registrar::lease::reconciler::Reconciler::plan_next",
            "to be split with the group",
        ),
        (
            "registrar::zookeeper::Registrar::tell",
            "to be one event for each thing that happens",
        ),
        (
            "report::metrics::Metrics::new",
            "one call for each metric, with its description",
        ),
    ],
};

#[test]
fn house() {
    let faults = RULES.faults(&Path::new(env!("CARGO_MANIFEST_DIR")).join("src"));
    let told: Vec<String> = faults.iter().map(ToString::to_string).collect();
    assert!(faults.is_empty(), "{}", told.join("\n"));
}
