//! A job being done: from all new forms to the largest combination that haproxy takes, into the file, into a worker.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::Arc;

use smartstack_common::atomic::{Durability, replace};
use smartstack_common::report::Chain;
use tokio::time::Instant;

use super::{Bad, Candidate, Driver, Job, Kept, Outcome};
use crate::config::Part;
use crate::model::server::Digest;
use crate::outputs::haproxy::cfg::generation::Generation;
use crate::outputs::haproxy::cfg::{Model, Ours};
use crate::outputs::haproxy::disk::{MODE, read_text};
use crate::outputs::haproxy::file::{Assembly, EffectiveCache, Piece};
use crate::outputs::haproxy::load::blame::{
    Frame, Outcome as Found, Refused, Search, Selection, Step,
};
use crate::outputs::haproxy::plan::{Plan, plan};
use crate::outputs::haproxy::process::{Complaints, ReloadOutcome};
use crate::outputs::haproxy::render::Renderer;

/// At most this many reloads in one job: each failed one costs seconds.
const MOST_RELOADS: usize = 6;
/// A job being done.
pub(super) struct Work {
    pub(super) driver: Driver,
    pub(super) job: Job,
    /// The file that was loaded last.
    pub(super) loaded: Model,
    pub(super) cache: EffectiveCache,
    pub(super) proven: Option<(Generation, BTreeSet<Digest>)>,
    pub(super) bad: BTreeMap<String, Bad>,
    /// The frame as configured, without the parts that were left out of it: which, and why.
    pub(super) frame: Arc<Renderer>,
    pub(super) left_out: Parts,
    /// The frame was refused as a whole.
    pub(super) bad_frame: Option<String>,
    /// What a worker failed to start with, though nothing that can be tried beforehand was in the way.
    pub(super) unforeseen: Selection,
    /// Services that cannot be checked, because we may not read what they name.
    pub(super) blind: Selection,
    /// The same in words, and of the frame.
    pub(super) unchecked: Option<String>,
    pub(super) refused_options: BTreeMap<(String, String), String>,
    disk: Disk,
    pub(super) started: Instant,
}

/// haproxy.cfg during a job.
#[derive(Default)]
struct Disk {
    /// As it was.
    former: Option<Arc<str>>,
    /// As this job has written it.
    written: Option<Arc<str>>,
    /// The text that a worker last failed to start with, and whether it said why.
    failed: Option<Arc<str>>,
    said: bool,
    /// Attempts to have it loaded.
    reloads: usize,
}

/// Parts that were complained about, in haproxy's order.
pub(super) type Parts = Vec<(Part, String)>;

/// Why a combination is not the one.
pub(super) enum Setback {
    /// haproxy refuses it, and these parts of the frame.
    Refused(Refused, Parts),
    /// There is no verdict, and there will be none for any other: in words.
    Abort(String),
}

/// Fragment 0 is the frame, `i + 1` the candidate `i`.
pub(super) const FRAME: usize = 0;

impl Work {
    pub(super) fn new(driver: Driver, job: Job) -> Self {
        let former: Option<Arc<str>> = read_text(&driver.file).map(Arc::from);
        Self {
            proven: None,
            bad: BTreeMap::new(),
            frame: Arc::clone(&job.frame),
            left_out: Parts::new(),
            bad_frame: None,
            unforeseen: Selection::new(),
            blind: Selection::new(),
            unchecked: None,
            refused_options: BTreeMap::new(),
            cache: EffectiveCache::default(),
            loaded: former
                .as_deref()
                .map(|text| Model::parse(text, Ours::All))
                .unwrap_or_default(),
            disk: Disk {
                former,
                ..Disk::default()
            },
            driver,
            started: Instant::now(),
            job,
        }
    }

    pub(super) async fn run(&mut self) -> Outcome {
        let everything: Selection = std::iter::once(FRAME)
            .chain(
                self.job
                    .candidates
                    .iter()
                    .enumerate()
                    .filter(|(_, c)| c.new.is_some())
                    .map(|(i, _)| i + 1),
            )
            .collect();
        let mut selection = match self.settle(everything).await {
            Ok(selection) => selection,
            Err(reason) => return self.give_up(reason).await,
        };
        loop {
            let (refused, parts) = match self.put(&selection).await {
                Ok(outcome) => return outcome,
                Err(Setback::Abort(reason)) => return self.give_up(reason).await,
                Err(Setback::Refused(refused, parts)) => (refused, parts),
            };
            let reduced = self.reduce(&refused, &selection);
            let blamed = refused.blamed.iter();
            let mut bad: BTreeMap<usize, String> = blamed
                .filter(|(i, _)| **i != FRAME && selection.contains(i))
                .map(|(i, words)| (*i, words.clone()))
                .collect();
            let parts_gone = self.leave_out(&parts, &selection);
            let is_frame = bad.is_empty() && !reduced && !parts_gone;
            if is_frame && self.disk.said && selection.contains(&FRAME) && self.has_other_frame() {
                bad.insert(FRAME, refused.words.clone());
            }
            // A way of reloading that does not work says nothing about any service.
            let nothing = bad.is_empty() && !reduced && !parts_gone;
            if nothing || self.disk.reloads >= MOST_RELOADS {
                return self.give_up(refused.words).await;
            }
            selection.retain(|index| !bad.contains_key(index));
            self.note_bad(bad);
            if let Err(setback) = self.check(&selection, true).await {
                return self.give_up(setback.words()).await;
            }
        }
    }

    /// The largest selection that passes the check: all of it, or what the search for the bad ones leaves.
    async fn settle(&mut self, everything: Selection) -> Result<Selection, String> {
        if !self.job.check || !self.driver.writes {
            return Ok(everything);
        }
        let mut refused = match self.check(&everything, true).await {
            Ok(()) => return Ok(everything),
            Err(Setback::Abort(reason)) => return Err(reason),
            Err(Setback::Refused(refused, _)) => refused,
        };
        // What is refused without the first ones may be a consequence: their words come first.
        let first = refused.words.clone();
        let named = refused.blamed.keys().any(|index| *index != FRAME);
        if !named && !self.has_other_frame() {
            let found = self.search_frame().await;
            if !found.map_err(Setback::words)? {
                // A line of the frame that it cannot do without.
                if refused.blamed.contains_key(&FRAME) {
                    return Err(refused.words);
                }
            } else {
                refused = match self.check(&everything, true).await {
                    Ok(()) => return Ok(everything),
                    Err(Setback::Abort(reason)) => return Err(reason),
                    Err(Setback::Refused(refused, _)) => refused,
                };
            }
        }
        let with_cause = |words: String| match words.starts_with(&first) {
            true => words,
            false => format!("{first}; and without what that is about: {words}"),
        };
        let (mut search, suspects) = self.search(&everything, refused);
        let sure: Selection = everything.difference(&suspects).copied().collect();
        loop {
            match search.step() {
                Step::Try(next) => {
                    let next = next.union(&sure).copied().collect();
                    match self.check(&next, false).await {
                        Ok(()) => search.feed(Ok(())),
                        Err(Setback::Refused(refused, _)) => search.feed(Err(refused)),
                        Err(Setback::Abort(reason)) => return Err(reason),
                    }
                }
                Step::Done(Found::Nothing { words }) => return Err(with_cause(words)),
                Step::Done(Found::Accepted { new, bad }) => {
                    let selection = new.union(&sure).copied().collect();
                    self.note_bad(bad);
                    // The search has proven the new forms, not the good ones that take the place of the bad.
                    let proven = self.check(&selection, true).await;
                    let words = |setback: Setback| with_cause(setback.words());
                    return proven.map(|()| selection).map_err(words);
                }
            }
        }
    }

    /// The search that begins when all new forms together were refused, and the fragments it is about.
    fn search(&self, everything: &Selection, refused: Refused) -> (Search, Selection) {
        let same_frame = self
            .job
            .good_frame
            .as_ref()
            .map(|good| Arc::ptr_eq(good, &self.job.frame));
        let frame = match same_frame {
            Some(true) => Frame::Fixed,
            Some(false) => Frame::Changed(FRAME),
            None => Frame::Only,
        };
        let changed = |index: &usize| match index
            .checked_sub(1)
            .and_then(|i| self.job.candidates.get(i))
        {
            None => frame == Frame::Changed(FRAME),
            Some(Candidate {
                new: Some(new),
                good: Some(good),
                ..
            }) => new.structure() != good.structure(),
            Some(_) => true,
        };
        let mut suspects: Selection = everything.iter().copied().filter(changed).collect();
        suspects.extend(
            refused
                .blamed
                .keys()
                .filter(|index| everything.contains(index) && **index != FRAME),
        );
        if suspects.is_empty() {
            // Nothing changed and yet it is refused: something outside did. Everything is suspect.
            suspects = everything
                .iter()
                .copied()
                .filter(|index| *index != FRAME)
                .collect();
        }
        (
            Search::new(suspects.iter().copied(), frame, refused),
            suspects,
        )
    }

    fn note_bad(&mut self, bad: BTreeMap<usize, String>) {
        for (index, words) in bad {
            match index
                .checked_sub(1)
                .and_then(|i| self.job.candidates.get(i))
            {
                Some(candidate) => {
                    let unforeseen = self.unforeseen.contains(&index);
                    note(&mut self.bad, candidate, words, None, unforeseen);
                }
                None => self.bad_frame = Some(words),
            }
        }
    }

    /// A good form is good for the servers and the surroundings it was accepted with. One that is refused by now loses
    /// the servers that are not in the file yet; one that is still refused goes. Whether there was any.
    pub(super) fn reduce(&mut self, refused: &Refused, selection: &Selection) -> bool {
        let good_frame = self.job.good_frame.as_ref();
        let new_frame = good_frame.is_some_and(|good| !Arc::ptr_eq(good, &self.job.frame));
        if new_frame && selection.contains(&FRAME) {
            // The complaints may come from the frame.
            return false;
        }
        let mut any = false;
        for (index, words) in &refused.blamed {
            if selection.contains(index) {
                continue;
            }
            let candidate = index.checked_sub(1);
            let Some(candidate) = candidate.and_then(|i| self.job.candidates.get_mut(i)) else {
                continue;
            };
            let Some(good) = candidate.good.take() else {
                continue;
            };
            let written = self.loaded.servers.get(good.backend());
            let fewer = good.keeping(|name| written.is_some_and(|w| w.contains_key(name)));
            let kept = if fewer.names() < good.names() {
                let kept = Kept::Only(fewer.names().into_iter().map(str::to_owned).collect());
                candidate.good = Some(fewer);
                kept
            } else {
                Kept::Nothing
            };
            note(&mut self.bad, candidate, words.clone(), Some(kept), false);
            any = true;
        }
        any
    }

    /// The file goes back to what it was. Where nobody runs it is started: it is what served last.
    async fn give_up(&mut self, reason: String) -> Outcome {
        let Some(former) = self.disk.former.clone() else {
            return Outcome::Failed(reason);
        };
        if self.disk.written.is_some()
            && let Err(problem) = self.write(&former)
        {
            return Outcome::Failed(format!("{reason}; and {problem}"));
        }
        let nobody = self.job.running.is_none() && self.driver.haproxy.api().is_configured();
        if !nobody || self.job.reload.is_none() || self.disk.failed.as_ref() == Some(&former) {
            return Outcome::Failed(reason);
        }
        let generation = self.loaded.generation().and_then(Generation::parse);
        let servers = self.loaded.servers.values().map(BTreeMap::len).sum();
        let started = self.driver.haproxy.start(generation.as_ref(), servers);
        match started.await {
            ReloadOutcome::Failed { reason: why, .. } if why != reason => {
                Outcome::Failed(format!("{reason}; and the file on disk: {why}"))
            }
            ReloadOutcome::Failed { .. } => Outcome::Failed(reason),
            _ => Outcome::Former(reason),
        }
    }

    /// Puts an accepted combination in place, and has it loaded where that is needed.
    async fn put(&mut self, selection: &Selection) -> Result<Outcome, Setback> {
        let (assembly, included) = self.assemble(selection)?;
        if !self.driver.writes {
            return self.reload_only(assembly).await;
        }
        if self.job.check {
            let servers = assembly
                .desired
                .backends
                .values()
                .flat_map(|b| b.servers.values());
            let digests = servers.map(|server| server.digest.clone()).collect();
            self.proven = Some((assembly.desired.generation.clone(), digests));
        }
        if self.job.reload.is_none() || self.serves(&assembly) {
            let same = self.on_disk() == Some(&*assembly.text);
            let written = if same {
                Ok(Outcome::Unneeded)
            } else {
                self.write(&assembly.text).map(|()| Outcome::Written)
            };
            return written.map_err(Setback::Abort);
        }
        self.write(&assembly.text).map_err(Setback::Abort)?;
        self.disk.reloads += 1;
        let expected = Some(&assembly.desired.generation);
        let servers = assembly
            .desired
            .backends
            .values()
            .map(|b| b.servers.len())
            .sum();
        let outcome = match self.job.running {
            None => self.driver.haproxy.start(expected, servers).await,
            Some(_) => self.driver.haproxy.reload(expected, servers).await,
        };
        match outcome {
            ReloadOutcome::Confirmed { pid, .. } => Ok(Outcome::Reloaded {
                pid,
                assembly: Box::new(assembly),
            }),
            ReloadOutcome::Unconfirmed => Ok(Outcome::Unconfirmed {
                assembly: Box::new(assembly),
            }),
            ReloadOutcome::Failed { reason, output } => {
                let complaints = Complaints::parse(&output);
                let frame = Arc::clone(self.frame_of(selection));
                let parts = Self::parts_of(&frame, &complaints, &assembly);
                let refused = self.refused(&complaints, &assembly, &included);
                self.disk.said = !complaints.alerts.is_empty();
                if self.disk.said && self.obstacles(&assembly, &included, &frame).is_none() {
                    self.unforeseen.extend(refused.blamed.keys().copied());
                    if refused.blamed.is_empty() {
                        self.unforeseen.insert(FRAME);
                    }
                }
                self.disk.failed = Some(Arc::clone(&assembly.text));
                let refused = Refused {
                    words: reason,
                    ..refused
                };
                Err(Setback::Refused(refused, parts))
            }
        }
    }

    /// The worker has loaded this structure, and nothing in its servers needs a reload.
    fn serves(&self, assembly: &Assembly) -> bool {
        let running = self.job.running.as_ref();
        running
            .is_some_and(|running| !matches!(plan(running, &assembly.desired), Plan::Reload { .. }))
    }

    /// `do_writes: false`: somebody else writes the file; only the reload is ours.
    async fn reload_only(&mut self, assembly: Assembly) -> Result<Outcome, Setback> {
        if self.job.reload.is_none() {
            return Ok(Outcome::Unneeded);
        }
        match self.driver.haproxy.reload(None, 0).await {
            ReloadOutcome::Failed { reason, .. } => Err(Setback::Abort(reason)),
            _ => Ok(Outcome::Unconfirmed {
                assembly: Box::new(assembly),
            }),
        }
    }

    fn on_disk(&self) -> Option<&str> {
        self.disk.written.as_deref().or(self.disk.former.as_deref())
    }

    fn write(&mut self, text: &Arc<str>) -> Result<(), String> {
        // What haproxy is about to read is written in any case: others may have replaced it.
        if self.job.reload.is_none() && self.on_disk() == Some(&**text) {
            return Ok(());
        }
        self.write_to(&self.driver.file, text)?;
        self.disk.written = Some(Arc::clone(text));
        Ok(())
    }

    pub(super) fn write_to(&self, path: &Path, text: &str) -> Result<(), String> {
        let durability = if self.job.reload.is_some() {
            Durability::Synced
        } else {
            Durability::Rename
        };
        replace(path, [text], MODE, durability).map_err(|e| Chain(&e).to_string())
    }
}

impl Setback {
    fn words(self) -> String {
        match self {
            Self::Refused(refused, _) => refused.words,
            Self::Abort(words) => words,
        }
    }
}

/// Notes a refusal; what stays instead is only ever reduced.
fn note(
    bad: &mut BTreeMap<String, Bad>,
    candidate: &Candidate,
    words: String,
    kept: Option<Kept>,
    unforeseen: bool,
) {
    let fresh = || Bad {
        structure: candidate.new.as_ref().map(Piece::structure),
        words,
        kept: match candidate.good {
            Some(_) => Kept::Good,
            None => Kept::Nothing,
        },
        unforeseen,
    };
    let entry = bad.entry(candidate.name.clone()).or_insert_with(fresh);
    if let Some(kept) = kept {
        entry.kept = kept;
    }
}
