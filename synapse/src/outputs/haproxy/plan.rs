//! From what haproxy runs and what it should run to what has to be done: nothing, runtime commands, or a reload.
//!
//! Pure. A plan is data: it can be printed, replayed and tested. Law: applying `plan(a, b)` to `a` gives `b`, except for
//! servers in maint that await their deletion and for the operator's states; `plan(x, x)` is `Unchanged`.
//! Called by the reconciler for each change and by the audit; executed through [`crate::outputs::haproxy::socket`].
//!
//! Who owns what: membership and address belong to the registry, the weight where the registry gives weights and no
//! agent-check sets it, maint and drain to the operator. Our removal is a maint that we have noted before we sent it
//! (`reconciler/marks.rs`); any other maint is an operator's or an agent's and is never undone.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::SocketAddr;
use std::sync::Arc;

use crate::model::server::Digest;
use crate::outputs::haproxy::cfg::effective::{Backend, Effective, Follows, Options};
use crate::outputs::haproxy::cfg::generation::Generation;

mod draft;
mod reason;

use draft::Draft;
pub(crate) use draft::MANY;
pub use reason::{Difference, ReloadReason};

/// What haproxy should run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Desired {
    /// Of the rendered structure.
    pub generation: Generation,
    /// Every backend of the file that holds our servers or may.
    pub backends: BTreeMap<String, Arc<Backend>>,
    /// Backends in which a checked server that is added takes requests after its first passed check (`admit: checked`).
    pub admits_checked: BTreeSet<String>,
    /// The registry gives weights (`use_nerve_weights`): another weight is put right. Otherwise it is an operator's.
    pub weights: bool,
}

/// What the current worker runs. Only what was read back or confirmed stands here.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Running {
    /// Of the loaded file; `None` = a file without our mark.
    pub generation: Option<Generation>,
    /// All backends of the process, ours or not.
    pub backends: BTreeMap<String, BTreeMap<String, RunningServer>>,
    /// What it does not take over the stats socket.
    pub refuses: Refuses,
}

/// What a worker does not do over the stats socket, and why: from its version, and learned from its answers.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Refuses {
    /// Additions, in any backend.
    pub all: Option<String>,
    /// Additions with a `cookie` (before haproxy 3.0).
    pub cookie: Option<String>,
    /// Every change: the level of the socket is too low.
    pub changes: Option<String>,
    /// By backend, what it has refused.
    pub backends: BTreeMap<String, BTreeMap<Kind, String>>,
    /// By backend and NAME: a part of this change of the server was refused, so that it is not as it seems.
    pub servers: BTreeMap<String, BTreeMap<String, (Kind, String)>>,
}

impl Refuses {
    /// Why no server can be added to this backend without a reload; not where nothing at all can be changed.
    #[must_use]
    pub fn reason<'a>(&'a self, name: &str, backend: &'a Backend) -> Option<&'a String> {
        let cookie = self.cookie.as_ref().filter(|_| backend.cookie);
        let known = backend.reload_only.as_ref().or(self.all.as_ref());
        known.or(cookie).or_else(|| self.learned(name, Kind::Add))
    }

    /// Why this is not done in a backend.
    #[must_use]
    pub fn of(&self, name: &str, kind: Kind) -> Option<&String> {
        self.changes.as_ref().or_else(|| self.learned(name, kind))
    }

    fn learned(&self, name: &str, kind: Kind) -> Option<&String> {
        self.backends.get(name)?.get(&kind)
    }

    /// Why a server cannot be given this weight. A static algorithm takes 0 and the one it was loaded with.
    #[must_use]
    pub fn weight<'a>(
        &'a self,
        name: &str,
        backend: &'a Backend,
        found: &RunningServer,
        weight: u16,
    ) -> Option<&'a String> {
        let fixed = backend.fixed_weights.as_ref();
        let fixed = fixed.filter(|_| weight != 0 && weight != found.initial_weight);
        fixed.or_else(|| self.of(name, Kind::Weight))
    }

    /// Why a retired server cannot take requests again so.
    fn returns<'a>(
        &'a self,
        name: &str,
        backend: &'a Backend,
        found: &RunningServer,
        after: Return,
    ) -> Option<&'a String> {
        let another = after.weight.filter(|w| *w != found.initial_weight);
        let weight = another.and_then(|weight| self.weight(name, backend, found, weight));
        weight.or_else(|| self.of(name, Kind::Return))
    }
}

/// A server as the worker shows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RunningServer {
    /// `None` = not resolved, or no address.
    pub address: Option<SocketAddr>,
    /// haproxy's id.
    pub id: u32,
    /// Configured or set weight, 0..256 (`srv_uweight`).
    pub weight: u16,
    /// The weight it was loaded or added with (`srv_iweight`).
    pub initial_weight: u16,
    /// The weight that the file or we have given it last.
    pub given: u16,
    /// Administrative state.
    pub state: State,
    /// Whether its agent is listened to; `None` = it has none.
    pub agent: Option<bool>,
    /// Digest of the options it was loaded with, by this worker; `None` = not known.
    pub digest: Option<Digest>,
    /// It was added to be admitted by its first passed check, which has not come yet.
    pub awaits_check: bool,
}

impl RunningServer {
    /// Takes requests, as far as we and the operator are concerned.
    #[must_use]
    pub fn is_serving(&self) -> bool {
        self.state == State::Ready && self.weight > 0
    }

    /// Its agent is not listened to any more.
    fn silence(&mut self) {
        self.agent = self.agent.map(|_| false);
    }

    fn returns(&mut self, after: Return) {
        if let Some(weight) = after.weight {
            (self.weight, self.given) = (weight, weight);
        } else {
            self.weight = self.given;
        }
        self.agent = self.agent.map(|on| on || after.checks.agent);
        self.state = State::Ready;
        self.awaits_check = false;
    }
}

/// Administrative state of a server, by owner. Up and down (the checks') is not part of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum State {
    /// Takes requests if its checks pass.
    Ready,
    /// In maint by our own doing. Awaits its return or its deletion.
    Retired,
    /// Put in maint by an operator, on the socket or by `disabled` in the file, or by its agent.
    OperatorMaint,
    /// Drained by an operator.
    OperatorDrain,
}

/// One runtime change of one server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Op {
    /// Its backend.
    pub backend: String,
    /// Its name.
    pub server: String,
    /// What happens to it.
    pub change: Change,
}

/// What happens to a server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Change {
    /// A server that the worker does not have.
    Add(Addition),
    /// Maint, and weight 0: no new requests, requests in flight finish.
    Retire {
        /// It has an agent, which is not listened to from now on.
        agent: bool,
    },
    /// A retired server takes requests again.
    Return(Return),
    /// Another address, of a host that is a name.
    Readdress {
        /// The address.
        address: SocketAddr,
        /// It is retired before and returns after, with this: others serve meanwhile, and connections to the former
        /// address are not used again.
        around: Option<Return>,
        /// Which of its checks go with it.
        follows: Follows,
    },
    /// An operator's maint again, lost by a reload; one in maint by our own doing becomes the operator's.
    Maint {
        /// Its agent is not listened to from now on: the operator had it so.
        agent: bool,
    },
    /// Another weight.
    Weight {
        /// 0..256.
        weight: u16,
        /// It had weight 0 and takes requests now: by way of maint, for haproxy hands its queue over only to a server that
        /// becomes ready (measured on 2.6 to 3.2: as long as there is a queue, it gets nothing).
        queue: bool,
    },
    /// A retired server that nobody wants goes for good; haproxy refuses while it has connections.
    Delete,
}

/// What a change is, whatever its values: what haproxy refuses is learned by it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Kind {
    /// [`Change::Add`].
    Add,
    /// [`Change::Retire`].
    Retire,
    /// [`Change::Return`].
    Return,
    /// [`Change::Readdress`].
    Readdress,
    /// [`Change::Maint`].
    Maint,
    /// [`Change::Weight`].
    Weight,
    /// [`Change::Delete`].
    Delete,
}

impl Change {
    /// What it is.
    #[must_use]
    pub fn kind(&self) -> Kind {
        match self {
            Self::Add(_) => Kind::Add,
            Self::Retire { .. } => Kind::Retire,
            Self::Return(_) => Kind::Return,
            Self::Readdress { .. } => Kind::Readdress,
            Self::Maint { .. } => Kind::Maint,
            Self::Weight { .. } => Kind::Weight,
            Self::Delete => Kind::Delete,
        }
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Add => "addition",
            Self::Retire => "removal",
            Self::Return => "return",
            Self::Readdress => "address",
            Self::Maint => "maintenance",
            Self::Weight => "weight",
            Self::Delete => "deletion",
        })
    }
}

/// How a server takes requests again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Return {
    /// Weight to set first; `None` = its initial one (an agent sets it).
    pub weight: Option<u16>,
    /// Checks to be on, also when its addition ended half-way.
    pub checks: Checks,
}

/// A server to be added. It inherits nothing: everything that it is to have stands here.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Addition {
    /// What haproxy connects to.
    pub address: SocketAddr,
    /// haproxy's id: hash balancing needs it to be the file's.
    pub id: u32,
    /// 0..256.
    pub weight: u16,
    /// Options with everything inherited.
    pub options: Arc<Options>,
    /// Of the options.
    pub digest: Digest,
    /// When it takes requests.
    pub admit: Admit,
}

/// When an added server takes requests.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Admit {
    /// At once.
    Ready,
    /// After its first passed check; until then it reads as retired.
    Checked,
    /// Never by us: an operator has disabled it, it stays in maint.
    Disabled,
}

/// Checks that haproxy has to be told to begin.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Checks {
    /// `check`.
    pub health: bool,
    /// `agent-check`.
    pub agent: bool,
}

impl Checks {
    /// That a server with these options has.
    #[must_use]
    pub fn of(options: &Options) -> Self {
        Self {
            health: options.has("check"),
            agent: options.has("agent-check"),
        }
    }
}

/// What has to be done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Plan {
    /// Nothing.
    Unchanged,
    /// These commands, in this order.
    Runtime(Vec<Op>),
    /// A reload.
    Reload {
        /// Why, for status and logs.
        reason: ReloadReason,
        /// What is done at once and does not wait for the reload: removals, returns and weights.
        first: Vec<Op>,
        /// What else can be done while the reload has to wait, in this order after `first`: additions, and the removals
        /// that wait for those. Empty when the structure is another one.
        meanwhile: Vec<Op>,
    },
}

impl fmt::Display for Op {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            backend,
            server,
            change,
        } = self;
        match change {
            Change::Add(Addition {
                address,
                id,
                weight,
                admit,
                ..
            }) => {
                let admit = match admit {
                    Admit::Ready => "",
                    Admit::Checked => " to be checked",
                    Admit::Disabled => " in maint",
                };
                write!(
                    f,
                    "add {backend}/{server} {address} id {id} weight {weight}{admit}"
                )
            }
            Change::Retire { .. } => write!(f, "retire {backend}/{server}"),
            Change::Readdress { address, .. } => {
                write!(f, "readdress {backend}/{server} {address}")
            }
            Change::Maint { .. } => write!(f, "maint {backend}/{server}"),
            Change::Return(Return {
                weight: Some(weight),
                ..
            }) => write!(f, "return {backend}/{server} weight {weight}"),
            Change::Return(Return { weight: None, .. }) => write!(f, "return {backend}/{server}"),
            Change::Weight { weight, .. } => write!(f, "weight {backend}/{server} {weight}"),
            Change::Delete => write!(f, "delete {backend}/{server}"),
        }
    }
}

/// Compares everything.
#[must_use]
pub fn plan(running: &Running, desired: &Desired) -> Plan {
    let all = desired.backends.keys();
    plan_some(running, desired, all.map(|name| (name, &Reach::Backend)))
}

/// What of a backend a change has reached.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Reach {
    /// Any of its servers.
    Backend,
    /// These servers, by NAME: all others are as they should be.
    Servers(BTreeSet<String>),
}

impl Reach {
    /// Both.
    pub fn add(&mut self, other: Self) {
        match (&mut *self, other) {
            (Self::Servers(names), Self::Servers(others)) => names.extend(others),
            (Self::Backend, _) => {}
            (_, Self::Backend) => *self = Self::Backend,
        }
    }
}

/// Compares only what a change has reached in the named backends (and the generation).
#[must_use]
pub fn plan_some<'a>(
    running: &Running,
    desired: &Desired,
    reached: impl IntoIterator<Item = (&'a String, &'a Reach)>,
) -> Plan {
    let mut draft = Draft::new(running, desired);
    if running.generation.as_ref() != Some(&desired.generation) {
        draft.reload(ReloadReason::Structure {
            running: running.generation.clone(),
            desired: desired.generation.clone(),
        });
    }
    // `show servers state` does not name a backend without servers.
    let none = BTreeMap::new();
    for (name, reach) in reached {
        if let Some(backend) = desired.backends.get(name) {
            let servers = running.backends.get(name).unwrap_or(&none);
            draft.compare(name, reach, servers, backend);
        }
    }
    draft.finish()
}

/// The part of a runtime plan that need not wait for its additions: without them, and without the removals of a backend in
/// which fewer servers would serve meanwhile than are added, or none.
#[must_use]
pub fn before_adds(running: &Running, ops: &[Op]) -> Vec<Op> {
    let gains = |backend: &str| {
        let adds = ops.iter().filter(|op| matches!(op.change, Change::Add(_)));
        adds.filter(|op| op.backend == backend).count()
    };
    let (retires, others): (Vec<&Op>, Vec<&Op>) = ops
        .iter()
        .filter(|op| !matches!(op.change, Change::Add(_)))
        .partition(|op| matches!(op.change, Change::Retire { .. }));
    // The servers that they change, and how those are then.
    let mut after = Running::default();
    for op in retires.iter().chain(&others) {
        let found = running.backends.get(&op.backend);
        if let Some(found) = found.and_then(|servers| servers.get(&op.server)) {
            let servers = after.backends.entry(op.backend.clone()).or_default();
            servers.insert(op.server.clone(), found.clone());
        }
    }
    retires.iter().chain(&others).for_each(|op| after.apply(op));
    let serve = |backend: &str| {
        let changed = after.backends.get(backend);
        let then = |name: &String| changed.and_then(|servers| servers.get(name));
        let servers = running.backends.get(backend).into_iter().flatten();
        let serve = servers.filter(|(name, s)| then(name).unwrap_or(s).state == State::Ready);
        serve.count()
    };
    let waiting: BTreeSet<&str> = after
        .backends
        .keys()
        .map(String::as_str)
        .filter(|backend| {
            let (gains, serve) = (gains(backend), serve(backend));
            gains > 0 && (serve == 0 || serve < gains)
        })
        .collect();
    let retires = retires
        .into_iter()
        .filter(|op| !waiting.contains(op.backend.as_str()));
    others.into_iter().chain(retires).cloned().collect()
}

/// Retired servers of these backends that nobody wants: to be deleted once their connections have ended. Where none can
/// be added they stay until the next reload, so that their return needs none; where haproxy does not delete, too: they
/// serve nobody, which is no reason for a reload.
#[must_use]
pub fn garbage<'a>(
    running: &Running,
    desired: &Desired,
    backends: impl IntoIterator<Item = &'a String>,
) -> Vec<Op> {
    let of = |name: &String| {
        let Some(backend) = desired.backends.get(name) else {
            return Vec::new();
        };
        let unwanted = |(server, found): &(&String, &RunningServer)| {
            found.state == State::Retired && !desired_has(backend, server)
        };
        let refuses = &running.refuses;
        let keeps = backend.unreadable
            || refuses.reason(name, backend).is_some()
            || refuses.of(name, Kind::Delete).is_some();
        let servers = running.backends.get(name).into_iter().flatten();
        servers
            .filter(|server| !keeps && unwanted(server))
            .map(|(server, _)| Op {
                backend: name.clone(),
                server: server.clone(),
                change: Change::Delete,
            })
            .collect::<Vec<_>>()
    };
    backends.into_iter().flat_map(of).collect()
}

/// Whether the server is to take requests, as far as the registry is concerned, or is not ours.
fn wants(backend: &Backend, server: &str) -> bool {
    let wanted = backend.servers.get(server);
    wanted.is_some_and(|wanted| !wanted.is_parked()) || backend.structural.contains(server)
}

fn desired_has(backend: &Backend, server: &str) -> bool {
    backend.servers.contains_key(server) || backend.structural.contains(server)
}

impl Running {
    /// What the worker runs once it has confirmed the operation. Servers it does not have are left alone.
    pub fn apply(&mut self, op: &Op) {
        let servers = match &op.change {
            Change::Add(_) => self.backends.entry(op.backend.clone()).or_default(),
            _ => match self.backends.get_mut(&op.backend) {
                Some(servers) => servers,
                None => return,
            },
        };
        match (&op.change, servers.get_mut(&op.server)) {
            (Change::Add(addition), None) => {
                servers.insert(op.server.clone(), addition.running());
            }
            (Change::Delete, Some(_)) => {
                servers.remove(&op.server);
            }
            (Change::Retire { .. }, Some(server)) => {
                (server.weight, server.state) = (0, State::Retired);
                server.silence();
            }
            (Change::Return(after), Some(server)) => server.returns(*after),
            (
                Change::Readdress {
                    address, around, ..
                },
                Some(server),
            ) => {
                server.address = Some(*address);
                if let Some(after) = around {
                    server.returns(*after);
                }
            }
            (Change::Maint { agent }, Some(server)) => {
                server.state = State::OperatorMaint;
                if *agent {
                    server.silence();
                }
            }
            (Change::Weight { weight, .. }, Some(server)) => {
                (server.weight, server.given) = (*weight, *weight);
            }
            (Change::Add(_), Some(_)) | (_, None) => {}
        }
    }

    /// What a worker runs right after loading the file. Backends that the file does not name are gone; structural
    /// servers are not part of it until they are read back.
    #[must_use]
    pub fn loaded(desired: &Desired) -> Self {
        let server = |wanted: &Effective| RunningServer {
            address: Some(wanted.address),
            id: wanted.id.unwrap_or_default(),
            weight: wanted.weight,
            initial_weight: wanted.weight,
            given: wanted.weight,
            state: if wanted.is_parked() {
                State::Retired
            } else if wanted.disabled {
                State::OperatorMaint
            } else {
                State::Ready
            },
            agent: wanted.weight_is_agents().then_some(true),
            digest: Some(wanted.digest.clone()),
            awaits_check: false,
        };
        let backends = desired.backends.iter().map(|(name, backend)| {
            (
                name.clone(),
                backend
                    .servers
                    .iter()
                    .map(|(name, wanted)| (name.clone(), server(wanted)))
                    .collect(),
            )
        });
        Self {
            generation: Some(desired.generation.clone()),
            backends: backends.collect(),
            refuses: Refuses::default(),
        }
    }
}

impl Addition {
    /// The server once it is there.
    fn running(&self) -> RunningServer {
        let state = match self.admit {
            Admit::Ready => State::Ready,
            Admit::Checked => State::Retired,
            Admit::Disabled => State::OperatorMaint,
        };
        let agent = Checks::of(&self.options).agent;
        RunningServer {
            address: Some(self.address),
            id: self.id,
            weight: self.weight,
            initial_weight: self.weight,
            given: self.weight,
            state,
            agent: agent.then_some(self.admit != Admit::Checked),
            digest: Some(self.digest.clone()),
            awaits_check: self.admit == Admit::Checked,
        }
    }
}

#[cfg(test)]
mod tests;
