//! Last-known-good: a frame and one form per service that a worker has loaded. Never a text of the whole file, so that
//! the file on disk can always be the last good structure with the current servers.
//!
//! Pure. Owned by the reconciler; filled when a worker is seen to serve a generation, and at start from haproxy.cfg.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use crate::config::Service;
use crate::model::server::{Identified, NOWHERE};
use crate::outputs::haproxy::cfg::named::Named;
use crate::outputs::haproxy::cfg::{Model, Ours};
use crate::outputs::haproxy::file::Piece;
use crate::outputs::haproxy::render::{Renderer, may_be_of};

/// What was accepted.
#[derive(Default)]
pub struct Good {
    /// Renders the frame that was accepted; `None` = not known to this process.
    pub frame: Option<Arc<Renderer>>,
    services: BTreeMap<String, Form>,
    /// What the worker has loaded, in the order of its file.
    order: Vec<Arc<Service>>,
    /// What the lines of the file name that this process began with.
    file: Option<Named>,
    /// The last servers of services that are not configured any more.
    gone: BTreeMap<String, Vec<Identified>>,
}

/// How the accepted fragment of a service is made again.
enum Form {
    /// By rendering: with any servers.
    Recipe(Arc<Renderer>, Arc<Service>),
    /// As it stood in haproxy.cfg when this process started: with the servers that are still wanted.
    Text(String),
}

impl Good {
    /// The services' fragments in a haproxy.cfg that an earlier process left.
    #[must_use]
    pub fn of_file(text: &str, services: &[Arc<Service>]) -> Self {
        let model = Model::parse(text, Ours::All);
        let lines: Vec<&str> = text.lines().collect();
        let starts: Vec<(usize, &str, &str)> = model
            .sections
            .iter()
            .map(|s| (s.number, s.keyword.as_str(), s.name.as_str()))
            .collect();
        let mut good = Self {
            file: Some(Named::of_file(text)),
            ..Self::default()
        };
        for service in services {
            let Some(haproxy) = &service.haproxy else {
                continue;
            };
            let mut fragment = String::new();
            for (index, (start, keyword, name)) in starts.iter().enumerate() {
                let is_frontend = *name == service.name
                    || (may_be_of(name, &service.name)
                        && !services.iter().any(|s| s.name == *name));
                let own = (*keyword == "frontend" && is_frontend)
                    || (*keyword == "backend" && *name == haproxy.backend_name);
                if own && *start > 0 {
                    let end = starts.get(index + 1).map_or(lines.len() + 1, |next| next.0);
                    fragment.push('\n');
                    for line in &lines[start - 1..end - 1] {
                        if !line.trim().is_empty() {
                            fragment.push_str(line);
                            fragment.push('\n');
                        }
                    }
                }
            }
            // What stood in for a service that was left out is no form of it.
            let stump = haproxy.port.is_some() && is_stump(&fragment);
            if !fragment.is_empty() && !stump {
                good.services
                    .insert(service.name.clone(), Form::Text(fragment));
            }
        }
        good
    }

    /// A worker serves this service as rendered by `renderer`.
    pub fn accept(&mut self, renderer: &Arc<Renderer>, service: &Arc<Service>) {
        self.services.insert(
            service.name.clone(),
            Form::Recipe(Arc::clone(renderer), Arc::clone(service)),
        );
    }

    /// A worker serves these services, in this order, each in its accepted form; nothing else is configured.
    pub fn load(&mut self, services: Vec<Arc<Service>>) {
        let named = |name: &String| services.iter().any(|service| service.name == *name);
        self.services.retain(|name, _| named(name));
        self.gone.clear();
        self.order = services;
    }

    /// The accepted frame is no longer that of the file.
    pub fn leave_file(&mut self) {
        let text = |form: &Form| matches!(form, Form::Text(_));
        if !self.services.values().any(text) {
            self.file = None;
        }
    }

    /// What the accepted forms name.
    #[must_use]
    pub fn named(&self) -> Vec<&Named> {
        let mut found: Vec<&Named> = self.file.iter().collect();
        let recipes = self.services.values().filter_map(|form| match form {
            Form::Recipe(renderer, _) => Some(renderer),
            Form::Text(_) => None,
        });
        for renderer in self.frame.iter().chain(recipes) {
            let named = renderer.named();
            if !found.iter().any(|known| std::ptr::eq(*known, named)) {
                found.push(named);
            }
        }
        found
    }

    /// A service is not configured any more: should the worker have it still, these were its servers.
    pub fn leave(&mut self, service: &str, servers: Vec<Identified>) {
        self.gone.insert(service.to_owned(), servers);
    }

    /// What the worker has loaded, with the current servers of each service: by name, in the order of the file.
    #[must_use]
    pub fn loaded(&self, servers: &BTreeMap<&str, &[Identified]>) -> Vec<(String, Option<Piece>)> {
        let piece = |service: &Arc<Service>| {
            let current = servers.get(service.name.as_str()).copied();
            let servers = current.or_else(|| Some(self.gone.get(&service.name)?.as_slice()));
            let piece = servers.and_then(|servers| self.piece(service, servers));
            (service.name.clone(), piece)
        };
        self.order.iter().map(piece).collect()
    }

    /// The accepted form with the current servers; `None` = there is none.
    #[must_use]
    pub fn piece(&self, service: &Arc<Service>, servers: &[Identified]) -> Option<Piece> {
        match self.services.get(&service.name)? {
            Form::Recipe(renderer, recipe) => Piece::render(renderer, recipe, servers).ok(),
            Form::Text(text) => Some(with_wanted(service, text, servers)),
        }
    }
}

/// Whether this is an empty backend in place of a service that was left out.
fn is_stump(text: &str) -> bool {
    let model = Model::parse(text, Ours::All);
    let mut servers = model.servers.values().flat_map(BTreeMap::values);
    let [section] = model.sections.as_slice() else {
        return false;
    };
    section.keyword == "backend"
        && section
            .lines
            .iter()
            .all(|line| line.text.starts_with("mode "))
        && servers.all(|server| server.address.ip() == NOWHERE)
}

/// The text without the lines of servers that are no longer wanted.
fn with_wanted(service: &Arc<Service>, text: &str, servers: &[Identified]) -> Piece {
    let wanted: BTreeSet<&str> = servers.iter().map(|s| s.server.name.as_str()).collect();
    let found = Model::parse(text, Ours::All).servers;
    let names = found.values().flatten().map(|(name, _)| name.clone());
    Piece::of_text(service, text.to_owned(), names.collect()).keeping(|name| wanted.contains(name))
}
