//! Which servers and sections lines name: haproxy refuses a file in which a line names a server, or a backend, that is
//! not in it. What a line names has to stay in the file, whatever the registry says.
//!
//! Pure. Reads lines that a person has written (the configuration's, the templates'), or a file that an earlier process
//! has left; never what is rendered from servers. Ways to name a server, haproxy 2.6 to 3.3: `use-server`, `track`,
//! `attach-srv`, `bind rhttp@…`, and the fetches `srv_…(…)`. A word that is computed (`%[…]`) names nobody: haproxy does
//! not look for it either.

use std::collections::{BTreeMap, BTreeSet};

use crate::config::Config;
use crate::outputs::haproxy::cfg::{Model, Ours, Section};
use crate::wanted::gate::is_name_char;

/// What some lines name.
#[derive(Debug, Clone, Default)]
pub struct Named {
    /// Servers by backend.
    servers: BTreeMap<String, BTreeSet<String>>,
    /// Words that could be the NAME of a server (they all hold a port): a way of naming that is not known here keeps a
    /// server that has been there.
    words: BTreeSet<String>,
    /// Servers that lines define, by backend (`""` = a template's, in any), and prefixes of `server-template`.
    defined: BTreeMap<String, BTreeSet<String>>,
    prefixes: BTreeMap<String, BTreeSet<String>>,
}

impl Named {
    /// What the lines of a configuration and its templates name.
    #[must_use]
    pub fn of(config: &Config) -> Self {
        let mut named = Self::default();
        let haproxy = &config.haproxy;
        let frame = haproxy.global.iter().chain(&haproxy.defaults);
        for line in frame.chain(haproxy.shared_frontend.iter().flatten()) {
            named.read(line, None);
        }
        for (title, lines) in &haproxy.extra_sections {
            let own = backend_of(title);
            lines.iter().for_each(|line| named.read(line, own));
        }
        for service in config.services.iter().filter_map(|s| s.haproxy.as_ref()) {
            for line in service.frontend.iter().chain(&service.shared_frontend) {
                named.read(line, None);
            }
            for line in service.backend.iter().chain([&service.server_options]) {
                named.read(line, Some(&service.backend_name));
            }
        }
        let templates = &haproxy.templates;
        let templates = [
            &templates.global,
            &templates.service,
            &templates.shared_frontend,
            &templates.whole,
        ];
        for template in templates.into_iter().flatten() {
            template
                .text
                .lines()
                .for_each(|line| named.read(line, None));
        }
        named
    }

    /// What the lines of a file name.
    #[must_use]
    pub fn of_file(text: &str) -> Self {
        let model = Model::parse(text, Ours::All);
        let mut named = Self::of_parts(model.sections.iter().map(AsRef::as_ref), &[]);
        for (backend, servers) in &*model.servers {
            for line in servers.values() {
                named.read(&line.options, Some(backend));
            }
        }
        named
    }

    /// What the lines of these sections name, and the options that the servers of some backends are given.
    pub fn of_parts<'a>(
        sections: impl IntoIterator<Item = &'a Section>,
        options: &[(&str, &str)],
    ) -> Self {
        let mut named = Self::default();
        for (backend, text) in options {
            named.read(text, Some(backend));
        }
        for section in sections {
            let own = matches!(section.keyword.as_str(), "backend" | "listen");
            let own = own.then_some(section.name.as_str());
            for line in &section.lines {
                named.read(&line.text, own);
            }
        }
        named
    }

    /// Servers of a backend that are named and that no line defines.
    pub fn servers(&self, backend: &str) -> impl Iterator<Item = &str> {
        let named = self.servers.get(backend).into_iter().flatten();
        named.map(String::as_str)
    }

    /// Whether a server may be meant by a line.
    #[must_use]
    pub fn mentions(&self, name: &str) -> bool {
        self.words.contains(name)
    }

    /// Words that could be NAMEs of servers.
    pub fn words(&self) -> impl Iterator<Item = &str> {
        self.words.iter().map(String::as_str)
    }

    /// Whether a line of its own defines the server.
    #[must_use]
    pub fn defines(&self, backend: &str, name: &str) -> bool {
        let number = |prefix: &String| {
            let rest = name.strip_prefix(prefix.as_str());
            rest.is_some_and(|rest| rest.bytes().all(|b| b.is_ascii_digit()))
        };
        [backend, ""].iter().any(|place| {
            let defined = self.defined.get(*place);
            let prefixes = self.prefixes.get(*place);
            defined.is_some_and(|names| names.contains(name))
                || prefixes.is_some_and(|prefixes| prefixes.iter().any(number))
        })
    }

    /// Reads a line of the section of a backend, or of one that has no servers.
    fn read(&mut self, line: &str, own: Option<&str>) {
        let line = line.replace('\\', "");
        let parts = line.split(|c| !is_name_char(c));
        let names = parts.filter(|word| word.contains(':'));
        self.words.extend(names.map(str::to_owned));
        for (at, _) in line.match_indices("srv_") {
            let call = &line[at..];
            let end = call.find(|c| !is_name_char(c)).unwrap_or(call.len());
            let whole = !line[..at].ends_with(is_name_char);
            if let Some(arguments) = call[end..].strip_prefix('(').filter(|_| whole) {
                self.name(arguments.split([',', ')']).next().unwrap_or_default(), own);
            }
        }
        let words: Vec<&str> = line.split_ascii_whitespace().collect();
        for pair in words.windows(2) {
            match *pair {
                ["use-server" | "track" | "attach-srv", name] => self.name(name, own),
                ["bind", address] => {
                    let server = ["rhttp@", "rev@"]
                        .iter()
                        .find_map(|p| address.strip_prefix(p));
                    server.into_iter().for_each(|server| self.name(server, own));
                }
                _ => {}
            }
        }
        let place = own.unwrap_or_default();
        match words[..] {
            ["server", name, ..] => insert(&mut self.defined, place, name),
            ["server-template", prefix, ..] => insert(&mut self.prefixes, place, prefix),
            _ => {}
        }
    }

    /// `server`, of its own section, or `backend/server`.
    fn name(&mut self, text: &str, own: Option<&str>) {
        let text = text.trim().trim_matches(['"', '\'']);
        let (backend, server) = match text.split_once('/') {
            Some((backend, server)) => (Some(backend), server),
            None => (own, text),
        };
        let is_name = |text: &str| !text.is_empty() && text.chars().all(is_name_char);
        if let Some(backend) = backend.filter(|backend| is_name(backend) && is_name(server)) {
            insert(&mut self.servers, backend, server);
        }
    }
}

fn insert(map: &mut BTreeMap<String, BTreeSet<String>>, key: &str, value: &str) {
    map.entry(key.to_owned())
        .or_default()
        .insert(value.to_owned());
}

/// The name in the title of a section that has servers.
fn backend_of(title: &str) -> Option<&str> {
    let mut words = title.split_ascii_whitespace();
    matches!(words.next(), Some("backend" | "listen"))
        .then(|| words.next())
        .flatten()
}

/// Whether a line names a section: as one of its words, whatever the line is.
#[must_use]
pub fn names_section(line: &str, name: &str) -> bool {
    line.split(|c| !is_name_char(c)).any(|word| word == name)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn named(lines: &[&str]) -> Named {
        let mut named = Named::default();
        lines.iter().for_each(|line| named.read(line, Some("web")));
        named
    }

    #[test]
    fn every_way_of_naming_a_server_is_known() {
        for (line, backend) in [
            ("use-server i1_10.0.0.1:80 if { path_beg /x }", "web"),
            ("use-server i1_10.0.0.1:80", "web"),
            ("acl up srv_is_up(db/i1_10.0.0.1:80)", "db"),
            ("acl up srv_is_up(i1_10.0.0.1:80) -m bool", "web"),
            ("monitor fail if !{ srv_is_up(db/i1_10.0.0.1:80) }", "db"),
            (
                "http-request deny if { srv_conn(db/i1_10.0.0.1:80) gt 9 } or TRUE",
                "db",
            ),
            (
                "http-request set-header X %[srv_conn_free(db/i1_10.0.0.1:80),add(1)]",
                "db",
            ),
            (
                "http-request set-header X \"%[srv_queue('db/i1_10.0.0.1:80')]\"",
                "db",
            ),
            (
                "http-request set-var(txn.r) srv_sess_rate( db/i1_10.0.0.1:80 )",
                "db",
            ),
            ("acl w srv_weight(db/i1_10.0.0.1:80) lt 3", "db"),
            ("acl w srv_uweight(db/i1_10.0.0.1\\:80) lt 3", "db"),
            ("default-server check track db/i1_10.0.0.1:80", "db"),
            ("server own 10.0.0.9:80 track i1_10.0.0.1:80", "web"),
            ("inter 2s track db/i1_10.0.0.1:80 weight 3", "db"),
            (
                "tcp-request session attach-srv db/i1_10.0.0.1:80 name ssl_c_s_dn(CN)",
                "db",
            ),
            ("bind rhttp@db/i1_10.0.0.1:80", "db"),
        ] {
            let named = named(&[line]);
            let servers: Vec<&str> = named.servers(backend).collect();
            assert_eq!(servers, ["i1_10.0.0.1:80"], "{line}");
            assert!(named.mentions("i1_10.0.0.1:80"), "{line}");
        }
    }

    #[test]
    fn what_is_computed_or_something_else_names_nobody() {
        let named = named(&[
            "use-server %[hdr(x)] if { hdr(x) -m found }",
            "http-request set-header X %[str(db/s),srv_queue]",
            "http-request track-sc0 src table st",
            "acl x hdr_srv_is_up(db/s)",
            "log 127.0.0.1:514 local0",
        ]);
        assert_eq!(named.servers, BTreeMap::new());
        assert_eq!(named.words().collect::<Vec<_>>(), ["127.0.0.1:514"]);
    }

    #[test]
    fn servers_of_the_lines_themselves_are_told() {
        let named = named(&[
            "server fixed 10.0.0.9:80",
            "server-template t 1-3 10.0.0.9:80 disabled",
            "use-server fixed if TRUE",
        ]);
        assert!(named.defines("web", "fixed") && named.defines("web", "t2"));
        assert!(!named.defines("web", "other") && !named.defines("db", "fixed"));
    }

    #[test]
    fn a_file_names_by_its_own_sections() {
        let named = Named::of_file(
            "frontend f\n use_backend b if { srv_is_up(b/x_1:1) }\nbackend b\n use-server y_1:2 if TRUE\n\
             server y_1:2 10.0.0.1:2 track c/z_1:3\n",
        );
        assert_eq!(named.servers("b").collect::<Vec<_>>(), ["x_1:1", "y_1:2"]);
        assert_eq!(named.servers("c").collect::<Vec<_>>(), ["z_1:3"]);
        assert!(names_section(" use_backend b if { nbsrv(b) gt 0 }", "b"));
        assert!(!names_section(
            " use_backend bb if { nbsrv(b.b) gt 0 }",
            "b"
        ));
    }
}
