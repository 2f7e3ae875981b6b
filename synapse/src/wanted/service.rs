//! What each service should have: the funnel once its source is confirmed, the seed until then.
//!
//! Pure apart from what it is handed: views of the sources, resolved names, what checks say, which addresses lead back. It
//! talks to nobody. Owned by the [`Keeper`](super::keeper::Keeper).

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use smartstack_common::clock::Moment;

use crate::config::sources::{source_text, watched};
use crate::config::{Config, Service};
use crate::model::member::Evidence;
use crate::model::server::Server;
use crate::model::source::SourceKey;
use crate::report::status::{HoldView, SourceStatus};
use crate::snapshot::Snapshot;
use crate::sources::names;
use crate::wanted::funnel::{Input, Memo, Origin, Previous, ServiceDesired, funnel};
use crate::wanted::intake::{Intake, Taken};

/// One service and what is wanted for it.
#[derive(Debug)]
pub struct State {
    /// Its configuration.
    pub service: Arc<Service>,
    /// What the funnel last said.
    pub desired: Option<ServiceDesired>,
    /// Hosts of this service that are names.
    pub names: BTreeSet<String>,
    /// What the funnel has found in children that have not changed.
    memo: RefCell<Memo>,
    /// What `use_previous_backends` falls back to.
    previous: Previous,
    /// What it has until its source is confirmed.
    seed: Option<Seed>,
    /// Its sources, each behind a guard.
    pub intake: Intake,
    /// Some server of it was refused because it leads back.
    pub circled: bool,
    /// When its table was read, and what its checks said by NAME; `None` = nobody has asked since a guard wants to know.
    pub(super) checks: Option<(Duration, BTreeMap<String, Evidence>)>,
    /// Its hold was logged.
    pub(super) told: bool,
    /// More of it is held than before, and nobody has looked at what the checks said of that.
    pub(super) restored: bool,
}

/// Where a seed comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum SeedOrigin {
    /// What runs.
    Live,
    /// What stands in the file on disk.
    File,
    /// The snapshot.
    Snapshot,
    /// `default_servers`.
    Defaults,
}

/// What a service begins with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Seed {
    /// Where the servers come from.
    pub origin: SeedOrigin,
    /// They, in the order of their source.
    pub servers: Vec<Arc<Server>>,
}

impl Seed {
    /// Nobody remembers or configures what runs, or stands in the file, away.
    fn stands(&self) -> bool {
        matches!(self.origin, SeedOrigin::Live | SeedOrigin::File)
    }
}

/// Which servers lead back to the service that they are for.
pub trait Circles {
    /// Why a server of `backend` at this address would be sent its own requests; `None` = it would not. What it leads to is
    /// added to `leads`.
    fn closed_by(
        &self,
        backend: &str,
        at: (IpAddr, u16),
        leads: &mut BTreeSet<String>,
    ) -> Option<String>;
    /// What the admitted servers of a backend lead to.
    fn admit(&mut self, backend: &str, leads: BTreeSet<String>);
    /// Whether some way has gone since the last call, so that others may be admitted.
    fn take_freed(&mut self) -> bool;
}

/// Everything outside a service that its servers depend on.
pub struct World<'a> {
    /// Addresses of hosts that are names.
    pub resolved: &'a dyn Fn(&str) -> Option<IpAddr>,
    /// Those that have not been looked up yet.
    pub awaited: &'a dyn Fn(&str) -> bool,
    /// This host's own frontends.
    pub circles: &'a RefCell<dyn Circles>,
}

impl State {
    /// A service that has nothing yet.
    #[must_use]
    pub fn new(service: Arc<Service>, previous: Previous, intake: Intake) -> Self {
        Self {
            service,
            desired: None,
            names: BTreeSet::new(),
            memo: RefCell::default(),
            previous,
            seed: None,
            intake,
            circled: false,
            checks: None,
            told: false,
            restored: false,
        }
    }

    /// Takes another configuration. What is known of the servers stays where the source is the same; with another source
    /// they stay until that one has been read.
    pub fn reconfigure(&mut self, service: Arc<Service>) {
        let keys = |service: &Service| watched(service).into_iter().map(|w| w.key);
        let former: BTreeSet<SourceKey> = keys(&self.service).collect();
        if former.is_empty() != (keys(&service).count() == 0)
            || !former.is_empty() && !keys(&service).any(|key| former.contains(&key))
        {
            self.previous = Previous::None;
            self.seed = Some(Seed {
                origin: SeedOrigin::Live,
                servers: self.servers().to_vec(),
            });
        }
        self.intake.configure(&service);
        self.memo = RefCell::default();
        self.service = service;
    }

    /// The servers that are wanted now. Only what runs, or stands in the file, may not be taken away by what is remembered
    /// or configured.
    #[must_use]
    pub fn servers(&self) -> &[Arc<Server>] {
        match (&self.seed, &self.desired) {
            (Some(seed), _) if seed.stands() => &seed.servers,
            (_, Some(desired)) => &desired.servers,
            (_, None) => &[],
        }
    }

    /// What is kept for `use_previous_backends`, when it is in use.
    #[must_use]
    pub fn held(&self) -> Option<&Previous> {
        let held = self
            .desired
            .as_ref()
            .is_some_and(|d| d.origin == Origin::Held);
        held.then_some(&self.previous)
    }

    /// Until the source is confirmed, these servers stand.
    pub fn plant(&mut self, seed: Seed) {
        self.seed = Some(seed);
    }

    /// Whether it still stands on what ran, or stood in the file, when this process started.
    #[must_use]
    pub fn is_seeded(&self) -> bool {
        self.seed.is_some()
    }

    /// Nothing ran, stood in the file or was remembered when this process started. Default servers are no memory.
    #[must_use]
    pub fn remembers_nothing(&self) -> bool {
        let found = |seed: &Seed| seed.stands() && !seed.servers.is_empty();
        let mut sources = self.intake.sources();
        !self.seed.as_ref().is_some_and(found)
            && sources.all(|(_, view)| view.children.is_empty())
            && self.previous == Previous::None
    }

    /// What the funnel makes of what is remembered of its source.
    #[must_use]
    pub fn remembered(
        &self,
        config: &Config,
        taken: &Taken,
        resolved: &dyn Fn(&str) -> Option<IpAddr>,
    ) -> Vec<Arc<Server>> {
        let allowed_options = &config.haproxy.allowed_server_options;
        funnel(Input {
            service: &self.service,
            view: &taken.view,
            held: &taken.held,
            previous: &self.previous,
            resolved,
            awaited: &|_| false,
            allowed_options,
            circle: &|_, _| None,
            memo: &self.memo,
        })
        .servers
    }

    /// Runs the funnel on what its [`Intake`] has taken: [`State::servers`] is what is wanted now.
    pub fn assess(&mut self, config: &Config, world: &World<'_>, taken: Taken) {
        let Taken {
            view,
            held,
            believed_empty,
        } = taken;
        let confirmed = view.confirmed || !self.intake.has_sources();
        let backend = self.service.backend().map(str::to_owned);
        let leads = RefCell::new(BTreeSet::new());
        let circled = Cell::new(false);
        let circle = |address: IpAddr, port: u16| {
            let mut leads = leads.borrow_mut();
            let at = (address, port);
            let circles = world.circles.borrow();
            let circle = circles.closed_by(backend.as_deref()?, at, &mut leads);
            circled.set(circled.get() || circle.is_some());
            circle
        };
        if let Some(seed) = &mut self.seed {
            seed.servers
                .retain(|server| circle(server.address, server.port).is_none());
        }
        if confirmed
            && let Some(seed) = self.seed.take()
            && self.previous == Previous::None
            && !seed.servers.is_empty()
        {
            // Should the registry's first word be "nothing", what haproxy has been serving is the previous set.
            self.previous = Previous::Servers(seed.servers.into());
        }
        if believed_empty {
            // The guard has held the last set for as long as it may be held.
            self.previous = Previous::None;
        }
        let desired = funnel(Input {
            service: &self.service,
            view: &view,
            held: &held,
            previous: &self.previous,
            resolved: world.resolved,
            awaited: world.awaited,
            allowed_options: &config.haproxy.allowed_server_options,
            circle: &circle,
            memo: &self.memo,
        });
        self.circled = circled.get();
        if let Some(backend) = &backend {
            let leads = leads.into_inner();
            world.circles.borrow_mut().admit(backend, leads);
        }
        if confirmed {
            self.previous = desired.previous.clone();
        }
        let defaults = self.service.default_servers.iter().map(|s| s.host.clone());
        self.names = defaults.filter(|host| names::is_name(host)).collect();
        self.names.extend(desired.names.iter().cloned());
        self.desired = Some(desired);
    }

    /// Its guards, for `/status`.
    #[must_use]
    pub fn hold_view(&self) -> HoldView {
        let (hold, shadow) = self.intake.words();
        let (trips, shadow_trips) = self.intake.trips();
        let times = self.intake.times();
        HoldView {
            hold,
            shadow,
            since: times.map(|(since, _)| Moment::at(since)),
            until: times.and_then(|(_, until)| until).map(Moment::at),
            trips,
            shadow_trips,
            would_hold: self.intake.shadowed(),
        }
    }

    /// Its sources, for `/status`.
    #[must_use]
    pub fn source_views(&self) -> Vec<SourceStatus> {
        let sources = self.intake.sources();
        sources
            .map(|(watched, view)| SourceStatus {
                name: watched.name.clone(),
                hosts: watched.key.ensemble.to_string(),
                path: watched.key.path.as_str().to_owned(),
                agreed_at: view.agreed_at,
                fresh: view.fresh,
                registered: view.children.len(),
                problem: view.problem.clone(),
            })
            .collect()
    }
}

/// What is held for a service since before this process.
#[must_use]
pub fn held(snapshot: &Snapshot, service: &Service) -> Previous {
    let hold =
        source_text(service).and_then(|source| snapshot.hold(&service.name, &source).cloned());
    hold.map_or(Previous::None, Previous::Children)
}
