//! What the worker has refused, so that it is not asked again: the reload does it instead.
//!
//! Pure. A refusal that haproxy's table may explain (`No such server.`, a name or an id that is taken) is believed when it
//! comes again after the table was read; any other at once. What is refused because of the structure or of the socket's level holds for every
//! worker with that structure, the rest for this worker alone.

use std::collections::{BTreeMap, BTreeSet};

use super::observed::Observed;
use crate::outputs::haproxy::cfg::generation::Generation;
use crate::outputs::haproxy::plan::{Kind, Op};
use crate::outputs::haproxy::socket::Refusal;

/// What an operator reads about a socket below level admin.
const DENIED: &str = "the stats socket's level is below admin: it shows everything and changes nothing, so that every \
                      change is a reload; say `level admin` in `stats socket` of `haproxy.global`";

/// What is known to be refused.
#[derive(Debug, Default)]
pub(super) struct Fallbacks {
    /// Backends whose own lines keep new servers from being added without a reload, and why.
    pub(super) reload_only: BTreeMap<String, String>,
    generation: Option<Generation>,
    /// Every change is refused; by whom, as in [`Fallback::pid`].
    denied: Option<Option<u32>>,
    backends: BTreeMap<(String, Kind), Fallback>,
    /// Servers that we have put into maint or taken out of it, and do not know how that ended: backend, NAME. Whose their
    /// maint is stands in [`super::marks`]; these may have been left without their checks, also by a worker that somebody
    /// else had started before it was seen.
    halfway: BTreeSet<(String, String)>,
    /// What follows is this worker's.
    pid: u32,
    /// Refused in a way that the table may explain: backend, NAME; whether the table was read since.
    doubted: BTreeMap<(String, String, Kind), bool>,
    /// Servers of which a part of a change was refused: backend, NAME; which change, and why.
    unfinished: BTreeMap<(String, String), (Kind, String)>,
    /// Servers that an operator had disabled and that this worker does not disable: backend, NAME.
    undisabled: BTreeSet<(String, String)>,
}

#[derive(Debug)]
struct Fallback {
    reason: String,
    /// Only this worker refuses; `None` = any with this structure does.
    pid: Option<u32>,
}

/// What a refusal means.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Means {
    /// The table tells; what follows from it is done.
    LookAgain,
    /// It is not asked for again.
    Lasting,
    /// So is every other change: the socket's level. Told once.
    AllDenied,
}

impl Fallbacks {
    /// Forgets what does not hold for this worker, and tells it the rest.
    pub(super) fn tell(&mut self, observed: &mut Observed) {
        let pid = observed.pid();
        if self.generation != observed.running.generation {
            self.denied = None;
            self.backends.clear();
            self.generation.clone_from(&observed.running.generation);
        }
        let holds = |of: Option<u32>| of.is_none_or(|of| of == pid);
        self.denied = self.denied.filter(|of| holds(*of));
        self.backends.retain(|_, fallback| holds(fallback.pid));
        self.begin(pid);
        let refuses = &mut observed.running.refuses;
        refuses.changes = self.denied.map(|_| DENIED.to_owned());
        refuses.backends.clear();
        for ((backend, kind), fallback) in &self.backends {
            let learned = refuses.backends.entry(backend.clone()).or_default();
            learned.insert(*kind, fallback.reason.clone());
        }
        refuses.servers.clear();
        for ((backend, name), why) in &self.unfinished {
            let servers = refuses.servers.entry(backend.clone()).or_default();
            servers.insert(name.clone(), why.clone());
        }
    }

    /// A table that was just read, in whole or of these backends: checks that a change of ours has left off are not an
    /// operator's. Tells what holds, too.
    pub(super) fn seen(&mut self, observed: &mut Observed, backends: Option<&[String]>) {
        self.begin(observed.pid());
        self.looked(backends);
        self.halfway.retain(|(backend, name)| {
            let read = backends.is_none_or(|backends| backends.contains(backend));
            if !read || observed.is_in_maint(backend, name) {
                return true;
            }
            if observed.lacks_checks(backend, name) {
                let why = "haproxy has not begun its checks".to_owned();
                self.unfinished
                    .insert((backend.clone(), name.clone()), (Kind::Return, why));
            }
            false
        });
        self.tell(observed);
    }

    /// The table was read, in whole or of these backends.
    pub(super) fn looked(&mut self, backends: Option<&[String]>) {
        for ((backend, _, _), looked) in &mut self.doubted {
            *looked |= backends.is_none_or(|backends| backends.contains(backend));
        }
    }

    /// This was sent, and its answer was lost or was a refusal.
    pub(super) fn unsure(&mut self, op: &Op, pid: u32) {
        self.begin(pid);
        if moves(op.change.kind()) {
            self.halfway.insert((op.backend.clone(), op.server.clone()));
        }
    }

    fn begin(&mut self, pid: u32) {
        if self.pid != pid {
            self.pid = pid;
            self.doubted.clear();
            self.unfinished.clear();
            self.undisabled.clear();
        }
    }

    /// Backend, and what it has refused with the reason. Additions are told of with what their own lines say.
    pub(super) fn reasons(&self) -> impl Iterator<Item = (&String, Kind, &String)> {
        let all = self.backends.iter();
        all.map(|((backend, kind), fallback)| (backend, *kind, &fallback.reason))
    }

    /// What an operator reads when every change is refused.
    pub(super) fn denied(&self) -> Option<&'static str> {
        self.denied.map(|_| DENIED)
    }

    /// An operation was refused by this worker.
    pub(super) fn learn(&mut self, op: &Op, refusal: &Refusal, pid: u32) -> Means {
        self.unsure(op, pid);
        let kind = op.change.kind();
        if *refusal == Refusal::Denied {
            let structure = self.generation.is_some();
            let known = self.denied.replace((!structure).then_some(pid));
            return match known {
                None => Means::AllDenied,
                Some(_) => Means::Lasting,
            };
        }
        let explained = match refusal {
            Refusal::AlreadyExists
            | Refusal::IdUsed
            | Refusal::NoSuchServer
            | Refusal::NotInMaint
            | Refusal::HasConnections => true,
            // An addition needs no other look: the worker has another file.
            Refusal::NoSuchBackend => kind != Kind::Add,
            _ => false,
        };
        let server = (op.backend.clone(), op.server.clone());
        let doubt = (op.backend.clone(), op.server.clone(), kind);
        if explained && !*self.doubted.entry(doubt).or_default() {
            return Means::LookAgain;
        }
        let reason = match kind {
            Kind::Add => format!("haproxy refuses to add servers: {refusal}"),
            _ => format!("haproxy refuses it: {refusal}"),
        };
        if moves(kind) {
            self.unfinished.insert(server, (kind, reason.clone()));
        } else if kind == Kind::Maint {
            self.undisabled.insert(server);
        }
        // One server that may not be deleted says nothing about others.
        if !(kind == Kind::Delete && *refusal == Refusal::PointedTo) {
            let structural = match refusal {
                Refusal::NotDynamic | Refusal::NotAccepted(_) => kind == Kind::Add,
                Refusal::FixedWeights => true,
                _ => false,
            };
            // A return or a part of an addition with a weight: it is the weight that is refused.
            let kind = match refusal {
                Refusal::FixedWeights => Kind::Weight,
                _ => kind,
            };
            let pid = (!structural).then_some(pid);
            self.backends
                .insert((op.backend.clone(), kind), Fallback { reason, pid });
        }
        Means::Lasting
    }

    /// An operation was carried out: what was refused of this server before is made good.
    pub(super) fn done(&mut self, op: &Op) {
        let nothing = self.unfinished.is_empty() && self.halfway.is_empty();
        if nothing && self.doubted.is_empty() && self.undisabled.is_empty() {
            return;
        }
        let server = (op.backend.clone(), op.server.clone());
        self.unfinished.remove(&server);
        self.halfway.remove(&server);
        self.undisabled.remove(&server);
        // One that was added is another server than the one that was refused.
        let done = op.change.kind();
        self.doubted.retain(|(backend, name, kind), _| {
            *backend != op.backend || *name != op.server || (*kind != done && done != Kind::Add)
        });
    }

    /// Servers that should be in maint for an operator, and are not because this worker refuses that.
    pub(super) fn undisabled(&self) -> &BTreeSet<(String, String)> {
        &self.undisabled
    }
}

/// Whether it puts a server into maint or takes it out.
fn moves(kind: Kind) -> bool {
    match kind {
        Kind::Add | Kind::Retire | Kind::Return | Kind::Readdress => true,
        Kind::Maint | Kind::Weight | Kind::Delete => false,
    }
}
