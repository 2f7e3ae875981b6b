//! The variables of the frame: they change with the configuration only.
//!
//! Decides which lines the configuration lacks: those without which a reload or a dead server costs requests, the stats
//! socket of a haproxy that synapse runs itself, and something that listens.

use std::path::Path;

use serde::Serialize;

use crate::config::{Config, Reload};
use crate::haproxy::version::{self, Version};

pub(super) struct Frame {
    /// Lines of the section without `description`.
    pub(super) global: Vec<String>,
    pub(super) defaults: Vec<String>,
    pub(super) extra_sections: Vec<Section>,
    /// Keywords whose lines the template adds.
    pub(super) missing: Vec<&'static str>,
    /// Hitless keywords that are missing and stay so.
    pub(super) not_added: Vec<&'static str>,
    pub(super) stats_socket: Option<String>,
    /// Address of the frontend that keeps a file startable in which nothing else listens.
    pub(super) standby: Option<String>,
    /// Text of the user's own `description`.
    pub(super) description: Option<String>,
}

#[derive(Serialize)]
pub(super) struct Section {
    title: String,
    lines: Vec<String>,
}

impl Frame {
    pub(super) fn new(config: &Config, version: Option<Version>) -> Self {
        let haproxy = &config.haproxy;
        let (descriptions, mut global): (Vec<String>, Vec<String>) = haproxy
            .global
            .iter()
            .cloned()
            .partition(|line| sets(line, "description"));
        let mut missing = missing(&GLOBAL, &global);
        missing.extend(self::missing(&DEFAULTS, &haproxy.defaults));
        if version.is_some_and(|version| !version.has(&version::IDLE_CLOSE)) {
            missing.retain(|keyword| *keyword != IDLE_CLOSE);
        }
        // In a `mode tcp` frontend an http option of the defaults is a warning, and warnings are fatal with this line.
        let no_warnings = global.iter().any(|line| sets(line, "zero-warning"));
        let not_added: Vec<&str> = missing
            .extract_if(.., |keyword| {
                !haproxy.hitless_defaults || (no_warnings && *keyword == IDLE_CLOSE)
            })
            .collect();
        if haproxy.hitless_defaults {
            global = global
                .iter()
                .map(|line| with_exposed_listeners(line))
                .collect();
        }
        let has_socket = global.iter().any(|line| sets(line, "stats socket"));
        let own_socket = haproxy
            .socket_file_path
            .first()
            .filter(|_| haproxy.reload == Reload::Supervise && !has_socket);
        if own_socket.is_some() {
            missing.push("stats socket");
        }
        let listens = has_socket || own_socket.is_some() || binds(config);
        Self {
            global,
            defaults: haproxy.defaults.clone(),
            extra_sections: haproxy
                .extra_sections
                .iter()
                .map(|(title, lines)| Section {
                    title: title.clone(),
                    lines: lines.clone(),
                })
                .collect(),
            missing,
            not_added,
            stats_socket: own_socket.map(|path| escaped(path)),
            standby: (!listens).then(|| {
                format!(
                    "unix@{} mode 600",
                    escaped(&config.snapshot_path.with_file_name("standby.sock"))
                )
            }),
            description: descriptions.last().map(|line| description_text(line)),
        }
    }
}

/// Whether a frontend of a service, a section of the user's or the shared frontend listens.
fn binds(config: &Config) -> bool {
    let is_bind = |line: &String| line.split_ascii_whitespace().next() == Some("bind");
    let services = || {
        config
            .services
            .iter()
            .filter_map(|service| service.haproxy.as_ref())
    };
    services().any(|haproxy| haproxy.port.is_some())
        || config.haproxy.extra_sections.iter().any(|(title, lines)| {
            matches!(
                title.split_ascii_whitespace().next(),
                Some("listen" | "frontend")
            ) && lines.iter().any(is_bind)
        })
        || config.haproxy.shared_frontend.as_ref().is_some_and(|top| {
            top.iter()
                .chain(services().flat_map(|haproxy| &haproxy.shared_frontend))
                .any(is_bind)
        })
}

/// What follows the keyword, up to a comment.
fn description_text(line: &str) -> String {
    let text = line
        .trim_start()
        .strip_prefix("description")
        .unwrap_or_default();
    text.split(" #")
        .next()
        .unwrap_or_default()
        .trim()
        .to_owned()
}

/// A path as one word of haproxy.cfg.
fn escaped(path: &Path) -> String {
    let mut out = String::new();
    for c in path.display().to_string().chars() {
        if matches!(c, ' ' | '"' | '\'' | '\\' | '#' | '$') {
            out.push('\\');
        }
        out.push(c);
    }
    out
}

/// Keywords looked for in `global`.
const GLOBAL: [&str; 3] = ["hard-stop-after", "max-spread-checks", "stats timeout"];
const IDLE_CLOSE: &str = "option idle-close-on-response";
/// Keywords looked for in `defaults`.
const DEFAULTS: [&str; 3] = [IDLE_CLOSE, "option redispatch", "timeout http-keep-alive"];

/// The keywords that no line sets, also not as `no …`.
fn missing(keywords: &[&'static str], lines: &[String]) -> Vec<&'static str> {
    keywords
        .iter()
        .copied()
        .filter(|keyword| !lines.iter().any(|line| sets(line, keyword)))
        .collect()
}

/// Whether a line begins with the keyword, blanks squeezed, a leading `no` ignored.
fn sets(line: &str, keyword: &str) -> bool {
    let mut words = line.split_ascii_whitespace().peekable();
    words.next_if_eq(&"no");
    keyword.split(' ').all(|word| words.next() == Some(word))
}

/// A `stats socket` line of a unix socket, handing over the listening sockets; any other line as it is.
fn with_exposed_listeners(line: &str) -> String {
    let exposed = line
        .split_ascii_whitespace()
        .any(|word| word == "expose-fd");
    let is_unix = line
        .split_ascii_whitespace()
        .nth(2)
        .is_some_and(|a| a.starts_with(['/', '"']) || a.starts_with("unix@"));
    if sets(line, "stats socket") && is_unix && !exposed && !line.contains('#') {
        format!("{} expose-fd listeners", line.trim_end())
    } else {
        line.to_owned()
    }
}
