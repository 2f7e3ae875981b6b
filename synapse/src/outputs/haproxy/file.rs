//! A haproxy.cfg put together: the frame, one piece per service in the form chosen for it, the shared frontend.
//!
//! Pure. Pieces are rendered and parsed on their own and kept by their inputs, so one change costs one service; the file
//! is their concatenation. Which form a service gets (as configured, as last accepted, none) is decided elsewhere; this
//! module only says what the file, its generation and the wanted state are for a given choice.

pub mod good;

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::config::{Admit, Service};
use crate::model::server::Identified;
use crate::outputs::haproxy::cfg::effective::{Backend, Changes, Options, Scope};
use crate::outputs::haproxy::cfg::generation::Generation;
use crate::outputs::haproxy::cfg::{FragmentMap, Model, Ours, Section, read_server};
use crate::outputs::haproxy::plan::Desired;
use crate::outputs::haproxy::render::{KnownLines, RenderError, Renderer};

/// A text and what it says.
#[derive(Debug, Clone)]
pub struct Fragment {
    /// Ends in a newline.
    pub text: Arc<str>,
    /// Its model, our servers told from structure.
    pub model: Arc<Model>,
}

impl Fragment {
    /// Parses; `names` are our servers by backend.
    #[must_use]
    pub fn new(text: String, names: &BTreeMap<String, BTreeSet<String>>) -> Self {
        let model = Arc::new(Model::parse(&text, Ours::Names(names)));
        Self {
            text: text.into(),
            model,
        }
    }
}

/// Another number for another piece or file of this process.
fn next_number() -> u64 {
    static LAST: AtomicU64 = AtomicU64::new(0);
    LAST.fetch_add(1, Ordering::Relaxed)
}

/// One service as it stands in the file.
#[derive(Debug, Clone)]
pub struct Piece {
    /// The service; its shared frontend lines are rendered with the shared frontend.
    pub service: Arc<Service>,
    /// Its servers, in the order of their lines.
    pub servers: Arc<[Identified]>,
    /// Frontend and backend; empty when a template makes the whole file.
    pub fragment: Fragment,
    /// What the configuration gives every server: part of the generation.
    pub configured: Arc<Options>,
    /// The same without servers, where one more is only a line more.
    head: Option<Arc<Fragment>>,
    /// Which piece this is, and how it came from another one.
    number: u64,
    since: Option<Since>,
}

/// How a piece came from another one of the same structure.
#[derive(Debug, Clone)]
struct Since {
    /// That one's number.
    former: u64,
    changes: Arc<Changes>,
}

impl Piece {
    /// Renders a service with these servers.
    ///
    /// # Errors
    /// When the template refuses this service.
    pub fn render(
        renderer: &Renderer,
        service: &Arc<Service>,
        servers: &[Identified],
    ) -> Result<Self, RenderError> {
        let text = if renderer.is_whole() {
            String::new()
        } else {
            renderer.render_service(service, servers)?
        };
        let names = servers.iter().map(|s| s.server.name.clone()).collect();
        Ok(Self {
            servers: servers.into(),
            ..Self::of_text(service, text, names)
        })
    }

    /// This piece with other servers. `renderer` is the one that has made it: where it is the built-in template only the
    /// lines are written anew.
    ///
    /// # Errors
    /// As [`Piece::render`].
    pub fn with_servers(
        &self,
        renderer: &Renderer,
        servers: &[Identified],
    ) -> Result<Self, RenderError> {
        let mut known = self.lines();
        let Some(lines) = renderer.server_lines(&self.service, servers, &mut known) else {
            return Self::render(renderer, &self.service, servers);
        };
        let head = match &self.head {
            Some(head) => Arc::clone(head),
            None => {
                let text = renderer.render_service(&self.service, &[])?;
                Arc::new(Fragment::new(text, &BTreeMap::new()))
            }
        };
        let after = head.model.lines + 1;
        let new = lines.iter().filter_map(|line| match line {
            Cow::Borrowed(_) => None,
            Cow::Owned(line) => Some(read_server(after, line)),
        });
        let Some(new) = new.collect::<Option<Vec<_>>>() else {
            return Self::render(renderer, &self.service, servers);
        };
        let since = self.head.is_some().then(|| Since {
            former: self.number,
            changes: Arc::new(Changes {
                gone: known.unwanted(),
                new,
            }),
        });
        let length = head.text.len() + lines.iter().map(|line| line.len() + 2).sum::<usize>();
        let mut text = String::with_capacity(length);
        text.push_str(&head.text);
        for line in &lines {
            text.push('\t');
            text.push_str(line);
            text.push('\n');
        }
        let (text, end) = (text.into(), head.text.len());
        let model = head
            .model
            .with_servers(self.backend(), &text, end, lines.len());
        let Some(model) = model.map(Arc::new) else {
            return Self::render(renderer, &self.service, servers);
        };
        Ok(Self {
            service: Arc::clone(&self.service),
            servers: servers.into(),
            fragment: Fragment { text, model },
            configured: Arc::clone(&self.configured),
            head: Some(head),
            number: next_number(),
            since,
        })
    }

    /// What is different in this one when it came from `former`; `None` = it came from another one, or they have little in
    /// common.
    pub(crate) fn changes_since(&self, former: &Self) -> Option<&Changes> {
        let since = self.since.as_ref()?;
        (since.former == former.number).then_some(&*since.changes)
    }

    /// The lines that [`Piece::with_servers`] has written.
    fn lines(&self) -> KnownLines<'_> {
        let lines = self.head.as_ref().and_then(|head| {
            let lines = self.fragment.text.strip_prefix(&*head.text)?;
            Some(lines.lines().map(str::trim_ascii_start))
        });
        lines.map_or_else(KnownLines::default, |lines| {
            KnownLines::of(&self.servers, lines)
        })
    }

    /// A piece whose text is known, with the names of our servers in it.
    #[must_use]
    pub fn of_text(service: &Arc<Service>, text: String, names: BTreeSet<String>) -> Self {
        let backend = service
            .haproxy
            .as_ref()
            .map_or(&service.name, |h| &h.backend_name)
            .clone();
        let options = service.haproxy.as_ref().map_or("", |h| &h.server_options);
        let fragment = Fragment::new(text, &BTreeMap::from([(backend, names)]));
        Self {
            service: Arc::clone(service),
            servers: Arc::default(),
            fragment,
            configured: Arc::new(Options::of(options)),
            head: None,
            number: next_number(),
            since: None,
        }
    }

    /// What tells this piece's structure from another's: a quarantine is lifted when it changes.
    #[must_use]
    pub fn structure(&self) -> Vec<u8> {
        let sections = self.fragment.model.sections.iter().flat_map(|s| s.digest);
        sections
            .chain(self.configured.to_string().into_bytes())
            .collect()
    }

    /// Whether checked servers that are added wait for their first passed check.
    #[must_use]
    pub fn admits_checked(&self) -> bool {
        let haproxy = self.service.haproxy.as_ref();
        haproxy.is_some_and(|h| h.admit == Admit::Checked)
    }

    /// Whether both are the same but for their servers, also in the shared frontend.
    #[must_use]
    pub fn same_structure(&self, other: &Self) -> bool {
        let shared = |piece: &Self| {
            let haproxy = piece.service.haproxy.as_ref();
            haproxy.map(|h| h.shared_frontend.clone())
        };
        self.fragment.model.same_structure(&other.fragment.model)
            && self.configured == other.configured
            && (Arc::ptr_eq(&self.service, &other.service) || shared(self) == shared(other))
    }

    /// The same text without the lines of the servers that `keep` does not name.
    #[must_use]
    pub fn keeping(&self, keep: impl Fn(&str) -> bool) -> Self {
        let found = self.fragment.model.servers.values().flatten();
        let (kept, gone): (Vec<_>, Vec<_>) = found.partition(|(name, _)| keep(name));
        let gone: BTreeSet<usize> = gone.into_iter().map(|(_, line)| line.number).collect();
        let lines = self.fragment.text.lines().enumerate();
        let text = lines
            .filter(|(index, _)| !gone.contains(&(index + 1)))
            .fold(String::new(), |text, (_, line)| text + line + "\n");
        let servers = self.servers.iter().filter(|s| keep(&s.server.name));
        Self {
            servers: servers.cloned().collect(),
            configured: Arc::clone(&self.configured),
            ..Self::of_text(
                &self.service,
                text,
                kept.into_iter().map(|(name, _)| name.clone()).collect(),
            )
        }
    }

    /// Names of our servers in it.
    #[must_use]
    pub fn names(&self) -> BTreeSet<&str> {
        let written = self
            .fragment
            .model
            .servers
            .values()
            .flat_map(BTreeMap::keys);
        let given = self.servers.iter().map(|s| &s.server.name);
        written.chain(given).map(String::as_str).collect()
    }

    /// Name of its backend section.
    #[must_use]
    pub fn backend(&self) -> &str {
        self.service
            .haproxy
            .as_ref()
            .map_or(&self.service.name, |h| &h.backend_name)
    }
}

/// A whole file.
#[derive(Debug, Clone)]
pub struct Assembly {
    /// Its text.
    pub text: Arc<str>,
    /// What haproxy should run once it has loaded it.
    pub desired: Desired,
    /// Lines of the file by fragment: 0 is the frame, then the services in order, then the shared frontend, then what
    /// stands in for services that are left out.
    pub map: FragmentMap,
    /// The fragments' models, in the same order.
    pub models: Vec<Arc<Model>>,
}

impl Assembly {
    /// The same file with blank lines in place of some fragments: to look at the rest alone.
    #[must_use]
    pub fn without(&self, fragments: impl IntoIterator<Item = usize>) -> Self {
        let ranges = fragments.into_iter().filter_map(|f| self.map.range(f));
        let gone: BTreeSet<usize> = ranges.flatten().collect();
        let lines = self.text.lines().enumerate();
        let text = lines.fold(String::new(), |text, (index, line)| {
            let stays = !gone.contains(&(index + 1));
            text + if stays { line } else { "" } + "\n"
        });
        Self {
            text: text.into(),
            ..self.clone()
        }
    }

    /// The section that a line of the file is in, with the line's text; `None` for a server of ours.
    #[must_use]
    pub fn section_at(&self, line: usize) -> Option<(&Section, Option<&str>)> {
        let (fragment, number) = self.map.locate(line)?;
        let sections = &self.models.get(fragment)?.sections;
        let section = sections.iter().rfind(|section| section.number <= number)?;
        if section.number == number {
            return Some((section, None));
        }
        let line = section.lines.iter().find(|line| line.number == number)?;
        Some((section, Some(&line.text)))
    }

    /// The model of the whole file.
    #[must_use]
    pub fn model(&self) -> Model {
        self.models.iter().fold(Model::default(), |mut all, model| {
            all.merge(model);
            all
        })
    }
}

/// Puts a file together from `frame`'s global parts and the pieces, in order. `cache` keeps what is derived from pieces
/// whose text and frame have not changed.
///
/// # Errors
/// When a template of the frame or of the shared frontend is refused.
pub fn assemble(
    frame: &Renderer,
    pieces: &[&Piece],
    cache: &mut EffectiveCache,
) -> Result<Assembly, RenderError> {
    let configured = pieces
        .iter()
        .map(|p| (p.backend().to_owned(), Arc::clone(&p.configured)))
        .collect();
    if let Some(whole) = assemble_whole(frame, pieces, &configured) {
        return whole;
    }
    let shared = frame.render_shared(pieces.iter().map(|p| p.service.as_ref()))?;
    let shared = Fragment::new(shared, &BTreeMap::new());
    let unmarked = Model::parse(&frame.render_frame("")?, Ours::Names(&BTreeMap::new()));
    let rest = [&unmarked, &*shared.model];
    let stumps = stumps(frame, pieces.iter().copied(), rest);
    let parsed = pieces
        .iter()
        .map(|p| &p.fragment.model)
        .chain([&shared.model, &stumps.model]);
    let sections = unmarked
        .sections
        .iter()
        .chain(parsed.flat_map(|m| &m.sections));
    let generation = Generation::of(sections.map(AsRef::as_ref), &configured);

    let frame_text = frame.render_frame(generation.as_str())?;
    let texts: Vec<&str> = std::iter::once(frame_text.as_str())
        .chain(pieces.iter().map(|p| p.fragment.text.as_ref()))
        .chain([shared.text.as_ref(), stumps.text.as_ref()])
        .collect();
    let map = FragmentMap::new(texts.iter().map(|t| t.lines().count()));
    let backends = cache.backends(&unmarked, &frame_text, pieces);
    let text = texts.concat().into();
    let marked = Arc::new(Model::parse(&frame_text, Ours::Names(&BTreeMap::new())));
    let services = pieces.iter().map(|p| Arc::clone(&p.fragment.model));
    let models = std::iter::once(marked)
        .chain(services)
        .chain([shared.model, stumps.model])
        .collect();
    Ok(Assembly {
        text,
        desired: Desired {
            generation,
            backends,
            admits_checked: admits_checked(pieces.iter().copied()),
            weights: frame.gives_weights(),
        },
        map,
        models,
    })
}

/// Empty backends for services that are left out although something names them; `rest` is what belongs to no service.
fn stumps<'a>(
    frame: &Renderer,
    pieces: impl Iterator<Item = &'a Piece>,
    rest: [&Model; 2],
) -> Fragment {
    let pieces: Vec<&Piece> = pieces.collect();
    let models = pieces.iter().map(|piece| &*piece.fragment.model);
    let sections = models.chain(rest).flat_map(|model| &model.sections);
    let sections: Vec<&Section> = sections.map(AsRef::as_ref).collect();
    let options: Vec<(&str, &str)> = pieces
        .iter()
        .filter_map(|p| {
            Some((
                p.backend(),
                p.service.haproxy.as_ref()?.server_options.as_str(),
            ))
        })
        .collect();
    Fragment::new(frame.render_stumps(&sections, &options), &BTreeMap::new())
}

fn admits_checked<'a>(pieces: impl Iterator<Item = &'a Piece>) -> BTreeSet<String> {
    pieces
        .filter(|piece| piece.admits_checked())
        .map(|piece| piece.backend().to_owned())
        .collect()
}

/// One template makes the whole file: one fragment, nothing kept between renderings. `None` = there is none.
fn assemble_whole(
    frame: &Renderer,
    pieces: &[&Piece],
    configured: &BTreeMap<String, Arc<Options>>,
) -> Option<Result<Assembly, RenderError>> {
    let services: Vec<(&Service, &[Identified])> = pieces
        .iter()
        .map(|p| (p.service.as_ref(), p.servers.as_ref()))
        .collect();
    let names: BTreeMap<String, BTreeSet<String>> = pieces
        .iter()
        .map(|p| {
            (
                p.backend().to_owned(),
                p.servers.iter().map(|s| s.server.name.clone()).collect(),
            )
        })
        .collect();
    let finish = |unmarked: String| {
        let model = Model::parse(&unmarked, Ours::Names(&names));
        let generation = Generation::of(model.sections.iter().map(AsRef::as_ref), configured);
        let text = frame
            .render_whole(generation.as_str(), &services)
            .unwrap_or(Ok(unmarked))?;
        let map = FragmentMap::new([text.lines().count()]);
        let backends = Scope::default().read(&model);
        let models = vec![Arc::new(model)];
        Ok(Assembly {
            text: text.into(),
            desired: Desired {
                generation,
                backends,
                admits_checked: admits_checked(pieces.iter().copied()),
                weights: frame.gives_weights(),
            },
            map,
            models,
        })
    };
    frame
        .render_whole("", &services)
        .map(|unmarked| unmarked.and_then(finish))
}

/// Effective servers by backend.
pub(crate) type Backends = BTreeMap<String, Arc<Backend>>;

/// The effective servers of fragments already read under the same frame, by service.
#[derive(Debug, Default)]
pub struct EffectiveCache {
    frame: String,
    known: BTreeMap<String, (Arc<Model>, Backends)>,
}

impl EffectiveCache {
    fn backends(&mut self, frame: &Model, frame_text: &str, pieces: &[&Piece]) -> Backends {
        if self.frame != frame_text {
            frame_text.clone_into(&mut self.frame);
            self.known.clear();
        }
        let mut scope = Scope::default();
        let mut all = scope.read(frame);
        // A template may hold a defaults section of its own, which hands down to all that follows.
        let hands_down = |p: &&Piece| {
            p.fragment
                .model
                .sections
                .iter()
                .any(|s| s.keyword == "defaults")
        };
        if pieces.iter().any(hands_down) {
            self.known.clear();
            pieces
                .iter()
                .for_each(|piece| all.extend(scope.read(&piece.fragment.model)));
            return all;
        }
        let mut known = BTreeMap::new();
        for piece in pieces {
            let name = &piece.service.name;
            let entry = match self.known.remove(name) {
                Some((model, backends)) if Arc::ptr_eq(&model, &piece.fragment.model) => {
                    (model, backends)
                }
                _ => (
                    Arc::clone(&piece.fragment.model),
                    scope.read(&piece.fragment.model),
                ),
            };
            all.extend(
                entry
                    .1
                    .iter()
                    .map(|(name, backend)| (name.clone(), Arc::clone(backend))),
            );
            known.insert(name.clone(), entry);
        }
        self.known = known;
        all
    }
}

mod whole;

pub use whole::Whole;

#[cfg(test)]
mod tests;
