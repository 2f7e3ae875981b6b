//! Whose maint it is: which servers of the worker are in maint by our own doing, noted on disk before it is done.
//!
//! haproxy's table cannot tell. Everything in it that `set server` can write, an operator can write too, and weight, maint
//! and ready an agent as well; several commands in one write may be cut off between any two of them when their sender dies
//! (measured on 2.6, 3.0 and 3.2: of two commands, one was done in up to 80 of 100 cases). So the mark is not in the table:
//! a server is ours as long as its name is here. It is written down before the first command and crossed out when haproxy
//! has confirmed the last one, so that at any moment in between, whoever dies, it is ours. A write that takes long is not
//! waited for: a removal does not hang on a disk.
//!
//! Beside it, what else only we know of this worker: the weights that it was told, and whether an operator's maints were
//! put back.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use smartstack_common::atomic::{Durability, Mode, ReplaceError, replace, sweep};
use smartstack_common::process::start_time;
use smartstack_common::report::Chain;
use tokio::task::{JoinHandle, spawn_blocking};
use tokio::time::{Instant, timeout};
use tracing::warn;

use super::observed::Observed;
use crate::outputs::haproxy::cfg::Model;
use crate::outputs::haproxy::plan::{Admit, Change, Op, Return, State};

/// How long a change waits for its note: a memory of the kernel's, unless the disk stands still.
const WAIT: Duration = Duration::from_millis(50);
/// What was sent without an answer may still be done so long afterwards: a haproxy that was stopped goes on with it. And so
/// long it may turn out that another worker has done what was sent: somebody else's reload is seen after the fact.
const UNSURE: Duration = Duration::from_secs(60);

/// Workers before the last one that are remembered.
const FORMER: usize = 4;

/// Names by backend.
type Names = BTreeMap<String, BTreeSet<String>>;

/// As written to the file.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Note {
    /// The worker's.
    pid: u32,
    /// Its start in clock ticks since boot, where known: pids are used again.
    start: Option<u64>,
    servers: Names,
}

/// When a server's way into maint was last sent, and whether this worker has done it for sure.
#[derive(Debug, Clone, Copy)]
struct Mark {
    sent: Instant,
    sure: bool,
}

impl Mark {
    fn is_recent(&self, now: Instant) -> bool {
        now < self.sent + UNSURE
    }
}

/// Marks by backend and NAME.
type Ours = BTreeMap<String, BTreeMap<String, Mark>>;

/// What is known of one worker.
#[derive(Debug, Default)]
struct Known {
    ours: Ours,
    /// Weights that we have set, by backend and NAME.
    given: BTreeMap<String, BTreeMap<String, u16>>,
}

/// Of the worker that answered last, and of those before it: while one replaces another, either may answer.
#[derive(Debug)]
pub(super) struct Marks {
    path: PathBuf,
    pid: Option<u32>,
    now: Known,
    former: VecDeque<(u32, Known)>,
    /// Names in the file as it was found at the start, until the first look: what is in maint and not in the file was taken
    /// out by us, before this file of notes existed or after it was lost.
    found: Option<Names>,
    /// The worker to which the operator's maints were put back.
    pub(super) restored: Option<u32>,
    written: Option<Note>,
    writing: Option<JoinHandle<Result<Note, ReplaceError>>>,
    failing: bool,
}

impl Marks {
    /// Reads what was noted before this process, for a worker that lives. `restored` = the worker that this synapse last
    /// agreed with.
    pub(super) fn read(path: &Path, file: Option<&Model>, restored: Option<u32>) -> Self {
        sweep(path);
        let text = std::fs::read(path).ok();
        let note: Option<Note> = text.and_then(|text| serde_json::from_slice(&text).ok());
        let live = |note: &Note| start_time(note.pid) == note.start;
        let note = note.filter(live);
        let mut ours = Ours::new();
        let mark = Mark {
            sent: Instant::now(),
            sure: true,
        };
        for (backend, names) in note.iter().flat_map(|note| &note.servers) {
            let names = names.iter().map(|name| (name.clone(), mark));
            ours.insert(backend.clone(), names.collect());
        }
        let names = |model: &Model| {
            let names = |(backend, servers): (&String, &BTreeMap<String, _>)| {
                (backend.clone(), servers.keys().cloned().collect())
            };
            model.servers.iter().map(names).collect()
        };
        Self {
            path: path.to_owned(),
            pid: note.as_ref().map(|note| note.pid),
            now: Known {
                ours,
                given: BTreeMap::new(),
            },
            former: VecDeque::new(),
            found: file.map(names),
            restored,
            written: note,
            writing: None,
            failing: false,
        }
    }

    /// Whether a server of this worker, should it be in maint, is so by our doing.
    pub(super) fn has(&self, pid: u32, backend: &str, name: &str) -> bool {
        self.pid == Some(pid)
            && self
                .now
                .ours
                .get(backend)
                .is_some_and(|b| b.contains_key(name))
    }

    /// The weight that this worker was last told.
    pub(super) fn given(&self, pid: u32, backend: &str, name: &str) -> Option<u16> {
        let backend = self
            .now
            .given
            .get(backend)
            .filter(|_| self.pid == Some(pid))?;
        backend.get(name).copied()
    }

    /// The first look: names that were found in the file, once.
    pub(super) fn leftovers(&mut self) -> Option<impl Fn(&str, &str) -> bool + use<>> {
        let found = self.found.take()?;
        Some(move |backend: &str, name: &str| {
            !found.get(backend).is_some_and(|names| names.contains(name))
        })
    }

    /// It is in maint by our doing.
    pub(super) fn claim(&mut self, pid: u32, backend: &str, name: &str) {
        self.begin(pid);
        let names = self.now.ours.entry(backend.to_owned()).or_default();
        let mark = names.entry(name.to_owned()).or_insert(Mark {
            sent: Instant::now(),
            sure: true,
        });
        mark.sent = Instant::now();
    }

    fn release(&mut self, backend: &str, name: &str) {
        if let Some(names) = self.now.ours.get_mut(backend) {
            names.remove(name);
            if names.is_empty() {
                self.now.ours.remove(backend);
            }
        }
    }

    /// Another worker begins with what its file says, and with what was sent lately: it may be the one that has done it.
    fn begin(&mut self, pid: u32) {
        if self.pid == Some(pid) {
            return;
        }
        let known = self.former.iter().position(|(of, _)| *of == pid);
        let known = known.and_then(|at| self.former.remove(at));
        let now = known.map(|(_, known)| known).unwrap_or_default();
        let before = std::mem::replace(&mut self.now, now);
        let now = Instant::now();
        for (backend, names) in &before.ours {
            for (name, mark) in names.iter().filter(|(_, mark)| mark.is_recent(now)) {
                let names = self.now.ours.entry(backend.clone()).or_default();
                let sure = false;
                names.entry(name.clone()).or_insert(Mark { sure, ..*mark });
            }
        }
        if let Some(former) = self.pid.replace(pid) {
            self.former.push_front((former, before));
            self.former.truncate(FORMER);
        }
    }

    /// Takes note of what is about to be sent. A server that is only named is known for ours by its address: before it gets
    /// another one, it is noted.
    pub(super) async fn intend(&mut self, observed: &Observed, ops: &[Op]) {
        let pid = observed.pid();
        self.begin(pid);
        let is_ours = |op: &Op| {
            let found = observed.server(&op.backend, &op.server);
            found.is_some_and(|server| server.state == State::Retired)
        };
        for op in ops {
            let moves = matches!(op.change, Change::Readdress { .. }) && is_ours(op);
            if moves || by_way_of_maint(&op.change) {
                self.claim(pid, &op.backend, &op.server);
            } else if matches!(op.change, Change::Maint { .. }) {
                self.release(&op.backend, &op.server);
            }
        }
        let is_noted = |note: &Note| {
            let noted = |backend: &String, name: &String| {
                note.servers.get(backend).is_some_and(|b| b.contains(name))
            };
            let mut ours = self.now.ours.iter();
            note.pid == pid && ours.all(|(b, names)| names.keys().all(|name| noted(b, name)))
        };
        if !self.now.ours.is_empty() && !self.written.as_ref().is_some_and(is_noted) {
            self.write(pid).await;
        }
    }

    /// haproxy has done it.
    pub(super) fn done(&mut self, op: &Op) {
        let Op {
            backend,
            server,
            change,
        } = op;
        if by_way_of_maint(change) && !stays_in_maint(change) || *change == Change::Delete {
            self.release(backend, server);
        }
        let given = match change {
            Change::Return(Return { weight, .. })
            | Change::Readdress {
                around: Some(Return { weight, .. }),
                ..
            } => *weight,
            Change::Weight { weight, .. } => Some(*weight),
            Change::Add(_) | Change::Delete => None,
            Change::Retire { .. } | Change::Maint { .. } | Change::Readdress { .. } => return,
        };
        let weights = self.now.given.entry(backend.clone()).or_default();
        match given {
            Some(weight) => _ = weights.insert(server.clone(), weight),
            None => _ = weights.remove(server),
        }
    }

    /// There was no answer: it may be done, in part, now or later.
    pub(super) fn unanswered(&mut self, ops: &[Op]) {
        let mark = Mark {
            sent: Instant::now(),
            sure: false,
        };
        for op in ops.iter().filter(|op| by_way_of_maint(&op.change)) {
            let names = self.now.ours.entry(op.backend.clone()).or_default();
            names.insert(op.server.clone(), mark);
        }
    }

    /// What the worker was just seen to have: who is not in maint needs no mark.
    /// In these backends; `None` = in all.
    pub(super) fn settle(&mut self, observed: &Observed, backends: Option<&[String]>) {
        self.begin(observed.pid());
        let now = Instant::now();
        let is_read = |name: &String| backends.is_none_or(|backends| backends.contains(name));
        let read = self.now.ours.iter_mut();
        for (backend, names) in read.filter(|(name, _)| is_read(name)) {
            names.retain(|name, mark| {
                !mark.sure && mark.is_recent(now) || observed.is_in_maint(backend, name)
            });
        }
        self.now.ours.retain(|_, names| !names.is_empty());
    }

    /// Brings the file up to date, beside everything else: what is not ours any more is crossed out.
    pub(super) async fn tidy(&mut self) {
        let Some(pid) = self.pid else {
            return;
        };
        if self.is_writing().await {
            return;
        }
        let now = self.note(pid);
        let same = self.written.as_ref().is_some_and(|written| *written == now);
        let is_nothing = now.servers.is_empty() && self.written.is_none();
        if !same && !is_nothing {
            self.write(pid).await;
        }
    }

    fn note(&self, pid: u32) -> Note {
        let servers = self.now.ours.iter();
        let servers =
            servers.map(|(backend, names)| (backend.clone(), names.keys().cloned().collect()));
        Note {
            pid,
            start: start_time(pid),
            servers: servers.collect(),
        }
    }

    async fn write(&mut self, pid: u32) {
        if self.is_writing().await {
            return;
        }
        let (path, note) = (self.path.clone(), self.note(pid));
        // What is on the disk is what this leaves there, as soon as it is known.
        self.written = None;
        self.writing = Some(spawn_blocking(move || {
            let text = serde_json::to_vec(&note).unwrap_or_default();
            replace(&path, [text], Mode::Private(0o600), Durability::Rename).map(|()| note)
        }));
        self.is_writing().await;
    }

    /// Waits a little for a write under way. Whether it goes on.
    async fn is_writing(&mut self) -> bool {
        let Some(writing) = &mut self.writing else {
            return false;
        };
        let problem = match timeout(WAIT, writing).await {
            Ok(Ok(Ok(note))) => {
                self.written = Some(note);
                None
            }
            Ok(Ok(Err(error))) => Some(Chain(&error).to_string()),
            Ok(Err(error)) => Some(error.to_string()),
            Err(_) => {
                self.tell(format!("it takes more than {} ms", WAIT.as_millis()));
                return true;
            }
        };
        self.writing = None;
        match problem {
            Some(problem) => {
                self.written = None;
                self.tell(problem);
            }
            None => self.failing = false,
        }
        false
    }

    fn tell(&mut self, problem: String) {
        if !std::mem::replace(&mut self.failing, true) {
            warn!(
                path = %self.path.display(),
                problem,
                "cannot note which servers synapse takes out; if it is killed now, one of them may look as if an operator had disabled it"
            );
        }
    }
}

/// Whether it leaves the server in maint for a while, or for good, by our doing.
fn by_way_of_maint(change: &Change) -> bool {
    match change {
        Change::Add(addition) => addition.admit != Admit::Disabled,
        Change::Retire { .. } | Change::Return(_) => true,
        Change::Readdress { around, .. } => around.is_some(),
        Change::Weight { queue, .. } => *queue,
        Change::Maint { .. } | Change::Delete => false,
    }
}

/// Whether it does so for good.
fn stays_in_maint(change: &Change) -> bool {
    match change {
        Change::Add(addition) => addition.admit == Admit::Checked,
        Change::Retire { .. } => true,
        _ => false,
    }
}

/// Where the notes are: beside the snapshot.
pub(super) fn path(snapshot: &Path) -> PathBuf {
    let mut name = snapshot.as_os_str().to_owned();
    name.push(".removed");
    PathBuf::from(name)
}
