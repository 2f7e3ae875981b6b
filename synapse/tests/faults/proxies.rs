//! What can happen to the connections between the programs and the ensemble.

use std::time::Duration;

use serde_json::json;
use smartstack_common::testing::{Cut, Mode};

use crate::stage::{Plan, SESSION, Side, Stage, Way};

/// Shorter than a session, and longer.
const SHORT: Duration = Duration::from_secs(1);
const LONG: Duration = Duration::from_secs(5);

#[tokio::test]
async fn connections_are_slow_or_silent_or_refused() {
    let mut stage = Stage::start(Plan::new(Way::Proxies)).await;
    for (fault, side, mode, time) in [
        (
            "300 ms delay each way for 3 s",
            Side::Both,
            Mode::Delay(Duration::from_millis(300)),
            SESSION,
        ),
        (
            "drip of 8 bytes each 5 ms for 3 s",
            Side::Both,
            Mode::Drip(Duration::from_millis(5)),
            SESSION,
        ),
        ("blackhole for 1 s", Side::Both, Mode::Blackhole, SHORT),
        ("blackhole for 5 s", Side::Both, Mode::Blackhole, LONG),
        (
            "blackhole for synapse alone for 5 s",
            Side::Synapse,
            Mode::Blackhole,
            LONG,
        ),
        (
            "blackhole for all nerves for 5 s",
            Side::Nerves,
            Mode::Blackhole,
            LONG,
        ),
        ("refused for 1 s", Side::Both, Mode::Refuse, SHORT),
        ("refused for 5 s", Side::Both, Mode::Refuse, LONG),
    ] {
        let mut row = stage.begin(fault).await;
        // All nodes expire while synapse looks on, and not all at one moment: the first are believed until there are too
        // many, and then restored.
        if side == Side::Nerves {
            row = row.least(1);
        }
        stage.set(side, mode).await;
        stage.change();
        stage.lasts(time).await;
        stage.set(side, Mode::Pass).await;
        row.ended();
        stage.agree(row).await;
    }
}

#[tokio::test]
async fn connections_are_cut() {
    let mut stage = Stage::start(Plan::new(Way::Proxies)).await;
    let cuts = [
        ("reset", [Cut::Reset; 20]),
        ("closed", [Cut::Close; 20]),
        (
            "cut within a frame",
            std::array::from_fn(|n| Cut::After(1 + 3 * n as u64)),
        ),
    ];
    for (what, cuts) in cuts {
        let mut row = stage
            .begin(&format!("connections {what}, {} times", cuts.len()))
            .await;
        for (number, cut) in cuts.into_iter().enumerate() {
            if number % 10 == 0 {
                stage.change();
            }
            for proxy in stage.proxies(Side::Both) {
                proxy.cut(cut).await;
            }
            stage.lasts(Duration::from_millis(100)).await;
        }
        row.ended();
        let figures = stage.agree(row).await;
        assert_eq!(figures.kept, 3, "a cut ends no session");
    }
}

/// The defaults: a session of 10 s, reads and registrations spread over up to 500 ms; after an outage longer than the session
/// (the long form) registrations are spread over up to 10 s.
#[tokio::test]
async fn with_default_settings() {
    let mut plan = Plan::new(Way::Proxies);
    plan.zookeeper = json!({});
    let mut stage = Stage::start(plan).await;
    for seconds in [3, 30] {
        if seconds > 3 && !crate::long() {
            continue;
        }
        let fault = format!("default settings: refused for {seconds} s");
        let mut row = stage.begin(&fault).await;
        stage.set(Side::Both, Mode::Refuse).await;
        stage.change();
        stage.lasts(Duration::from_secs(seconds)).await;
        stage.set(Side::Both, Mode::Pass).await;
        row.ended();
        stage.agree(row).await;
    }
}
