//! Servers that are this host's own frontends, and lead back to where they came from. Pure.
//!
//! A request to such a server comes in again at the frontend, goes to the backend, to the server, …, until haproxy has no
//! connection left, which costs every service of the host. Refused is the server that closes the circle. A server that is
//! another service's frontend and leads no way back is a chain, which people build on purpose, and is let through; so is a
//! frontend of another host with the same port. Of two services that name each other's frontends the one that does it
//! later is refused.
//!
//! Known are the frontends, what they lead to (`default_backend`, `use_backend`, a `listen` itself) and the servers that
//! stand in the structure, of all sections of the file without our servers; servers are told of as they are admitted.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use crate::config::Config;
use crate::config::listen::{ByPort, Listener};
use crate::outputs::haproxy::cfg::binds::of_section;
use crate::outputs::haproxy::cfg::{Model, Section};
use crate::outputs::haproxy::file::{EffectiveCache, Piece, assemble};
use crate::outputs::haproxy::render::Renderer;
use crate::wanted::service;

/// A listener and what a connection to it may reach.
#[derive(Debug)]
struct Way {
    listener: Listener,
    section: String,
    backends: BTreeSet<String>,
}

/// This host's frontends and the ways between its backends.
#[derive(Debug, Default)]
pub struct Circles {
    ways: Vec<Way>,
    by_port: ByPort,
    /// The host's addresses.
    own: BTreeSet<IpAddr>,
    /// Which backends a backend's servers lead to: those of the structure.
    fixed: BTreeMap<String, BTreeSet<String>>,
    /// And those that were admitted.
    admitted: BTreeMap<String, BTreeSet<String>>,
    /// Some way is there no more, so that others may be admitted.
    freed: bool,
}

impl Circles {
    /// The ways through the sections of a file without our servers. `own` are the host's addresses.
    pub fn new<'a>(models: impl IntoIterator<Item = &'a Model>, own: BTreeSet<IpAddr>) -> Self {
        let sections: Vec<&Section> = models
            .into_iter()
            .flat_map(|model| &model.sections)
            .map(AsRef::as_ref)
            .collect();
        let all: BTreeSet<String> = sections
            .iter()
            .filter(|s| matches!(&*s.keyword, "backend" | "listen"))
            .map(|s| s.name.clone())
            .collect();
        let mut circles = Self {
            own,
            ..Self::default()
        };
        for section in &sections {
            if !matches!(&*section.keyword, "frontend" | "listen") {
                continue;
            }
            let backends = leads_to(section, &all);
            for listener in of_section(section) {
                circles.by_port.add(circles.ways.len(), &listener);
                circles.ways.push(Way {
                    listener,
                    section: format!("{} {}", section.keyword, section.name),
                    backends: backends.clone(),
                });
            }
        }
        for section in &sections {
            let mut reached = BTreeSet::new();
            for line in &section.lines {
                if let Some((address, port)) = fixed_server(&line.text) {
                    reached.extend(circles.reached(address, port).cloned());
                }
            }
            if section.keyword == "listen" {
                // Its own lines may send a request on to another backend.
                reached.extend(leads_to(section, &all));
                reached.remove(&section.name);
            }
            if !reached.is_empty() {
                let fixed = circles.fixed.entry(section.name.clone()).or_default();
                fixed.extend(reached);
            }
        }
        circles
    }

    /// Those of a configuration: its file as it is rendered without servers. What a template refuses takes no part.
    #[must_use]
    pub fn of_config(config: &Config, renderer: &Renderer, own: BTreeSet<IpAddr>) -> Self {
        let services = config.services.iter().filter(|s| s.haproxy.is_some());
        let pieces: Vec<Piece> = services
            .filter_map(|service| Piece::render(renderer, &Arc::new(service.clone()), &[]).ok())
            .collect();
        let pieces: Vec<&Piece> = pieces.iter().collect();
        let assembly = assemble(renderer, &pieces, &mut EffectiveCache::default());
        let models = assembly.map(|assembly| assembly.models).unwrap_or_default();
        Self::new(models.iter().map(AsRef::as_ref), own)
    }

    /// Takes the host's addresses. Whether they are others than before.
    pub fn set_own(&mut self, own: BTreeSet<IpAddr>) -> bool {
        let changed = self.own != own;
        self.own = own;
        changed
    }

    fn ways_at(&self, address: IpAddr, port: u16) -> impl Iterator<Item = &Way> {
        let ways = self.by_port.at(port).map(|index| &self.ways[index]);
        ways.filter(move |way| way.listener.takes(address, port, &self.own))
    }

    fn reached(&self, address: IpAddr, port: u16) -> impl Iterator<Item = &String> {
        self.ways_at(address, port).flat_map(|way| &way.backends)
    }

    /// The backends on the way from `starts` to `end`, without it; `None` = there is no way.
    fn leads_back(&self, starts: &BTreeSet<String>, end: &str) -> Option<Vec<String>> {
        let mut from: BTreeMap<&str, Option<&str>> = BTreeMap::new();
        let mut next: Vec<(&str, Option<&str>)> =
            starts.iter().map(|start| (&**start, None)).collect();
        while let Some((at, before)) = next.pop() {
            if at == end {
                let way = std::iter::successors(before, |at| from.get(at).copied().flatten());
                let mut way: Vec<String> = way.map(str::to_owned).collect();
                way.reverse();
                return Some(way);
            }
            if from.contains_key(at) {
                continue;
            }
            from.insert(at, before);
            let ways = [&self.fixed, &self.admitted];
            let ways = ways.into_iter().filter_map(|ways| ways.get(at)).flatten();
            next.extend(ways.map(|to| (&**to, Some(at))));
        }
        None
    }
}

impl service::Circles for Circles {
    fn closed_by(
        &self,
        backend: &str,
        (address, port): (IpAddr, u16),
        leads: &mut BTreeSet<String>,
    ) -> Option<String> {
        for way in self.ways_at(address, port) {
            let Some(over) = self.leads_back(&way.backends, backend) else {
                continue;
            };
            let over = match over.is_empty() {
                true => String::new(),
                false => format!(" over `{}`", over.join("`, `")),
            };
            return Some(format!(
                "{address}:{port} is this host's own `{}` (`bind {}`), which leads back here{over}: each request would go round in a circle",
                way.section, way.listener.text
            ));
        }
        leads.extend(self.reached(address, port).cloned());
        None
    }

    fn admit(&mut self, backend: &str, leads: BTreeSet<String>) {
        let former = match leads.is_empty() {
            true => self.admitted.remove(backend),
            false => self.admitted.insert(backend.to_owned(), leads),
        };
        let now = self.admitted.get(backend);
        self.freed |= former
            .into_iter()
            .flatten()
            .any(|lead| now.is_none_or(|now| !now.contains(&lead)));
    }

    fn take_freed(&mut self) -> bool {
        std::mem::take(&mut self.freed)
    }
}

/// The backends that a frontend may send a request to. A name that is made of the request may be any.
fn leads_to(section: &Section, all: &BTreeSet<String>) -> BTreeSet<String> {
    let mut backends = BTreeSet::new();
    if section.keyword == "listen" {
        backends.insert(section.name.clone());
    }
    for line in &section.lines {
        let mut words = line.text.split_ascii_whitespace();
        match (words.next(), words.next()) {
            (Some("default_backend" | "use_backend"), Some(name)) if name.contains('%') => {
                backends.extend(all.iter().cloned());
            }
            (Some("default_backend" | "use_backend"), Some(name)) => {
                backends.insert(name.to_owned());
            }
            _ => {}
        }
    }
    backends
}

/// Address and port of a `server` line of the user's.
fn fixed_server(line: &str) -> Option<(IpAddr, u16)> {
    let mut words = line.split_ascii_whitespace();
    if words.next() != Some("server") {
        return None;
    }
    let address = words.nth(1)?;
    let (_, address) = address.split_once('@').unwrap_or(("", address));
    let (host, port) = address.rsplit_once(':')?;
    let bracketed = host.strip_prefix('[').and_then(|h| h.strip_suffix(']'));
    let host = match bracketed.unwrap_or(host) {
        "localhost" => "127.0.0.1",
        host => host,
    };
    Some((host.parse().ok()?, port.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::outputs::haproxy::cfg::Ours;
    use crate::wanted::service::Circles as _;

    fn circles(text: &str) -> Circles {
        let own = ["10.0.0.7", "fd00::7"].map(|a| a.parse().unwrap());
        let names = BTreeMap::new();
        Circles::new([&Model::parse(text, Ours::Names(&names))], own.into())
    }

    fn service(name: &str, bind: &str) -> String {
        format!("frontend {name}\n bind {bind}\n default_backend {name}\nbackend {name}\n")
    }

    fn closed(circles: &Circles, backend: &str, at: &str) -> Option<String> {
        let at: std::net::SocketAddr = at.parse().unwrap();
        circles.closed_by(backend, (at.ip(), at.port()), &mut BTreeSet::new())
    }

    fn admit(circles: &mut Circles, backend: &str, at: &str) -> bool {
        let at: std::net::SocketAddr = at.parse().unwrap();
        let mut leads = BTreeSet::new();
        let closed = circles.closed_by(backend, (at.ip(), at.port()), &mut leads);
        circles.admit(backend, leads);
        closed.is_none()
    }

    #[test]
    fn a_service_that_names_its_own_frontend() {
        let c = circles(&[service("a", "*:80"), service("b", "127.0.0.1:81")].concat());
        for at in ["10.0.0.7:80", "127.0.0.1:80", "0.0.0.0:80"] {
            let words = closed(&c, "a", at).unwrap();
            assert!(words.contains("own `frontend a` (`bind *:80`)"), "{words}");
        }
        assert!(closed(&c, "b", "127.0.0.1:81").is_some());
        // Another host, another port, another address of this host.
        for at in ["10.0.0.8:80", "10.0.0.7:8080", "[fd00::7]:80"] {
            assert_eq!(closed(&c, "a", at), None, "{at}");
        }
        assert_eq!(closed(&c, "b", "10.0.0.7:81"), None);
        // A chain.
        assert_eq!(closed(&c, "b", "10.0.0.7:80"), None);
    }

    #[test]
    fn a_circle_over_others_is_closed_by_the_last() {
        let text = [
            service("a", "*:80"),
            service("b", "*:81"),
            service("c", "*:82"),
        ]
        .concat();
        let mut c = circles(&text);
        assert!(admit(&mut c, "a", "127.0.0.1:81"));
        assert!(admit(&mut c, "b", "10.0.0.7:82"));
        let words = closed(&c, "c", "127.0.0.1:80").unwrap();
        assert!(words.contains("leads back here over `a`, `b`:"), "{words}");
        // Those that are there stay admitted.
        assert!(admit(&mut c, "a", "127.0.0.1:81") && admit(&mut c, "b", "10.0.0.7:82"));
        // The chain is cut: it may be built the other way round.
        assert!(!c.take_freed());
        c.admit("b", BTreeSet::new());
        assert!(c.take_freed() && !c.take_freed());
        assert!(admit(&mut c, "c", "127.0.0.1:80"));
        assert!(!admit(&mut c, "b", "127.0.0.1:82"));
    }

    #[test]
    fn sections_of_the_user_take_part() {
        let text = "frontend shared\n bind :80\n use_backend a if x\nbackend a\nbackend b\n\
                    listen l\n bind :81\n server s 127.0.0.1:80\n\
                    frontend dynamic\n bind :82\n use_backend %[hdr(host)]\n\
                    frontend static\n bind :83\n http-request return status 200\n";
        let c = circles(text);
        assert!(
            closed(&c, "a", "127.0.0.1:80").is_some(),
            "the shared frontend"
        );
        assert_eq!(closed(&c, "b", "127.0.0.1:80"), None);
        let words = closed(&c, "a", "127.0.0.1:81").unwrap();
        assert!(words.contains("over `l`"), "{words}");
        assert!(closed(&c, "b", "127.0.0.1:82").is_some(), "any backend");
        assert_eq!(closed(&c, "a", "127.0.0.1:83"), None, "it leads nowhere");
    }

    #[test]
    fn this_host_has_addresses() {
        assert!(
            crate::outputs::haproxy::host::own_addresses()
                .iter()
                .any(IpAddr::is_loopback)
        );
    }
}
