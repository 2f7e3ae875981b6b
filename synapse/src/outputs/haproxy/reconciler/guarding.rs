//! What the guards need of the running haproxy and of the other services, and when they look again.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use smartstack_common::clock::Moment;

use tracing::{info, warn};

use super::{Order, Reconciler};
use crate::report::status::{HoldView, SourceStatus};
use crate::wanted::guard::{Address, Clock, Evidence};
use crate::wanted::intake::{Facts, Taken};
use crate::wanted::service::State;

/// What is known of checks, and what has been told of holds.
#[derive(Debug, Default)]
pub(super) struct Guarding {
    pub(super) clock: Clock,
    /// By backend: when its table was read, and what its checks said by NAME.
    checks: BTreeMap<String, (Duration, BTreeMap<String, Evidence>)>,
    /// Services whose hold was logged.
    told: BTreeSet<String>,
    /// Services of which more is held than before, by index.
    restored: BTreeSet<usize>,
}

/// The world of one service's guards.
struct Around<'a> {
    /// NAMEs by znode.
    names: BTreeMap<&'a str, &'a str>,
    /// There is a stats socket.
    can_ask: bool,
    checks: Option<&'a (Duration, BTreeMap<String, Evidence>)>,
    others: &'a [State],
}

impl Facts for Around<'_> {
    fn evidence(&self, znode: &str, since: Duration) -> Evidence {
        if !self.can_ask {
            return Evidence::Nothing;
        }
        let Some((_, checks)) = self.checks.filter(|(read, _)| *read >= since) else {
            return Evidence::Awaited;
        };
        let known = self.names.get(znode).and_then(|name| checks.get(*name));
        known.copied().unwrap_or(Evidence::Pending)
    }

    fn elsewhere(&self, address: &Address) -> bool {
        // The service itself has handed its sources over for this step.
        self.others.iter().any(|state| state.intake.has(address))
    }
}

impl Reconciler {
    /// Takes in what the sources of a service say, through their guards.
    pub(super) fn take_in(&mut self, index: usize) -> Taken {
        let Some(state) = self.services.get_mut(index) else {
            return Taken::default();
        };
        let mut intake = std::mem::take(&mut state.intake);
        let state = &self.services[index];
        let names = match intake.asks_checks() {
            false => BTreeMap::new(),
            true => {
                let servers = state.servers.iter().map(|s| &s.server);
                servers
                    .filter_map(|s| Some((s.znode.as_deref()?, s.name.as_str())))
                    .collect()
            }
        };
        let around = Around {
            names,
            can_ask: self.api.is_configured(),
            checks: state.backend().and_then(|b| self.guarding.checks.get(b)),
            others: &self.services,
        };
        let now = Clock::now();
        let view = |key: &crate::model::source::SourceKey| self.sources.view(key);
        let held = intake.held();
        let taken = intake.take(&view, self.config.max_stale, &around, now);
        if intake.held() > held {
            self.guarding.restored.insert(index);
        }
        let (words, shadow) = intake.words();
        let name = self.services[index].service.name.clone();
        match (words.or(shadow), self.guarding.told.contains(&name)) {
            (Some(hold), false) => {
                warn!(service = name, hold, "the guard does not believe a loss");
                self.guarding.told.insert(name);
                self.saves_at_once = true;
            }
            (None, true) => {
                info!(service = name, "the guard holds nothing any more");
                self.guarding.told.remove(&name);
                self.saves_at_once = true;
            }
            _ => {}
        }
        self.services[index].intake = intake;
        taken
    }

    /// Lets the guards that wait look again. Returns whether a pass is needed.
    pub(super) async fn step_guards(&mut self) -> bool {
        let waiting = self.indexes(|state| state.intake.is_waiting());
        if waiting.is_empty() {
            self.guarding.checks.clear();
            return false;
        }
        self.read_checks(&waiting).await;
        self.look_again(waiting)
    }

    /// Lets go of what haproxy's checks had taken down before it was taken out: a server that comes back from maint counts as
    /// up until its next check. Returns whether anything has to be assessed again.
    pub(super) async fn doubt_restored(&mut self) -> bool {
        if self.guarding.restored.is_empty() {
            return false;
        }
        let waiting = self.indexes(|state| state.intake.is_waiting());
        self.read_checks(&waiting).await;
        let restored = std::mem::take(&mut self.guarding.restored);
        self.look_again(restored)
    }

    fn look_again(&mut self, indexes: impl IntoIterator<Item = usize>) -> bool {
        let mut needed = false;
        for index in indexes {
            let mark = |state: &State| state.intake.mark();
            let before = self.services.get(index).map(mark);
            let _looked_at_again_by_the_pass = self.take_in(index);
            if self.services.get(index).map(mark) != before {
                self.dirty.insert(index);
                needed = true;
            }
        }
        needed
    }

    /// What haproxy's checks say of the backends with held servers.
    async fn read_checks(&mut self, waiting: &[usize]) {
        let asking = waiting.iter().map(|index| &self.services[*index]);
        let asking = asking.filter(|state| state.intake.asks_checks());
        let backends: Vec<String> = asking
            .filter_map(|s| s.backend().map(str::to_owned))
            .collect();
        self.guarding
            .checks
            .retain(|backend, _| backends.contains(backend));
        if !self.can_ask() || backends.is_empty() {
            return;
        }
        let now = Clock::now();
        // What cannot be read stays as old as it is: `problems` tell of it.
        if let Ok(rows) = self.api.servers_of(&backends).await {
            let mut tables: BTreeMap<String, BTreeMap<String, Evidence>> = BTreeMap::new();
            for row in rows {
                let evidence = row.evidence();
                let table = tables.entry(row.backend).or_default();
                table.insert(row.name, evidence);
            }
            let tables = tables.into_iter();
            self.guarding
                .checks
                .extend(tables.map(|(b, table)| (b, (now, table))));
        }
    }

    /// Carries out what somebody asks for.
    pub(super) fn obey(&mut self, order: Order) {
        let Order::Release { services, answer } = order;
        let done = services.iter().map(|service| match self.release(service) {
            None => format!("{service}: not configured\n"),
            Some(0) => format!("{service}: nothing was held\n"),
            Some(held) => format!("{service}: {held} held servers released\n"),
        });
        // Who asked may have gone; it is done all the same.
        let _told = answer.send(done.collect()).is_ok();
    }

    /// Ends every hold of a service: how many servers were held. `None` = there is no such service.
    fn release(&mut self, service: &str) -> Option<usize> {
        let index = self
            .services
            .iter()
            .position(|s| s.service.name == service)?;
        let held = self.services[index].intake.release();
        warn!(service, held, "holds are released by the control socket");
        self.dirty.insert(index);
        self.saves_at_once = true;
        Some(held)
    }

    /// The guards of a service, for `/status`.
    pub(super) fn hold_view(&self, state: &State) -> HoldView {
        let (hold, shadow) = state.intake.words();
        let (trips, shadow_trips) = state.intake.trips();
        let times = state.intake.times();
        HoldView {
            hold,
            shadow,
            since: times.map(|(since, _)| Moment::at(since)),
            until: times.and_then(|(_, until)| until).map(Moment::at),
            trips,
            shadow_trips,
            would_hold: state.intake.shadowed(),
        }
    }

    /// The sources of a service, for `/status`.
    pub(super) fn source_views(state: &State) -> Vec<SourceStatus> {
        let of = |(watched, view): (
            &crate::wanted::intake::Watched,
            &crate::model::source::SourceView,
        )| SourceStatus {
            name: watched.name.clone(),
            hosts: watched.key.ensemble.to_string(),
            path: watched.key.path.as_str().to_owned(),
            agreed_at: view.agreed_at,
            fresh: view.fresh,
            registered: view.children.len(),
            problem: view.problem.clone(),
        };
        state.intake.sources().map(of).collect()
    }
}
