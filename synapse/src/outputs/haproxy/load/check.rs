//! Whether a combination would start: what haproxy says of the candidate, and the system of what it needs. Servers whose own
//! options are refused are dropped on the way, so are parts of the frame that may go alone.

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use smartstack_common::report::Chain;

use super::Candidate;
use super::work::{FRAME, Setback, Work};
use crate::outputs::haproxy::cfg::Model;
use crate::outputs::haproxy::file::{Assembly, Piece, assemble};
use crate::outputs::haproxy::load::blame::{Refused, Selection};
use crate::outputs::haproxy::process::{Complaints, Verdict};

/// At most this many rounds of dropping refused options, and as many more as there are services to be reduced.
const MOST_OPTION_ROUNDS: usize = 8;

/// What haproxy says of a candidate.
enum Answer {
    /// Nothing.
    None,
    /// Some of it cannot be seen: the rest is to be looked at without that.
    Blind,
    Refused(Complaints),
}

impl Work {
    /// Asks haproxy about a combination, and the system about what a start needs. Servers whose own options are refused
    /// are dropped on the way, and parts of the frame where `parts_may_go`.
    pub(super) async fn check(
        &mut self,
        selection: &Selection,
        parts_may_go: bool,
    ) -> Result<(), Setback> {
        let parts = self.frame.parts().len();
        for _ in 0..MOST_OPTION_ROUNDS + 2 * self.job.candidates.len() + parts {
            let (assembly, included) = self.assemble(selection)?;
            let frame = Arc::clone(self.frame_of(selection));
            let clashes = self.clashes(&assembly, &included, &frame);
            let answer = match &clashes {
                Some(_) => Answer::None,
                None => self.complaints(&assembly, &included).await?,
            };
            let (refused, parts) = match answer {
                Answer::Blind => continue,
                Answer::None if clashes.is_some() => clashes.unwrap_or_default(),
                Answer::None => match self.obstacles(&assembly, &included, &frame) {
                    None => return Ok(()),
                    Some(found) => found,
                },
                Answer::Refused(complaints) => {
                    if self.drop_refused_options(&complaints, &assembly, selection) {
                        continue;
                    }
                    let refused = self.refused(&complaints, &assembly, &included);
                    (refused, Self::parts_of(&frame, &complaints, &assembly))
                }
            };
            if parts_may_go && self.leave_out(&parts, selection) {
                continue;
            }
            if !self.reduce(&refused, selection) {
                return Err(Setback::Refused(refused, parts));
            }
        }
        Err(Setback::Abort(
            "haproxy refuses the options of ever more servers".to_owned(),
        ))
    }

    pub(super) fn assemble(
        &mut self,
        selection: &Selection,
    ) -> Result<(Assembly, Vec<usize>), Setback> {
        let frame = Arc::clone(self.frame_of(selection));
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
        let assembly = assemble(&frame, &pieces, &mut self.cache)
            .map_err(|e| Setback::Abort(Chain(&e).to_string()))?;
        Ok((assembly, included))
    }

    /// What haproxy says of it, but for what we cannot see.
    async fn complaints(
        &mut self,
        assembly: &Assembly,
        included: &[usize],
    ) -> Result<Answer, Setback> {
        let mut seen = Cow::Borrowed(assembly);
        if !self.blind.is_empty() {
            let blind = included.iter().enumerate();
            let blind = blind.filter(|(_, index)| self.blind.contains(index));
            seen = Cow::Owned(assembly.without(blind.map(|(fragment, _)| fragment)));
        }
        match self.verdict(&seen).await? {
            Verdict::Valid => Ok(Answer::None),
            Verdict::Refused(complaints) => Ok(Answer::Refused(complaints)),
            Verdict::NoListener if !self.blind.is_empty() => Ok(Answer::None),
            Verdict::NoListener => Ok(Answer::Refused(Complaints::parse(
                "no frontend is left that listens anywhere, so haproxy would not start",
            ))),
            Verdict::Unknown(complaints) => {
                let named = self.refused(&complaints, assembly, included).blamed;
                self.unchecked.get_or_insert_with(|| complaints.summary());
                let services = named.into_keys().filter(|index| *index != FRAME);
                let before = self.blind.len();
                self.blind.extend(services);
                match self.blind.len() > before {
                    true => Ok(Answer::Blind),
                    false => Ok(Answer::None),
                }
            }
        }
    }

    pub(super) async fn verdict(&mut self, assembly: &Assembly) -> Result<Verdict, Setback> {
        self.write_to(&self.driver.candidate, &assembly.text)
            .map_err(Setback::Abort)?;
        let verdict = self.driver.haproxy.check(&self.driver.candidate).await;
        verdict.map_err(|error| Setback::Abort(Chain(&error).to_string()))
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

    pub(super) fn refused(
        &self,
        complaints: &Complaints,
        assembly: &Assembly,
        included: &[usize],
    ) -> Refused {
        let models: Vec<&Model> = assembly.models.iter().map(AsRef::as_ref).collect();
        let mut blamed = BTreeMap::new();
        for (fragment, words) in complaints.blamed(&assembly.map, &models) {
            let index = included
                .get(fragment)
                .copied()
                .or_else(|| self.owner_of_complaint(complaints, assembly, fragment));
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
    fn owner_of_complaint(
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
        self.owner_of_shared(&lines)
    }
}

/// Options of single servers that are at fault, with the words. None when the service's own options may be: a server
/// without any is complained about as well, or they are new and every server is.
pub(super) fn own_faults(
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

#[cfg(test)]
mod tests;
