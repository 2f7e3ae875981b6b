//! When a job is needed, what it is given, and what its result means.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use smartstack_common::clock::Moment;

use tokio::time::Instant;
use tracing::{error, info, warn};

use super::aim::{Quarantine, RefusedFrame};
use super::blames::Blames;
use super::limiter::Limiter;
use super::observed::Digests;
use super::{Ended, InFlight, RETRY_QUARANTINED, Reconciler};
use crate::config::Config;
use crate::config::Reload;
use crate::outputs::haproxy::backend::Backend;
use crate::outputs::haproxy::disk::File;
use crate::outputs::haproxy::file::Whole;
use crate::outputs::haproxy::load::{Bad, BadFrame, Candidate, Done, Driver, Job, Kept, Outcome};
use crate::outputs::haproxy::plan::Plan;
use crate::outputs::haproxy::reconciler::apply::Next;
use crate::report::status::ReloadView;
use tokio::task::JoinSet;

/// Least time between reloads while many replaced workers go on.
const SPREAD: Duration = Duration::from_secs(10);

/// What is done beside the reconciler, one at a time, and when.
pub(super) struct Jobs {
    pub(super) running: JoinSet<Ended>,
    pub(super) in_flight: Option<InFlight>,
    pub(super) driver: Option<Driver>,
    pub(super) limiter: Limiter,
    /// Another pass is due then.
    pub(super) retry_at: Option<Instant>,
    pub(super) rng: fastrand::Rng,
    pub(super) file: File,
    /// What could not be checked.
    pub(super) unchecked: Option<String>,
    /// Revision of the text that was loaded as far as an exit status can tell; only without a stats socket.
    pub(super) unconfirmed: Option<u64>,
    pub(super) write_problem: Option<String>,
    pub(super) reload_problem: Option<String>,
    pub(super) stop_haproxy: bool,
}

impl Jobs {
    /// None is under way.
    pub(super) fn new(config: &Config, stop_haproxy: bool) -> Self {
        let haproxy = &config.haproxy;
        Self {
            running: JoinSet::new(),
            in_flight: None,
            driver: Some(Driver::new(config, stop_haproxy)),
            limiter: Limiter::new(haproxy.restart_interval, haproxy.restart_jitter),
            retry_at: None,
            rng: fastrand::Rng::new(),
            file: File::new(&haproxy.config_file_path),
            unchecked: None,
            unconfirmed: None,
            write_problem: None,
            reload_problem: None,
            stop_haproxy,
        }
    }

    /// Takes another configuration. Reloads are not spaced from those before it.
    pub(super) fn configure(&mut self, config: &Config) {
        let haproxy = &config.haproxy;
        self.file.configure(&haproxy.config_file_path);
        self.limiter
            .configure(haproxy.restart_interval, haproxy.restart_jitter);
        self.limiter.begin_anew();
        if let Some(driver) = &mut self.driver {
            driver.configure(config);
        }
    }
}

impl Reconciler {
    /// Starts what is needed beside the stats socket, when it may start now: writing the file where only servers differ,
    /// else a job.
    pub(super) fn start_job(&mut self, next: &Next) {
        let now = Instant::now();
        if !self.jobs.running.is_empty() {
            return;
        }
        let reload = self.reload_reason(&next.wanted);
        if let Some(reason) = reload {
            let Some(at) = self.reload_due(now) else {
                // What a worker loads is no older than what was last seen of the one before: an operator's word that is not
                // rendered yet would be undone by the file, and read as the operator's from then on.
                if self.worker.observed.is_none() || self.aim.unrendered.is_empty() {
                    self.start_heavy(Some(reason), false, true);
                }
                return;
            };
            self.again_at(at);
            if self.worker.observed.is_none() {
                // Nobody runs the file. While starts back off it follows the servers, in its last good structure.
                let follows = self.jobs.limiter.is_backing_off()
                    && self.aim.good.frame.is_some()
                    && self.jobs.write_problem.is_none();
                if follows && !self.aim.followed {
                    self.aim.followed = true;
                    self.start_heavy(None, true, true);
                }
                return;
            }
        } else if !self.worker.stale {
            self.jobs.reload_problem = None;
        }
        let Some(aim) = self.aim() else {
            return;
        };
        let loaded = self
            .running()
            .and_then(|running| running.generation.as_ref());
        let servers_only = loaded == Some(&aim.desired().generation) && !self.worker.stale;
        let left = match &next.meanwhile {
            Plan::Unchanged => &[][..],
            Plan::Runtime(ops) => ops,
            Plan::Reload { meanwhile, .. } => meanwhile,
        };
        let unproven = self.is_unproven(left);
        let lags = self.lags(aim);
        if servers_only && !unproven {
            if lags {
                self.write();
            }
        } else if (lags || unproven) && self.reload_reason(&next.wanted).is_none() {
            if self.jobs.write_problem.is_some() {
                let due = self.jobs.limiter.due(now, &mut self.jobs.rng);
                if due > now {
                    return self.again_at(due);
                }
            }
            // Structure and options that no worker has loaded yet are proven first, also when somebody else reloads.
            let known =
                matches!(next.wanted, Plan::Unchanged | Plan::Runtime(_)) && !self.worker.stale;
            self.start_heavy(None, false, unproven || !known);
        }
    }

    fn start_heavy(&mut self, reload: Option<String>, follow: bool, check: bool) {
        let good = if follow {
            self.aim.good.frame.clone()
        } else {
            None
        };
        let job = Job {
            candidates: self.candidates(follow),
            frame: good.unwrap_or_else(|| Arc::clone(self.frame())),
            good_frame: self.aim.good.frame.clone(),
            check,
            running: self.worker.observed.as_ref().map(|o| o.running.clone()),
            socket: self.worker.api.is_configured(),
            reload,
        };
        let kind = if job.reload.is_some() {
            InFlight::Reload
        } else {
            InFlight::Check
        };
        if let Some(driver) = self.jobs.driver.take() {
            self.jobs.in_flight = Some(kind);
            let job = async move { Ended::Job(Box::new(driver.run(job).await)) };
            self.jobs.running.spawn_local(job);
        }
    }

    /// When the reload that is needed may start; `None` = now.
    fn reload_due(&mut self, now: Instant) -> Option<Instant> {
        if let Some(until) = self.settling_until() {
            return Some(until);
        }
        let many = self.worker.lingering.are_many() && self.worker.observed.is_some();
        self.jobs
            .limiter
            .spread(if many { SPREAD } else { Duration::ZERO });
        let due = self.jobs.limiter.due(now, &mut self.jobs.rng);
        (due > now).then_some(due)
    }

    /// After a change of configuration a reload waits a moment for the first word of the new sources, or there would be
    /// another one for their servers. `None` = all have spoken, or it takes too long.
    pub(super) fn settling_until(&self) -> Option<Instant> {
        self.aim
            .settle
            .filter(|until| Instant::now() < *until && self.keeper.awaits_words())
    }

    /// A reload is wanted and nothing holds it.
    pub(super) fn may_reload(&mut self, next: &Next) -> bool {
        self.can_ask() && self.may_reload_now(&next.wanted)
    }

    /// There is a stats socket, and we can use it.
    pub(super) fn can_ask(&self) -> bool {
        self.worker.api.is_configured()
    }

    pub(super) fn may_reload_now(&mut self, next: &Plan) -> bool {
        let now = Instant::now();
        self.jobs.running.is_empty()
            && self.aim.unrendered.is_empty()
            && self.reload_reason(next).is_some()
            && self.reload_due(now).is_none()
    }

    fn candidates(&self, hold: bool) -> Vec<Candidate> {
        let rendered = self.backends.iter().filter(|s| s.service.haproxy.is_some());
        rendered
            .map(|state| {
                let quarantine = self.quarantine(state);
                let good = self.aim.good.piece(&state.service, &state.servers);
                let good = quarantine.map_or(&Kept::Good, |q| &q.kept).of(good);
                let new = state
                    .piece
                    .as_ref()
                    .and_then(|p| p.as_ref().ok())
                    .filter(|_| quarantine.is_none());
                Candidate {
                    name: state.service.name.clone(),
                    new: if hold { good.clone() } else { new.cloned() },
                    good,
                }
            })
            .collect()
    }

    /// The refusal of the service as it is now.
    pub(super) fn quarantine(&self, state: &Backend) -> Option<&Quarantine> {
        let quarantine = self.aim.quarantined.get(&state.service.name)?;
        state.piece.as_ref()?;
        (quarantine.structure == structure(state)).then_some(quarantine)
    }

    /// Why a reload is needed; `None` = it is not, or it must not be.
    fn reload_reason(&self, next: &Plan) -> Option<String> {
        if self.config.haproxy.reload == Reload::Never {
            return None;
        }
        if !self.can_ask() {
            let wanted = self.aim.wanted.as_ref()?;
            let other = self.jobs.unconfirmed != Some(wanted.revision());
            let why = match self.worker.socket.problem() {
                None => "there is no stats socket",
                Some(_) => "the stats socket is of no use",
            };
            return other.then(|| format!("{why}, so that every change is a reload"));
        }
        if self.worker.stale {
            // The worker could not be read. Only a proven difference is worth a reload.
            return None;
        }
        match (&self.worker.observed, next) {
            (None, _) => Some("haproxy is not running".to_owned()),
            (Some(_), Plan::Reload { reason, .. }) => Some(reason.to_string()),
            (Some(_), Plan::Unchanged | Plan::Runtime(_)) => None,
        }
    }

    /// Takes what came to its end.
    pub(super) fn finish(&mut self, ended: Result<Ended, tokio::task::JoinError>) {
        self.jobs.in_flight = None;
        match ended {
            Ok(Ended::Write(revision, result)) => self.wrote(revision, result),
            Ok(Ended::Job(done)) => self.finish_job(*done),
            Err(error) => {
                error!(%error, "a job ended by a defect; another one is made");
                self.worker.stale = true;
                self.jobs
                    .driver
                    .get_or_insert_with(|| Driver::new(&self.config, self.jobs.stop_haproxy));
            }
        }
    }

    fn finish_job(&mut self, done: Done) {
        self.worker.stale = true;
        let now = Instant::now();
        self.jobs.driver = Some(done.driver);
        if let Some(driver) = &mut self.jobs.driver {
            driver.configure(&self.config);
        }
        self.note_refusals(done.bad, done.bad_frame, done.refused_options);
        self.note_unchecked(done.unchecked);
        if let Some((generation, digests)) = done.proven {
            self.worker.proven.checked(&generation, digests);
        }
        self.read_disk();
        let took = now.duration_since(done.started);
        let ok = !matches!(done.outcome, Outcome::Failed(_) | Outcome::Former(_));
        let former_runs = matches!(done.outcome, Outcome::Former(_));
        let attempted = !matches!(done.outcome, Outcome::Unneeded | Outcome::Written);
        self.jobs.write_problem = None;
        let error = match done.outcome {
            Outcome::Unneeded | Outcome::Written => None,
            Outcome::Reloaded { pid, assembly } => {
                self.worker.digests = Digests::loaded(pid, &assembly.desired);
                self.publisher.tally.reloads += 1;
                info!(pid, generation = %assembly.desired.generation, ?took, reason = done.reason, "haproxy has loaded the file");
                None
            }
            Outcome::Unconfirmed { assembly } => {
                let wanted = self.aim.wanted.as_ref();
                self.jobs.unconfirmed = wanted
                    .filter(|whole| whole.is(&assembly.text))
                    .map(Whole::revision);
                self.publisher.tally.reloads += 1;
                info!(
                    ?took,
                    reason = done.reason,
                    "haproxy has loaded the file, as far as its exit status tells"
                );
                None
            }
            Outcome::Former(error) | Outcome::Failed(error) => Some(error),
        };
        if let Some(error) = &error {
            let now = match (former_runs, &self.worker.observed) {
                (true, _) => "haproxy was started on the file that was on disk",
                (false, Some(_)) => "what runs goes on",
                (false, None) => "nothing runs: no service of this host is served",
            };
            error!(
                error,
                reason = done.reason,
                now,
                "haproxy was not brought to the new state"
            );
            if done.reason.is_none() {
                self.jobs.write_problem = Some(error.clone());
            }
        }
        // Where nothing ran before, the first start is no reload: the registry's first word follows it at once.
        let first_start =
            ok && self.worker.observed.is_none() && self.publisher.tally.last_reload.is_none();
        if (done.reason.is_some() || !ok) && !first_start {
            match self.worker.observed {
                Some(_) => self.jobs.limiter.started(done.started),
                None => self.jobs.limiter.revives(done.started),
            }
            self.jobs.limiter.ended(ok);
        }
        if done.reason.is_some() {
            self.jobs.reload_problem.clone_from(&error);
        }
        if let Some(reason) = done.reason.filter(|_| attempted) {
            self.publisher.tally.reload_failures += u64::from(!ok);
            let ms = u64::try_from(took.as_millis()).unwrap_or(u64::MAX);
            self.publisher.tally.last_reload = Some(ReloadView {
                at: Moment::ago(took),
                reason,
                ok,
                ms,
                error,
            });
        }
    }

    fn note_refusals(
        &mut self,
        bad: BTreeMap<String, Bad>,
        bad_frame: Option<BadFrame>,
        refused_options: BTreeMap<(String, String), String>,
    ) {
        for (service, bad) in bad {
            let Bad {
                structure,
                words: reason,
                kept,
                unforeseen,
            } = bad;
            // Without a new form it was refused before, or by its template.
            let structure = structure.or_else(|| {
                let state = self.backends.iter().find(|s| s.service.name == service);
                Some(self::structure(state?))
            });
            let stays = kept.words();
            error!(
                service,
                reason,
                stays,
                again = Quarantine::again(unforeseen),
                "haproxy refuses this service as configured; others proceed"
            );
            let is_there = |name: &str| {
                let mut servers = self.backends.iter().flat_map(|state| &state.servers);
                servers.any(|s| s.server.name == name && !s.server.is_parked())
            };
            let blames = Blames::of(&reason, is_there);
            self.replace_piece(&service);
            self.aim.quarantined.insert(
                service,
                Quarantine {
                    structure: structure.unwrap_or_default(),
                    reason,
                    blames,
                    kept,
                    until_changed: unforeseen,
                    since: Instant::now(),
                },
            );
        }
        if let Some(bad) = bad_frame {
            self.refuse_frame(bad);
        }
        if !refused_options.is_empty() {
            self.forget_unused_options();
        }
        for ((backend, options), reason) in refused_options {
            warn!(
                backend,
                options, reason, "haproxy refuses these server options: their servers are left out"
            );
            let dirty: Vec<usize> = self.indexes(|s| s.name() == Some(backend.as_str()));
            self.keeper.touch(dirty);
            self.aim.refused_options.insert((backend, options), reason);
        }
    }

    /// What no entry of the registry says any more is tried again should it come back: the registry may say ever new things.
    fn forget_unused_options(&mut self) {
        let mut used = BTreeSet::new();
        for (backend, state) in self.backends.iter().zip(self.keeper.services()) {
            let options = state.servers().iter();
            let options = options.filter_map(|server| server.options.as_deref());
            used.extend(options.map(|options| (backend.place(), options)));
        }
        self.aim
            .refused_options
            .retain(|(backend, options), _| used.contains(&(backend.as_str(), options.as_str())));
    }

    /// Until it is due again, another frame is used instead.
    pub(super) fn refuse_frame(&mut self, bad: BadFrame) {
        if !Arc::ptr_eq(&bad.refused, &self.renderer) {
            return;
        }
        if self.aim.frame_problems != bad.words {
            for problem in &bad.words {
                error!(
                    problem,
                    "global, defaults or extra sections are not as configured"
                );
            }
        }
        let until = (!bad.unforeseen).then(|| Instant::now() + RETRY_QUARANTINED);
        self.aim.refused_frame = Some(RefusedFrame {
            refused: bad.refused,
            instead: bad.instead,
            until,
        });
        self.aim.frame_problems = bad.words;
    }

    fn note_unchecked(&mut self, unchecked: Option<String>) {
        let problem = unchecked.map(|words| {
            format!("cannot be checked before a reload, since synapse may not read what haproxy may: {words}")
        });
        if let Some(problem) = problem.as_ref().filter(|_| problem != self.jobs.unchecked) {
            warn!(problem, "the reload is the proof");
        }
        self.jobs.unchecked = problem;
    }

    pub(super) fn indexes(&self, of: impl Fn(&Backend) -> bool) -> Vec<usize> {
        self.backends
            .iter()
            .enumerate()
            .filter(|(_, s)| of(s))
            .map(|(i, _)| i)
            .collect()
    }

    /// The form of this service in the file has to be chosen anew.
    pub(super) fn replace_piece(&mut self, service: &str) {
        let of = self.indexes(|state| state.service.name == *service);
        self.aim.replaced.extend(of.iter().copied());
        self.publisher.unseen.extend(of);
    }

    /// The worker serves what is wanted, as far as can be known.
    pub(super) fn serves(&self) -> bool {
        let Some(wanted) = &self.aim.wanted else {
            return false;
        };
        match self.running() {
            Some(running) => running.generation.as_ref() == Some(&wanted.desired().generation),
            None => !self.can_ask() && self.jobs.unconfirmed == Some(wanted.revision()),
        }
    }

    /// When the worker serves what is wanted, every form in it is good.
    pub(super) fn accept(&mut self) {
        let Some(wanted) = self.aim.wanted.as_ref().filter(|_| self.serves()) else {
            return;
        };
        let generation = &wanted.desired().generation;
        let accepted = |(known, renderer): &(_, Arc<_>)| {
            *known == *generation && Arc::ptr_eq(renderer, &self.renderer)
        };
        if self.aim.accepted.as_ref().is_some_and(accepted) || !self.aim.unrendered.is_empty() {
            return;
        }
        self.aim.accepted = Some((generation.clone(), Arc::clone(&self.renderer)));
        if Arc::ptr_eq(self.frame(), &self.renderer) {
            self.aim.frame_problems.clear();
        }
        self.aim.good.frame = Some(Arc::clone(self.frame()));
        for state in &self.backends {
            if matches!(state.piece, Some(Ok(_))) && self.quarantine(state).is_none() {
                self.aim.good.accept(&self.renderer, &state.service);
            }
        }
        let services = self.backends.iter().map(|state| Arc::clone(&state.service));
        self.aim.good.load(services.collect());
        let configured: BTreeSet<&str> = self.backends.iter().map(Backend::place).collect();
        self.aim
            .ids
            .retain(|backend, _| configured.contains(backend.as_str()));
        if Arc::ptr_eq(self.frame(), &self.renderer) {
            self.aim.good.leave_file();
        }
        // What only the forms before have named need not stay.
        let parked = |state: &Backend| state.servers.iter().any(|s| s.server.is_parked());
        let parked = self.indexes(parked);
        if !parked.is_empty() {
            self.keeper.touch(parked);
            self.again_at(Instant::now());
        }
    }
}

/// What tells a refused form from another; empty when the template refuses the service.
fn structure(state: &Backend) -> Vec<u8> {
    match &state.piece {
        Some(Ok(piece)) => piece.structure(),
        Some(Err(_)) | None => Vec::new(),
    }
}
