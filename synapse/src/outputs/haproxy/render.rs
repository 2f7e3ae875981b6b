//! From servers to haproxy.cfg, by fragments: a frame, one fragment for each service, the shared frontend.
//!
//! Pure: the same input gives the same bytes; no clock, no file (template texts come with the configuration). The file is
//! the concatenation of the fragments, so that a change costs one service. What stands in the file is decided by
//! `templates/*.tera`; this module only prepares their variables. Called by the reconciler and by `synapse render`.
//!
//! Sections, lines and their order are those of Airbnb's generator (`lib/synapse/config_generator/haproxy.rb`); it
//! differs on purpose in: no time in the header, a newline at the end, no trailing blanks, the generation, the hitless lines.

mod frame;
mod frontends;
mod kept;
mod server_line;
mod stumps;
#[cfg(test)]
pub(crate) mod tests;

use std::borrow::Cow;
use std::collections::{BTreeMap, VecDeque};
use std::fmt;
use std::sync::Arc;

use serde::Serialize;
use tera::{Context, ErrorKind, Tera};

use crate::config::{Config, FrontendPort, Part, Service, ServiceHaproxy, TemplateText};
use crate::model::server::Identified;
use crate::outputs::haproxy::cfg::named::Named;
use crate::outputs::haproxy::cfg::{Model, Ours, Section, is_plain};
use crate::outputs::haproxy::version::{self, Version};
use frame::Frame;
use frontends::Frontends;
pub(crate) use frontends::may_be_of;
use kept::Kept;
use server_line::ServerView;
use stumps::Stump;

const GLOBAL: (&str, &str) = (
    "global.cfg.tera",
    include_str!("../../../../templates/global.cfg.tera"),
);
const SERVICE: (&str, &str) = (
    "service.cfg.tera",
    include_str!("../../../../templates/service.cfg.tera"),
);
const SHARED: (&str, &str) = (
    "shared_frontend.cfg.tera",
    include_str!("../../../../templates/shared_frontend.cfg.tera"),
);

const FRAME_VARIABLES: [&str; 8] = [
    "defaults",
    "description",
    "extra_sections",
    "generation",
    "global",
    "missing",
    "standby",
    "stats_socket",
];

/// Lines that were written before, for servers that may still be the same.
#[derive(Default)]
pub struct KnownLines<'a> {
    /// Those that have not been asked for yet, in the order of the file.
    rest: VecDeque<(&'a Identified, &'a str)>,
    unwanted: Vec<String>,
}

/// So many neighbours may leave the file at once without the lines after them being written anew.
const NEIGHBOURS: usize = 64;

impl<'a> KnownLines<'a> {
    /// One line for each of `servers`, in the same order.
    pub fn of(servers: &'a [Identified], lines: impl Iterator<Item = &'a str>) -> Self {
        Self {
            rest: servers.iter().zip(lines).collect(),
            unwanted: Vec::new(),
        }
    }

    /// The line of a server that was there. Servers keep their order from one file to the next: it is one of the next ones,
    /// or counts as new.
    fn take(&mut self, server: &Identified) -> Option<&'a str> {
        // Servers are never changed in place while they are shared, so that the place says which it is.
        let same = |known: &Identified| {
            Arc::ptr_eq(&known.server, &server.server) && known.id == server.id
        };
        let mut next = self.rest.iter().take(NEIGHBOURS);
        let at = next.position(|(known, _)| same(known))?;
        let passed = self.rest.drain(..at);
        let names = passed.map(|(known, _)| known.server.name.clone());
        self.unwanted.extend(names);
        self.rest.pop_front().map(|(_, line)| line)
    }

    /// Names of the servers whose lines nobody wanted.
    pub fn unwanted(self) -> Vec<String> {
        let rest = self.rest.iter();
        let rest = rest.map(|(known, _)| known.server.name.clone());
        self.unwanted.into_iter().chain(rest).collect()
    }
}

/// A template that could not be read or rendered.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("template `{place}`{for_service}: {message}", for_service = ForService(self.service.as_deref()))]
pub struct RenderError {
    /// Which template, and where in it.
    pub place: Place,
    /// The service whose fragment was rendered.
    pub service: Option<String>,
    /// What is wrong, in one line.
    pub message: String,
}

/// A place in a template. Printed as `file:line:column`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    /// Path, or the name of the built-in template.
    pub file: String,
    /// Line and column, both from 1.
    pub at: Option<(usize, usize)>,
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.file)?;
        self.at
            .map_or(Ok(()), |(line, column)| write!(f, ":{line}:{column}"))
    }
}

struct ForService<'a>(Option<&'a str>);

impl fmt::Display for ForService<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0
            .map_or(Ok(()), |service| write!(f, ", service `{service}`"))
    }
}

/// Name of the shared frontend's section.
const SHARED_NAME: &str = "shared-frontend";

/// Renders one configuration. Made anew when the configuration changes.
#[derive(Clone)]
pub struct Renderer {
    tera: Arc<Tera>,
    templates: Arc<Names>,
    frame: Frame,
    /// The frame as it stands in a file, instead.
    kept: Option<Arc<Kept>>,
    stumps: Arc<[Stump]>,
    named: Arc<Named>,
    use_nerve_weights: bool,
    frontends: Frontends,
}

/// Names under which the templates are known to the engine: the path of a replacement, else the built-in name.
struct Names {
    global: String,
    service: String,
    shared_frontend: String,
    whole: Option<String>,
}

#[derive(Serialize)]
struct ServiceView<'a> {
    name: &'a str,
    frontend_name: &'a str,
    backend_name: &'a str,
    bind: Option<String>,
    frontend: Vec<String>,
    backend: Vec<String>,
    servers: Vec<ServerView<'a>>,
}

impl Renderer {
    /// Reads the templates.
    ///
    /// # Errors
    /// The first template that does not parse, with the place. Names of filters, functions and includes are checked here
    /// as well; names of variables by [`Renderer::check_variables`].
    pub fn new(config: &Config) -> Result<Self, RenderError> {
        Self::fitting(config, None)
    }

    /// The same, and what is rendered fits this version of haproxy; `None` = any that has everything.
    ///
    /// # Errors
    /// As [`Self::new`].
    pub fn fitting(config: &Config, version: Option<Version>) -> Result<Self, RenderError> {
        let by_version = version.is_some_and(|version| version.has(&version::SEPARATE_NAMES));
        let frontends = match config.haproxy.separate_names.unwrap_or(by_version) {
            true => Frontends::apart(config),
            false => Frontends::default(),
        };
        let config = &*frontends.applied(config);
        let haproxy = &config.haproxy;
        let mut tera = Tera::new();
        // haproxy.cfg is not HTML, whatever a template is called.
        tera.autoescape_on(Vec::<&'static str>::new());
        for (name, text) in [GLOBAL, SERVICE, SHARED] {
            add(&mut tera, name, text)?;
        }
        let mut replace = |template: &Option<TemplateText>| match template {
            None => Ok(None),
            Some(TemplateText { path, text }) => {
                let name = path.display().to_string();
                add(&mut tera, &name, text).map(|()| Some(name))
            }
        };
        let templates = Names {
            global: replace(&haproxy.templates.global)?.unwrap_or_else(|| GLOBAL.0.to_owned()),
            service: replace(&haproxy.templates.service)?.unwrap_or_else(|| SERVICE.0.to_owned()),
            shared_frontend: replace(&haproxy.templates.shared_frontend)?
                .unwrap_or_else(|| SHARED.0.to_owned()),
            whole: replace(&haproxy.templates.whole)?,
        };
        Ok(Self {
            tera: Arc::new(tera),
            templates: Arc::new(templates),
            frame: Frame::new(config, version),
            kept: None,
            stumps: config.services.iter().filter_map(Stump::of).collect(),
            named: Arc::new(Named::of(config)),
            use_nerve_weights: haproxy.use_nerve_weights,
            frontends,
        })
    }

    /// What users who name frontends have to know where those are not called as their services. One sentence each.
    #[must_use]
    pub fn frontend_remarks(&self, config: &Config) -> Vec<String> {
        self.frontends.remarks(config)
    }

    /// Whether one template makes the whole file: then [`Renderer::render_whole`] is the only fragment.
    #[must_use]
    pub fn is_whole(&self) -> bool {
        self.templates.whole.is_some()
    }

    /// Whether servers get the registry's weights.
    #[must_use]
    pub fn gives_weights(&self) -> bool {
        self.use_nerve_weights
    }

    /// Variables that a template uses and nobody sets: they fail when they are printed. One sentence each.
    #[must_use]
    pub fn check_variables(&self) -> Vec<String> {
        // `service` is what `service.cfg.tera` needs when it is included in a loop.
        let whole: Vec<&str> = FRAME_VARIABLES
            .into_iter()
            .chain(["service", "services", "shared_frontend"])
            .collect();
        let kinds: [(Option<&String>, &[&str]); 4] = [
            (Some(&self.templates.global), &FRAME_VARIABLES),
            (Some(&self.templates.service), &["service"]),
            (Some(&self.templates.shared_frontend), &["shared_frontend"]),
            (self.templates.whole.as_ref(), &whole),
        ];
        let mut warnings = Vec::new();
        for (name, known) in kinds
            .into_iter()
            .filter_map(|(name, known)| Some((name?, known)))
        {
            let Ok(used) = self.tera.get_template_variables(name) else {
                continue;
            };
            let mut unknown: Vec<&str> = used
                .into_iter()
                .filter(|variable| !known.contains(variable))
                .collect();
            unknown.sort_unstable();
            let known = known.join("`, `");
            warnings.extend(unknown.iter().map(|v| {
                format!("template `{name}` uses `{v}`, which does not exist; there is `{known}`")
            }));
        }
        warnings
    }

    /// Hitless lines that the configuration neither sets nor refuses and that are not added (`hitless_defaults: false`).
    #[must_use]
    pub fn missing_hitless(&self) -> &[&'static str] {
        &self.frame.not_added
    }

    /// The same with the frame of a file that an earlier process wrote; `None` when it cannot be told from the services in
    /// it. `ours` says which frontends and backends are a service's.
    #[must_use]
    pub fn of_file(&self, text: &str, ours: impl Fn(&Section) -> bool) -> Option<Self> {
        if self.is_whole() {
            return None;
        }
        let kept = Kept::of_file(text, self.frame.shared.as_deref(), ours)?;
        Some(Self {
            kept: Some(Arc::new(kept)),
            ..self.clone()
        })
    }

    /// The same frame without a part of it.
    #[must_use]
    pub fn without(&self, part: Part) -> Self {
        Self {
            frame: self.frame.without(part),
            ..self.clone()
        }
    }

    /// The same frame with an extra section as `good` has it; `None` when that has none, or it is already so.
    #[must_use]
    pub fn with_section_of(&self, part: Part, good: &Self) -> Option<Self> {
        let Part::Section(index) = part else {
            return None;
        };
        let (keyword, name) = self.frame.configured_section(index)?;
        let sections = |renderer: &Self| {
            let text = renderer.render_frame("").ok()?;
            let model = Model::parse(&text, Ours::Names(&BTreeMap::new()));
            let mut sections = model.sections.into_iter();
            sections.find(|s| s.keyword == keyword && s.name == name)
        };
        let (now, former) = (sections(self)?, sections(good)?);
        let lines = former.lines.iter().map(|line| line.text.clone()).collect();
        (now != former).then(|| Self {
            frame: self.frame.with_section(index, lines),
            ..self.clone()
        })
    }

    /// Whether this frame leaves out the line that `part` of another one is.
    #[must_use]
    pub fn leaves_out(&self, other: &Self, part: Part) -> bool {
        self.frame.leaves_out(&other.frame, part)
    }

    /// The parts that can be left out: none of a frame that comes from a file.
    #[must_use]
    pub fn parts(&self) -> Vec<Part> {
        match self.kept {
            Some(_) => Vec::new(),
            None => self.frame.parts(),
        }
    }

    /// The part that a section of the rendered file, or a line of it, comes from.
    #[must_use]
    pub fn part_at(&self, section: &Section, line: Option<&str>) -> Option<Part> {
        match self.kept {
            Some(_) => None,
            None => self.frame.part_at(section, line),
        }
    }

    /// What the user calls a part, with its place in the configuration.
    #[must_use]
    pub fn words(&self, part: Part) -> String {
        self.frame.words(part)
    }

    /// `global`, `defaults` and the extra sections. `generation` becomes the last line of `global`; `""` = no such line.
    /// Ends with a newline.
    ///
    /// # Errors
    /// When the template fails.
    pub fn render_frame(&self, generation: &str) -> Result<String, RenderError> {
        if let Some(kept) = &self.kept {
            return Ok(kept.text(generation));
        }
        self.render(
            &self.templates.global,
            &self.frame_context(generation),
            None,
        )
    }

    /// The fragment of a service: frontend and backend. Ends with a newline; empty for a service that is not rendered.
    /// `servers` comes in the order of the lines.
    ///
    /// # Errors
    /// When the template fails for this service; it says nothing about the others.
    pub fn render_service(
        &self,
        service: &Service,
        servers: &[Identified],
    ) -> Result<String, RenderError> {
        let Some(haproxy) = &service.haproxy else {
            return Ok(String::new());
        };
        let mut context = Context::new();
        context.insert("service", &self.view(service, haproxy, servers));
        self.render(&self.templates.service, &context, Some(&service.name))
    }

    /// The lines of these servers as the built-in template writes them, below what it makes of the service without any
    /// ([`Renderer::render_service`] with no servers): one server more costs no template. `known` are lines that this
    /// renderer has written for this service. `None` with a template of the user's, and when a line needs haproxy's
    /// quoting rules to be read.
    #[must_use]
    pub fn server_lines<'a>(
        &self,
        service: &Service,
        servers: &[Identified],
        known: &mut KnownLines<'a>,
    ) -> Option<Vec<Cow<'a, str>>> {
        let haproxy = service.haproxy.as_ref()?;
        let built_in = self.templates.whole.is_none() && self.templates.service == SERVICE.0;
        let line = |server: &Identified| {
            if let Some(line) = known.take(server) {
                return Some(Cow::Borrowed(line));
            }
            let line = ServerView::new(server, haproxy, self.use_nerve_weights).line();
            is_plain(&line).then_some(Cow::Owned(line))
        };
        servers
            .iter()
            .map(line)
            .collect::<Option<_>>()
            .filter(|_| built_in)
    }

    /// The shared frontend. Ends with a newline; empty when there is none. `services` are those that are rendered.
    ///
    /// # Errors
    /// When the template fails.
    pub fn render_shared<'a>(
        &self,
        services: impl IntoIterator<Item = &'a Service>,
    ) -> Result<String, RenderError> {
        let Some(lines) = self.shared_lines(services) else {
            return Ok(String::new());
        };
        let mut context = Context::new();
        context.insert("shared_frontend", &lines);
        self.render(&self.templates.shared_frontend, &context, None)
    }

    /// What the lines of the configuration name.
    #[must_use]
    pub fn named(&self) -> &Named {
        &self.named
    }

    /// Empty backends for services that are not in the file although something in it names theirs: haproxy would refuse
    /// all of it for that. `present` are the sections of the file, `options` what each backend's servers are given.
    #[must_use]
    pub fn render_stumps(&self, present: &[&Section], options: &[(&str, &str)]) -> String {
        stumps::render(&self.stumps, present, options)
    }

    /// The whole file by the whole-file template, or `None` without one. Ends with a newline.
    ///
    /// # Errors
    /// When the template fails.
    pub fn render_whole(
        &self,
        generation: &str,
        services: &[(&Service, &[Identified])],
    ) -> Option<Result<String, RenderError>> {
        let template = self.templates.whole.as_ref()?;
        let mut context = self.frame_context(generation);
        let views: Vec<ServiceView<'_>> = services
            .iter()
            .filter_map(|(service, servers)| {
                Some(self.view(service, service.haproxy.as_ref()?, servers))
            })
            .collect();
        context.insert("services", &views);
        context.insert(
            "shared_frontend",
            &self.shared_lines(services.iter().map(|(service, _)| *service)),
        );
        Some(self.render(template, &context, None))
    }

    fn frame_context(&self, generation: &str) -> Context {
        let mark = (!generation.is_empty()).then(|| format!("synapse={generation}"));
        let words: Vec<&str> = self
            .frame
            .description
            .as_deref()
            .into_iter()
            .chain(mark.as_deref())
            .collect();
        let Frame {
            global,
            defaults,
            extra_sections,
            missing,
            stats_socket,
            standby,
            ..
        } = &self.frame;
        let mut context = Context::new();
        context.insert("global", global);
        context.insert("defaults", defaults);
        context.insert("extra_sections", extra_sections);
        context.insert("missing", missing);
        context.insert("stats_socket", stats_socket);
        context.insert("standby", standby);
        context.insert("generation", generation);
        context.insert("description", &(!words.is_empty()).then(|| words.join(" ")));
        context
    }

    fn view<'a>(
        &'a self,
        service: &'a Service,
        haproxy: &'a ServiceHaproxy,
        servers: &'a [Identified],
    ) -> ServiceView<'a> {
        ServiceView {
            name: &service.name,
            frontend_name: self.frontends.name(&service.name),
            backend_name: &haproxy.backend_name,
            bind: haproxy.port.map(|port| bind(haproxy, port)),
            frontend: self.frontends.lines(&haproxy.frontend),
            backend: self.frontends.lines(&haproxy.backend),
            servers: servers
                .iter()
                .map(|server| ServerView::new(server, haproxy, self.use_nerve_weights))
                .collect(),
        }
    }

    fn shared_lines<'a>(
        &self,
        services: impl IntoIterator<Item = &'a Service>,
    ) -> Option<Vec<String>> {
        let own = services
            .into_iter()
            .filter_map(|service| service.haproxy.as_ref())
            .flat_map(|h| self.frontends.lines(&h.shared_frontend));
        let top = match &self.kept {
            Some(kept) => kept.shared.as_ref(),
            None => self.frame.shared.as_ref(),
        };
        top.map(|top| top.iter().cloned().chain(own).collect())
    }

    fn render(
        &self,
        template: &str,
        context: &Context,
        service: Option<&str>,
    ) -> Result<String, RenderError> {
        let mut text = self
            .tera
            .render(template, context)
            .map_err(|error| failure(template, service, &error))?;
        if !text.ends_with('\n') {
            text.push('\n');
        }
        Ok(text)
    }
}

fn add(tera: &mut Tera, name: &str, text: &str) -> Result<(), RenderError> {
    tera.add_raw_template(name, text)
        .map_err(|error| failure(name, None, &error))
}

fn failure(template: &str, service: Option<&str>, error: &tera::Error) -> RenderError {
    let (file, at, message) = match error.kind() {
        ErrorKind::SyntaxError(report) | ErrorKind::RenderingError(report) => {
            let file = if report.filename().is_empty() {
                template
            } else {
                report.filename()
            };
            (
                file,
                Some((report.span().start_line, report.span().start_col + 1)),
                report.message().to_owned(),
            )
        }
        other => (template, None, other.to_string()),
    };
    let message = message.lines().map(str::trim).collect::<Vec<_>>().join(" ");
    RenderError {
        place: Place {
            file: file.to_owned(),
            at,
        },
        service: service.map(str::to_owned),
        message,
    }
}

fn bind(haproxy: &ServiceHaproxy, port: FrontendPort) -> String {
    let mut text = match port {
        FrontendPort::AddressOnly => haproxy.bind_address.clone(),
        FrontendPort::Port(port) => {
            let each = haproxy.bind_address.split(',');
            let each: Vec<String> = each.map(|address| format!("{address}:{port}")).collect();
            each.join(",")
        }
    };
    if let Some(options) = haproxy
        .bind_options
        .as_deref()
        .map(str::trim)
        .filter(|options| !options.is_empty())
    {
        text.push(' ');
        text.push_str(options);
    }
    text
}
