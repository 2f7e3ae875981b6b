//! Names of the frontends.
//!
//! Pure. Airbnb's sections of a service have one name, frontend and backend. haproxy 3.2 warns of each such pair ("dangerous
//! and will not be supported anymore in version 3.3") and 3.3 refuses the file, so that from 3.2 on a frontend whose name a
//! backend has is called `<service>-in`. From 3.2 and not from 3.3: a file that is on disk when 3.3 is installed has to
//! load. Backends keep their names, which server states, statistics and dashboards go by.

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};

use crate::config::Config;

/// What follows the name of a service.
const SUFFIX: &str = "-in";

/// Sections of the built-in templates that belong to no service.
const OWN: [&str; 2] = ["shared-frontend", "synapse-standby"];

/// Functions whose argument is a frontend (configuration manual 3.2, 7.3).
const FETCHES: [&str; 3] = ["fe_conn(", "fe_req_rate(", "fe_sess_rate("];

/// Frontends that are not called as their service, by its name.
#[derive(Debug, Clone, Default)]
pub(super) struct Frontends(BTreeMap<String, String>);

impl Frontends {
    /// Of a haproxy that wants other names for frontends than for backends.
    pub(super) fn apart(config: &Config) -> Self {
        let rendered = || {
            let services = config.services.iter();
            services.filter_map(|service| Some((&service.name, service.haproxy.as_ref()?)))
        };
        let extra = || {
            let titles = config.haproxy.extra_sections.iter();
            titles.filter_map(|(title, _)| {
                let mut words = title.split_ascii_whitespace();
                Some((words.next()?, words.next()?))
            })
        };
        // Also of one that is disabled: an empty backend stands in for it where it is named.
        let services = config.services.iter();
        let backends: BTreeSet<&str> = services
            .filter_map(|service| service.haproxy.as_ref().or(service.disabled.as_deref()))
            .map(|haproxy| haproxy.backend_name.as_str())
            .chain(
                extra()
                    .filter(|(keyword, _)| matches!(*keyword, "backend" | "listen"))
                    .map(|(_, name)| name),
            )
            .collect();
        let frontends = rendered()
            .filter(|(_, haproxy)| haproxy.port.is_some())
            .map(|(name, _)| name);
        let mut taken: BTreeSet<String> = frontends.clone().map(String::from).collect();
        taken.extend(OWN.map(str::to_owned));
        taken.extend(backends.iter().map(|name| (*name).to_owned()));
        taken.extend(extra().map(|(_, name)| name.to_owned()));
        let mut names = BTreeMap::new();
        for service in frontends.filter(|name| backends.contains(name.as_str())) {
            let mut name = format!("{service}{SUFFIX}");
            while !taken.insert(name.clone()) {
                name.push_str(SUFFIX);
            }
            names.insert(service.clone(), name);
        }
        Self(names)
    }

    /// The name of a service's frontend.
    pub(super) fn name<'a>(&'a self, service: &'a str) -> &'a str {
        self.0.get(service).map_or(service, String::as_str)
    }

    /// A line of the user's with the frontends under their names.
    pub(super) fn line<'a>(&self, line: &'a str) -> Cow<'a, str> {
        if self.0.is_empty() || !FETCHES.iter().any(|fetch| line.contains(fetch)) {
            return line.into();
        }
        let mut out = String::with_capacity(line.len() + SUFFIX.len());
        let mut rest = line;
        let next = |text: &str| {
            let ends = FETCHES
                .iter()
                .filter_map(|f| text.find(f).map(|at| at + f.len()));
            ends.min()
        };
        while let Some(at) = next(rest) {
            let (before, after) = rest.split_at(at);
            let end = after.find([')', ',']).unwrap_or(after.len());
            out.push_str(before);
            out.push_str(self.name(&after[..end]));
            rest = &after[end..];
        }
        out.push_str(rest);
        out.into()
    }

    /// Those lines as text.
    pub(super) fn lines(&self, lines: &[String]) -> Vec<String> {
        lines
            .iter()
            .map(|line| self.line(line).into_owned())
            .collect()
    }

    /// The configuration with the lines of its frame so; the services' lines follow when they are rendered.
    pub(super) fn applied<'a>(&self, config: &'a Config) -> Cow<'a, Config> {
        if self.0.is_empty() {
            return Cow::Borrowed(config);
        }
        let mut config = config.clone();
        let haproxy = &mut config.haproxy;
        for (_, lines) in &mut haproxy.extra_sections {
            *lines = self.lines(lines);
        }
        haproxy.shared_frontend = haproxy
            .shared_frontend
            .as_ref()
            .map(|lines| self.lines(lines));
        Cow::Owned(config)
    }

    /// What a user who names frontends has to know: lines that go by a frontend's name and are not changed.
    pub(super) fn remarks(&self, config: &Config) -> Vec<String> {
        let services = config
            .services
            .iter()
            .filter_map(|service| service.haproxy.as_ref());
        let lines = services
            .flat_map(|haproxy| {
                [
                    &haproxy.frontend,
                    &haproxy.backend,
                    &haproxy.shared_frontend,
                ]
            })
            .chain(config.haproxy.extra_sections.iter().map(|(_, lines)| lines))
            .chain(&config.haproxy.shared_frontend)
            .flatten();
        let named = lines.filter_map(|line| {
            let by_name = line.contains("fe_name")
                || line.split_ascii_whitespace().take(2).eq(["stats", "scope"]);
            let word = |c: char| !(c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | ':' | '-'));
            let name = line
                .split(word)
                .find(|word| by_name && self.0.contains_key(*word))?;
            let now = self.name(name);
            Some(format!(
                "`{}` goes by the frontend's name: that of `{name}` is `{now}` with this haproxy",
                line.trim()
            ))
        });
        named.collect()
    }
}

/// Whether a frontend's section may be that of a service; one that has exactly its name is another service's.
pub(crate) fn may_be_of(section: &str, service: &str) -> bool {
    let mut rest = section.strip_prefix(service);
    while let Some(text) = rest.filter(|text| !text.is_empty()) {
        rest = text.strip_prefix(SUFFIX);
    }
    rest.is_some()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::FrontendPort;
    use crate::outputs::haproxy::render::Renderer;
    use crate::outputs::haproxy::render::tests::{config, service};

    #[test]
    fn a_section_is_told_by_the_name_of_its_service() {
        for section in ["web", "web-in", "web-in-in"] {
            assert!(may_be_of(section, "web"), "{section}");
        }
        for section in ["we", "webs", "web-", "web-i", "web-out", "a-web-in", ""] {
            assert!(!may_be_of(section, "web"), "{section}");
        }
    }

    /// A file of services, extra sections and a shared frontend that name each other.
    fn rendered(separate: Option<bool>) -> (String, Vec<String>) {
        let line = |text: &str| text.to_owned();
        let mut config = config();
        config.haproxy.defaults = [
            "mode http",
            "timeout connect 1s",
            "timeout client 1s",
            "timeout server 1s",
        ]
        .map(line)
        .to_vec();
        config.haproxy.separate_names = separate;
        config.haproxy.extra_sections = vec![
            (
                line("frontend web-in"),
                vec![
                    line("bind 127.0.0.1:1"),
                    line("use_backend web if { fe_conn(web) gt 5 }"),
                ],
            ),
            (
                line("backend other"),
                vec![line("stats enable"), line("stats scope shared")],
            ),
        ];
        config.haproxy.shared_frontend = Some(vec![
            line("bind 127.0.0.1:3"),
            line("acl many fe_sess_rate(shared) gt 9"),
        ]);
        for (port, (name, backend)) in [
            ("web", "web"),
            ("shared", "shared"),
            ("apart", "of-apart"),
            ("other", "mine"),
        ]
        .into_iter()
        .enumerate()
        {
            let mut service = service(name);
            let haproxy = service.haproxy.as_mut().unwrap();
            haproxy.port = Some(FrontendPort::Port(10 + u16::try_from(port).unwrap()));
            haproxy.bind_address = line("127.0.0.1");
            haproxy.backend_name = line(backend);
            haproxy.frontend = vec![line("acl busy fe_req_rate(web) gt 100")];
            haproxy.shared_frontend = vec![line("use_backend web if many { fe_conn(web) gt 5 }")];
            config.services.push(service);
        }
        let renderer = Renderer::new(&config).unwrap();
        let mut text = renderer.render_frame("").unwrap();
        for service in &config.services {
            text.push_str(&renderer.render_service(service, &[]).unwrap());
        }
        text.push_str(&renderer.render_shared(&config.services).unwrap());
        (text, renderer.frontend_remarks(&config))
    }

    /// Against the haproxy of this machine.
    fn accepted(text: &str) {
        use std::io::Write;
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(text.as_bytes()).unwrap();
        let path = format!("{}:/usr/sbin", std::env::var("PATH").unwrap_or_default());
        let output = std::process::Command::new("haproxy")
            .env("PATH", path)
            .arg("-c")
            .arg("-f")
            .arg(file.path())
            .output();
        let output =
            output.expect("haproxy is needed: `make deps`, or install the package `haproxy`");
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{said}\n{text}");
    }

    fn sections(text: &str) -> Vec<(&str, &str)> {
        let lines = text
            .lines()
            .filter(|line| !line.starts_with(['\t', ' ', '#']));
        lines.filter_map(|line| line.split_once(' ')).collect()
    }

    #[test]
    fn no_two_sections_have_one_name() {
        let (text, remarks) = rendered(Some(true));
        let sections = sections(&text);
        let expected = [
            ("frontend", "web-in"),
            ("backend", "other"),
            ("frontend", "web-in-in"),
            ("backend", "web"),
            ("frontend", "shared-in"),
            ("backend", "shared"),
            ("frontend", "apart"),
            ("backend", "of-apart"),
            ("frontend", "other-in"),
            ("backend", "mine"),
            ("frontend", "shared-frontend"),
        ];
        assert_eq!(sections, expected);
        assert_eq!(text.matches("fe_req_rate(web-in-in)").count(), 4, "{text}");
        assert_eq!(text.matches("fe_conn(web-in-in)").count(), 5, "{text}");
        assert!(text.contains("fe_sess_rate(shared-in)"), "{text}");
        assert_eq!(
            remarks,
            [
                "`stats scope shared` goes by the frontend's name: that of `shared` is `shared-in` with this haproxy"
            ]
        );
        accepted(&text);
    }

    #[test]
    fn otherwise_names_are_airbnbs() {
        let (text, remarks) = rendered(None);
        assert!(
            sections(&text).contains(&("frontend", "web")) && text.contains("fe_conn(web)"),
            "{text}"
        );
        assert_eq!(remarks, Vec::<String>::new());
        assert_eq!(rendered(Some(false)).0, text);
        accepted(&text);
    }

    #[test]
    fn lines_follow_the_names() {
        let names = [("web", "web-in"), ("a.b", "a.b-in")];
        let names = names.map(|(service, name)| (service.to_owned(), name.to_owned()));
        let frontends = Frontends(names.into());
        for (line, now) in [
            ("acl x fe_conn(web) gt 5", "acl x fe_conn(web-in) gt 5"),
            (
                "http-request deny if { fe_sess_rate(a.b) gt 1 } { fe_req_rate(web) gt 2 }",
                "http-request deny if { fe_sess_rate(a.b-in) gt 1 } { fe_req_rate(web-in) gt 2 }",
            ),
            ("acl x fe_conn(other) gt 5", "acl x fe_conn(other) gt 5"),
            ("acl x be_conn(web) gt 5", "acl x be_conn(web) gt 5"),
            (
                "use_backend web if { fe_conn gt 5 }",
                "use_backend web if { fe_conn gt 5 }",
            ),
            ("acl x fe_conn(web", "acl x fe_conn(web-in"),
        ] {
            assert_eq!(frontends.line(line), now);
            assert_eq!(Frontends::default().line(line), line);
        }
    }
}
