//! A job being done: from all new forms to the largest combination that haproxy takes, into the file, into a worker.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::Arc;

use smartstack_common::atomic::{Durability, replace};
use smartstack_common::report::Chain;
use tokio::time::Instant;

use super::super::file::MODE;
use super::{Bad, Candidate, Driver, Job, Kept, Outcome};
use crate::assembly::{Assembly, EffectiveCache, Piece, assemble};
use crate::cfg::{Model, Ours};
use crate::effective::Digest;
use crate::generation::Generation;
use crate::haproxy::{Complaints, ReloadOutcome, Verdict, bind};
use crate::plan::{Plan, plan};
use crate::quarantine::{Frame, Outcome as Found, Refused, Search, Selection, Step};

/// At most this many reloads in one job: each failed one costs seconds.
const MOST_RELOADS: usize = 6;
/// At most this many rounds of dropping refused options, and as many more as there are services to be reduced.
const MOST_OPTION_ROUNDS: usize = 8;

/// A job being done.
pub(super) struct Work {
    pub(super) driver: Driver,
    pub(super) job: Job,
    /// The file that was loaded last.
    loaded: Model,
    cache: EffectiveCache,
    pub(super) proven: Option<(Generation, BTreeSet<Digest>)>,
    pub(super) bad: BTreeMap<String, Bad>,
    pub(super) bad_frame: Option<String>,
    pub(super) refused_options: BTreeMap<(String, String), String>,
    /// The file as it was.
    former: Option<Arc<str>>,
    /// As this job has written it.
    disk: Option<Arc<str>>,
    pub(super) started: Instant,
    reloads: usize,
}

/// Why a combination is not the one.
enum Setback {
    /// haproxy refuses it.
    Refused(Refused),
    /// There is no verdict, and there will be none for any other: in words.
    Abort(String),
}

/// Fragment 0 is the frame, `i + 1` the candidate `i`.
const FRAME: usize = 0;

impl Work {
    pub(super) fn new(driver: Driver, job: Job) -> Self {
        let former: Option<Arc<str>> = std::fs::read_to_string(&driver.file).ok().map(Arc::from);
        Self {
            proven: None,
            bad: BTreeMap::new(),
            bad_frame: None,
            refused_options: BTreeMap::new(),
            disk: None,
            cache: EffectiveCache::default(),
            loaded: former
                .as_deref()
                .map(|text| Model::parse(text, Ours::All))
                .unwrap_or_default(),
            former,
            driver,
            started: Instant::now(),
            reloads: 0,
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
            Err(reason) => return self.give_up(reason),
        };
        loop {
            match self.put(&selection).await {
                Ok(outcome) => return outcome,
                Err(Setback::Abort(reason)) => return self.give_up(reason),
                Err(Setback::Refused(refused)) => {
                    let reduced = self.reduce(&refused, &selection);
                    let blamed = refused.blamed.iter();
                    let bad: BTreeMap<usize, String> = blamed
                        .filter(|(i, _)| **i != FRAME && selection.contains(i))
                        .map(|(i, words)| (*i, words.clone()))
                        .collect();
                    // A way of reloading that does not work says nothing about any service.
                    if (bad.is_empty() && !reduced) || self.reloads >= MOST_RELOADS {
                        return self.give_up(refused.words);
                    }
                    selection.retain(|index| !bad.contains_key(index));
                    self.note_bad(bad);
                    if let Err(setback) = self.check(&selection).await {
                        return self.give_up(setback.words());
                    }
                }
            }
        }
    }

    /// The largest selection that passes the check: all of it, or what the search for the bad ones leaves.
    async fn settle(&mut self, everything: Selection) -> Result<Selection, String> {
        if !self.job.check || !self.driver.writes {
            return Ok(everything);
        }
        let refused = match self.check(&everything).await {
            Ok(()) => return Ok(everything),
            Err(Setback::Abort(reason)) => return Err(reason),
            Err(Setback::Refused(refused)) => refused,
        };
        let (mut search, suspects) = self.search(&everything, refused);
        let sure: Selection = everything.difference(&suspects).copied().collect();
        loop {
            match search.step() {
                Step::Try(next) => match self.check(&next.union(&sure).copied().collect()).await {
                    Ok(()) => search.feed(Ok(())),
                    Err(Setback::Refused(refused)) => search.feed(Err(refused)),
                    Err(Setback::Abort(reason)) => return Err(reason),
                },
                Step::Done(Found::Nothing { words }) => return Err(words),
                Step::Done(Found::Accepted { new, bad }) => {
                    let selection = new.union(&sure).copied().collect();
                    self.note_bad(bad);
                    // The search has proven the new forms, not the good ones that take the place of the bad.
                    let proven = self.check(&selection).await;
                    return proven.map(|()| selection).map_err(Setback::words);
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
                Some(candidate) => note(&mut self.bad, candidate, words, None),
                None => self.bad_frame = Some(words),
            }
        }
    }

    /// A good form is good for the servers and the surroundings it was accepted with. One that is refused by now loses
    /// the servers that are not in the file yet; one that is still refused goes. Whether there was any.
    fn reduce(&mut self, refused: &Refused, selection: &Selection) -> bool {
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
            note(&mut self.bad, candidate, words.clone(), Some(kept));
            any = true;
        }
        any
    }

    /// The file goes back to what it was.
    fn give_up(&mut self, reason: String) -> Outcome {
        if let (Some(former), Some(_)) = (self.former.clone(), &self.disk)
            && let Err(problem) = self.write(&former)
        {
            return Outcome::Failed(format!("{reason}; and {problem}"));
        }
        Outcome::Failed(reason)
    }

    /// Asks haproxy about a combination, and the system about its ports. Servers whose own options are refused are
    /// dropped on the way.
    async fn check(&mut self, selection: &Selection) -> Result<(), Setback> {
        for _ in 0..MOST_OPTION_ROUNDS + 2 * self.job.candidates.len() {
            let (assembly, included) = self.assemble(selection)?;
            let refused = match self.complaints(&assembly).await? {
                None => match self.taken_ports(&assembly, &included) {
                    None => return Ok(()),
                    Some(refused) => refused,
                },
                Some(complaints) => {
                    if self.drop_refused_options(&complaints, &assembly, selection) {
                        continue;
                    }
                    self.refused(&complaints, &assembly, &included)
                }
            };
            if !self.reduce(&refused, selection) {
                return Err(Setback::Refused(refused));
            }
        }
        Err(Setback::Abort(
            "haproxy refuses the options of ever more servers".to_owned(),
        ))
    }

    /// `haproxy -c` does not bind: a port of another process would show only when the reload fails.
    fn taken_ports(&self, assembly: &Assembly, included: &[usize]) -> Option<Refused> {
        let mut refused = Refused::default();
        // A haproxy that is not running holds none of the addresses in its file.
        let gone = self.job.running.is_none() && self.driver.haproxy.api().is_configured();
        let nothing = Model::default();
        let held = if gone { &nothing } else { &self.loaded };
        for bind in bind::taken(&assembly.model(), held) {
            let words = format!("{} is in use by another process", bind.address);
            let at = assembly
                .models
                .iter()
                .position(|m| m.sections.iter().any(|s| s.name == bind.section));
            if let Some(index) = at.and_then(|at| included.get(at)).filter(|i| **i != FRAME) {
                refused
                    .blamed
                    .entry(*index)
                    .or_insert_with(|| words.clone());
            }
            refused.words = words;
        }
        (!refused.blamed.is_empty()).then_some(refused)
    }

    fn assemble(&mut self, selection: &Selection) -> Result<(Assembly, Vec<usize>), Setback> {
        let fixed = self
            .job
            .good_frame
            .as_ref()
            .is_none_or(|good| Arc::ptr_eq(good, &self.job.frame));
        let frame = match &self.job.good_frame {
            Some(good) if !fixed && !selection.contains(&FRAME) => good,
            _ => &self.job.frame,
        };
        let mut pieces = Vec::new();
        let mut included = vec![FRAME];
        for (index, candidate) in self.job.candidates.iter().enumerate() {
            // A template of the whole file leaves pieces without a text: they are of no use under the other kind.
            let usable = frame.is_whole() == self.job.frame.is_whole();
            let piece = if selection.contains(&(index + 1)) && usable {
                &candidate.new
            } else {
                &candidate.good
            };
            if let Some(piece) = piece {
                pieces.push(piece);
                included.push(index + 1);
            }
        }
        let assembly = assemble(frame, &pieces, &mut self.cache)
            .map_err(|e| Setback::Abort(Chain(&e).to_string()))?;
        Ok((assembly, included))
    }

    /// Complaints, or `None` when haproxy takes it.
    async fn complaints(&mut self, assembly: &Assembly) -> Result<Option<Complaints>, Setback> {
        self.write_to(&self.driver.candidate, &assembly.text)
            .map_err(Setback::Abort)?;
        match self.driver.haproxy.check(&self.driver.candidate).await {
            Ok(Verdict::Valid) => Ok(None),
            Ok(Verdict::Refused(complaints)) => Ok(Some(complaints)),
            Ok(Verdict::NoListener) => Ok(Some(Complaints::parse(
                "no frontend is left that listens anywhere, so haproxy would not start",
            ))),
            Err(error) => Err(Setback::Abort(Chain(&error).to_string())),
        }
    }

    /// Complaints about servers with options of their own cost those servers; then the rest is tried again.
    fn drop_refused_options(
        &mut self,
        complaints: &Complaints,
        assembly: &Assembly,
        selection: &Selection,
    ) -> bool {
        let models: Vec<&Model> = assembly.models.iter().map(AsRef::as_ref).collect();
        let named = complaints.servers(&assembly.map, &models);
        let mut dropped = false;
        for (index, candidate) in self.job.candidates.iter_mut().enumerate() {
            let is_new = selection.contains(&(index + 1));
            let Candidate { new, good, .. } = candidate;
            let Some(piece) = (if is_new { &*new } else { &*good }) else {
                continue;
            };
            let former = good.as_ref().filter(|_| is_new);
            let faults = own_faults(piece, former, &named);
            if faults.is_empty() {
                continue;
            }
            let backend = piece.backend().to_owned();
            for piece in [new, good].into_iter().flatten() {
                let own = piece.servers.iter().filter(|s| {
                    let options = s.server.options.as_ref();
                    options.is_some_and(|options| faults.contains_key(options))
                });
                let gone: BTreeSet<&str> = own.map(|s| s.server.name.as_str()).collect();
                *piece = piece.keeping(|name| !gone.contains(name));
            }
            let faults = faults.into_iter();
            self.refused_options
                .extend(faults.map(|(options, words)| ((backend.clone(), options), words)));
            dropped = true;
        }
        dropped
    }

    fn refused(&self, complaints: &Complaints, assembly: &Assembly, included: &[usize]) -> Refused {
        let models: Vec<&Model> = assembly.models.iter().map(AsRef::as_ref).collect();
        let mut blamed = BTreeMap::new();
        for (fragment, words) in complaints.blamed(&assembly.map, &models) {
            let index = included
                .get(fragment)
                .copied()
                .or_else(|| self.owner_of_shared(complaints, assembly, fragment));
            if let Some(index) = index {
                blamed.entry(index).or_insert(words);
            }
        }
        Refused {
            blamed,
            words: complaints.summary(),
        }
    }

    /// A complaint about the shared frontend is about the service whose line it is.
    fn owner_of_shared(
        &self,
        complaints: &Complaints,
        assembly: &Assembly,
        fragment: usize,
    ) -> Option<usize> {
        let model = assembly.models.get(fragment)?;
        let numbers = complaints
            .alerts
            .iter()
            .filter_map(|a| assembly.map.locate(a.line?));
        let lines: BTreeSet<&str> = numbers
            .filter(|(at, _)| *at == fragment)
            .filter_map(|(_, number)| {
                model
                    .sections
                    .iter()
                    .flat_map(|s| &s.lines)
                    .find(|l| l.number == number)
            })
            .map(|line| line.text.as_str())
            .collect();
        let owns = |candidate: &Candidate| {
            let service = candidate
                .new
                .as_ref()
                .and_then(|p| p.service.haproxy.as_ref());
            service.is_some_and(|h| {
                h.shared_frontend
                    .iter()
                    .any(|line| lines.contains(line.trim()))
            })
        };
        self.job
            .candidates
            .iter()
            .position(owns)
            .map(|index| index + 1)
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
        self.reloads += 1;
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
                let refused = self.refused(&Complaints::parse(&output), &assembly, &included);
                Err(Setback::Refused(Refused {
                    words: reason,
                    ..refused
                }))
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
        self.disk.as_deref().or(self.former.as_deref())
    }

    fn write(&mut self, text: &Arc<str>) -> Result<(), String> {
        // What haproxy is about to read is written in any case: others may have replaced it.
        if self.job.reload.is_none() && self.on_disk() == Some(&**text) {
            return Ok(());
        }
        self.write_to(&self.driver.file, text)?;
        self.disk = Some(Arc::clone(text));
        Ok(())
    }

    fn write_to(&self, path: &Path, text: &str) -> Result<(), String> {
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
            Self::Refused(refused) => refused.words,
            Self::Abort(words) => words,
        }
    }
}

/// Options of single servers that are at fault, with the words. None when the service's own options may be: a server
/// without any is complained about as well, or they are new and every server is.
fn own_faults(
    piece: &Piece,
    former: Option<&Piece>,
    named: &BTreeMap<(String, String), String>,
) -> BTreeMap<String, String> {
    let mut faults = BTreeMap::new();
    let mut named_here = 0;
    for server in piece.servers.iter() {
        let key = (piece.backend().to_owned(), server.server.name.clone());
        let Some(words) = named.get(&key) else {
            continue;
        };
        named_here += 1;
        match &server.server.options {
            Some(options) => _ = faults.insert(options.clone(), words.clone()),
            None => return BTreeMap::new(),
        }
    }
    let changed = former.is_some_and(|former| former.configured != piece.configured);
    if changed && named_here == piece.servers.len() {
        return BTreeMap::new();
    }
    faults
}

/// Notes a refusal; what stays instead is only ever reduced.
fn note(bad: &mut BTreeMap<String, Bad>, candidate: &Candidate, words: String, kept: Option<Kept>) {
    let fresh = || Bad {
        structure: candidate.new.as_ref().map(Piece::structure),
        words,
        kept: Kept::Good,
    };
    let entry = bad.entry(candidate.name.clone()).or_insert_with(fresh);
    if let Some(kept) = kept {
        entry.kept = kept;
    }
}

#[cfg(test)]
mod tests;
