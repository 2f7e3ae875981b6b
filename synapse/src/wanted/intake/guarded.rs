//! One source of a service behind its guard: what it has had, and since when it agrees. Pure.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use super::{Facts, GRACE, merge};
use crate::config::Service;
use crate::config::sources::Watched;
use crate::model::member::{Address, Evidence};
use crate::model::source::{Children, SourceView};
use crate::wanted::guard::{self, Guard, Held, Registry, WhenEmpty};

/// A source of a service behind its guard, and what is known of both.
#[derive(Debug)]
pub(super) struct Guarded {
    pub(super) watched: Watched,
    pub(super) registry: Registry,
    pub(super) guard: Guard,
    /// The registry has been asked in this process.
    pub(super) asked: bool,
    /// When the source was last seen to agree; `None`: not in this process.
    pub(super) agreed: Option<Duration>,
    /// How old what is remembered of it was at a time; `None`: nothing is.
    pub(super) remembered: Option<(Duration, Duration)>,
    /// What this source has had and removed, and when: another source that cannot be asked may not bring it back.
    pub(super) removed: BTreeMap<Address, Duration>,
    pub(super) view: SourceView,
}

struct OfSource<'a> {
    name: &'a str,
    facts: &'a dyn Facts,
}

impl guard::Facts for OfSource<'_> {
    fn evidence(&self, _address: &Address, held: &Held) -> Evidence {
        let label = merge::label(self.name, &held.member.znode);
        self.facts.evidence(&label, held.since)
    }

    fn elsewhere(&self, address: &Address) -> bool {
        self.facts.elsewhere(address)
    }
}

impl Guarded {
    pub(super) fn new(
        watched: Watched,
        service: &Service,
        children: &Arc<Children>,
        old: bool,
    ) -> Self {
        let registry = Registry::new(watched.decode.clone(), children);
        let size = registry.addresses().count();
        Self {
            registry,
            guard: Guard::new(service.guard, when_empty(service), size, old),
            watched,
            asked: false,
            agreed: None,
            remembered: None,
            removed: BTreeMap::new(),
            view: SourceView::default(),
        }
    }

    pub(super) fn look(
        &mut self,
        view: SourceView,
        several: bool,
        facts: &dyn Facts,
        now: Duration,
    ) {
        let was_fresh = std::mem::replace(&mut self.view, view).fresh;
        // What agrees no more did until a moment ago: nobody looks while nothing changes.
        if self.view.fresh || was_fresh {
            self.agreed = Some(now);
        }
        let look = self.view.confirmed && !(self.asked && self.registry.is_current(&self.view));
        let change = look.then(|| self.registry.look(&self.view));
        self.asked |= self.view.confirmed;
        if let Some(change) = change.as_ref().filter(|_| several) {
            for gone in &change.gone {
                self.removed.insert(gone.address.clone(), now);
            }
            for (address, _) in &change.new {
                self.removed.remove(address);
            }
        }
        let facts = OfSource {
            name: &self.watched.name,
            facts,
        };
        self.guard.step(change, &facts, now);
    }

    /// How long ago it last agreed.
    pub(super) fn age(&self, now: Duration) -> Option<Duration> {
        let remembered = || {
            let (age, at) = self.remembered?;
            Some(age + now.saturating_sub(at))
        };
        self.agreed
            .map(|at| now.saturating_sub(at))
            .or_else(remembered)
    }

    /// When it last agreed, for the snapshot.
    pub(super) fn agreed_boot(&self, now: Duration) -> Option<Duration> {
        now.checked_sub(self.age(now)?)
    }

    /// It agrees with its ensemble, or did a moment ago.
    pub(super) fn is_connected(&self, now: Duration) -> bool {
        self.agreed.is_some_and(|at| now <= at + GRACE)
    }

    /// Addresses it has to give.
    pub(super) fn size(&self) -> usize {
        self.registry.addresses().count() + self.guard.held().count()
    }
}

/// What an empty source means for the service.
pub(super) fn when_empty(service: &Service) -> WhenEmpty {
    if !service.default_servers.is_empty() {
        WhenEmpty::Defaults
    } else if service.use_previous_backends {
        WhenEmpty::Keep
    } else {
        WhenEmpty::Empty
    }
}
