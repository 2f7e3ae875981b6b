//! What is wanted of every service, and the sources that it comes from: which services have to be looked at again, what
//! their guards need to know, and when they look again. An owner without a task: whoever drives the output moves it.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;
use std::time::Duration;

use smartstack_common::clock::{Clock, Moment};
use tokio::sync::{oneshot, watch};
use tracing::{info, warn};

use crate::config::sources::{source_text, watched};
use crate::config::{Config, Decode};
use crate::model::member::{Address, Evidence};
use crate::model::server::Server;
use crate::model::source::{Resolved, SourceKey, SourceView};
use crate::snapshot::{Hold, Snapshot, SourceRecord};
use crate::sources::names;
use crate::sources::zookeeper::Validity;
use crate::sources::{Sources, decode};
use crate::wanted::funnel::Previous;
use crate::wanted::gate::{Candidate, Gate};
use crate::wanted::intake::{Facts, Intake, Taken};
use crate::wanted::service::{Circles, Seed, State, World, held};

/// What somebody asks of the running program.
pub enum Order {
    /// End every hold of these services.
    Release {
        /// Their names.
        services: Vec<String>,
        /// Gets what was done, a line for each service.
        answer: oneshot::Sender<String>,
    },
}

/// All services and their sources.
pub struct Keeper {
    sources: Sources,
    services: Vec<State>,
    /// Which services a source concerns.
    by_source: BTreeMap<SourceKey, Vec<usize>>,
    /// Services whose inputs have changed.
    dirty: BTreeSet<usize>,
    clock: Clock,
    /// Something has changed that only the snapshot remembers.
    news: bool,
}

/// The world of one service's guards.
struct Around<'a> {
    /// NAMEs by znode.
    names: BTreeMap<&'a str, &'a str>,
    /// Somebody can be asked what checks say.
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

impl Keeper {
    /// Begins with what is remembered of each service.
    #[must_use]
    pub fn new(config: &Config, snapshot: &Snapshot, mut sources: Sources) -> Self {
        sources.configure(config, snapshot);
        let clock = Clock::new();
        let state = |service: &crate::config::Service| {
            let intake = Intake::new(service, snapshot, &clock, Clock::now());
            State::new(Arc::new(service.clone()), held(snapshot, service), intake)
        };
        let services: Vec<State> = config.services.iter().map(state).collect();
        let mut keeper = Self {
            sources,
            dirty: (0..services.len()).collect(),
            services,
            by_source: BTreeMap::new(),
            clock,
            news: false,
        };
        keeper.index();
        keeper
    }

    /// Takes a configuration. What is the same stays as it is.
    pub fn configure(&mut self, config: &Config) {
        let empty = Snapshot::default();
        self.sources.configure(config, &empty);
        self.sources.follow(config);
        let former = std::mem::take(&mut self.services).into_iter();
        let mut former: BTreeMap<String, State> =
            former.map(|s| (s.service.name.clone(), s)).collect();
        for service in &config.services {
            let service = Arc::new(service.clone());
            let state = match former.remove(&service.name) {
                Some(mut state) => {
                    state.reconfigure(service);
                    state
                }
                None => {
                    let intake = Intake::new(&service, &empty, &self.clock, Clock::now());
                    State::new(service, Previous::None, intake)
                }
            };
            self.services.push(state);
        }
        self.want_names();
        self.index();
        self.touch_all();
    }

    /// The services a source concerns.
    fn index(&mut self) {
        self.by_source.clear();
        for (index, state) in self.services.iter().enumerate() {
            for watched in watched(&state.service) {
                self.by_source.entry(watched.key).or_default().push(index);
            }
        }
    }

    /// A hand on the views, in place of the followers.
    #[cfg(test)]
    pub(crate) fn publisher(&self) -> impl Fn(&SourceKey, SourceView) + use<> {
        self.sources.publisher()
    }

    /// The services, in the order of the configuration.
    #[must_use]
    pub fn services(&self) -> &[State] {
        &self.services
    }

    /// Opens the sessions and reads every source.
    pub fn follow(&mut self, config: &Config) {
        self.sources.follow(config);
    }

    /// Wakes when a source has another view; see [`Keeper::sources_changed`].
    #[must_use]
    pub fn changes(&self) -> watch::Receiver<BTreeSet<SourceKey>> {
        self.sources.changes()
    }

    /// Wakes when a name has another address; see [`Keeper::names_changed`].
    #[must_use]
    pub fn resolved(&self) -> watch::Receiver<Arc<Resolved>> {
        self.sources.resolved()
    }

    /// Ends the sources' tasks; the sessions close first.
    pub async fn close(self) {
        self.sources.close().await;
    }

    /// These services are assessed again.
    pub fn touch(&mut self, services: impl IntoIterator<Item = usize>) {
        self.dirty.extend(services);
    }

    /// All are.
    pub fn touch_all(&mut self) {
        self.dirty.extend(0..self.services.len());
    }

    /// Sources have other views: the services that they concern are assessed again.
    pub fn sources_changed(&mut self) {
        for key in self.sources.take_changed() {
            self.dirty
                .extend(self.by_source.get(&key).into_iter().flatten());
        }
    }

    /// Names have other addresses: the services that use any are assessed again.
    pub fn names_changed(&mut self) {
        let with_names = self.indexes(|state| !state.names.is_empty());
        self.dirty.extend(with_names);
    }

    fn indexes(&self, of: impl Fn(&State) -> bool) -> Vec<usize> {
        let services = self.services.iter().enumerate();
        services.filter(|(_, s)| of(s)).map(|(i, _)| i).collect()
    }

    /// A source has not been read in this process, or a host's name has not been looked up.
    #[must_use]
    pub fn awaits_words(&self) -> bool {
        let resolved = self.sources.resolved().borrow().clone();
        let waits = |state: &State| {
            let mut keys = watched(&state.service).into_iter().map(|w| w.key);
            keys.any(|key| !self.sources.view(&key).confirmed)
                || state.names.iter().any(|name| !resolved.contains_key(name))
        };
        self.services.iter().any(waits)
    }

    /// Whether something has changed since the last call that only the snapshot remembers.
    pub fn take_news(&mut self) -> bool {
        std::mem::take(&mut self.news)
    }

    /// What is remembered of a service's sources, through the funnel.
    pub fn remembered(
        &mut self,
        index: usize,
        config: &Config,
        can_ask: bool,
        resolved: &dyn Fn(&str) -> Option<IpAddr>,
    ) -> Vec<Arc<Server>> {
        let taken = self.take_in(index, config, can_ask);
        let state = self.services.get(index);
        state.map_or_else(Vec::new, |state| state.remembered(config, &taken, resolved))
    }

    /// Until its source is confirmed, these servers stand.
    pub fn plant(&mut self, index: usize, seed: Seed) {
        if let Some(state) = self.services.get_mut(index) {
            state.plant(seed);
        }
    }

    /// Runs the funnel of the services whose inputs have changed: which those are. `can_ask`: somebody can be asked what
    /// checks say.
    pub fn assess(
        &mut self,
        config: &Config,
        circles: &RefCell<dyn Circles>,
        can_ask: bool,
    ) -> BTreeSet<usize> {
        let dirty = std::mem::take(&mut self.dirty);
        let taken: Vec<(usize, Taken)> = dirty
            .iter()
            .map(|&index| (index, self.take_in(index, config, can_ask)))
            .collect();
        let resolved = self.sources.resolved().borrow().clone();
        let world = World {
            resolved: &|host: &str| resolved.get(host).and_then(|a| a.first()).copied(),
            awaited: &|host: &str| names::is_name(host) && !resolved.contains_key(host),
            circles,
        };
        let mut other_names = false;
        for (index, taken) in taken {
            if let Some(state) = self.services.get_mut(index) {
                let names = std::mem::take(&mut state.names);
                state.assess(config, &world, taken);
                other_names |= names != state.names;
            }
        }
        if other_names {
            self.want_names();
        }
        dirty
    }

    /// Keeps the names resolved that the services have, and no others.
    fn want_names(&self) {
        let names = self.services.iter().flat_map(|s| s.names.iter().cloned());
        self.sources.want_names(names.collect());
    }

    /// What closed a circle may have a way by now: those services are assessed again. Whether there are any.
    pub fn touch_circled(&mut self) -> bool {
        let circled = self.indexes(|state| state.circled);
        let any = !circled.is_empty();
        self.dirty.extend(circled);
        any
    }

    /// Takes in what the sources of a service say, through their guards.
    fn take_in(&mut self, index: usize, config: &Config, can_ask: bool) -> Taken {
        let Some(state) = self.services.get_mut(index) else {
            return Taken::default();
        };
        let mut intake = std::mem::take(&mut state.intake);
        let state = &self.services[index];
        let names = match intake.asks_checks() {
            false => BTreeMap::new(),
            true => {
                let servers = state.servers().iter();
                servers
                    .filter_map(|s| Some((s.znode.as_deref()?, s.name.as_str())))
                    .collect()
            }
        };
        let around = Around {
            names,
            can_ask,
            checks: state.checks.as_ref(),
            others: &self.services,
        };
        let view = |key: &SourceKey| self.sources.view(key);
        let held = intake.held();
        let taken = intake.take(&view, config.max_stale, &around, Clock::now());
        let restored = intake.held() > held;
        let (words, shadow) = intake.words();
        let state = &mut self.services[index];
        state.restored |= restored;
        let service = &state.service.name;
        match (words.or(shadow), state.told) {
            (Some(hold), false) => {
                warn!(service, hold, "the guard does not believe a loss");
                (state.told, self.news) = (true, true);
            }
            (None, true) => {
                info!(service, "the guard holds nothing any more");
                (state.told, self.news) = (false, true);
            }
            _ => {}
        }
        state.intake = intake;
        taken
    }

    /// Services whose guards wait. Of those that ask for checks the last word is to be had by [`Keeper::checked`]; of the
    /// others what was said is forgotten.
    pub fn waiting(&mut self) -> Vec<usize> {
        for state in &mut self.services {
            if !state.intake.is_waiting() || !state.intake.asks_checks() {
                state.checks = None;
            }
        }
        self.indexes(|state| state.intake.is_waiting())
    }

    /// Of these services those whose guards ask what checks say.
    pub fn asking<'a>(&'a self, waiting: &'a [usize]) -> impl Iterator<Item = usize> + 'a {
        let asks = |index: &usize| {
            let state = self.services.get(*index);
            state.is_some_and(|state| state.intake.asks_checks())
        };
        waiting.iter().copied().filter(asks)
    }

    /// What the checks of a service's servers say, by NAME, as read at that time (since boot).
    pub fn checked(&mut self, index: usize, at: Duration, checks: BTreeMap<String, Evidence>) {
        if let Some(state) = self.services.get_mut(index) {
            state.checks = Some((at, checks));
        }
    }

    /// Whether more of some service is held than before, so that what the checks said of that has to be looked at.
    #[must_use]
    pub fn has_restored(&self) -> bool {
        self.services.iter().any(|state| state.restored)
    }

    /// Services of which more is held than before, since the last call.
    pub fn take_restored(&mut self) -> Vec<usize> {
        let restored = self.indexes(|state| state.restored);
        for index in &restored {
            self.services[*index].restored = false;
        }
        restored
    }

    /// The guards of these services look again. Whether anything has to be assessed again.
    pub fn look_again(
        &mut self,
        indexes: impl IntoIterator<Item = usize>,
        config: &Config,
        can_ask: bool,
    ) -> bool {
        let mut needed = false;
        for index in indexes {
            let mark = |state: &State| state.intake.mark();
            let before = self.services.get(index).map(mark);
            let _looked_at_again_by_the_pass = self.take_in(index, config, can_ask);
            if self.services.get(index).map(mark) != before {
                self.dirty.insert(index);
                needed = true;
            }
        }
        needed
    }

    /// Carries out what somebody asks for.
    pub fn obey(&mut self, order: Order) {
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
        let mut services = self.services.iter();
        let index = services.position(|s| s.service.name == service)?;
        let held = self.services[index].intake.release();
        warn!(service, held, "holds are released by the control socket");
        self.dirty.insert(index);
        self.news = true;
        Some(held)
    }

    /// What the snapshot remembers of the sources and of what is held.
    #[must_use]
    pub fn snapshot(&self) -> Snapshot {
        // Children as the guards have looked at them, not newer: what has gone since would be lost without a loss. Of two
        // services' guards the one that is behind.
        let mut looked: BTreeMap<&SourceKey, &SourceView> = BTreeMap::new();
        let services = self.services.iter();
        let agreed: BTreeMap<&SourceKey, Duration> = services
            .flat_map(|s| s.intake.agreed_boot(Clock::now()))
            .collect();
        let intakes = self.services.iter().flat_map(|s| s.intake.sources());
        for (watched, view) in intakes.filter(|(_, v)| v.confirmed || v.agreed_at.is_some()) {
            let behind = looked.entry(&watched.key).or_insert(view);
            if view.removals.last() < behind.removals.last() {
                *behind = view;
            }
        }
        let record = |key: &SourceKey, view: SourceView| SourceRecord {
            agreed_at: view.agreed_at.map(Moment::wall),
            agreed_boot: agreed.get(key).copied(),
            fresh: view.fresh,
            children: match looked.get(key) {
                Some(looked) => Arc::clone(&looked.children),
                None => view.children,
            },
        };
        let sources = self
            .sources
            .all()
            .filter(|(_, v)| v.confirmed || v.agreed_at.is_some());
        let hold = |state: &State| {
            let Previous::Children(children) = state.held()? else {
                return None;
            };
            let source = source_text(&state.service)?;
            let children = Arc::clone(children);
            Some((state.service.name.clone(), Hold { source, children }))
        };
        let guards = |state: &State| {
            let saved = state.intake.save(&self.clock);
            (!saved.is_empty()).then(|| (state.service.name.clone(), saved))
        };
        Snapshot {
            boot: self.clock.boot().to_owned(),
            sources: sources
                .map(|(key, view)| (key.to_string(), record(key, view)))
                .collect(),
            resolved: self.sources.resolved().borrow().clone(),
            holds: self.services.iter().filter_map(hold).collect(),
            guards: self.services.iter().filter_map(guards).collect(),
            ..Snapshot::default()
        }
    }
}

/// A payload is usable when any service of the source can decode it and the gate would let it through (whether a name
/// resolves says nothing about the payload).
#[must_use]
pub fn validity(config: &Config, key: &SourceKey) -> Validity {
    let of_source = config.services.iter().flat_map(watched);
    let mut decodes: Vec<Decode> = of_source
        .filter(|watched| watched.key == *key)
        .map(|watched| watched.decode)
        .collect();
    decodes.sort_unstable();
    decodes.dedup();
    Arc::new(move |znode, data| {
        let gate = Gate {
            resolved: &|_| Some(Ipv4Addr::LOCALHOST.into()),
            allowed_options: &[],
        };
        decodes
            .iter()
            .filter_map(|decode| decode::child(znode, data, decode).ok())
            .any(|instance| {
                let candidate = Candidate::from_instance(znode, &instance, instance.port);
                !instance.available || gate.admit(&candidate).is_ok()
            })
    })
}
