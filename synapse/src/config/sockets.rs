//! Sockets of the configuration that are one address, as far as its lines show it: services, `extra_sections`, the shared
//! frontend, stats sockets, and our own. What a template of the user's makes of them shows when it is rendered.

use smartstack_common::admin::Bind;
use smartstack_common::config::{Cursor, Listeners, Map};

use super::{FrontendPort, Haproxy, Reload, Service};
use crate::config::listen::{ByPort, Listener};

/// What has been seen.
#[derive(Default)]
pub(super) struct Sockets<'a> {
    seen: Vec<Seen<'a>>,
    services: bool,
    shared: bool,
}

struct Seen<'a> {
    listener: Listener,
    /// Within one section an address twice is its author's business.
    section: String,
    cursor: Cursor<'a>,
}

/// haproxy's own words for the shared frontend's section do not matter here: no other one has this name.
const SHARED: &str = "haproxy.shared_frontend";

/// The lines below a key, with their cursors, without a word about those that are none: that was said.
fn lines<'a>(cursor: &Cursor<'a>) -> impl Iterator<Item = (Cursor<'a>, String)> {
    let texts = cursor.list_or_one().into_iter();
    let texts = texts.filter_map(|cursor| cursor.value_text().map(|text| (cursor, text)));
    texts.flat_map(|(cursor, text)| {
        let lines: Vec<String> = text.lines().map(str::to_owned).collect();
        lines.into_iter().map(move |line| (cursor.clone(), line))
    })
}

impl<'a> Sockets<'a> {
    fn see(&mut self, section: &str, keyword: &str, cursor: &Cursor<'a>, line: &str) {
        let found = Listener::of_line(keyword, line).into_iter();
        self.seen.extend(found.map(|listener| Seen {
            listener,
            section: section.to_owned(),
            cursor: cursor.clone(),
        }));
    }

    /// The top level's `haproxy`.
    pub(super) fn host(&mut self, top: &Map<'a>, haproxy: &Haproxy) {
        let templates = &haproxy.templates;
        let ours = templates.whole.is_none();
        self.services = ours && templates.service.is_none();
        self.shared = ours && templates.shared_frontend.is_none();
        let global = ours && templates.global.is_none();
        let _read = top.key("haproxy").object(|map| {
            map.ignore_rest();
            if global {
                for (cursor, line) in lines(&map.key("global")) {
                    self.see("global", "global", &cursor, &line);
                }
                let extra = map.key("extra_sections");
                let extra = if extra.is_map() {
                    extra.entries()
                } else {
                    Vec::new()
                };
                for (title, section) in extra {
                    let keyword = title.split_ascii_whitespace().next().unwrap_or_default();
                    for (cursor, line) in lines(&section) {
                        self.see(&title, keyword, &cursor, &line);
                    }
                }
            }
            if self.shared {
                for (cursor, line) in lines(&map.key("shared_frontend")) {
                    self.see(SHARED, "frontend", &cursor, &line);
                }
            }
            if let Reload::MasterSocket(path) = &haproxy.reload {
                self.path("haproxy.master_socket", path, map.key("master_socket"));
            }
        });
    }

    fn path(&mut self, section: &str, path: &std::path::Path, cursor: Cursor<'a>) {
        self.seen.push(Seen {
            listener: Listener::path(path),
            section: section.to_owned(),
            cursor,
        });
    }

    /// A service that is rendered.
    pub(super) fn service(&mut self, cursor: &Cursor<'a>, service: &Service) {
        let Some(haproxy) = &service.haproxy else {
            return;
        };
        let section = format!("services.{}", service.name);
        let _read = cursor.object(|map| {
            map.ignore_rest();
            map.key("haproxy").object(|map| {
                map.ignore_rest();
                if self.shared {
                    for (cursor, line) in lines(&map.key("shared_frontend")) {
                        self.see(SHARED, "frontend", &cursor, &line);
                    }
                }
                let Some(port) = haproxy.port.filter(|_| self.services) else {
                    return;
                };
                for key in ["frontend", "listen"] {
                    for (cursor, line) in lines(&map.key(key)) {
                        self.see(&section, "frontend", &cursor, &line);
                    }
                }
                let address = &haproxy.bind_address;
                let options = haproxy.bind_options.as_deref().unwrap_or_default();
                let line = match port {
                    FrontendPort::Port(port) => format!("bind {address}:{port} {options}"),
                    FrontendPort::AddressOnly => format!("bind {address} {options}"),
                };
                self.see(&section, "frontend", &map.key("port"), &line);
            });
        });
    }

    /// Our own listeners.
    pub(super) fn own(&mut self, top: &Map<'a>, listeners: &Listeners) {
        let key = top.key("admin");
        let below = |name| match key.is_map() {
            true => key.object(|map| {
                map.ignore_rest();
                map.key(name)
            }),
            false => None,
        };
        if let Some(admin) = &listeners.admin {
            let cursor = below("bind").unwrap_or_else(|| key.clone());
            match &admin.bind {
                Bind::Tcp(address) => {
                    self.see(
                        "admin.bind",
                        "frontend",
                        &cursor,
                        &format!("bind {address}"),
                    );
                }
                Bind::Unix(path) => self.path("admin.bind", path, cursor),
            }
        }
        if let Some(socket) = &listeners.socket {
            let cursor = below("socket").unwrap_or_else(|| key.clone());
            self.path("admin.socket", &socket.path, cursor);
        }
    }

    /// Says what is one address in two sections, at the later one, with the place of the other.
    pub(super) fn judge(&self) {
        let mut kept = ByPort::default();
        for (index, one) in self.seen.iter().enumerate() {
            // The one that stands first in the files.
            let other = kept
                .candidates(&one.listener)
                .map(|at| &self.seen[at])
                .find(|other| other.section != one.section && other.listener.meets(&one.listener));
            if let Some(other) = other {
                tell(one, other);
            }
            kept.add(index, &one.listener);
        }
    }
}

fn tell(one: &Seen<'_>, other: &Seen<'_>) {
    let what = |seen: &Seen<'_>| match &*seen.section {
        "admin.bind" | "admin.socket" => (
            format!("synapse's own `{}`", seen.section),
            // Without the key it is a default, and that has no place.
            seen.cursor.has_value().then(|| seen.cursor.place()),
        ),
        "global" => ("the stats socket".to_owned(), Some(seen.cursor.place())),
        section => (format!("`{section}`"), Some(seen.cursor.place())),
    };
    // Ours are told of where the user's line is: that one is at fault, or can be moved.
    let (one, other) = match one.cursor.has_value() {
        true => (one, other),
        false => (other, one),
    };
    let (whose, place) = what(other);
    let place = place.map_or_else(|| "its default".to_owned(), |place| format!("at {place}"));
    one.cursor.error_hint(
        format!(
            "listens on `{}`, as {whose} does on `{}` ({place})",
            one.listener.text, other.listener.text
        ),
        "haproxy accepts both and each connection goes to one of them: give one of them another port or address",
    );
}
