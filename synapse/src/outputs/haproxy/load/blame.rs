//! Finds the fragments that haproxy refuses, with few checks, so that one bad service costs only itself.
//!
//! Pure: a search that is fed verdicts. It starts after a check with every changed fragment in its new form has failed.
//! A fragment is either in its new form or in its last good one (or left out, when it has none); haproxy's words decide
//! first, halving otherwise. Cost: about log n checks for each bad fragment that the words do not name.

use std::collections::{BTreeMap, BTreeSet};

/// Fragments (by their index) that a check has to take in their new form; all others in their last good form.
pub type Selection = BTreeSet<usize>;

/// A check that failed.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Refused {
    /// Fragments that the complaints point at, with the words.
    pub blamed: BTreeMap<usize, String>,
    /// All words, for a fragment that no complaint points at.
    pub words: String,
}

/// What to do next.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step {
    /// Check this combination, then [`Search::feed`] the verdict.
    Try(Selection),
    /// Found.
    Done(Outcome),
}

/// The result.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// The largest combination found; it was checked, or is the last good file itself when empty.
    Accepted {
        /// To be used in their new form.
        new: Selection,
        /// Refused, with haproxy's words.
        bad: BTreeMap<usize, String>,
    },
    /// Not even the frame alone is accepted, and there is no last good one.
    Nothing {
        /// haproxy's words.
        words: String,
    },
}

/// How the frame (global, defaults, extra sections) takes part.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Frame {
    /// Unchanged, or not among the fragments.
    Fixed,
    /// Changed, with a last good form: this index.
    Changed(usize),
    /// There is no last good frame, so the new one is always used.
    Only,
}

/// The search.
#[derive(Debug, Clone)]
pub struct Search {
    frame: Frame,
    /// Accepted together in the last check that passed.
    good: Selection,
    /// Refused, with the words.
    bad: BTreeMap<usize, String>,
    /// Not decided, in groups to be tried with `good`, the next one last.
    open: Vec<Vec<usize>>,
    /// The group being tried.
    trial: Option<Vec<usize>>,
    /// Whether the frame has been told from the services.
    frame_known: bool,
    /// Whether `good` as it stands has passed a check (the last good file has).
    proven: bool,
    nothing: Option<String>,
}

impl Search {
    /// After `refused` was said of all `changed` fragments together.
    #[must_use]
    pub fn new(changed: impl IntoIterator<Item = usize>, frame: Frame, refused: Refused) -> Self {
        let changed: Vec<usize> = changed.into_iter().collect();
        let mut search = Self {
            frame,
            good: Selection::new(),
            bad: BTreeMap::new(),
            open: Vec::new(),
            trial: Some(changed),
            frame_known: !matches!(frame, Frame::Changed(_)),
            proven: frame != Frame::Only,
            nothing: None,
        };
        search.feed(Err(refused));
        search
    }

    /// The next check, or the result. Calling it again without feeding a verdict gives the same.
    pub fn step(&mut self) -> Step {
        if let Some(words) = &self.nothing {
            return Step::Done(Outcome::Nothing {
                words: words.clone(),
            });
        }
        if self.trial.is_none() {
            self.trial = self.open.pop();
        }
        match &self.trial {
            Some(group) => Step::Try(self.good.iter().chain(group).copied().collect()),
            // Every fragment is bad and the frame has not been checked alone.
            None if !self.proven => {
                self.trial = Some(Vec::new());
                Step::Try(self.good.clone())
            }
            None => Step::Done(Outcome::Accepted {
                new: self.good.clone(),
                bad: self.bad.clone(),
            }),
        }
    }

    /// The verdict on the last [`Step::Try`]. A verdict that nobody asked for is ignored.
    pub fn feed(&mut self, verdict: Result<(), Refused>) {
        let Some(group) = self.trial.take() else {
            return;
        };
        let Err(refused) = verdict else {
            self.frame_known |=
                matches!(self.frame, Frame::Changed(frame) if group.contains(&frame));
            self.good.extend(group);
            self.proven = true;
            return;
        };
        if group.is_empty() {
            self.nothing = Some(refused.words);
            return;
        }
        if let [single] = group[..] {
            let words = refused
                .blamed
                .get(&single)
                .cloned()
                .unwrap_or(refused.words);
            self.bad.insert(single, words);
            self.frame_known |= self.frame == Frame::Changed(single);
            return;
        }
        // A frame may make every service look bad: it is tried alone, before complaints about services are believed.
        if let Frame::Changed(frame) = self.frame
            && !self.frame_known
            && group.contains(&frame)
            && !refused.blamed.contains_key(&frame)
        {
            self.open
                .push(group.into_iter().filter(|i| *i != frame).collect());
            self.open.push(vec![frame]);
            return;
        }
        let (blamed, rest): (Vec<usize>, Vec<usize>) = group
            .into_iter()
            .partition(|i| refused.blamed.contains_key(i));
        if blamed.is_empty() {
            let (first, second) = rest.split_at(rest.len() / 2);
            self.open.extend([second.to_vec(), first.to_vec()]);
            return;
        }
        if let Frame::Changed(frame) = self.frame
            && blamed.contains(&frame)
        {
            // The other complaints may come from it.
            self.frame_known = true;
            self.bad.insert(frame, refused.blamed[&frame].clone());
            self.push(
                blamed
                    .into_iter()
                    .filter(|i| *i != frame)
                    .chain(rest)
                    .collect(),
            );
            return;
        }
        self.bad
            .extend(blamed.iter().map(|i| (*i, refused.blamed[i].clone())));
        self.push(rest);
    }

    fn push(&mut self, group: Vec<usize>) {
        if !group.is_empty() {
            self.open.push(group);
        }
    }
}

#[cfg(test)]
mod tests;
