//! Looking at the worker: who it is each second, everything when that changed or an answer left doubt.

use smartstack_common::clock::Moment;
use std::collections::{BTreeMap, BTreeSet};

use smartstack_common::report::Chain;
use tokio::time::Instant;
use tracing::{error, info, warn};

use super::aim::Touched;
use super::apply::{Proven, Retired};
use super::fallbacks::Fallbacks;
use super::fallbacks::Means;
use super::lingering::Lingering;
use super::marks::Marks;
use super::observed::OperatorMaint;
use super::observed::{Digests, Notes, Observed};
use super::socket::Socket;
use super::states::States;
use super::{InFlight, RETRY_DOUBT, RETRY_QUARANTINED, Reconciler};
use crate::config::Reload;
use crate::outputs::haproxy::cfg::effective::Scope;
use crate::outputs::haproxy::cfg::{Model, Ours};
use crate::outputs::haproxy::host::own_addresses;
use crate::outputs::haproxy::plan::{Change, Op, State};
use crate::outputs::haproxy::process::end::End;
use crate::outputs::haproxy::socket::{ApiError, RuntimeApi};

/// Servers named in one line of the log.
const TOLD: usize = 10;

/// What is known of the running haproxy, and how it is asked.
pub(super) struct Worker {
    pub(super) api: RuntimeApi,
    pub(super) observed: Option<Observed>,
    /// Its end, where it is ours to start another one.
    pub(super) end: Option<End>,
    /// How often the whole table was read.
    pub(super) looks: u64,
    pub(super) digests: Digests,
    pub(super) marks: Marks,
    pub(super) operator_maint: OperatorMaint,
    pub(super) proven: Proven,
    pub(super) fallbacks: Fallbacks,
    pub(super) awaited: Awaited,
    /// Workers that were replaced and have not ended.
    pub(super) lingering: Lingering,
    /// Servers taken out that nobody wants.
    pub(super) retired: BTreeMap<(String, String), Retired>,
    /// It has to be read before the next plan.
    pub(super) stale: bool,
    pub(super) socket: Socket,
    pub(super) states: States,
}

/// Servers of this worker that were added to be admitted by their first passed check, and when they were last looked at.
#[derive(Debug, Default)]
pub(super) struct Awaited {
    pub(super) servers: BTreeSet<(String, String)>,
    pub(super) looked_at: Option<Instant>,
}

impl Worker {
    /// Nobody has looked yet; what is remembered of it.
    pub(super) fn new(
        api: RuntimeApi,
        digests: Digests,
        marks: Marks,
        operator_maint: OperatorMaint,
    ) -> Self {
        Self {
            api,
            observed: None,
            end: None,
            looks: 0,
            digests,
            marks,
            operator_maint,
            proven: Proven::default(),
            fallbacks: Fallbacks::default(),
            awaited: Awaited::default(),
            lingering: Lingering::default(),
            retired: BTreeMap::new(),
            stale: true,
            socket: Socket::default(),
            states: States::default(),
        }
    }
}

impl Reconciler {
    /// Looks at the worker's pid and generation. Returns whether a pass is needed.
    pub(super) async fn poll(&mut self) -> bool {
        let now = Instant::now();
        self.jobs.file.sync(now);
        self.worker.lingering.look(self.worker.observed.as_ref());
        self.worker.marks.tidy().await;
        let due = |q: &super::Quarantine| {
            let waited = now.duration_since(q.since) >= RETRY_QUARANTINED;
            !q.until_changed && waited || q.blames.have_changed()
        };
        let again = self.aim.quarantined.iter().filter(|(_, q)| due(q));
        let again: Vec<String> = again.map(|(service, _)| service.clone()).collect();
        for service in &again {
            self.aim.quarantined.remove(service);
            self.replace_piece(service);
        }
        let retry = !again.is_empty();
        if self.jobs.in_flight == Some(InFlight::Reload) {
            return retry;
        }
        if self.worker.api.take_up() {
            return self.try_socket_again().await | retry;
        }
        if !self.worker.api.is_configured() {
            return self.look_at_the_process() | retry;
        }
        match self.worker.api.info().await {
            Ok(info) => {
                // Whatever was sent meanwhile is in doubt.
                self.worker.stale |= self.worker.socket.problem().is_some();
                let same = self.worker.observed.as_ref().is_some_and(|o| o.is(&info));
                if !same {
                    if let Some(observed) = &self.worker.observed {
                        self.publisher.tally.foreign_reloads += 1;
                        warn!(
                            former = observed.pid(),
                            pid = info.pid,
                            "haproxy runs another worker that we did not start"
                        );
                    }
                    self.worker.stale = true;
                }
                let changed = same && self.look_at_states().await;
                !same || changed || retry || self.worker.stale
            }
            Err(error) if error.is_absent() => {
                let lost = self.worker.observed.is_some() || self.worker.socket.problem().is_some();
                self.worker.stale = true;
                lost || retry
            }
            Err(error) => {
                let news = self.socket_failed(&error);
                // Whether it is of no use is found out by reading everything.
                self.worker.stale |= error.is_useless();
                self.replace_hung().await | news | error.is_useless() | retry
            }
        }
    }

    /// The stats socket was given up, and has been taken up again: whether it may be of use by now.
    async fn try_socket_again(&mut self) -> bool {
        match self.worker.api.info().await {
            Err(error) if error.is_useless() => {
                self.worker.api.give_up();
                // Where it can only be reloaded, nobody else would tell of its end.
                self.look_at_the_process()
            }
            // Also when nobody listens any more: haproxy has ended.
            _ => {
                self.worker.stale = true;
                true
            }
        }
    }

    /// The stats socket is there and of no use: told, and from now on every change is a reload, as without a socket.
    fn give_up_socket(&mut self, error: &ApiError) {
        let problem = format!(
            "{}; every change is a reload until it can be used",
            Chain(error)
        );
        if self
            .worker
            .socket
            .failed(&problem, true, (Instant::now(), Moment::now()))
        {
            error!("{problem}");
        }
        self.worker.api.give_up();
        self.worker.stale = false;
        self.aim.touched = Touched::All;
        if self.worker.observed.take().is_some() {
            self.publisher.unseen.extend(0..self.backends.len());
        }
    }

    /// It gives no answer, or cannot be asked. Returns whether that is news.
    pub(super) fn socket_failed(&mut self, error: &ApiError) -> bool {
        let problem = Chain(error).to_string();
        let now = (Instant::now(), Moment::now());
        let news = self.worker.socket.failed(&problem, !error.is_ours(), now);
        if news && error.is_ours() {
            warn!("{problem}; what runs goes on, and nothing is changed meanwhile");
        } else if news {
            warn!(
                problem,
                "the stats socket gives no answer; nothing is reloaded for that"
            );
        }
        news
    }

    /// Without a stats socket the master of a haproxy of ours tells whether it runs. Returns whether it has just ended.
    fn look_at_the_process(&mut self) -> bool {
        let ended = match &mut self.jobs.driver {
            Some(driver) => driver.has_ended(),
            None => false,
        };
        let news = ended && self.jobs.unconfirmed.is_some();
        if news {
            error!("haproxy exited");
            self.jobs.unconfirmed = None;
            self.jobs.limiter.died(Instant::now());
        }
        news
    }

    /// A worker of ours that has not answered for the time that the configuration allows is killed, and another one started
    /// in its place. Returns whether that was done.
    async fn replace_hung(&mut self) -> bool {
        let limit = self.config.haproxy.replace_hung_after;
        let silent = self.worker.socket.silent_for(Instant::now());
        let Some(silent) = silent.filter(|silent| limit.is_some_and(|limit| *silent >= limit))
        else {
            return false;
        };
        let Some(driver) = &mut self.jobs.driver else {
            return false;
        };
        let Some(end) = self.worker.end.take() else {
            return false;
        };
        error!(
            ?silent,
            "haproxy has not answered for longer than `haproxy.replace_hung_after`: it is killed, and another one is started"
        );
        end.kill();
        driver.kill().await;
        self.worker.stale = true;
        true
    }

    /// Reads the whole state of the worker.
    pub(super) async fn observe(&mut self) {
        if !self.worker.api.is_configured() {
            self.worker.stale = false;
            return;
        }
        let mut first = self.read_worker().await;
        if matches!(&first, Err(error) if error.is_useless()) {
            // A worker may have ended within its answer.
            first = self.read_worker().await;
        }
        let read = match first {
            Ok(observed) if self.worker.digests.pid() == Some(observed.pid()) => Ok(observed),
            Ok(observed) => {
                self.adopt_worker(observed.pid());
                self.read_worker().await
            }
            Err(error) => Err(error),
        };
        match read {
            Ok(mut observed) => {
                self.worker.stale = false;
                self.worker.proven.runs(&observed.running);
                self.worker.fallbacks.seen(&mut observed, None);
                if self.worker.socket.answered() {
                    info!("the stats socket answers again");
                }
                self.worker.states.all_read(Moment::now());
                self.note_maint(&mut observed);
                self.note_operator(&mut observed).await;
                if self
                    .worker
                    .observed
                    .as_ref()
                    .is_some_and(|o| o.pid() != observed.pid())
                {
                    // It begins with what the file says.
                    self.worker.awaited.servers.clear();
                }
                for key in observed.await_checks(&self.worker.awaited.servers) {
                    self.worker.awaited.servers.remove(&key);
                }
                self.worker
                    .lingering
                    .see(self.worker.observed.as_ref(), &observed);
                self.aim.touched = Touched::All;
                self.publisher.unseen.extend(0..self.backends.len());
                let former = self.worker.observed.as_ref();
                let differences = former.map(|former| former.differences(&observed));
                for (kind, count) in differences.unwrap_or_default() {
                    self.differs(kind, count);
                }
                if self.worker.observed.is_none() {
                    // What failed may have failed because nobody was there.
                    self.jobs.limiter.forgive();
                }
                self.worker.looks += 1;
                let ours = self.config.haproxy.reload == Reload::Supervise;
                self.worker.end = ours.then(|| End::of(observed.pid())).flatten();
                self.worker.observed = Some(observed);
            }
            Err(error) if error.is_absent() => {
                self.worker.stale = false;
                self.worker.socket.answered();
                self.aim.touched = Touched::All;
                if self.worker.observed.take().is_some() {
                    self.jobs.limiter.died(Instant::now());
                    self.publisher.unseen.extend(0..self.backends.len());
                    error!(error = %Chain(&error), "haproxy does not run any more, or not with this stats socket");
                }
            }
            Err(error) if error.is_useless() => self.give_up_socket(&error),
            Err(error) => _ = self.socket_failed(&error),
        }
    }

    async fn read_worker(&mut self) -> Result<Observed, ApiError> {
        let notes = Notes {
            digests: &self.worker.digests,
            marks: &self.worker.marks,
            operator_maint: &self.worker.operator_maint,
        };
        Observed::read(&mut self.worker.api, &notes).await
    }

    /// What only we know of the worker's servers.
    pub(super) fn notes(&self) -> Notes<'_> {
        Notes {
            digests: &self.worker.digests,
            marks: &self.worker.marks,
            operator_maint: &self.worker.operator_maint,
        }
    }

    /// A worker that we did not start has loaded the file as it stands now, which may not be the one we wrote.
    fn adopt_worker(&mut self, pid: u32) {
        if let Some(text) = self.read_disk() {
            let written = Scope::default().read(&Model::parse(&text, Ours::All));
            self.worker.digests = Digests::of_file(pid, &written);
        }
    }

    /// Everything is looked at again: what differs from what is believed was not told by anybody.
    pub(super) fn begin_audit(&mut self) {
        if self.circles.get_mut().set_own(own_addresses()) {
            info!("this host has other addresses");
            self.keeper.touch_all();
        }
        let believed = self.aim().is_some_and(|whole| self.jobs.file.holds(whole));
        self.read_disk();
        if believed && !self.aim().is_some_and(|whole| self.jobs.file.holds(whole)) {
            warn!("haproxy.cfg was changed by somebody else");
            self.differs("file", 1);
        }
        self.worker.stale = true;
    }

    pub(super) fn differs(&mut self, kind: &'static str, count: u64) {
        *self.publisher.tally.differences.entry(kind).or_default() += count;
    }

    /// Whose the maints are that were found.
    fn note_maint(&mut self, observed: &mut Observed) {
        self.worker.marks.settle(observed, None);
        let pid = observed.pid();
        if !observed.is_ours() {
            if self.worker.observed.as_ref().is_none_or(|o| o.pid() != pid) {
                let found = observed.retired();
                let found = found.filter(|(backend, _)| self.by_backend.contains_key(*backend));
                let found: Vec<String> = found.map(|(b, n)| format!("{b}/{n}")).collect();
                tell_foreign("in maint in a haproxy that runs another's file", &found);
            }
            return;
        }
        let Some(is_left) = self.worker.marks.leftovers() else {
            return;
        };
        let left: Vec<(String, String)> = observed
            .operator_maint()
            .into_keys()
            .filter(|key| is_left(&key.0, &key.1) && !self.worker.operator_maint.contains_key(key))
            .collect();
        for (backend, name) in left {
            self.worker.marks.claim(pid, &backend, &name);
            observed.owned(&backend, &name, State::Retired);
        }
    }

    /// Servers that an operator disabled are rendered so, and servers made ready again are not.
    pub(super) async fn note_operator(&mut self, observed: &mut Observed) {
        let pid = observed.pid();
        let mut maint = observed.operator_maint();
        if self.worker.marks.restored == Some(pid) {
            let undisabled = self.worker.fallbacks.undisabled();
            let known = self.worker.operator_maint.iter();
            maint.extend(
                known
                    .filter(|(key, _)| undisabled.contains(key))
                    .map(|(k, v)| (k.clone(), *v)),
            );
        } else {
            // This worker was not told of what an operator did to the one before.
            let lost = self.lost_maint(observed);
            maint.extend(self.worker.operator_maint.clone());
            if lost.is_empty() || self.put_back(&lost, observed).await {
                self.worker.marks.restored = Some(pid);
            }
        }
        if maint == self.worker.operator_maint {
            return;
        }
        let touched: BTreeSet<&str> = maint
            .keys()
            .chain(self.worker.operator_maint.keys())
            .filter(|key| maint.contains_key(*key) != self.worker.operator_maint.contains_key(*key))
            .map(|(backend, _)| backend.as_str())
            .collect();
        let dirty = self.indexes(|state| {
            state
                .name()
                .is_some_and(|backend| touched.contains(backend))
        });
        self.keeper.touch(dirty);
        self.worker.operator_maint = maint;
        self.publisher.saves_at_once = true;
        self.again_at(Instant::now());
    }

    /// An operator's word that a look at some backends has shown is heard at once: the next worker may be another's, and a
    /// later look finds nothing that it does not know.
    pub(super) async fn hear(&mut self) {
        if let Some(mut observed) = self.worker.observed.take() {
            self.note_operator(&mut observed).await;
            self.worker.observed = Some(observed);
        }
    }

    /// What a new worker lacks of the operator's maints. One whose line says `disabled` and that is ready was made so by an
    /// operator, unless it has an agent that the operator had switched off: then by that.
    fn lost_maint(&self, observed: &Observed) -> Vec<Op> {
        let lost = |((backend, name), silent): (&(String, String), &bool)| {
            let found = observed.server(backend, name)?;
            let agent = *silent && found.agent == Some(true);
            let is_lost = match found.state {
                State::Ready => agent || !observed.was_disabled(backend, name),
                State::OperatorMaint => agent,
                State::Retired | State::OperatorDrain => false,
            };
            is_lost.then(|| Op {
                backend: backend.clone(),
                server: name.clone(),
                change: Change::Maint { agent },
            })
        };
        self.worker.operator_maint.iter().filter_map(lost).collect()
    }

    /// Whether it is done with, as far as this worker does it.
    async fn put_back(&mut self, lost: &[Op], observed: &mut Observed) -> bool {
        info!(
            count = lost.len(),
            "servers that an operator had disabled are again"
        );
        let results = match self.worker.api.apply(lost).await {
            Ok(results) => results,
            Err(error) => {
                self.socket_failed(&error);
                self.doubt();
                return false;
            }
        };
        let mut done = true;
        for (op, result) in lost.iter().zip(results) {
            match result {
                Ok(()) => observed.apply(op),
                Err(refusal) => {
                    let means = self.note_refusal(op, &refusal, observed.pid());
                    done &= means != Means::LookAgain;
                    self.worker.fallbacks.tell(observed);
                }
            }
        }
        if !done {
            self.doubt();
        }
        done
    }

    /// The worker has to be read again before anything is believed.
    pub(super) fn doubt(&mut self) {
        self.worker.stale = true;
        self.jobs.retry_at = Some(Instant::now() + RETRY_DOUBT);
    }
}

/// Says once what is out of use in a haproxy or file that is not ours.
pub(super) fn tell_foreign(what: &str, servers: &[String]) {
    if servers.is_empty() {
        return;
    }
    let named = servers.iter().take(TOLD).map(String::as_str);
    warn!(
        count = servers.len(),
        servers = named.collect::<Vec<_>>().join(" "),
        "servers are {what}: that is no operator's order to synapse, those that the registry has are served"
    );
}
