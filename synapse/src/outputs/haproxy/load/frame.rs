//! The frame's share in a job: which part of `global`, `defaults`, the extra sections and the shared frontend is refused,
//! and what stands instead.
//!
//! An extra section is left out alone, or takes the form it has in the last good frame. A line of another list is left out
//! where no other frame is known to be good, or where the good one does without it, too; else the last good frame stays as
//! a whole, since its lines belong together.

use std::collections::BTreeSet;
use std::sync::Arc;

use super::BadFrame;
use super::work::{FRAME, Parts, Setback, Work};
use crate::config::Part;
use crate::outputs::haproxy::cfg::binds;
use crate::outputs::haproxy::file::{Assembly, assemble};
use crate::outputs::haproxy::load::blame::{
    Frame, Outcome as Found, Refused, Search, Selection, Step,
};
use crate::outputs::haproxy::process::{Complaints, Verdict};
use crate::outputs::haproxy::render::Renderer;
use smartstack_common::report::Chain;

impl Work {
    /// Another frame is known to be good.
    pub(super) fn has_other_frame(&self) -> bool {
        let good = self.job.good_frame.as_ref();
        good.is_some_and(|good| !Arc::ptr_eq(good, &self.job.frame))
    }

    /// The frame that goes with a selection.
    pub(super) fn frame_of(&self, selection: &Selection) -> &Arc<Renderer> {
        match &self.job.good_frame {
            Some(good) if self.has_other_frame() && !selection.contains(&FRAME) => good,
            _ => &self.frame,
        }
    }

    /// The parts of `frame` that the complaints are about.
    pub(super) fn parts_of(
        frame: &Renderer,
        complaints: &Complaints,
        assembly: &Assembly,
    ) -> Parts {
        let mut parts = Parts::new();
        for alert in &complaints.alerts {
            let by_line = alert.line.and_then(|line| assembly.section_at(line));
            let by_name = || {
                let name = alert.section.as_ref()?;
                let sections = assembly.models.iter().flat_map(|model| &model.sections);
                let mut named = sections.filter(|section| section.name == *name);
                Some((&**named.next()?, None))
            };
            let found = by_line.or_else(by_name);
            let part = found.and_then(|(section, line)| frame.part_at(section, line));
            if let Some(part) = part.filter(|part| parts.iter().all(|(known, _)| known != part)) {
                parts.push((part, alert.words.clone()));
            }
        }
        parts
    }

    /// Leaves out the parts that may go alone. Whether there were any.
    pub(super) fn leave_out(&mut self, parts: &Parts, selection: &Selection) -> bool {
        if self.has_other_frame() && !selection.contains(&FRAME) {
            return false;
        }
        let mut any = false;
        for (part, words) in parts {
            let good = self.job.good_frame.as_ref();
            let good = good.filter(|_| self.has_other_frame());
            let alone = matches!(part, Part::Section(_));
            if good.is_some_and(|good| !alone && !good.leaves_out(&self.job.frame, *part)) {
                continue;
            }
            let former = good.and_then(|good| self.frame.with_section_of(*part, good));
            let stays = match former {
                Some(_) => "its last good form stays",
                None => "it is left out",
            };
            let words = format!("{}: {words}; {stays}", self.frame.words(*part));
            self.frame = Arc::new(former.unwrap_or_else(|| self.frame.without(*part)));
            self.left_out.retain(|(known, _)| known != part);
            self.left_out.push((*part, words));
            any = true;
        }
        any
    }

    /// Where nothing is known to be good and no words point anywhere: looks for the parts of the frame that are at fault.
    /// Whether any were left out.
    pub(super) async fn search_frame(&mut self) -> Result<bool, Setback> {
        let whole = Arc::clone(&self.frame);
        let Some(refused) = self.alone(&whole).await? else {
            return Ok(false);
        };
        let parts = whole.parts();
        if parts.is_empty() {
            return Ok(false);
        }
        let with = |selection: &Selection| {
            let gone = (0..parts.len()).filter(|index| !selection.contains(index));
            gone.fold((*whole).clone(), |frame, index| frame.without(parts[index]))
        };
        let told = |found: (Parts, String)| Refused {
            blamed: found
                .0
                .into_iter()
                .filter_map(|(part, words)| Some((parts.iter().position(|p| *p == part)?, words)))
                .collect(),
            words: found.1,
        };
        let mut search = Search::new(0..parts.len(), Frame::Only, told(refused));
        loop {
            match search.step() {
                Step::Try(selection) => {
                    let verdict = self.alone(&with(&selection)).await?;
                    search.feed(verdict.map_or(Ok(()), |found| Err(told(found))));
                }
                Step::Done(Found::Nothing { words }) => return Err(Setback::Abort(words)),
                Step::Done(Found::Accepted { bad, .. }) => {
                    let bad: Parts = bad
                        .into_iter()
                        .map(|(i, words)| (parts[i], words))
                        .collect();
                    let frame: Selection = std::iter::once(FRAME).collect();
                    return Ok(self.leave_out(&bad, &frame));
                }
            }
        }
    }

    /// Asks haproxy about a frame without any service: what it complains about.
    async fn alone(&mut self, frame: &Renderer) -> Result<Option<(Parts, String)>, Setback> {
        let assembly = assemble(frame, &[], &mut self.cache)
            .map_err(|e| Setback::Abort(Chain(&e).to_string()))?;
        match self.verdict(&assembly).await? {
            // The services listen.
            Verdict::Valid | Verdict::NoListener | Verdict::Unknown(_) => Ok(None),
            Verdict::Refused(complaints) => Ok(Some((
                Self::parts_of(frame, &complaints, &assembly),
                complaints.summary(),
            ))),
        }
    }

    /// What became of the frame as configured, when it is not in the file.
    pub(super) fn bad_frame(&self) -> Option<BadFrame> {
        let unforeseen = self.unforeseen.contains(&FRAME);
        let (instead, words) = match (&self.bad_frame, &self.job.good_frame) {
            (Some(words), Some(good)) => {
                let whole = format!(
                    "haproxy refuses global, defaults or extra sections, their last good form stays: {words}"
                );
                (good, vec![whole])
            }
            _ if self.left_out.is_empty() => return None,
            _ => {
                let words = self.left_out.iter().map(|(_, words)| words.clone());
                (&self.frame, words.collect())
            }
        };
        Some(BadFrame {
            refused: Arc::clone(&self.job.frame),
            instead: Arc::clone(instead),
            words,
            unforeseen,
        })
    }

    /// Lines of a candidate that haproxy could not start with: whose they are, and which parts of the frame.
    pub(super) fn obstacles(
        &self,
        assembly: &Assembly,
        included: &[usize],
        frame: &Renderer,
    ) -> Option<(Refused, Parts)> {
        // A haproxy that is not running holds none of the addresses in its file.
        let gone = self.job.running.is_none() && self.driver.haproxy.api().is_configured();
        let found = self
            .driver
            .haproxy
            .obstacles(&assembly.model(), &self.loaded, gone);
        let (mut refused, mut parts) = (Refused::default(), Parts::new());
        for obstacle in found {
            let mut at = obstacle.section;
            let fragment = assembly.models.iter().position(|model| {
                let here = at < model.sections.len();
                if !here {
                    at -= model.sections.len();
                }
                here
            });
            let Some((fragment, section)) =
                fragment.and_then(|f| Some((f, assembly.models[f].sections.get(at)?)))
            else {
                continue;
            };
            if let Some(part) = frame.part_at(section, Some(&obstacle.line.text)) {
                parts.push((part, obstacle.words.clone()));
            }
            let line = BTreeSet::from([obstacle.line.text.as_str()]);
            let index = included.get(fragment).copied();
            let index = index
                .or_else(|| self.owner_of_shared(&line))
                .unwrap_or(FRAME);
            let words = refused.blamed.entry(index);
            words.or_insert_with(|| obstacle.words.clone());
            if refused.words.is_empty() {
                refused.words = obstacle.words;
            }
        }
        (!refused.blamed.is_empty()).then_some((refused, parts))
    }

    /// Sections that listen on one address: haproxy takes both, and each connection goes to one of them. Whose the later
    /// ones are, and which parts of the frame.
    pub(super) fn clashes(
        &self,
        assembly: &Assembly,
        included: &[usize],
        frame: &Renderer,
    ) -> Option<(Refused, Parts)> {
        let (mut refused, mut parts) = (Refused::default(), Parts::new());
        for clash in binds::clashes(&assembly.models, &self.loaded) {
            let model = &assembly.models[clash.fragment];
            let section = model.sections.get(clash.section);
            if let Some(part) = section.and_then(|s| frame.part_at(s, Some(&clash.line))) {
                parts.push((part, clash.words.clone()));
            }
            let line = BTreeSet::from([clash.line.as_str()]);
            let index = included.get(clash.fragment).copied();
            let index = index
                .or_else(|| self.owner_of_shared(&line))
                .unwrap_or(FRAME);
            refused.words.clone_from(&clash.words);
            refused.blamed.entry(index).or_insert(clash.words);
        }
        (!refused.blamed.is_empty()).then_some((refused, parts))
    }

    /// The service that a line of the shared frontend is of.
    pub(super) fn owner_of_shared(&self, lines: &BTreeSet<&str>) -> Option<usize> {
        let owns = |candidate: &super::Candidate| {
            let service = candidate
                .new
                .as_ref()
                .and_then(|p| p.service.haproxy.as_ref());
            service.is_some_and(|h| {
                let mut own = h.shared_frontend.iter();
                own.any(|line| lines.contains(line.trim()))
            })
        };
        let mut candidates = self.job.candidates.iter();
        candidates.position(owns).map(|index| index + 1)
    }
}
