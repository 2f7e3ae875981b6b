//! What a service takes in: each of its sources through a guard of its own, then, where there are several, merged.
//!
//! Owned by [`crate::wanted::service::State`], one for each service; called by the reconciler before the funnel. Pure apart from
//! what it is handed: views, times, and what is known of checks and of other services ([`Facts`]).
//!
//! `max_stale`: a source that has not agreed with its ensemble for longer gives way to what can stand in for it, another
//! source of the service or its `default_servers`. Where nothing can, its last set is served on, however old. Its age is
//! counted by the clock since boot: over a reboot from the boot on, as nobody knows how long the machine was down.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use crate::config::guard::Mode;
use crate::config::sources::{Watched, watched};
use crate::config::{Discovery, Resolver, Service};
use crate::model::member::{Address, Evidence};
use crate::model::source::{SourceKey, SourceView};
use crate::snapshot::Snapshot;
use crate::wanted::guard::{Clock, Guard, OLD_SEED, Saved};

mod guarded;
mod merge;
#[cfg(test)]
mod tests;

use guarded::{Guarded, when_empty};
use merge::{Contribution, Merged};

/// An unconfirmed source that nothing is remembered of is waited for this long, once another one has been read.
const FIRST_WORD: Duration = Duration::from_secs(10);
/// `sequential`: a source that was connected this lately is still the one.
const GRACE: Duration = Duration::from_secs(10);
/// A connection may have been dead for this long before that was noticed.
const UNNOTICED: Duration = Duration::from_secs(30);

/// What the guards ask about the world.
pub trait Facts {
    /// haproxy's check of the server that stands on a znode, named as [`Taken::view`] names it, since a time.
    fn evidence(&self, znode: &str, since: Duration) -> Evidence;
    /// Whether another service has this address registered now.
    fn elsewhere(&self, address: &Address) -> bool;
}

/// Nothing is known: no checks, no other services.
#[derive(Debug, Clone, Copy)]
pub struct Unknown;

impl Facts for Unknown {
    fn evidence(&self, _znode: &str, _since: Duration) -> Evidence {
        Evidence::Pending
    }

    fn elsewhere(&self, _address: &Address) -> bool {
        false
    }
}

/// What goes into the funnel.
#[derive(Debug, Clone, Default)]
pub struct Taken {
    /// The set: what is registered and what is held.
    pub view: SourceView,
    /// Its znodes that are only held.
    pub held: Arc<BTreeSet<String>>,
    /// Nothing is registered, and that is believed: `use_previous_backends` has had its time.
    pub believed_empty: bool,
}

/// The sources of one service and their guards.
#[derive(Debug, Default)]
pub struct Intake {
    sources: Vec<Guarded>,
    resolver: Option<Resolver>,
    has_defaults: bool,
    /// When the first of several sources was read.
    first_word: Option<Duration>,
    waits_for_word: bool,
    /// A source is older than it may be.
    ages: bool,
    /// Who gives way, who is connected, whether the registry speaks: what time alone may turn, and how often it has.
    state: (Vec<bool>, Vec<bool>, bool),
    turns: u64,
    /// The children last passed, with what they were made of.
    cache: Option<(Made, Merged)>,
}

/// What a merged set was made of: identity of the children and revision of the guard.
type Made = (usize, u64);

impl Intake {
    /// The sources of a service, as far as the snapshot knows them. `now` is since this boot, which `clock` knows.
    #[must_use]
    pub fn new(service: &Service, snapshot: &Snapshot, clock: &Clock, now: Duration) -> Self {
        let mut intake = Self::default();
        intake.resolve(service);
        let same_boot = snapshot.boot == clock.boot() && !snapshot.boot.is_empty();
        for watched in watched(service) {
            let record = snapshot.source(&watched.key);
            let children = record.map(|r| Arc::clone(&r.children)).unwrap_or_default();
            // What another boot has left is at least as old as this one. What does not say how old it is may be new.
            let other_boot = !same_boot && !snapshot.boot.is_empty();
            let age = record.filter(|r| r.agreed_at.is_some()).map(|r| {
                let known = r.agreed_boot.filter(|_| same_boot);
                known.map_or(if other_boot { now } else { Duration::ZERO }, |at| {
                    now.saturating_sub(at)
                })
            });
            let old = !same_boot || age.is_none_or(|age| age > OLD_SEED || age >= now);
            let saved = snapshot
                .guards
                .get(&service.name)
                .and_then(|g| g.get(&watched.key.to_string()));
            let mut guarded = Guarded::new(watched, service, &children, old);
            guarded.remembered = age.map(|age| (age, now));
            if let Some(saved) = saved {
                guarded.guard.restore(saved, clock.boot());
                let removed = saved.removed.iter().map(|(host, port)| Address {
                    host: Arc::clone(host),
                    port: *port,
                });
                guarded.removed = removed.map(|address| (address, now)).collect();
            }
            intake.sources.push(guarded);
        }
        intake
    }

    fn resolve(&mut self, service: &Service) {
        self.resolver = match &service.discovery {
            Discovery::Multi(multi) => Some(multi.resolver),
            Discovery::Base | Discovery::Zookeeper { .. } => None,
        };
        self.has_defaults = !service.default_servers.is_empty();
    }

    /// Takes another configuration. Sources that are read as before keep what is known of them.
    pub fn configure(&mut self, service: &Service) {
        self.resolve(service);
        self.cache = None;
        let mut former = std::mem::take(&mut self.sources);
        for watched in watched(service) {
            let same =
                |g: &Guarded| g.watched.key == watched.key && g.watched.decode == watched.decode;
            let guarded = match former.iter().position(same) {
                Some(at) => {
                    let mut guarded = former.swap_remove(at);
                    guarded.watched = watched;
                    guarded.guard.configure(service.guard, when_empty(service));
                    guarded
                }
                None => Guarded::new(watched, service, &Arc::default(), true),
            };
            self.sources.push(guarded);
        }
    }

    /// Whether there is any source.
    #[must_use]
    pub fn has_sources(&self) -> bool {
        !self.sources.is_empty()
    }

    /// Whether time alone may change what is taken.
    #[must_use]
    pub fn is_waiting(&self) -> bool {
        let several = self.sources.len() > 1;
        let waits = |s: &Guarded| s.guard.is_waiting() || several && !s.view.fresh;
        self.ages || self.waits_for_word || self.sources.iter().any(waits)
    }

    /// Whether a guard wants to know what haproxy's checks say.
    #[must_use]
    pub fn asks_checks(&self) -> bool {
        self.sources.iter().any(|s| s.guard.held().next().is_some())
    }

    /// Servers that are held.
    #[must_use]
    pub fn held(&self) -> usize {
        self.sources.iter().map(|s| s.guard.held().count()).sum()
    }

    /// Whether any source has this address registered.
    #[must_use]
    pub fn has(&self, address: &Address) -> bool {
        self.sources.iter().any(|s| s.registry.has(address))
    }

    /// Looks at the sources and gives what goes into the funnel. `now` is since boot.
    pub fn take(
        &mut self,
        view: &dyn Fn(&SourceKey) -> SourceView,
        max_stale: Option<Duration>,
        facts: &dyn Facts,
        now: Duration,
    ) -> Taken {
        let several = self.sources.len() > 1;
        for source in &mut self.sources {
            source.look(view(&source.watched.key), several, facts, now);
        }
        if several {
            self.forget_removed(now);
        }
        let too_old = |s: &Guarded| {
            !s.view.fresh && max_stale.is_some_and(|max| s.age(now).is_some_and(|age| age > max))
        };
        let too_old: Vec<bool> = self.sources.iter().map(too_old).collect();
        self.ages = max_stale.is_some() && self.sources.iter().any(|s| !s.view.fresh);
        let young = self
            .sources
            .iter()
            .zip(&too_old)
            .any(|(s, old)| !old && s.size() > 0);
        let gives_way = young || self.has_defaults;
        let taken = match self.sources.as_slice() {
            [] => Taken::default(),
            [_] => self.only(gives_way && too_old[0]),
            _ => self.merged(&too_old, gives_way, now),
        };
        let connected = self.sources.iter().map(|s| s.is_connected(now)).collect();
        let state = (too_old, connected, taken.view.confirmed);
        if state != self.state {
            self.state = state;
            self.turns += 1;
        }
        taken
    }

    /// The one source.
    fn only(&mut self, gives_way: bool) -> Taken {
        let source = &self.sources[0];
        let mut view = source.view.clone();
        if gives_way {
            view.children = Arc::default();
            return Taken {
                view,
                ..Taken::default()
            };
        }
        let believed_empty = source.guard.believes_empty();
        if source.guard.held().next().is_none() {
            self.cache = None;
            return Taken {
                view,
                believed_empty,
                ..Taken::default()
            };
        }
        let made = (
            Arc::as_ptr(&source.view.children).addr(),
            source.guard.revision(),
        );
        let merged = match &self.cache {
            Some((of, merged)) if *of == made => merged.clone(),
            _ => merge::with_held(&source.view.children, source.guard.held()),
        };
        view.children = Arc::clone(&merged.children);
        self.cache = Some((made, merged.clone()));
        Taken {
            view,
            held: merged.held,
            believed_empty,
        }
    }

    fn merged(&mut self, too_old: &[bool], gives_way: bool, now: Duration) -> Taken {
        let others_removed = |me: usize, address: &Address, since: Option<Duration>| {
            let since = since.map(|at| at.saturating_sub(UNNOTICED));
            self.sources.iter().enumerate().any(|(index, other)| {
                let removed = other.removed.get(address);
                index != me && removed.is_some_and(|at| since.is_none_or(|since| *at >= since))
            })
        };
        let mut contributions: Vec<Contribution<'_>> = self
            .sources
            .iter()
            .enumerate()
            .filter(|(index, _)| !(too_old[*index] && gives_way))
            .map(|(index, s)| Contribution {
                watched: &s.watched,
                fresh: s.view.fresh,
                connected: s.is_connected(now),
                children: &s.view.children,
                registry: &s.registry,
                held: s.guard.held().collect(),
                // A source that agrees is believed; another one only as far as nobody knows better.
                allowed: Box::new(move |address: &Address| {
                    s.view.fresh || !others_removed(index, address, s.agreed)
                }),
            })
            .collect();
        if self.resolver == Some(Resolver::Sequential) {
            contributions = merge::first(contributions);
        }
        let merged = merge::union(&contributions);
        drop(contributions);
        let mut view = self.summary();
        view.confirmed = self.speaks(now);
        self.waits_for_word = !view.confirmed && self.first_word.is_some();
        view.children = merged.children;
        Taken {
            view,
            held: merged.held,
            believed_empty: self.sources.iter().all(|s| s.guard.believes_empty()),
        }
    }

    /// Whether enough is known for the registry to overrule what ran at the start: a source has been read, and each other
    /// one as well, or it is remembered, or it has had its time.
    fn speaks(&mut self, now: Duration) -> bool {
        if !self.sources.iter().any(|s| s.asked) {
            return false;
        }
        let first = *self.first_word.get_or_insert(now);
        let known = |s: &Guarded| s.asked || s.view.agreed_at.is_some();
        self.sources.iter().all(known) || now >= first + FIRST_WORD
    }

    /// What is said of several sources as one: as old as the oldest, fresh when all are.
    fn summary(&self) -> SourceView {
        let views = || self.sources.iter().map(|s| &s.view);
        let problem =
            |s: &Guarded| Some(format!("{}: {}", s.watched.name, s.view.problem.as_ref()?));
        let problems: Vec<String> = self.sources.iter().filter_map(problem).collect();
        let skipped = self.sources.iter().flat_map(|s| {
            let label = |znode: &String| merge::label(&s.watched.name, znode);
            s.view
                .skipped
                .iter()
                .map(move |(z, why)| (label(z), why.clone()))
        });
        SourceView {
            agreed_at: views().map(|v| v.agreed_at).min().flatten(),
            fresh: views().all(|v| v.fresh),
            skipped: Arc::new(skipped.collect()),
            parent_data: views().map(|v| v.parent_data).max().unwrap_or_default(),
            parent_config: views()
                .flat_map(|v| v.parent_config.iter().cloned())
                .collect(),
            problem: (!problems.is_empty()).then(|| problems.join("; ")),
            ..SourceView::default()
        }
    }

    /// Removals matter only to a source that could not be asked since.
    fn forget_removed(&mut self, now: Duration) {
        let oldest = self.sources.iter().map(|s| match s.view.fresh {
            true => now,
            false => s.agreed.unwrap_or_default(),
        });
        let oldest = oldest.min().unwrap_or(now).saturating_sub(UNNOTICED);
        for source in &mut self.sources {
            source.removed.retain(|_, at| *at >= oldest);
        }
    }

    /// Ends every hold. Returns how many servers were held.
    pub fn release(&mut self) -> usize {
        self.sources.iter_mut().map(|s| s.guard.release()).sum()
    }

    /// What outlives the program, by source.
    #[must_use]
    pub fn save(&self, clock: &Clock) -> BTreeMap<String, Saved> {
        let one = |s: &Guarded| {
            let mut saved = s.guard.save(clock.boot());
            let removed = s.removed.keys();
            saved.removed = removed.map(|a| (Arc::clone(&a.host), a.port)).collect();
            (!saved.is_empty()).then(|| (s.watched.key.to_string(), saved))
        };
        self.sources.iter().filter_map(one).collect()
    }

    /// Why servers are held, in words; the second: why they would be, in shadow.
    #[must_use]
    pub fn words(&self) -> (Option<String>, Option<String>) {
        let of = |mode: Mode| {
            let said = self.sources.iter().filter_map(|s| {
                let words = s.guard.words()?;
                (s.guard.settings().mode == mode).then(|| match s.watched.name.as_str() {
                    "" => words,
                    name => format!("{name}: {words}"),
                })
            });
            let said: Vec<String> = said.collect();
            (!said.is_empty()).then(|| said.join("; "))
        };
        (of(Mode::On), of(Mode::Shadow))
    }

    /// Since when servers are held, and until when at the latest; in shadow: would be.
    #[must_use]
    pub fn times(&self) -> Option<(Duration, Option<Duration>)> {
        let times: Vec<_> = self
            .sources
            .iter()
            .filter_map(|s| s.guard.times())
            .collect();
        let since = times.iter().map(|(since, _)| *since).min()?;
        let until: Option<Vec<Duration>> = times.into_iter().map(|(_, until)| until).collect();
        Some((since, until.and_then(|all| all.into_iter().max())))
    }

    /// How many servers would be held, in shadow.
    #[must_use]
    pub fn shadowed(&self) -> usize {
        let guards = self.sources.iter().map(|s| &s.guard);
        guards
            .filter(|g| g.settings().mode == Mode::Shadow)
            .map(Guard::holding)
            .sum()
    }

    /// Changes whenever time or checks alone have changed what is taken.
    #[must_use]
    pub fn mark(&self) -> u64 {
        let guards = self.sources.iter().map(|s| s.guard.revision());
        guards.sum::<u64>() + self.turns
    }

    /// Times the guards began to hold, and would have begun in shadow.
    #[must_use]
    pub fn trips(&self) -> (u64, u64) {
        let of = |mode: Mode| {
            let guards = self.sources.iter().map(|s| &s.guard);
            guards
                .filter(|g| g.settings().mode == mode)
                .map(Guard::trips)
                .sum()
        };
        (of(Mode::On), of(Mode::Shadow))
    }

    /// When each source last agreed, since boot, as far as is known.
    pub fn agreed_boot(&self, now: Duration) -> impl Iterator<Item = (&SourceKey, Duration)> {
        let sources = self.sources.iter();
        sources.filter_map(move |s| Some((&s.watched.key, s.agreed_boot(now)?)))
    }

    /// Each source with its latest view, in order.
    pub fn sources(&self) -> impl Iterator<Item = (&Watched, &SourceView)> {
        self.sources.iter().map(|s| (&s.watched, &s.view))
    }
}
