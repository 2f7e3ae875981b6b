//! What the reconciler publishes after a pass: the view behind `/status` and `/metrics`, and the snapshot.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use tokio::time::Instant;
use tracing::{info, warn};

use super::observed::{MAINT, Observed, SILENT_MAINT};
use super::{Outputs, Reconciler, SAVE_PAUSE, SHOW_PAUSE, SNAPSHOT_PAUSE};
use crate::model::server::Rejected;
use crate::model::sorted::Walk;
use crate::outputs::haproxy::backend::Backend;
use crate::outputs::haproxy::file::Whole;
use crate::outputs::haproxy::plan::{Kind, Plan};
use crate::outputs::haproxy::reconciler::apply::Next;
use crate::report::status::{Board, ReloadView};
use crate::report::status::{HaproxyView, ServerView, ServiceView, SourceStatus, View};
use crate::snapshot::Snapshot;
use crate::wanted::funnel::{Note, Origin, ServiceDesired};
use crate::wanted::service::State;
use tokio::sync::watch;

/// The view of a service with more servers follows its change a little later.
const LARGE: usize = 100;
/// Entries that are refused at one time, each told in a line of the log.
const TOLD: usize = 10;

/// Counts of what was done, for status and metrics.
#[derive(Debug, Clone, Default)]
pub(super) struct Tally {
    pub(super) reloads: u64,
    pub(super) reload_failures: u64,
    pub(super) last_reload: Option<ReloadView>,
    pub(super) runtime_ops: u64,
    pub(super) foreign_reloads: u64,
    /// Differences that nobody had told of, by kind.
    pub(super) differences: BTreeMap<&'static str, u64>,
}

/// What was published, and what has to be.
pub(super) struct Publisher {
    pub(super) board: Arc<Board>,
    pub(super) view: watch::Sender<Arc<View>>,
    pub(super) snapshot: watch::Sender<Arc<Snapshot>>,
    /// Services whose view has to be published anew, and when that is due.
    pub(super) unseen: BTreeSet<usize>,
    pub(super) show_at: Option<Instant>,
    /// Something in the snapshot has changed; something of it that nobody else knows, such as a hold.
    pub(super) unsaved: bool,
    pub(super) saves_at_once: bool,
    /// When the next one is handed over; when the last one was.
    pub(super) save_at: Option<Instant>,
    pub(super) saved_at: Instant,
    /// haproxy has served what was wanted, once.
    pub(super) has_served: bool,
    pub(super) tally: Tally,
}

impl Publisher {
    /// Nothing was published; the snapshot is written soon.
    pub(super) fn new(outputs: Outputs) -> Self {
        Self {
            board: outputs.board,
            view: outputs.view,
            snapshot: outputs.snapshot,
            unseen: BTreeSet::new(),
            show_at: None,
            unsaved: true,
            saves_at_once: true,
            save_at: None,
            saved_at: Instant::now(),
            has_served: false,
            tally: Tally::default(),
        }
    }
}

impl Reconciler {
    /// Publishes what has changed. `None` = nothing could be assembled.
    pub(super) fn publish(&mut self, next: Option<&Next>) {
        let now = Instant::now();
        if self.publisher.unsaved {
            let earliest = if self.publisher.saves_at_once {
                now
            } else {
                self.publisher.saved_at + SNAPSHOT_PAUSE
            };
            let due = earliest.max(now + SAVE_PAUSE);
            self.publisher.save_at = Some(self.publisher.save_at.map_or(due, |at| at.min(due)));
        }
        self.publisher.has_served |= next.is_some() && self.serves();
        let view = self.view_now(next);
        let was_ready = self.publisher.view.borrow().ready;
        let large = |index: &usize| {
            let state = self.backends.get(*index);
            state.is_some_and(|state| state.servers.len() > LARGE)
        };
        let later: BTreeSet<usize> = match was_ready {
            true => self
                .publisher
                .unseen
                .iter()
                .copied()
                .filter(large)
                .collect(),
            false => BTreeSet::new(),
        };
        self.show(&later);
        if !later.is_empty() {
            self.publisher.show_at.get_or_insert(now + SHOW_PAUSE);
        }
        if view.ready && !was_ready {
            info!(
                generation = view.haproxy.generation,
                "haproxy serves what the sources say"
            );
        }
        self.publisher.view.send_replace(Arc::new(view));
    }

    /// Publishes the views of the services that have changed, but for these.
    pub(super) fn show(&mut self, later: &BTreeSet<usize>) {
        if later.is_empty() {
            self.publisher.show_at = None;
        }
        for index in std::mem::replace(&mut self.publisher.unseen, later.clone()) {
            if !later.contains(&index)
                && let Some(state) = self.backends.get(index)
                && let Some(wish) = self.keeper.services().get(index)
            {
                let service = &state.service.name;
                let view = Arc::new(self.service_view(wish, state));
                let before = self.publisher.board.put(service, Arc::clone(&view));
                let former = before.as_ref().map_or(&[][..], |f| f.rejected.as_slice());
                tell_rejected(service, former, &view.rejected);
                let former = before.as_ref().map_or(&[][..], |f| f.left_out.as_slice());
                tell_left_out(service, former, &view.left_out);
                let known = before.as_ref().map_or(&[][..], |f| &f.parent_config);
                if !view.parent_config.is_empty() && view.parent_config != known {
                    warn!(
                        service,
                        keys = view.parent_config.join(", "),
                        bytes = view.parent_data,
                        "the data of the watched path is configuration that Ruby's synapse would apply; it is not used here: write what is needed of it into the service's own section"
                    );
                }
            }
        }
    }

    /// The services of these backends have another table.
    pub(super) fn see<'a>(&mut self, backends: impl IntoIterator<Item = &'a String>) {
        for backend in backends {
            self.publisher.unseen.extend(self.by_backend.get(backend));
        }
        self.publisher.unsaved = true;
    }

    /// Hands the present state to the snapshot's writer.
    pub(super) fn save(&mut self) {
        self.publisher.unsaved = false;
        self.publisher.saves_at_once = false;
        self.publisher.save_at = None;
        self.publisher.saved_at = Instant::now();
        self.publisher
            .snapshot
            .send_replace(Arc::new(self.snapshot_now()));
    }

    fn view_now(&self, next: Option<&Next>) -> View {
        let serving = next.is_some() && self.serves();
        let silent = self.worker.socket.silent_since().filter(|_| self.can_ask());
        let state = match (&self.worker.observed, serving) {
            _ if silent.is_some() => "not answering",
            (None, true) => "unconfirmed",
            (None, false) => "unreachable",
            (Some(_), true) => "serving",
            (Some(_), false) => "other generation",
        };
        let Tally {
            reloads,
            reload_failures,
            last_reload,
            differences,
            ..
        } = &self.publisher.tally;
        let info = self.worker.observed.as_ref().map(|o| &o.info);
        let wanted = self.aim.wanted.as_ref().map(Whole::desired);
        let haproxy = HaproxyView {
            state,
            silent_since: silent,
            states_at: info.and(self.worker.states.read_at()),
            pid: info.map(|i| i.pid),
            version: info.map(|i| i.version.clone()),
            generation: info.and_then(|i| i.generation()).map(|g| g.to_string()),
            wanted_generation: wanted.map(|desired| desired.generation.to_string()),
            // A file that cannot be written is a divergence: the next worker would begin with another state.
            divergence: usize::from(self.jobs.write_problem.is_some())
                + match next {
                    None => 0,
                    // Nobody tells how far it is: the last load was of this file, or not.
                    Some(_) if !self.can_ask() => usize::from(!serving),
                    Some(next) => divergence(&next.wanted),
                },
            differences: differences.clone(),
            reloads: *reloads,
            reload_failures: *reload_failures,
            foreign_reloads: self.publisher.tally.foreign_reloads,
            lingering: self.worker.lingering.view(),
            runtime_ops: self.publisher.tally.runtime_ops,
            last_reload: last_reload.clone(),
            fallbacks: self.fallbacks_now(),
        };
        let problems = [
            &self.worker.socket.problem().cloned(),
            &self.jobs.write_problem,
            &self.jobs.unchecked,
            &self.jobs.reload_problem,
            &self.worker.fallbacks.denied().map(str::to_owned),
        ];
        let problems = problems.into_iter().flatten();
        let problems = problems.chain(&self.aim.frame_problems);
        let not_ready = self.not_ready(state);
        View {
            ready: not_ready.is_none(),
            not_ready,
            has_served: self.publisher.has_served,
            haproxy,
            problems: problems.cloned().collect(),
        }
    }

    /// Why haproxy cannot be said to serve what is wanted. Once it has, another structure of ours may wait for its reload.
    fn not_ready(&self, state: &str) -> Option<String> {
        let loaded = self.running().map(|running| running.generation.is_some());
        let goes_on = self.publisher.has_served
            && loaded.unwrap_or(!self.can_ask() && self.jobs.unconfirmed.is_some());
        match state {
            "not answering" => Some("haproxy does not answer on its stats socket".to_owned()),
            "unreachable" if self.can_ask() => {
                Some("haproxy is not running, or not with this stats socket".to_owned())
            }
            _ if !self.serves() && !goes_on => {
                Some("haproxy does not serve our generation yet".to_owned())
            }
            _ if self.all_left_out() => Some(
                "every service is left out of haproxy.cfg: haproxy refuses each of them".to_owned(),
            ),
            _ => None,
        }
    }

    /// There are services, and none is in the file in any form.
    fn all_left_out(&self) -> bool {
        let mut rendered = self.backends.iter().filter(|s| s.piece.is_some());
        let in_file = |state: &Backend| {
            let fine = matches!(state.piece, Some(Ok(_))) && self.quarantine(state).is_none();
            fine || self.piece(state).is_some()
        };
        rendered.clone().next().is_some() && !rendered.any(in_file)
    }

    /// By backend: what needs a reload there, and why.
    fn fallbacks_now(&self) -> BTreeMap<String, String> {
        let mut found = self.worker.fallbacks.reload_only.clone();
        for (backend, kind, reason) in self.worker.fallbacks.reasons() {
            if kind == Kind::Add {
                continue;
            }
            let words = found.entry(backend.clone()).or_default();
            if !words.is_empty() {
                words.push_str("; ");
            }
            words.push_str(&format!("{kind}: {reason}"));
        }
        found
    }

    fn service_view(&self, wish: &State, state: &Backend) -> ServiceView {
        let sources = wish.source_views();
        let desired = wish.desired.as_ref();
        let backend = state.name();
        let mut servers: Vec<ServerView> = state
            .servers
            .iter()
            .map(|s| ServerView {
                name: s.server.name.clone(),
                address: s.server.address.to_string(),
                port: s.server.port,
                id: backend.map(|_| s.id),
                weight: s.server.weight,
                znode: s.server.znode.clone(),
                wanted: !s.server.is_parked(),
                haproxy: backend
                    .and_then(|b| self.worker.observed.as_ref()?.word(b, &s.server.name)),
                other_weight: backend.and_then(|b| {
                    self.worker
                        .observed
                        .as_ref()?
                        .other_weight(b, &s.server.name)
                }),
                held: desired.is_some_and(|d| d.held.contains(&s.server.name)),
            })
            .collect();
        if let (Some(observed), Some(backend)) = (&self.worker.observed, backend) {
            servers.extend(unwanted(observed, backend, self.aim.ids.get(backend)));
        }
        let seeded = wish.is_seeded();
        let origin = if seeded {
            "snapshot"
        } else {
            desired.map_or("snapshot", |d| d.origin.as_str())
        };
        let guard = wish.hold_view();
        let previous = desired.filter(|d| d.origin == Origin::Held).map(|_| {
            "nothing is registered; the last set stays because `use_previous_backends` is true"
                .to_owned()
        });
        let hold = guard.hold.clone().or(previous);
        let mut rejected: Vec<Rejected> = desired.map(|d| d.rejected.clone()).unwrap_or_default();
        rejected.extend(state.refused.iter().cloned());
        let noted = |notes: fn(&ServiceDesired) -> &Vec<Note>| {
            let notes = desired.into_iter().flat_map(notes);
            notes.map(|n| Rejected {
                znode: n.znode.clone(),
                reason: n.text.clone(),
            })
        };
        let left_out: Vec<Rejected> = noted(|d| &d.left_out).collect();
        let mut notes: Vec<Rejected> = state.id_notes.clone();
        notes.extend(noted(|d| &d.notes));
        notes.extend(left_out.iter().cloned());
        let parked = state.servers.iter().filter(|s| s.server.is_parked());
        notes.extend(parked.map(|s| {
            Rejected {
                znode: s.server.name.clone(),
                reason:
                    "not registered; it stays in haproxy.cfg, disabled, because a line names it"
                        .to_owned(),
            }
        }));
        let template = state
            .piece
            .as_ref()
            .and_then(|piece| piece.as_ref().err())
            .cloned();
        let problems: Vec<String> = sources.iter().filter_map(SourceStatus::problem).collect();
        let views = || wish.intake.sources().map(|(_, view)| view);
        ServiceView {
            origin,
            agreed_at: views().map(|v| v.agreed_at).min().flatten(),
            fresh: views().all(|v| v.fresh),
            backend: backend.map(str::to_owned),
            servers,
            rejected,
            notes,
            left_out,
            withdrawn: desired.map(|d| d.withdrawn.clone()).unwrap_or_default(),
            filtered: desired
                .map(|d| d.filtered.iter().cloned().collect())
                .unwrap_or_default(),
            hold,
            quarantined: template.or_else(|| {
                self.aim
                    .quarantined
                    .get(&state.service.name)
                    .map(super::aim::Quarantine::words)
            }),
            problem: (!problems.is_empty()).then(|| problems.join("; ")),
            parent_data: views().map(|v| v.parent_data).max().unwrap_or_default(),
            parent_config: views()
                .flat_map(|v| v.parent_config.iter().cloned())
                .collect(),
            guard,
            sources,
        }
    }

    fn snapshot_now(&self) -> Snapshot {
        let operator = self
            .worker
            .operator_maint
            .iter()
            .map(|((backend, name), silent)| {
                let state = if *silent { SILENT_MAINT } else { MAINT };
                (format!("{backend}/{name}"), state.to_owned())
            });
        Snapshot {
            machine: self.machine.clone(),
            ids: self.aim.ids.clone(),
            operator: Arc::new(operator.collect()),
            worker: self.worker.digests.worker().map(Arc::new),
            ..self.keeper.snapshot()
        }
    }
}

/// Says which registry entries are not used from now on.
fn tell_rejected(service: &str, former: &[Rejected], now: &[Rejected]) {
    let known: BTreeSet<&Rejected> = former.iter().collect();
    let mut new = now.iter().filter(|rejected| !known.contains(rejected));
    for Rejected { znode, reason } in new.by_ref().take(TOLD) {
        warn!(
            service,
            znode, reason, "an entry of the registry is not used"
        );
    }
    let more = new.count();
    if more > 0 {
        warn!(
            service,
            more, "other entries of the registry are not used either: see `synapse status`"
        );
    }
}

/// Says what of the registry's entries is not used from now on: each loss once for the service, however many entries share
/// it.
fn tell_left_out(service: &str, former: &[Rejected], now: &[Rejected]) {
    let known: BTreeSet<&str> = former.iter().map(|r| r.reason.as_str()).collect();
    let mut new: BTreeMap<&str, (&str, usize)> = BTreeMap::new();
    for Rejected { znode, reason } in now.iter().filter(|r| !known.contains(r.reason.as_str())) {
        new.entry(reason).or_insert((znode, 0)).1 += 1;
    }
    let mut new = new.into_iter();
    for (reason, (znode, entries)) in new.by_ref().take(TOLD) {
        warn!(
            service,
            znode, entries, reason, "an entry of the registry is used without a part of it"
        );
    }
    let more = new.count();
    if more > 0 {
        warn!(
            service,
            more, "more is left out of entries of the registry: see `synapse status`"
        );
    }
}

/// What haproxy has in the backend beside the wanted servers and the user's own lines: removed ones waiting for the next
/// reload, or ones that somebody else added.
fn unwanted<'a>(
    observed: &'a Observed,
    backend: &'a str,
    wanted: Option<&'a Arc<BTreeMap<String, u32>>>,
) -> impl Iterator<Item = ServerView> + 'a {
    let mut wanted = wanted.map(|ids| Walk::of(ids));
    observed
        .names(backend)
        .filter(move |name| wanted.as_mut().is_none_or(|w| w.get(*name).is_none()))
        .filter_map(move |name| {
            let server = observed.server(backend, name)?;
            Some(ServerView {
                name: name.clone(),
                address: server
                    .address
                    .map(|a| a.ip().to_string())
                    .unwrap_or_default(),
                port: server.address.map_or(0, |a| a.port()),
                id: Some(server.id),
                weight: Some(server.weight),
                znode: None,
                wanted: false,
                haproxy: observed.word(backend, name),
                other_weight: None,
                held: false,
            })
        })
}

/// Servers and structures in which haproxy and the wanted state differ.
fn divergence(plan: &Plan) -> usize {
    match plan {
        Plan::Unchanged => 0,
        Plan::Runtime(ops) => ops.len(),
        Plan::Reload { first, .. } => first.len() + 1,
    }
}
