//! `nerve status`: `/status` for a terminal.

use serde_json::Value;

/// A line for nerve, and for each ensemble, service, check, registration and warning.
pub(super) fn summary(status: &Value) -> String {
    let text = |value: &Value| value.as_str().unwrap_or("-").to_owned();
    let list = |value: &Value| value.as_array().cloned().unwrap_or_default();
    let ready = if status["ready"] == true {
        "ready"
    } else {
        "not ready"
    };
    let mut lines = vec![format!(
        "nerve {} pid {} {ready}",
        text(&status["version"]),
        status["pid"]
    )];
    for link in list(&status["zookeeper"]) {
        lines.push(format!(
            "zookeeper {} {}",
            text(&link["hosts"]),
            text(&link["state"])
        ));
    }
    for (name, service) in status["services"].as_object().into_iter().flatten() {
        let held = match service["held"]["by"].as_str() {
            None => String::new(),
            Some("unknown") => ", not known whether it was drained or disabled".to_owned(),
            Some(by) => format!(", held out by {by}"),
        };
        lines.push(format!(
            "{name} {}{held}",
            service["health"].as_str().unwrap_or("not checked yet")
        ));
        for check in list(&service["checks"]) {
            let error = check["error"]
                .as_str()
                .map(|error| format!(": {error}"))
                .unwrap_or_default();
            lines.push(format!(
                "  {} {}{error}",
                text(&check["name"]),
                text(&check["health"])
            ));
        }
        let places = list(&service["registrations"]);
        for place in &places {
            let error = place["error"]
                .as_str()
                .map(|error| format!(": {error}"))
                .unwrap_or_default();
            let (path, node) = (text(&place["path"]), text(&place["node"]));
            let at = match places.len() {
                1 => String::new(),
                _ => format!(" at {}", text(&place["hosts"])),
            };
            let seen = &place["observed_payload"];
            let differs = match place["in_sync"] == false && place["observed"] != "unknown" {
                true if !seen.is_null() && *seen != place["payload"] => ", with another payload",
                true => ", not confirmed",
                false => "",
            };
            lines.push(format!(
                "  {path}/{node}{at} wanted {}, {}{differs}{error}",
                text(&place["wanted"]),
                text(&place["observed"])
            ));
        }
    }
    lines.extend(
        list(&status["warnings"])
            .iter()
            .map(|warning| format!("warning: {}", text(warning))),
    );
    lines.join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn summary_reads_the_schema() {
        let status = serde_json::json!({
            "version": "1", "pid": 7, "ready": true, "zookeeper": [{"hosts": "z:1", "state": "live"}],
            "services": {"web": {
                "health": "down",
                "checks": [{"name": "http-x:1/", "health": "down", "error": "status 503"}],
                "registrations": [{"path": "/s", "node": null, "wanted": "absent: unhealthy", "observed": "absent", "error": null}],
            }},
            "warnings": ["two nerves claim `/s/i_1`"],
        });
        assert_eq!(
            summary(&status),
            "nerve 1 pid 7 ready\nzookeeper z:1 live\nweb down\n  http-x:1/ down: status 503\n  \
             /s/- wanted absent: unhealthy, absent\nwarning: two nerves claim `/s/i_1`"
        );
    }
}
