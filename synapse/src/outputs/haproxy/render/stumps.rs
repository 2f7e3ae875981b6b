//! Empty backends in place of services that are left out: a service that haproxy refuses, or one with
//! `haproxy.disabled`, whose backend something else in the file names. They answer 503; without them haproxy refuses the
//! whole file.

use std::fmt::Write as _;

use crate::config::Service;
use crate::model::server::NOWHERE;
use crate::outputs::haproxy::cfg::Section;
use crate::outputs::haproxy::cfg::named::{Named, names_section};

/// A backend that may be left out.
pub(super) struct Stump {
    backend: String,
    /// Its `mode`: a frontend of another one could not use it.
    mode: Option<String>,
}

impl Stump {
    /// Of a service, rendered or disabled.
    pub(super) fn of(service: &Service) -> Option<Self> {
        let haproxy = service.haproxy.as_ref().or(service.disabled.as_deref())?;
        let mode = |line: &String| {
            let mut words = line.split_ascii_whitespace();
            let mode = words.next().filter(|word| *word == "mode");
            let value = mode.and(words.next());
            let known = value.filter(|mode| ["http", "tcp", "log"].contains(mode));
            known.map(str::to_owned)
        };
        Some(Self {
            backend: haproxy.backend_name.clone(),
            mode: haproxy.backend.iter().rev().find_map(mode),
        })
    }
}

/// The stumps that a file of these sections needs; empty when it needs none.
pub(super) fn render(stumps: &[Stump], present: &[&Section], options: &[(&str, &str)]) -> String {
    let is_there = |name: &str| {
        let has_servers = |s: &&&Section| matches!(s.keyword.as_str(), "backend" | "listen");
        present.iter().filter(has_servers).any(|s| s.name == name)
    };
    let is_named = |name: &str| {
        let mut lines = present.iter().flat_map(|section| &section.lines);
        lines.any(|line| names_section(&line.text, name))
            || options.iter().any(|(_, text)| names_section(text, name))
    };
    let mut absent = stumps
        .iter()
        .filter(|stump| !is_there(&stump.backend) && is_named(&stump.backend))
        .peekable();
    let mut text = String::new();
    if absent.peek().is_none() {
        return text;
    }
    let named = Named::of_parts(present.iter().copied(), options);
    for Stump { backend, mode } in absent {
        let _infallible = writeln!(text, "\nbackend {backend}");
        if let Some(mode) = mode {
            let _infallible = writeln!(text, "\tmode {mode}");
        }
        for server in named.servers(backend) {
            let _infallible = writeln!(
                text,
                "\tserver {server} {NOWHERE}:1 check weight 0 disabled"
            );
        }
    }
    text
}
