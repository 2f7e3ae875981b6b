//! What each service should have: the funnel once its source is confirmed, the seed until then; ids; rendered pieces.
//!
//! Pure apart from what it is handed: views of the sources, resolved names, what haproxy shows. It talks to nobody.
//! Owned by the reconciler.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::net::IpAddr;
use std::sync::Arc;

use crate::config::{Config, Service};
use crate::model::server::{Identified, Rejected, Server};
use crate::model::source::SourceKey;
use crate::outputs::haproxy::backend::circles::Circles;
use crate::outputs::haproxy::backend::ids;
use crate::outputs::haproxy::backend::order;
use crate::outputs::haproxy::backend::seed;
use crate::outputs::haproxy::cfg::named::Named;
use crate::outputs::haproxy::file::Piece;
use crate::outputs::haproxy::plan::RunningServer;
use crate::outputs::haproxy::render::Renderer;
use crate::sources::names;
use crate::wanted::funnel::{
    Input, Memo, Origin, Previous, ServiceDesired, discovery_order, funnel,
};
use crate::wanted::intake::{Intake, Taken, watched};
use smartstack_common::report::Chain;

/// One service and everything derived for it.
#[derive(Debug)]
pub struct State {
    /// Its configuration.
    pub service: Arc<Service>,
    /// What the funnel last said.
    pub desired: Option<ServiceDesired>,
    /// NAMEs that the last assessment has taken away; `None` = it was made anew, anything may have gone.
    pub gone: Option<Vec<String>>,
    /// Its servers with their ids, in the order of the file. For a service that is not rendered: in order of discovery.
    pub servers: Vec<Identified>,
    /// Left out after the funnel (options that haproxy refused), and notes about ids.
    pub refused: Vec<Rejected>,
    /// Notes about ids.
    pub id_notes: Vec<Rejected>,
    /// As rendered now, or why the template refused it.
    pub piece: Option<Result<Piece, String>>,
    /// Hosts of this service that are names.
    pub names: BTreeSet<String>,
    /// What the funnel has found in children that have not changed.
    memo: RefCell<Memo>,
    /// What has got ids: in order of discovery, and at which of [`World::looks`].
    given: Vec<Identified>,
    given_at: Option<u64>,
    /// What `use_previous_backends` falls back to.
    previous: Previous,
    /// What it has until its source is confirmed.
    seed: Option<seed::Seed>,
    /// Its sources, each behind a guard.
    pub intake: Intake,
    /// Some server of it was refused because it leads back.
    pub circled: bool,
}

/// Everything outside a service that its servers depend on.
pub struct World<'a> {
    /// Addresses of hosts that are names.
    pub resolved: &'a dyn Fn(&str) -> Option<IpAddr>,
    /// Those that have not been looked up yet.
    pub awaited: &'a dyn Fn(&str) -> bool,
    /// Servers an operator has put in maint: `(backend, NAME)`.
    pub operator_maint: &'a BTreeMap<(String, String), bool>,
    /// `(backend, options)` that haproxy refused.
    pub refused_options: &'a BTreeMap<(String, String), String>,
    /// A backend of the live table, by NAME.
    pub live: &'a dyn Fn(&str) -> Option<&'a BTreeMap<String, RunningServer>>,
    /// Counts the times that the live table was read whole: ids given before may not be those of its servers.
    pub looks: u64,
    /// What lines name, of the configuration and of what has been loaded before it.
    pub named: &'a [&'a Named],
    /// This host's name: the default seed of the shuffle.
    pub host: &'a str,
    /// This host's own frontends.
    pub circles: &'a RefCell<Circles>,
}

impl State {
    /// A service that has nothing yet.
    #[must_use]
    pub fn new(service: Arc<Service>, previous: Previous, intake: Intake) -> Self {
        Self {
            intake,
            circled: false,
            service,
            desired: None,
            gone: None,
            servers: Vec::new(),
            refused: Vec::new(),
            id_notes: Vec::new(),
            piece: None,
            names: BTreeSet::new(),
            memo: RefCell::default(),
            given: Vec::new(),
            given_at: None,
            previous,
            seed: None,
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
            self.seed = Some(seed::Seed {
                origin: seed::Origin::Live,
                ids: self
                    .servers
                    .iter()
                    .map(|s| (s.server.name.clone(), s.id))
                    .collect(),
                servers: self.servers.iter().map(|s| s.server.clone()).collect(),
            });
        }
        self.intake.configure(&service);
        self.memo = RefCell::default();
        self.given_at = None;
        self.service = service;
        self.piece = None;
    }

    /// The backend section's name; `None` = not rendered.
    #[must_use]
    pub fn backend(&self) -> Option<&str> {
        self.service
            .haproxy
            .as_ref()
            .map(|h| h.backend_name.as_str())
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
    pub fn plant(&mut self, seed: seed::Seed) {
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
        let found = |seed: &seed::Seed| {
            let origins = [seed::Origin::Live, seed::Origin::File];
            origins.contains(&seed.origin) && !seed.servers.is_empty()
        };
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

    /// Runs the funnel on what its [`Intake`] has taken and allocates ids: [`State::servers`] is what is wanted now; it is not rendered yet. `known` holds
    /// the ids this backend's servers have had and is brought up to date.
    pub fn assess(
        &mut self,
        config: &Config,
        world: &World<'_>,
        taken: Taken,
        known: &mut Arc<BTreeMap<String, u32>>,
    ) {
        let Taken {
            view,
            held,
            believed_empty,
        } = taken;
        let confirmed = view.confirmed || !self.intake.has_sources();
        let backend = self.backend().map(str::to_owned);
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
        let servers = match &self.seed {
            // Only what runs, or stands in the file, may not be taken away by what is remembered or configured.
            Some(seed::Seed {
                origin: seed::Origin::Live | seed::Origin::File,
                servers,
                ..
            }) => servers.clone(),
            _ => desired.servers.clone(),
        };
        self.desired = Some(desired);
        self.identify(servers, config, world, known);
    }

    /// Renders what [`State::assess`] has found. `renderer` is another one only after [`State::reconfigure`].
    pub fn render(&mut self, renderer: &Renderer) {
        let rendered = |former: Option<Result<Piece, String>>| match former {
            Some(Ok(piece)) => piece.with_servers(renderer, &self.servers),
            Some(Err(_)) | None => Piece::render(renderer, &self.service, &self.servers),
        };
        let former = self.piece.take();
        let piece = self.service.haproxy.as_ref().map(|_| rendered(former));
        self.piece = piece.map(|piece| piece.map_err(|e| Chain(&e).to_string()));
    }

    /// Leaves out what haproxy has refused, marks what an operator has disabled, gives ids and an order.
    fn identify(
        &mut self,
        servers: Vec<Arc<Server>>,
        config: &Config,
        world: &World<'_>,
        known: &mut Arc<BTreeMap<String, u32>>,
    ) {
        let backend = self.backend().unwrap_or(&self.service.name).to_owned();
        self.refused.clear();
        let mut admitted = Vec::with_capacity(servers.len());
        for mut server in servers {
            if let Some(options) = &server.options
                && let Some(words) = world
                    .refused_options
                    .get(&(backend.clone(), options.clone()))
            {
                let reason = format!("haproxy refuses its options `{options}`: {words}");
                self.refused.push(Rejected {
                    znode: server.znode.as_ref().unwrap_or(&server.name).clone(),
                    reason,
                });
                continue;
            }
            if !server.disabled
                && !world.operator_maint.is_empty()
                && world
                    .operator_maint
                    .contains_key(&(backend.clone(), server.name.clone()))
            {
                Arc::make_mut(&mut server).disabled = true;
            }
            admitted.push(server);
        }
        admitted.extend(self.parked(&admitted, &backend, world));
        self.give_ids(admitted, &backend, config, world, known);
        self.servers.clone_from(&self.given);
        if let Some(haproxy) = &self.service.haproxy {
            let seed = config
                .haproxy
                .server_order_seed
                .as_deref()
                .unwrap_or(world.host);
            order::arrange(
                &mut self.servers,
                haproxy.backend_order,
                seed,
                &self.service.name,
            );
        }
    }

    /// Servers that a line names and that are not among `there`: haproxy would refuse the file without them. One that has
    /// been there keeps what is known of it.
    fn parked(&self, there: &[Arc<Server>], backend: &str, world: &World<'_>) -> Vec<Arc<Server>> {
        // Where the worker still has a service that is disabled by now, its lines are held to what they name.
        let disabled = self.service.disabled.as_ref();
        let backend = disabled.map_or(backend, |haproxy| haproxy.backend_name.as_str());
        let live = (world.live)(backend);
        let given = || self.given.iter().map(|s| &s.server);
        let mut names: BTreeSet<&str> = BTreeSet::new();
        for named in world.named {
            names.extend(named.servers(backend));
            let there = given().map(|server| server.name.as_str());
            names.extend(there.filter(|name| named.mentions(name)));
            let running = |word: &&str| live.is_some_and(|live| live.contains_key(*word));
            names.extend(named.words().filter(running));
        }
        let absent = |name: &&str| {
            there.iter().all(|server| server.name != *name)
                && !world.named.iter().any(|named| named.defines(backend, name))
        };
        let park = |name: &str| {
            let former = given().find(|server| server.name == name);
            let refused = |options: &String| {
                let key = (backend.to_owned(), options.clone());
                world.refused_options.contains_key(&key)
            };
            match former {
                Some(former) if former.options.as_ref().is_some_and(refused) => {
                    Arc::new(Server::unknown(name))
                }
                Some(former) if former.is_parked() => Arc::clone(former),
                Some(former) => Arc::new(former.parked()),
                None => Arc::new(Server::unknown(name)),
            }
        };
        names.into_iter().filter(absent).map(park).collect()
    }

    /// Servers that have got an id keep it, as long as haproxy's table has not been read anew; others get one.
    fn give_ids(
        &mut self,
        servers: Vec<Arc<Server>>,
        backend: &str,
        config: &Config,
        world: &World<'_>,
        known: &mut Arc<BTreeMap<String, u32>>,
    ) {
        let anew = self.given_at.replace(world.looks) != Some(world.looks);
        let mut before = std::mem::take(&mut self.given);
        if anew {
            before.clear();
            self.id_notes.clear();
        }
        let (ids, gone) = kept(&before, &servers);
        let without = servers.iter().zip(&ids).filter(|(_, id)| id.is_none());
        let new: Vec<Arc<Server>> = without.map(|(server, _)| Arc::clone(server)).collect();
        let live = (world.live)(backend);
        let (mut used, mut reserved) = (HashSet::new(), HashSet::new());
        if !new.is_empty() {
            used.extend(ids.iter().flatten());
            reserved.extend(live.into_iter().flat_map(BTreeMap::values).map(|s| s.id));
        }
        let id = |name: &str| Some(live?.get(name)?.id);
        let max = config.haproxy.max_server_id;
        let given = ids::allocate(id, &reserved, known, &new, used, max);
        if !self.id_notes.is_empty() {
            self.id_notes
                .retain(|note| gone.iter().all(|server| server.name != note.znode));
        }
        let note = |(znode, reason)| Rejected { znode, reason };
        self.id_notes.extend(given.notes.into_iter().map(note));
        self.gone = (!anew).then(|| gone.iter().map(|server| server.name.clone()).collect());
        let mut others = given.ids.iter().copied();
        let ids = ids.into_iter().map(|id| id.or_else(|| others.next()));
        let identified = servers.into_iter().zip(ids);
        self.given = identified
            .filter_map(|(server, id)| id.map(|id| Identified { server, id }))
            .collect();
        if anew {
            let ids = self.given.iter().map(|s| (s.server.name.clone(), s.id));
            let ids: BTreeMap<String, u32> = ids.collect();
            if **known != ids {
                *known = Arc::new(ids);
            }
        } else if !(gone.is_empty() && new.is_empty()) {
            let known = Arc::make_mut(known);
            for server in gone {
                known.remove(&server.name);
            }
            let new = new.iter().map(|server| server.name.clone());
            known.extend(new.zip(given.ids));
        }
    }
}

/// The ids of those servers that were there before, and those that are not there any more. Both lists are in order of
/// discovery; a server that has left that order (a default one) counts as gone and as new.
fn kept<'a>(
    before: &'a [Identified],
    now: &[Arc<Server>],
) -> (Vec<Option<u32>>, Vec<&'a Arc<Server>>) {
    let mut rest = before.iter().peekable();
    let mut gone = Vec::new();
    let ids = now.iter().map(|server| {
        while let Some(former) = rest.peek() {
            if Arc::ptr_eq(&former.server, server) {
                return rest.next().map(|former| former.id);
            }
            if discovery_order(&former.server) > discovery_order(server) {
                return None;
            }
            gone.extend(rest.next().map(|former| &former.server));
        }
        None
    });
    let ids = ids.collect();
    gone.extend(rest.map(|former| &former.server));
    (ids, gone)
}

#[cfg(test)]
mod tests;
