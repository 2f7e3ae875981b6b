//! Which file is worked towards: the wanted one, or, while its structure has to wait for a reload, the servers in the
//! structure that the worker has loaded. Both are kept piece by piece.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use smartstack_common::report::Chain;
use tokio::time::Instant;
use tracing::error;

use super::blames::Blames;
use super::window::Window;
use super::{Reconciler, SETTLE, ServerState};
use crate::config::Config;
use crate::model::sorted::Walk;
use crate::outputs::haproxy::cfg::generation::Generation;
use crate::outputs::haproxy::file::Whole;
use crate::outputs::haproxy::file::good::Good;
use crate::outputs::haproxy::load::{BadFrame, Kept};
use crate::outputs::haproxy::plan::{
    Change, Kind, Op, Plan, Reach, Running, RunningServer, plan, plan_some,
};
use crate::outputs::haproxy::render::Renderer;
use crate::snapshot::Ids;

/// What may differ from what is wanted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Touched {
    /// Anything: the worker was read, or another file is worked towards.
    All,
    /// So much of these backends.
    Some(BTreeMap<String, Reach>),
}

impl Touched {
    /// These backends.
    pub(super) fn whole(backends: impl IntoIterator<Item = String>) -> Self {
        let backends = backends.into_iter();
        Self::Some(backends.map(|name| (name, Reach::Backend)).collect())
    }

    /// More.
    pub(super) fn add(&mut self, more: Self) {
        match (&mut *self, more) {
            (Self::Some(touched), Self::Some(more)) => {
                for (name, reach) in more {
                    let known = touched.entry(name);
                    known.and_modify(|r| r.add(reach.clone())).or_insert(reach);
                }
            }
            (Self::All, _) => {}
            (_, Self::All) => *self = Self::All,
        }
    }
}

/// Why a service is not rendered as configured.
#[derive(Debug, Clone)]
pub(super) struct Quarantine {
    /// The refused structure: another one is tried at once.
    pub(super) structure: Vec<u8>,
    /// haproxy's words.
    pub(super) reason: String,
    /// What the words are about.
    pub(super) blames: Blames,
    /// What stands in the file instead.
    pub(super) kept: Kept,
    /// A worker failed to start with it for a reason that shows at a start alone: a living worker is not asked again.
    pub(super) until_changed: bool,
    pub(super) since: Instant,
}

/// A frame that was refused as configured.
#[derive(Clone)]
pub(super) struct RefusedFrame {
    pub(super) refused: Arc<Renderer>,
    /// What stands in for it.
    pub(super) instead: Arc<Renderer>,
    /// When it is tried again; `None` = when the configuration is loaded again.
    pub(super) until: Option<Instant>,
}

impl Quarantine {
    /// When it is tried again, in words.
    pub(super) fn again(until_changed: bool) -> &'static str {
        match until_changed {
            true => "when its configuration or what haproxy names changes",
            false => "every 60 s, and when its configuration or what haproxy names changes",
        }
    }

    /// For people: the reason, what is served instead, and when it is tried again.
    pub(super) fn words(&self) -> String {
        let (stays, again) = (self.kept.words(), Self::again(self.until_changed));
        format!(
            "{} (served instead: {stays}; tried again {again})",
            self.reason
        )
    }
}

/// What is worked towards.
pub(super) struct Aim {
    /// Services that are assessed and not rendered yet.
    pub(super) unrendered: BTreeSet<usize>,
    /// Services whose place in the file has to be made anew.
    pub(super) replaced: BTreeSet<usize>,
    pub(super) window: Window,
    /// The file as it should be.
    pub(super) wanted: Option<Whole>,
    /// The servers in the structure that the worker has loaded, while another one waits; with the names of its services.
    pub(super) held: Option<(Vec<String>, Whole)>,
    pub(super) touched: Touched,
    /// haproxy's ids by backend and NAME.
    pub(super) ids: Ids,
    pub(super) good: Good,
    pub(super) quarantined: BTreeMap<String, Quarantine>,
    /// `(backend, options)` that haproxy has refused, and why.
    pub(super) refused_options: BTreeMap<(String, String), String>,
    pub(super) refused_frame: Option<RefusedFrame>,
    /// Why the frame is not rendered as configured.
    pub(super) frame_problems: Vec<String>,
    /// What was last taken into [`Good`].
    pub(super) accepted: Option<(Generation, Arc<Renderer>)>,
    /// While nobody runs the file and starts back off, the file follows the current servers; it already does.
    pub(super) followed: bool,
    /// Until when a reload waits for sources that the configuration has just named.
    pub(super) settle: Option<Instant>,
}

impl Aim {
    /// Nothing yet; servers keep the ids that are remembered.
    pub(super) fn new(config: &Config, ids: Ids) -> Self {
        Self {
            unrendered: BTreeSet::new(),
            replaced: BTreeSet::new(),
            window: Window::new(config.coalesce.0, config.coalesce.1),
            wanted: None,
            held: None,
            touched: Touched::All,
            ids,
            good: Good::default(),
            quarantined: BTreeMap::new(),
            refused_options: BTreeMap::new(),
            refused_frame: None,
            frame_problems: Vec::new(),
            accepted: None,
            followed: false,
            settle: None,
        }
    }

    /// Takes another configuration: the file is made anew, and what was refused is tried again, at once.
    pub(super) fn configure(&mut self, config: &Config, now: Instant) {
        self.window = Window::new(config.coalesce.0, config.coalesce.1);
        self.wanted = None;
        self.held = None;
        self.unrendered.clear();
        self.quarantined.clear();
        self.refused_options.clear();
        self.refused_frame = None;
        self.frame_problems.clear();
        self.followed = false;
        self.settle = Some(now + SETTLE);
    }
}

impl Reconciler {
    /// Brings the wanted file up to date with what was rendered.
    pub(super) fn refresh(&mut self) -> Result<(), String> {
        let frame = Arc::clone(self.frame());
        let usable = |whole: &Whole| Arc::ptr_eq(whole.frame(), &frame);
        let replaced = std::mem::take(&mut self.aim.replaced);
        if self.aim.wanted.as_ref().is_none_or(|whole| !usable(whole)) {
            self.worker.fallbacks.reload_only.clear();
            self.aim.touched = Touched::All;
            self.aim.held = None;
            return self.rebuild();
        }
        for index in replaced {
            let Some(state) = self.backends.get(index) else {
                continue;
            };
            let piece = self.piece(state);
            if let Some((order, whole)) = &mut self.aim.held
                && let Some(at) = order.iter().position(|name| *name == state.service.name)
                && whole
                    .set(at, self.aim.good.piece(&state.service, &state.servers))
                    .is_err()
            {
                self.aim.held = None;
            }
            if let Some(whole) = &mut self.aim.wanted {
                match whole.set(index, piece) {
                    Ok(touched) => self.aim.touched.add(Touched::Some(touched)),
                    Err(error) => {
                        self.aim.wanted = None;
                        return Err(Chain(&error).to_string());
                    }
                }
            }
        }
        Ok(())
    }

    /// When a template of the frame fails, the last good frame holds the services meanwhile.
    fn rebuild(&mut self) -> Result<(), String> {
        let problem = match self.whole() {
            Ok(whole) => {
                self.aim.wanted = Some(whole);
                return Ok(());
            }
            Err(problem) => problem,
        };
        let refused = Arc::clone(self.frame());
        let good = self.aim.good.frame.clone();
        let Some(instead) = good.filter(|_| Arc::ptr_eq(&refused, &self.renderer)) else {
            return Err(problem);
        };
        self.refuse_frame(BadFrame {
            refused,
            instead,
            words: vec![format!(
                "haproxy.cfg cannot be rendered, its last good frame stays: {problem}"
            )],
            unforeseen: false,
        });
        self.aim.wanted = Some(self.whole()?);
        Ok(())
    }

    fn whole(&self) -> Result<Whole, String> {
        let pieces = self.backends.iter().map(|state| self.piece(state));
        Whole::new(self.frame(), pieces.collect()).map_err(|e| Chain(&e).to_string())
    }

    pub(super) fn cannot_render(&mut self, problem: String) {
        if !self.aim.frame_problems.contains(&problem) {
            error!(
                problem,
                "haproxy.cfg cannot be rendered: the running one stays as it is"
            );
            self.aim.frame_problems = vec![problem];
        }
        self.publish(None);
    }

    /// The servers in the structure that the worker has loaded; kept until that is the wanted one.
    pub(super) fn hold(&mut self) {
        let generation = self
            .running()
            .and_then(|running| running.generation.clone());
        let loaded = |whole: &Whole| generation.as_ref() == Some(&whole.desired().generation);
        let frame = self.aim.good.frame.clone().filter(|_| generation.is_some());
        let (Some(frame), false) = (frame, self.aim.wanted.as_ref().is_some_and(loaded)) else {
            self.aim.held = None;
            return;
        };
        if self.aim.held.is_none() {
            let services = self.backends.iter();
            let servers = services.map(|s| (s.service.name.as_str(), s.servers.as_slice()));
            let (order, pieces) = self.aim.good.loaded(&servers.collect()).into_iter().unzip();
            self.aim.held = Whole::new(&frame, pieces).ok().map(|whole| (order, whole));
        }
        if !self
            .aim
            .held
            .as_ref()
            .is_some_and(|(_, whole)| loaded(whole))
        {
            self.aim.held = None;
        }
    }

    /// The file that is worked towards now.
    pub(super) fn aim(&self) -> Option<&Whole> {
        let held = self.aim.held.as_ref().map(|(_, whole)| whole);
        held.or(self.aim.wanted.as_ref())
    }

    pub(super) fn running(&self) -> Option<&Running> {
        self.worker
            .observed
            .as_ref()
            .map(|observed| &observed.running)
    }

    /// From what runs to the wanted file, or to the one that is held meanwhile. Backends whose servers are not rendered
    /// yet are left alone.
    pub(super) fn plan(&self, whole: &Whole) -> Plan {
        let nothing = Running::default();
        let running = self.running().unwrap_or(&nothing);
        let desired = whole.desired();
        let waiting: BTreeSet<&str> = self
            .aim
            .unrendered
            .iter()
            .filter_map(|index| self.backends.get(*index)?.name())
            .collect();
        match &self.aim.touched {
            Touched::All if waiting.is_empty() => plan(running, desired),
            Touched::All => {
                let names = desired.backends.keys();
                let names = names.filter(|n| !waiting.contains(n.as_str()));
                plan_some(running, desired, names.map(|name| (name, &Reach::Backend)))
            }
            Touched::Some(touched) => {
                let rendered = touched.iter();
                let rendered = rendered.filter(|(name, _)| !waiting.contains(name.as_str()));
                plan_some(running, desired, rendered)
            }
        }
    }

    /// Names of the backends that are planned for.
    pub(super) fn planned(&self, whole: &Whole) -> Vec<String> {
        match &self.aim.touched {
            Touched::All => whole.desired().backends.keys().cloned().collect(),
            Touched::Some(touched) => touched.keys().cloned().collect(),
        }
    }

    /// Takes out servers that were assessed to have gone, before anything is rendered: removals wait for no window, no
    /// file and no job. Not where fewer would stay than are on their way, or none: it may be half of a larger change.
    pub(super) async fn remove_at_once(&mut self, assessed: &BTreeSet<usize>) {
        let Some(observed) = self.worker.observed.as_ref().filter(|_| !self.worker.stale) else {
            return;
        };
        let Some(whole) = self.aim() else {
            return;
        };
        let (mut ops, mut waits) = (Vec::new(), false);
        for state in assessed.iter().filter_map(|i| self.backends.get(*i)) {
            let Some((backend, before)) = state
                .name()
                .and_then(|name| Some((name, whole.desired().backends.get(name)?)))
            else {
                continue;
            };
            let shown = observed.running.backends.get(backend);
            let (Some(shown), Some(wanted)) = (shown, self.aim.ids.get(backend)) else {
                continue;
            };
            if observed.running.refuses.of(backend, Kind::Retire).is_some() {
                // They leave with the reload.
                continue;
            }
            let may_go: Vec<&String> = match &state.gone {
                Some(gone) => gone.iter().collect(),
                None => shown.keys().collect(),
            };
            // They have an id, and are out of rotation.
            let parked = state.servers.iter().filter(|s| s.server.is_parked());
            let parked: BTreeSet<&str> = parked.map(|s| s.server.name.as_str()).collect();
            let goes = |name: &&String| {
                let found = shown.get(*name).map(|found| found.state);
                let takes = matches!(found, Some(ServerState::Ready | ServerState::OperatorDrain));
                let unwanted = !wanted.contains_key(*name) || parked.contains(name.as_str());
                takes && before.servers.contains_key(*name) && unwanted
            };
            let mut gone: Vec<Op> = may_go
                .into_iter()
                .filter(goes)
                .map(|name| Op {
                    backend: backend.to_owned(),
                    server: name.clone(),
                    change: Change::Retire {
                        agent: shown.get(name).is_some_and(|s| s.agent.is_some()),
                    },
                })
                .collect();
            if gone.is_empty() {
                continue;
            }
            if enough_stay(shown, wanted, &parked, &before.structural) {
                ops.append(&mut gone);
            } else {
                waits = true;
            }
        }
        if waits {
            self.aim.window.hold(Instant::now());
        }
        if !ops.is_empty() {
            self.apply(&ops).await;
        }
    }

    /// The service that a backend belongs to.
    pub(super) fn index_services(&mut self) {
        self.by_backend.clear();
        for (index, state) in self.backends.iter().enumerate() {
            if let Some(backend) = state.name() {
                self.by_backend.insert(backend.to_owned(), index);
            }
        }
    }
}

/// Whether at least as many servers stay as have yet to come: wanted ones that the worker has not, or that are taken out.
fn enough_stay(
    shown: &BTreeMap<String, RunningServer>,
    wanted: &BTreeMap<String, u32>,
    parked: &BTreeSet<&str>,
    structural: &BTreeSet<String>,
) -> bool {
    let mut names = Walk::of(wanted);
    let (mut stay, mut there) = (0, 0);
    for (name, found) in shown {
        let is_wanted = names.get(name).is_some() && !parked.contains(name.as_str());
        there += usize::from(is_wanted && found.state != ServerState::Retired);
        let stays = is_wanted || structural.contains(name);
        stay += usize::from(stays && found.state == ServerState::Ready);
    }
    stay > 0 && stay + there + parked.len() >= wanted.len()
}
