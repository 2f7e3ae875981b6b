//! The whole file, kept piece by piece: the reconciler's. Another set of servers in one service costs that service; what
//! holds for all (the generation, the frame, the shared frontend) is made anew only when a structure changes.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use super::{
    Assembly, Backends, EffectiveCache, Fragment, Piece, admits_checked, assemble, next_number,
    stumps,
};
use crate::outputs::haproxy::cfg::effective::Scope;
use crate::outputs::haproxy::cfg::generation::Generation;
use crate::outputs::haproxy::cfg::{Model, Ours};
use crate::outputs::haproxy::plan::{Desired, Reach};
use crate::outputs::haproxy::render::{RenderError, Renderer};

/// A whole file. Equal inputs give the same text as [`assemble`].
pub struct Whole {
    frame: Arc<Renderer>,
    slots: Vec<Slot>,
    form: Form,
    desired: Desired,
    revision: u64,
    /// The text: the frame, the services in order (nothing for an absent one), the shared frontend, what stands in for
    /// absent ones that are named; or all in one.
    parts: Arc<Vec<Arc<str>>>,
}

/// A service, or its absence.
#[derive(Default)]
struct Slot {
    piece: Option<Piece>,
    backends: Backends,
}

/// How the text is kept.
enum Form {
    /// The frame with its generation, the pieces, the shared frontend.
    Pieces(Box<Pieces>),
    /// One text: a template makes it, or a piece hands settings down to those after it. Every change makes it anew.
    One(Arc<str>),
}

struct Pieces {
    /// After the frame.
    scope: Scope,
    unmarked: Model,
    marked: Arc<str>,
    shared: Fragment,
    stumps: Fragment,
}

impl Whole {
    /// Puts a file together; `pieces` in the order of the services, `None` for one that has none.
    ///
    /// # Errors
    /// When a template of the frame or of the shared frontend is refused.
    pub fn new(frame: &Arc<Renderer>, pieces: Vec<Option<Piece>>) -> Result<Self, RenderError> {
        let slot = |piece| Slot {
            piece,
            backends: Backends::new(),
        };
        let mut whole = Self {
            frame: Arc::clone(frame),
            slots: pieces.into_iter().map(slot).collect(),
            form: Form::One("".into()),
            desired: Desired {
                generation: Generation::of([], &BTreeMap::new()),
                backends: Backends::new(),
                admits_checked: BTreeSet::new(),
                weights: frame.gives_weights(),
            },
            revision: next_number(),
            parts: Arc::default(),
        };
        whole.make(None)?;
        whole.gather();
        Ok(whole)
    }

    /// What renders the frame.
    #[must_use]
    pub fn frame(&self) -> &Arc<Renderer> {
        &self.frame
    }

    /// What haproxy should run once it has loaded the file.
    #[must_use]
    pub fn desired(&self) -> &Desired {
        &self.desired
    }

    /// Another number for another text, also of another file of this process.
    #[must_use]
    pub fn revision(&self) -> u64 {
        self.revision
    }

    /// The text, in pieces.
    #[must_use]
    pub fn parts(&self) -> Arc<Vec<Arc<str>>> {
        Arc::clone(&self.parts)
    }

    fn gather(&mut self) {
        let text = |slot: &Slot| match &slot.piece {
            Some(piece) => Arc::clone(&piece.fragment.text),
            None => Arc::default(),
        };
        let parts = match &self.form {
            Form::One(text) => vec![Arc::clone(text)],
            Form::Pieces(pieces) => std::iter::once(Arc::clone(&pieces.marked))
                .chain(self.slots.iter().map(text))
                .chain([
                    Arc::clone(&pieces.shared.text),
                    Arc::clone(&pieces.stumps.text),
                ])
                .collect(),
        };
        self.parts = Arc::new(parts);
    }

    /// Whether this is the text.
    #[must_use]
    pub fn is(&self, text: &str) -> bool {
        let mut rest = text;
        self.parts.iter().all(|part| {
            let after = rest.strip_prefix(&**part);
            rest = after.unwrap_or_default();
            after.is_some()
        }) && rest.is_empty()
    }

    /// Takes another piece of the service with this index. Returns what may have changed of which backends; after an error
    /// the file is as before.
    ///
    /// # Errors
    /// As [`Whole::new`].
    pub fn set(
        &mut self,
        index: usize,
        piece: Option<Piece>,
    ) -> Result<BTreeMap<String, Reach>, RenderError> {
        let Some(slot) = self.slots.get_mut(index) else {
            return Ok(BTreeMap::new());
        };
        let all = |backends: &Backends| {
            let names = backends.keys();
            names
                .map(|name| (name.clone(), Reach::Backend))
                .collect::<BTreeMap<_, _>>()
        };
        let mut touched = all(&slot.backends);
        let alike = |same: fn(&Piece, &Piece) -> bool| match (&slot.piece, &piece) {
            (Some(before), Some(after)) => same(before, after),
            (before, after) => before.is_none() && after.is_none(),
        };
        let same_structure = alike(Piece::same_structure);
        let same_text = alike(|before, after| {
            before.fragment.text == after.fragment.text
                && before.admits_checked() == after.admits_checked()
        });
        let former = std::mem::replace(&mut slot.piece, piece);
        if same_structure && same_text && !self.frame.is_whole() {
            // Freshness, say, or a weight that is not rendered: nothing of it stands in the file.
            return Ok(touched);
        }
        match &mut self.form {
            Form::Pieces(pieces) if same_structure => {
                let Some(piece) = &slot.piece else {
                    return Ok(touched);
                };
                // Nobody else has them now: what has not changed in them stays where it is.
                let backends = std::mem::take(&mut slot.backends);
                for name in backends.keys() {
                    self.desired.backends.remove(name);
                }
                let model = &piece.fragment.model;
                let changes = former.as_ref().and_then(|f| piece.changes_since(f));
                let backends = match changes {
                    Some(changes) => {
                        touched.insert(piece.backend().to_owned(), Reach::Servers(changes.names()));
                        pieces.scope.read_after(model, backends, changes)
                    }
                    None => pieces.scope.read(model),
                };
                self.desired
                    .backends
                    .extend(backends.iter().map(|(n, b)| (n.clone(), Arc::clone(b))));
                slot.backends = backends;
                let backend = piece.backend();
                if piece.admits_checked() {
                    self.desired.admits_checked.insert(backend.to_owned());
                } else {
                    self.desired.admits_checked.remove(backend);
                }
                if let Some(part) = Arc::make_mut(&mut self.parts).get_mut(index + 1) {
                    *part = Arc::clone(&piece.fragment.text);
                }
            }
            _ => {
                if let Err(error) = self.make(Some(index)) {
                    self.slots[index].piece = former;
                    return Err(error);
                }
                self.gather();
            }
        }
        self.revision = next_number();
        for (name, reach) in all(&self.slots[index].backends) {
            touched.entry(name).or_insert(reach);
        }
        Ok(touched)
    }

    fn pieces(&self) -> impl Iterator<Item = &Piece> {
        self.slots.iter().filter_map(|slot| slot.piece.as_ref())
    }

    /// Makes everything that does not belong to one piece alone; `changed` is the only piece that is not as it was
    /// (`None` = any may be). Nothing has changed after an error.
    fn make(&mut self, changed: Option<usize>) -> Result<(), RenderError> {
        let hands_down = |piece: &Piece| {
            let mut sections = piece.fragment.model.sections.iter();
            sections.any(|section| section.keyword == "defaults")
        };
        if self.frame.is_whole() || self.pieces().any(hands_down) {
            let pieces: Vec<&Piece> = self.pieces().collect();
            let Assembly { text, desired, .. } =
                assemble(&self.frame, &pieces, &mut EffectiveCache::default())?;
            self.desired = desired;
            self.form = Form::One(text);
            return Ok(());
        }
        let frame_model = |generation: &str| {
            let text = self.frame.render_frame(generation)?;
            let model = Model::parse(&text, Ours::Names(&BTreeMap::new()));
            Ok::<_, RenderError>((text, model))
        };
        let (_, unmarked) = frame_model("")?;
        let shared = self
            .frame
            .render_shared(self.pieces().map(|piece| &*piece.service))?;
        let shared = Fragment::new(shared, &BTreeMap::new());
        let stumps = stumps(&self.frame, self.pieces(), [&unmarked, &*shared.model]);
        let models = self.pieces().map(|piece| &*piece.fragment.model);
        let sections = std::iter::once(&unmarked)
            .chain(models)
            .chain([&*shared.model, &*stumps.model])
            .flat_map(|model| &model.sections);
        let configured = self
            .pieces()
            .map(|piece| (piece.backend().to_owned(), Arc::clone(&piece.configured)))
            .collect();
        let generation = Generation::of(sections.map(AsRef::as_ref), &configured);
        let (marked, _) = frame_model(generation.as_str())?;
        // Under the same frame the other pieces mean what they did.
        let same_frame = match &self.form {
            Form::Pieces(former) => former.unmarked.same_structure(&unmarked),
            Form::One(_) => false,
        };
        let mut scope = Scope::default();
        let mut backends = scope.read(&unmarked);
        for (index, slot) in self.slots.iter_mut().enumerate() {
            if !same_frame || changed.is_none_or(|changed| changed == index) {
                let model = slot.piece.as_ref().map(|piece| &piece.fragment.model);
                slot.backends = model.map(|model| scope.read(model)).unwrap_or_default();
            }
            backends.extend(
                slot.backends
                    .iter()
                    .map(|(n, b)| (n.clone(), Arc::clone(b))),
            );
        }
        self.desired = Desired {
            generation,
            backends,
            admits_checked: admits_checked(self.pieces()),
            weights: self.frame.gives_weights(),
        };
        self.form = Form::Pieces(Box::new(Pieces {
            scope,
            unmarked,
            marked: marked.into(),
            shared,
            stumps,
        }));
        Ok(())
    }
}
