//! What the sections of a haproxy.cfg listen on, and which of them are one address. Pure.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use crate::config::listen::{ByPort, Listener};
use crate::outputs::haproxy::cfg::{Model, Section};

/// What a section opens.
#[must_use]
pub fn of_section(section: &Section) -> Vec<Listener> {
    let lines = with_lines(section);
    lines.map(|(_, listener)| listener).collect()
}

/// The same with the lines.
fn with_lines(section: &Section) -> impl Iterator<Item = (&str, Listener)> {
    section.lines.iter().flat_map(|line| {
        let found = Listener::of_line(&section.keyword, &line.text).into_iter();
        found.map(|listener| (line.text.as_str(), listener))
    })
}

/// Two sections on one address: which fragment has to go, and what is to be said of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Clash {
    /// Index of the fragment that came later.
    pub fragment: usize,
    /// Index of its section in there.
    pub section: usize,
    /// The line.
    pub line: String,
    /// In words.
    pub words: String,
}

/// A listener of a fragment.
struct Found<'a> {
    fragment: usize,
    at: usize,
    section: &'a Section,
    line: &'a str,
    listener: Listener,
    /// It stands in the loaded file as well.
    stood: bool,
}

/// Sections of different fragments that listen on one address. Who is there already stays: a listener of the `loaded` file
/// before one that is new, else the first in the file.
#[must_use]
pub fn clashes(models: &[Arc<Model>], loaded: &Model) -> Vec<Clash> {
    let mut before: BTreeMap<(&str, &str), Vec<Listener>> = BTreeMap::new();
    for section in &loaded.sections {
        let key = (&*section.keyword, &*section.name);
        let stood = before.entry(key).or_default();
        stood.extend(of_section(section));
    }
    let mut found: Vec<Found<'_>> = Vec::new();
    for (fragment, model) in models.iter().enumerate() {
        for (at, section) in model.sections.iter().enumerate() {
            let stood = before.get(&(&*section.keyword, &*section.name));
            found.extend(with_lines(section).map(|(line, listener)| Found {
                fragment,
                at,
                section,
                line,
                stood: stood.is_some_and(|stood| stood.iter().any(|s| s.is_at(&listener))),
                listener,
            }));
        }
    }
    // Those that stay come first: each is compared with them only.
    found.sort_by_key(|f| !f.stood);
    let mut clashes = Vec::new();
    let mut gone: BTreeSet<usize> = BTreeSet::new();
    let mut kept = ByPort::default();
    for (index, one) in found.iter().enumerate() {
        if gone.contains(&one.fragment) {
            continue;
        }
        let other = kept
            .candidates(&one.listener)
            .map(|at| &found[at])
            .find(|other| {
                other.fragment != one.fragment
                    && !gone.contains(&other.fragment)
                    && other.listener.meets(&one.listener)
            });
        let Some(other) = other else {
            kept.add(index, &one.listener);
            continue;
        };
        clashes.push(Clash {
            fragment: one.fragment,
            section: one.at,
            line: one.line.to_owned(),
            words: format!(
                "`{} {}` listens on `{}`, and `{} {}` does on `{}`: each connection would go to one of them",
                one.section.keyword,
                one.section.name,
                one.listener.text,
                other.section.keyword,
                other.section.name,
                other.listener.text,
            ),
        });
        // The frame may lose a part only.
        if one.fragment != 0 {
            gone.insert(one.fragment);
        }
    }
    clashes
}

#[cfg(test)]
mod tests;
