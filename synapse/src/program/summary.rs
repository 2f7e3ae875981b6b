//! `synapse status`: `/status` for a terminal.

use std::collections::BTreeMap;

use serde_json::Value;
use smartstack_common::clock::Moment;

/// A line for synapse, haproxy, and for each ensemble, service, server and problem.
pub(super) fn summary(status: &Value) -> String {
    let ready = match status["not_ready"].as_str() {
        _ if status["ready"] == true => "ready".to_owned(),
        Some(why) => format!("not ready: {why}"),
        None => "not ready".to_owned(),
    };
    let haproxy = &status["haproxy"];
    let mut lines = vec![
        format!(
            "synapse {} pid {} {ready}",
            text(&status["version"]),
            status["pid"]
        ),
        format!(
            "haproxy {} worker {} generation {} divergence {} reloads {} ({} failed)",
            text(&haproxy["state"]),
            haproxy["pid"],
            text(&haproxy["generation"]),
            haproxy["divergence"],
            haproxy["reloads"],
            haproxy["reload_failures"]
        ),
    ];
    if let (Some(since), Some(at)) = (
        haproxy["silent_since"].as_f64(),
        haproxy["states_at"].as_f64(),
    ) {
        let ago = |at: f64| (Moment::now().seconds() - at).max(0.0);
        lines.push(format!(
            "no answer from haproxy for {:.0} s, all states are as of {:.0} s ago",
            ago(since),
            ago(at)
        ));
    }
    for (backend, why) in haproxy["fallbacks"].as_object().into_iter().flatten() {
        lines.push(format!("reload needed in {backend}: {}", text(why)));
    }
    for link in list(&status["zookeeper"]) {
        lines.push(format!(
            "zookeeper {} {}",
            text(&link["hosts"]),
            text(&link["state"])
        ));
    }
    for (name, service) in status["services"].as_object().into_iter().flatten() {
        lines.extend(of_service(name, service));
    }
    lines.extend(
        list(&status["problems"])
            .iter()
            .map(|problem| format!("problem: {}", text(problem))),
    );
    lines.join("\n")
}

/// Of one service.
fn of_service(name: &str, service: &Value) -> Vec<String> {
    let fresh = if service["fresh"] == true {
        ""
    } else {
        ", not in agreement with the registry now"
    };
    let mut lines = vec![format!("{name} {}{fresh}", text(&service["origin"]))];
    for server in list(&service["servers"]) {
        let unwanted = if server["wanted"] == true {
            ""
        } else {
            " (not wanted)"
        };
        let weight = match server["other_weight"].as_u64() {
            Some(weight) => format!(" weight {weight}, not set by synapse"),
            None => String::new(),
        };
        lines.push(format!(
            "  {} {}{weight}{unwanted}",
            text(&server["name"]),
            text(&server["haproxy"])
        ));
    }
    for key in ["hold", "quarantined", "problem"] {
        lines.extend(
            service[key]
                .as_str()
                .map(|reason| format!("  {key}: {reason}")),
        );
    }
    for rejected in list(&service["rejected"]) {
        lines.push(format!(
            "  rejected {}: {}",
            text(&rejected["znode"]),
            text(&rejected["reason"])
        ));
    }
    for (reason, entries) in by_reason(&list(&service["left_out"])) {
        lines.push(format!("  {entries}: {reason}"));
    }
    lines
}

fn text(value: &Value) -> String {
    value.as_str().unwrap_or("-").to_owned()
}

fn list(value: &Value) -> Vec<Value> {
    value.as_array().cloned().unwrap_or_default()
}

/// What is left out of entries, and of which: the first, and how many others.
fn by_reason(left_out: &[Value]) -> BTreeMap<&str, String> {
    let mut entries: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    for entry in left_out {
        let text = |key: &str| entry[key].as_str().unwrap_or("-");
        entries
            .entry(text("reason"))
            .or_default()
            .push(text("znode"));
    }
    let named = entries.into_iter().map(|(reason, entries)| {
        let others = match entries.len() - 1 {
            0 => String::new(),
            others => format!(" and {others} more"),
        };
        (reason, format!("{}{others}", entries[0]))
    });
    named.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn summary_reads_the_schema() {
        let status = serde_json::json!({
            "version": "1", "pid": 7, "ready": true, "zookeeper": [{"hosts": "z:1", "state": "live"}],
            "haproxy": {"state": "serving", "pid": 9, "generation": "g", "divergence": 0, "reloads": 1, "reload_failures": 0},
            "services": {"web": {"origin": "live", "fresh": true, "servers": [{"name": "a:1", "haproxy": "up", "wanted": true}],
                "rejected": [{"znode": "x", "reason": "no `host`"}], "hold": null,
                "left_out": [{"znode": "a_1", "reason": "option `cookie` left out"}, {"znode": "a_2", "reason": "option `cookie` left out"}]}},
            "problems": [],
        });
        assert_eq!(
            summary(&status),
            "synapse 1 pid 7 ready\nhaproxy serving worker 9 generation g divergence 0 reloads 1 (0 failed)\n\
             zookeeper z:1 live\nweb live\n  a:1 up\n  rejected x: no `host`\n  a_1 and 1 more: option `cookie` left out"
        );
    }
}
