//! A service as a backend of haproxy: the ids and the order of its servers, what it had before the registry spoke, and whether
//! a server leads back to this host.

pub mod circles;
pub mod ids;
pub mod order;
pub mod ruby_state;
pub mod seed;

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::sync::Arc;

use smartstack_common::report::Chain;

use crate::config::{Config, Service};
use crate::model::server::{Identified, Rejected, Server};
use crate::outputs::haproxy::cfg::named::Named;
use crate::outputs::haproxy::file::Piece;
use crate::outputs::haproxy::plan::RunningServer;
use crate::outputs::haproxy::render::Renderer;
use crate::wanted::funnel::discovery_order;

/// A service as haproxy is to have it. Pure apart from what it is handed; owned by the reconciler.
#[derive(Debug)]
pub struct Backend {
    /// Its configuration.
    pub service: Arc<Service>,
    /// NAMEs that it has lost by what it took last; `None` = it was made anew, anything may have gone.
    pub gone: Option<Vec<String>>,
    /// Its servers with their ids, in the order of the file. For a service that is not rendered: in order of discovery.
    pub servers: Vec<Identified>,
    /// Servers whose options haproxy has refused.
    pub refused: Vec<Rejected>,
    /// Notes about ids.
    pub id_notes: Vec<Rejected>,
    /// As rendered now, or why the template refused it.
    pub piece: Option<Result<Piece, String>>,
    /// What has got ids: in order of discovery, and at which of [`World::looks`].
    given: Vec<Identified>,
    given_at: Option<u64>,
}

/// Everything outside a backend that its servers depend on.
pub struct World<'a> {
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
}

impl Backend {
    /// Without servers.
    #[must_use]
    pub fn new(service: Arc<Service>) -> Self {
        Self {
            service,
            gone: None,
            servers: Vec::new(),
            refused: Vec::new(),
            id_notes: Vec::new(),
            piece: None,
            given: Vec::new(),
            given_at: None,
        }
    }

    /// Takes another configuration; what it had stays until it takes servers again.
    pub fn reconfigure(&mut self, service: Arc<Service>) {
        self.given_at = None;
        self.service = service;
        self.piece = None;
    }

    /// The backend section's name; `None` = not rendered.
    #[must_use]
    pub fn name(&self) -> Option<&str> {
        self.service.backend()
    }

    /// By what its ids and the like are kept: the backend, or the service where it is not rendered.
    #[must_use]
    pub fn place(&self) -> &str {
        self.name().unwrap_or(&self.service.name)
    }

    /// Renders what it has taken. `renderer` is another one only after [`Backend::reconfigure`].
    pub fn render(&mut self, renderer: &Renderer) {
        let rendered = |former: Option<Result<Piece, String>>| match former {
            Some(Ok(piece)) => piece.with_servers(renderer, &self.servers),
            Some(Err(_)) | None => Piece::render(renderer, &self.service, &self.servers),
        };
        let former = self.piece.take();
        let piece = self.service.haproxy.as_ref().map(|_| rendered(former));
        self.piece = piece.map(|piece| piece.map_err(|e| Chain(&e).to_string()));
    }

    /// Takes what is wanted: leaves out what haproxy has refused, marks what an operator has disabled, gives ids and an
    /// order. Nothing is rendered yet. `known` holds the ids this backend's servers have had and is brought up to date.
    pub fn take(
        &mut self,
        servers: &[Arc<Server>],
        config: &Config,
        world: &World<'_>,
        known: &mut Arc<BTreeMap<String, u32>>,
    ) {
        let backend = self.place().to_owned();
        self.refused.clear();
        let mut admitted = Vec::with_capacity(servers.len());
        for mut server in servers.iter().cloned() {
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
