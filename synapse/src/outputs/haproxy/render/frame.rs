//! The variables of the frame: they change with the configuration only.
//!
//! Decides which lines the configuration lacks: those without which a reload or a dead server costs requests, the stats
//! socket of a haproxy that synapse runs itself, and something that listens.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::Serialize;
use smartstack_common::config::may_be_secret;

use crate::config::{Config, Part, Place, Reload};
use crate::outputs::haproxy::cfg;
use crate::outputs::haproxy::version::{self, Version};

#[derive(Clone)]
pub(super) struct Frame {
    /// Lines of the section without `description`.
    pub(super) global: Vec<String>,
    pub(super) defaults: Vec<String>,
    pub(super) extra_sections: Vec<Section>,
    /// Lines of the shared frontend; `None` = there is none.
    pub(super) shared: Option<Vec<String>>,
    /// Keywords whose lines the template adds.
    pub(super) missing: Vec<&'static str>,
    /// Hitless keywords that are missing and stay so.
    pub(super) not_added: Vec<&'static str>,
    pub(super) stats_socket: Option<String>,
    /// Address of the frontend that keeps a file startable in which nothing else listens.
    pub(super) standby: Option<String>,
    /// Text of the user's own `description`.
    pub(super) description: Option<String>,
    given: Arc<Given>,
    left: Left,
}

#[derive(Clone, Serialize)]
pub(super) struct Section {
    title: String,
    lines: Vec<String>,
}

/// What the configuration says, whatever is left out of it.
struct Given {
    global: Vec<String>,
    defaults: Vec<String>,
    extra_sections: Vec<(String, Vec<String>)>,
    shared: Option<Vec<String>>,
    places: BTreeMap<Part, Place>,
    hitless_defaults: bool,
    /// The stats socket of a haproxy that synapse runs.
    own_socket: Option<PathBuf>,
    standby: PathBuf,
    /// Of the haproxy that is to run it; `None` = not known.
    version: Option<Version>,
    /// A service has a frontend; a service's line of the shared frontend binds.
    services_listen: bool,
    services_bind: bool,
}

/// What is not as configured.
#[derive(Clone, Default)]
struct Left {
    out: BTreeSet<Part>,
    /// Sections in another form.
    sections: BTreeMap<usize, Vec<String>>,
}

impl Frame {
    pub(super) fn new(config: &Config, version: Option<Version>) -> Self {
        let haproxy = &config.haproxy;
        let services = || {
            let services = config.services.iter();
            services.filter_map(|service| service.haproxy.as_ref())
        };
        let supervised = haproxy.reload == Reload::Supervise;
        let given = Given {
            global: haproxy.global.clone(),
            defaults: haproxy.defaults.clone(),
            extra_sections: haproxy.extra_sections.clone(),
            shared: haproxy.shared_frontend.clone(),
            places: haproxy.places.clone(),
            hitless_defaults: haproxy.hitless_defaults,
            own_socket: haproxy
                .socket_file_path
                .first()
                .filter(|_| supervised)
                .cloned(),
            standby: config.snapshot_path.with_file_name("standby.sock"),
            version,
            services_listen: services().any(|haproxy| haproxy.port.is_some()),
            services_bind: services().any(|h| h.shared_frontend.iter().any(is_bind)),
        };
        Self::of(Arc::new(given), Left::default())
    }

    fn of(given: Arc<Given>, left: Left) -> Self {
        let stays = |lines: &[String], part: fn(usize) -> Part| {
            let lines = lines.iter().enumerate();
            let stay = lines.filter(|(index, _)| !left.out.contains(&part(*index)));
            stay.map(|(_, line)| line.clone()).collect::<Vec<String>>()
        };
        let defaults = stays(&given.defaults, Part::Defaults);
        let shared = given.shared.as_ref();
        let shared = shared.map(|lines| stays(lines, Part::Shared));
        let sections = given.extra_sections.iter().enumerate();
        let extra_sections: Vec<Section> = sections
            .filter(|(index, _)| !left.out.contains(&Part::Section(*index)))
            .map(|(index, (title, lines))| Section {
                title: title.clone(),
                lines: left.sections.get(&index).unwrap_or(lines).clone(),
            })
            .collect();
        let (descriptions, mut global): (Vec<String>, Vec<String>) =
            stays(&given.global, Part::Global)
                .into_iter()
                .partition(|line| sets(line, "description"));
        let mut missing = missing(&GLOBAL, &global);
        missing.extend(self::missing(&DEFAULTS, &defaults));
        if given
            .version
            .is_some_and(|version| !version.has(&version::IDLE_CLOSE))
        {
            missing.retain(|keyword| *keyword != IDLE_CLOSE);
        }
        // In a `mode tcp` frontend an http option of the defaults is a warning, and warnings are fatal with this line.
        let no_warnings = global.iter().any(|line| sets(line, "zero-warning"));
        let not_added: Vec<&str> = missing
            .extract_if(.., |keyword| {
                !given.hitless_defaults || (no_warnings && *keyword == IDLE_CLOSE)
            })
            .collect();
        if given.hitless_defaults {
            global = global
                .iter()
                .map(|line| with_exposed_listeners(line))
                .collect();
        }
        let has_socket = global.iter().any(|line| sets(line, "stats socket"));
        let own_socket = given.own_socket.as_ref().filter(|_| !has_socket);
        if own_socket.is_some() {
            missing.push("stats socket");
        }
        let binds = |section: &Section| {
            let keyword = section.title.split_ascii_whitespace().next();
            matches!(keyword, Some("listen" | "frontend")) && section.lines.iter().any(is_bind)
        };
        let listens = has_socket
            || own_socket.is_some()
            || given.services_listen
            || extra_sections.iter().any(binds)
            || (shared.as_ref()).is_some_and(|top| given.services_bind || top.iter().any(is_bind));
        Self {
            global,
            defaults,
            extra_sections,
            shared,
            missing,
            not_added,
            stats_socket: own_socket.map(|path| escaped(path)),
            standby: (!listens).then(|| format!("unix@{} mode 600", escaped(&given.standby))),
            description: descriptions.last().map(|line| description_text(line)),
            given,
            left,
        }
    }

    /// The same without a part.
    pub(super) fn without(&self, part: Part) -> Self {
        let mut left = self.left.clone();
        left.out.insert(part);
        Self::of(Arc::clone(&self.given), left)
    }

    /// The same with an extra section in another form.
    pub(super) fn with_section(&self, index: usize, lines: Vec<String>) -> Self {
        let mut left = self.left.clone();
        left.sections.insert(index, lines);
        Self::of(Arc::clone(&self.given), left)
    }

    /// Every part that is not left out, sections first.
    pub(super) fn parts(&self) -> Vec<Part> {
        let given = &self.given;
        let sections = (0..given.extra_sections.len()).map(Part::Section);
        let global = (0..given.global.len()).map(Part::Global);
        let defaults = (0..given.defaults.len()).map(Part::Defaults);
        let shared = given.shared.as_ref().map_or(0, Vec::len);
        sections
            .chain(global)
            .chain(defaults)
            .chain((0..shared).map(Part::Shared))
            .filter(|part| !self.left.out.contains(part))
            .collect()
    }

    /// The part that a section of the file, or a line of it, comes from.
    pub(super) fn part_at(&self, section: &cfg::Section, line: Option<&str>) -> Option<Part> {
        let at = |lines: &[String], part: fn(usize) -> Part| {
            let is = |written: &String| {
                line.is_some_and(|line| {
                    written.trim() == line || with_exposed_listeners(written).trim() == line
                })
            };
            let mut found = lines.iter().enumerate().filter(|(_, written)| is(written));
            let part = |(index, _)| part(index);
            found
                .find(|found| !self.left.out.contains(&part(*found)))
                .map(part)
        };
        let given = &self.given;
        let titled = || {
            let titles = given.extra_sections.iter().enumerate();
            let mut found = titles.filter(|(index, (title, _))| {
                let mut words = title.split_ascii_whitespace();
                words.next() == Some(section.keyword.as_str())
                    && words.next().unwrap_or_default() == section.name
                    && !self.left.out.contains(&Part::Section(*index))
            });
            found.next().map(|(index, _)| Part::Section(index))
        };
        match (section.keyword.as_str(), section.name.as_str()) {
            ("global", _) => at(&given.global, Part::Global),
            ("frontend", super::SHARED_NAME) => at(given.shared.as_deref()?, Part::Shared),
            ("defaults", "") => at(&given.defaults, Part::Defaults).or_else(titled),
            _ => titled(),
        }
    }

    /// Whether this frame leaves out the line that `part` of another one is.
    pub(super) fn leaves_out(&self, other: &Self, part: Part) -> bool {
        let line = |frame: &Self, part| match part {
            Part::Global(index) => frame.given.global.get(index).cloned(),
            Part::Defaults(index) => frame.given.defaults.get(index).cloned(),
            Part::Shared(index) => frame.given.shared.as_ref()?.get(index).cloned(),
            Part::Section(_) => None,
        };
        let same_list = |own: &Part| std::mem::discriminant(own) == std::mem::discriminant(&part);
        let wanted = line(other, part);
        let mut out = self.left.out.iter().filter(|own| same_list(own));
        wanted.is_some() && out.any(|own| line(self, *own) == wanted)
    }

    /// Keyword and name of an extra section, when it is as configured.
    pub(super) fn configured_section(&self, index: usize) -> Option<(&str, &str)> {
        let (title, _) = self.given.extra_sections.get(index)?;
        let mut words = title.split_ascii_whitespace();
        let as_configured = !self.left.sections.contains_key(&index);
        as_configured.then_some((words.next()?, words.next().unwrap_or_default()))
    }

    /// What the user calls a part: its place in the configuration, and its text when that is a line.
    pub(super) fn words(&self, part: Part) -> String {
        let given = &self.given;
        let (kind, text) = match part {
            Part::Global(index) => ("line of `global`", given.global.get(index)),
            Part::Defaults(index) => ("line of `defaults`", given.defaults.get(index)),
            Part::Shared(index) => (
                "line of `shared_frontend`",
                given.shared.as_ref().and_then(|lines| lines.get(index)),
            ),
            Part::Section(index) => (
                "extra section",
                given.extra_sections.get(index).map(|(title, _)| title),
            ),
        };
        let text = text.map_or("", |text| text.trim());
        let text = if may_be_secret(text) { "…" } else { text };
        match given.places.get(&part) {
            Some(place) => format!("{place}: the {kind} `{text}`"),
            None => format!("the {kind} `{text}`"),
        }
    }
}

fn is_bind(line: impl AsRef<str>) -> bool {
    line.as_ref().split_ascii_whitespace().next() == Some("bind")
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
