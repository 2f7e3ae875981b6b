//! A haproxy in memory, for the reconciler's simulation: its table, its stats socket's words, and what goes wrong with them
//! (answers lost before or after the deed, looks at the worker before, death, reloads that fail), and its servers' agents,
//! which say anything at any time as long as they are listened to. Tests only.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::{Instant, sleep};

use operator::{Key, Loaded, Operator, Shown};

use super::{Complaints, ReloadOutcome, Verdict};
use crate::model::server::NOWHERE;
use crate::outputs::haproxy::cfg::effective::Scope;
use crate::outputs::haproxy::cfg::generation::Generation;
use crate::outputs::haproxy::cfg::{Model, Ours};
use crate::outputs::haproxy::socket::{ApiError, Reply};

mod operator;

/// So long a maint that is found is the sender's when the answer to a command about its server was lost.
const UNSURE: Duration = Duration::from_secs(61);

thread_local! {
    static CURRENT: RefCell<Option<Simulated>> = const { RefCell::new(None) };
}

/// The one that this thread's reconciler drives.
#[derive(Debug, Clone)]
pub(crate) struct Simulated(Arc<Mutex<World>>);

/// How often things go wrong, each in thousandths.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Faults {
    /// A command line is lost before anything is done.
    pub(crate) lost: u16,
    /// Its answer is lost after some of it was done.
    pub(crate) unanswered: u16,
    /// A look goes to the worker before.
    pub(crate) stale: u16,
    /// A reload fails.
    pub(crate) reload: u16,
    /// A deletion finds connections.
    pub(crate) busy: u16,
}

/// Something that haproxy refuses, whoever asks.
#[derive(Debug, Clone)]
pub(crate) struct Refusing {
    /// In this backend; `None` = in any.
    pub(crate) backend: Option<String>,
    /// One of [`COMMANDS`]; `None` = any of them.
    pub(crate) command: Option<&'static str>,
    /// haproxy's words.
    pub(crate) words: &'static str,
    /// The worker that serves now refuses it, and no later one.
    pub(crate) once: bool,
}

/// What can be refused.
pub(crate) const COMMANDS: [&str; 7] = ["add", "del", "enable", "ready", "maint", "weight", "addr"];
/// haproxy's words for a weight other than 0 and the initial one under a static algorithm: only those are refused.
pub(crate) const STATIC: &str =
    "Backend is using a static LB algorithm and only accepts weights '0%' and '100%'.";
/// So often a worker may be asked for what it refuses: by each operation of which it is a part, and once more where its table
/// belies it.
const PATIENCE: usize = 8;

#[derive(Debug)]
struct World {
    /// What it does is printed.
    trace: bool,
    refusing: Vec<(Refusing, Option<u32>)>,
    /// Exchanges in which a command was refused: of which worker, in which backend, which.
    asked: BTreeMap<(u32, String, &'static str), usize>,
    rng: fastrand::Rng,
    faults: Faults,
    file: PathBuf,
    worker: Option<Worker>,
    former: Option<Worker>,
    next_pid: u32,
    reloads: u64,
    /// Servers that every state of the registry since the last quiet moment has named: none of them may be taken out.
    kept: BTreeSet<Key>,
    /// Servers that none of them has named: none of them may take requests.
    gone: BTreeSet<Key>,
    operator: Operator,
    /// Servers that something was sent about, and when.
    sent: BTreeMap<Key, Instant>,
    /// Those of which the sender cannot know who has done it, for want of an answer or because of a reload.
    unanswered: BTreeMap<Key, Instant>,
    /// Agents say `ready` from now on.
    well: bool,
    broken: Vec<String>,
}

#[derive(Debug, Clone, Default)]
struct Worker {
    pid: u32,
    description: String,
    backends: BTreeMap<String, BTreeMap<String, Server>>,
}

#[derive(Debug, Clone)]
struct Server {
    address: SocketAddr,
    id: u32,
    maint: bool,
    /// Its line says `disabled`: haproxy keeps that in its state for good.
    disabled: bool,
    weight: u16,
    initial: u16,
    /// Its options say `check`; it is checked.
    has_check: bool,
    checked: bool,
    /// Whether its agent is listened to; `None` = it has none.
    agent: Option<bool>,
    /// The last command about its state said maint, and no agent has ended that.
    commanded: bool,
    /// So, and of weight 0: taken out for good.
    out: bool,
}

impl Simulated {
    /// Makes one and drives it on this thread from now on.
    pub(crate) fn start(seed: u64, file: &Path, trace: bool) -> Self {
        let world = World {
            trace,
            refusing: Vec::new(),
            asked: BTreeMap::new(),
            rng: fastrand::Rng::with_seed(seed),
            faults: Faults::default(),
            file: file.to_owned(),
            worker: None,
            former: None,
            next_pid: 0x4000_0000,
            reloads: 0,
            kept: BTreeSet::new(),
            gone: BTreeSet::new(),
            operator: Operator::default(),
            sent: BTreeMap::new(),
            unanswered: BTreeMap::new(),
            well: true,
            broken: Vec::new(),
        };
        let this = Self(Arc::new(Mutex::new(world)));
        CURRENT.with(|current| *current.borrow_mut() = Some(this.clone()));
        this
    }

    /// The one of this thread.
    pub(crate) fn current() -> Option<Self> {
        CURRENT.with(|current| current.borrow().clone())
    }

    pub(crate) fn end(&self) {
        CURRENT.with(|current| *current.borrow_mut() = None);
    }

    fn world(&self) -> MutexGuard<'_, World> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn set_faults(&self, faults: Faults) {
        self.world().faults = faults;
    }

    /// Servers that every state of the registry since the last quiet moment has named, and those that none has.
    pub(crate) fn set_kept(&self, kept: BTreeSet<Key>, gone: BTreeSet<Key>) {
        let mut world = self.world();
        (world.kept, world.gone) = (kept, gone);
    }

    /// Nobody runs any more.
    pub(crate) fn kill(&self) {
        let mut world = self.world();
        world.worker = None;
        // The next one is started as soon as that is seen: what was heard may not be in the file yet.
        world.operator.forgotten(&BTreeSet::new(), &Shown::new());
        world.operator.load(&[], None);
    }

    /// Somebody else reloads, with this file.
    pub(crate) fn foreign_reload(&self, text: &str) {
        self.world().load(text, None);
    }

    /// Who drove it is dead, and has left this as what an operator has put in maint.
    pub(crate) fn forgotten(&self, noted: &BTreeSet<Key>) {
        let mut world = self.world();
        let shown = world.shown();
        world.operator.forgotten(noted, &shown);
    }

    /// Servers that are in maint by an operator's word; those that may be, or by an agent's.
    pub(crate) fn held(&self) -> (BTreeSet<Key>, BTreeSet<Key>) {
        let world = self.world();
        (world.operator.held(), world.operator.maybe())
    }

    /// An operator's hand, which may have set weight 0 before.
    pub(crate) fn set_maint(&self, backend: &str, name: &str, maint: bool, weightless: bool) {
        let mut world = self.world();
        let key = (backend.to_owned(), name.to_owned());
        let is_theirs = world.operator.may_hold(&key);
        let worker = world.worker.as_mut();
        let servers = worker.and_then(|worker| worker.backends.get_mut(backend));
        let server = servers.and_then(|servers| servers.get_mut(name));
        // One that was taken out is not the operator's to judge.
        let other = |server: &&mut Server| {
            let is_ours = server.address.ip() == NOWHERE || !maint && server.out;
            server.maint != maint && !is_ours && (maint || is_theirs)
        };
        let Some(server) = server.filter(other) else {
            return;
        };
        (server.maint, server.commanded) = (maint, false);
        if maint && weightless {
            server.weight = 0;
        }
        let sent = world.unanswered.get(&key);
        let unsure = maint && sent.is_some_and(|at| at.elapsed() < UNSURE);
        world.operator.says(key, maint, unsure);
    }

    /// It refuses this as well from now on.
    pub(crate) fn refuse(&self, what: Refusing) {
        let mut world = self.world();
        let pid = world.worker.as_ref().map(|worker| worker.pid);
        let only = pid.filter(|_| what.once);
        world.refusing.push((what, only));
    }

    /// It refuses nothing any more.
    pub(crate) fn take_all(&self) {
        self.world().refusing.clear();
    }

    /// Servers that take requests although their check is off.
    pub(crate) fn unchecked(&self) -> BTreeSet<(String, String)> {
        let world = self.world();
        let backends = world.worker.iter().flat_map(|worker| &worker.backends);
        let servers = backends.flat_map(|(backend, servers)| {
            let off = |server: &Server| !server.maint && server.has_check && !server.checked;
            servers
                .iter()
                .filter(move |(_, server)| off(server))
                .map(move |(name, _)| (backend.clone(), name.clone()))
        });
        servers.collect()
    }

    /// All agents that are listened to say something; from now on only `ready` when all is `well`.
    pub(crate) fn agents_speak(&self, well: bool) {
        let mut world = self.world();
        world.well = well;
        world.agents_speak();
    }

    /// Reloads that we asked for, the first start among them.
    pub(crate) fn reloads(&self) -> u64 {
        self.world().reloads
    }

    /// What broke the rules so far.
    pub(crate) fn broken(&self) -> Vec<String> {
        self.world().broken.clone()
    }

    /// Backend, name and weight of every server that takes requests; `None` = nobody runs.
    pub(crate) fn serving(&self) -> Option<BTreeSet<(String, String, u16)>> {
        let world = self.world();
        let worker = world.worker.as_ref()?;
        let servers = worker.backends.iter().flat_map(|(backend, servers)| {
            servers
                .iter()
                .filter(|(_, server)| !server.maint)
                .map(move |(name, server)| (backend.clone(), name.clone(), server.weight))
        });
        Some(servers.collect())
    }

    /// One command line of the stats socket.
    pub(crate) async fn exchange(
        &self,
        path: &Path,
        batch: &[String],
    ) -> Result<Vec<Reply>, ApiError> {
        let pause = self.world().rng.u64(0..800);
        sleep(Duration::from_micros(pause)).await;
        let lost = |limit| ApiError::Timeout {
            path: path.to_owned(),
            limit,
        };
        let mut world = self.world();
        world.check_file();
        world.agents_speak();
        let faults = world.faults;
        if world.happens(faults.lost) {
            return Err(lost(Duration::from_secs(2)));
        }
        let stale = world.happens(faults.stale) && world.former.is_some();
        let done = if world.happens(faults.unanswered) {
            Some(world.rng.usize(0..=batch.len()))
        } else {
            None
        };
        let about = about(batch);
        world.sent.extend(about.clone());
        let mut replies = Vec::new();
        let mut refused = BTreeSet::new();
        for command in &batch[..done.unwrap_or(batch.len())] {
            let text = world
                .command(command, stale)
                .ok_or(ApiError::Refused(path.to_owned()))?;
            if world.refusal(command).is_some() {
                refused.extend(change(command));
            }
            replies.push(Reply::parse(&text));
        }
        if done.is_some() {
            world.unanswered.extend(about);
            return Err(ApiError::Closed(path.to_owned()));
        }
        world.count(refused);
        world.tell_of_looks(batch, stale);
        world.check_gone("a command");
        Ok(replies)
    }

    /// `haproxy -c`.
    pub(crate) fn check(&self, candidate: &Path) -> Verdict {
        let text = std::fs::read_to_string(candidate).unwrap_or_default();
        match absent(&text).as_slice() {
            [] => Verdict::Valid,
            words => {
                let alerts = words
                    .iter()
                    .map(|words| format!("[ALERT] (1) : config : {words}\n"));
                Verdict::Refused(Complaints::parse(&alerts.collect::<String>()))
            }
        }
    }

    /// The file on disk loads at every moment.
    pub(crate) fn check_file(&self) {
        self.world().check_file();
    }

    /// A start or a reload of ours.
    pub(crate) async fn reload(&self) -> ReloadOutcome {
        let began = Instant::now();
        sleep(Duration::from_millis(60)).await;
        let mut world = self.world();
        let faults = world.faults;
        if world.happens(faults.reload) {
            return ReloadOutcome::failed("simulated", "");
        }
        world.reloads += 1;
        world.check_file();
        let text = std::fs::read_to_string(&world.file).unwrap_or_default();
        if let Some(words) = absent(&text).first() {
            return ReloadOutcome::failed(
                words.clone(),
                format!("[ALERT] (1) : config : {words}\n"),
            );
        }
        world.load(&text, Some(began));
        world.check_kept("a reload");
        world.check_gone("a reload");
        let worker = world.worker.as_ref();
        let generation = worker.and_then(|worker| {
            Generation::parse(crate::outputs::haproxy::cfg::generation::parse_description(
                &worker.description,
            )?)
        });
        ReloadOutcome::Confirmed {
            pid: worker.map_or(0, |worker| worker.pid),
            generation,
            took: Duration::from_millis(60),
        }
    }
}

impl World {
    fn happens(&mut self, thousandths: u16) -> bool {
        self.rng.u16(0..1000) < thousandths
    }

    /// `began` = when a reload of ours did.
    fn load(&mut self, text: &str, began: Option<Instant>) {
        let model = Model::parse(text, Ours::All);
        let description = text
            .lines()
            .find_map(|line| line.trim().strip_prefix("description "))
            .unwrap_or_default();
        let backends = Scope::default()
            .read(&model)
            .into_iter()
            .map(|(name, backend)| {
                let server = |(name, wanted): (
                    &String,
                    &crate::outputs::haproxy::cfg::effective::Effective,
                )| {
                    let server = Server {
                        address: wanted.address,
                        id: wanted.id.unwrap_or_default(),
                        maint: wanted.disabled,
                        disabled: wanted.disabled,
                        weight: wanted.weight,
                        initial: wanted.weight,
                        has_check: wanted.options.has("check"),
                        checked: true,
                        agent: wanted.weight_is_agents().then_some(true),
                        commanded: false,
                        out: false,
                    };
                    (name.clone(), server)
                };
                (name, backend.servers.iter().map(server).collect())
            });
        self.next_pid += 1;
        if self.trace {
            let whose = if began.is_some() { "ours" } else { "another's" };
            println!(
                "  worker {} loads a file, a reload of {whose}",
                self.next_pid
            );
        }
        let worker = Worker {
            pid: self.next_pid,
            description: description.to_owned(),
            backends: backends.collect(),
        };
        let loaded = worker.backends.iter().flat_map(|(backend, servers)| {
            servers.iter().map(|(name, server)| Loaded {
                key: (backend.clone(), name.clone()),
                disabled: server.disabled,
                parked: server.address.ip() == NOWHERE,
            })
        });
        let loaded: Vec<Loaded> = loaded.collect();
        // Where nobody runs, haproxy is started on what is there.
        let began_with = began.filter(|_| self.worker.is_some());
        let broken = self.operator.load(&loaded, began_with);
        self.broken.extend(broken);
        self.unanswered.append(&mut self.sent);
        self.former = self.worker.replace(worker);
    }

    fn check_file(&mut self) {
        let text = std::fs::read_to_string(&self.file).unwrap_or_default();
        let words = absent(&text).into_iter();
        self.broken
            .extend(words.map(|words| format!("the file does not load: {words}")));
    }

    fn agents_speak(&mut self) {
        let Some(worker) = &mut self.worker else {
            return;
        };
        for (backend, servers) in &mut worker.backends {
            // Each is asked at its server's own address: nobody is at the one of a server that is named only.
            let asked =
                |server: &Server| server.agent == Some(true) && server.address.ip() != NOWHERE;
            for (name, server) in servers.iter_mut().filter(|(_, server)| asked(server)) {
                let word = if self.well { 0 } else { self.rng.u8(0..8) };
                match word {
                    0 => server.maint = false,
                    1 => (server.maint, server.weight) = (false, server.initial),
                    2 => (server.maint, server.weight) = (true, 0),
                    3 => server.maint = true,
                    4 => server.weight = server.initial / 2,
                    _ => {}
                }
                if server.maint {
                    let key = (backend.clone(), name.clone());
                    self.operator.may_be(&key);
                } else {
                    if server.out {
                        let what = format!("the agent of {backend}/{name} brings it back");
                        self.broken.push(what);
                    }
                    (server.commanded, server.out) = (false, false);
                }
            }
        }
        self.check_gone("an agent's word");
    }

    /// A command of ours about a server that an operator has put in maint.
    fn check_operator(&mut self, key: &Key, text: &str, change: &[&str]) {
        if !self.operator.holds(key) {
            return;
        }
        match change {
            // It leaves the registry: when it returns, that is another matter.
            ["state", "maint"] if !self.kept.contains(key) => self.operator.may_be(key),
            ["state", "ready"] => {
                self.broken
                    .push(format!("{text}: undoes an operator's maint"));
            }
            _ => {}
        }
    }

    /// Answers that show what an operator has said.
    fn tell_of_looks(&mut self, batch: &[String], stale: bool) {
        let Some(pid) = self.worker.as_ref().map(|worker| worker.pid) else {
            return;
        };
        let shown = self.shown();
        let operator = &mut self.operator;
        for command in batch.iter().filter(|_| !stale) {
            match command.split(' ').collect::<Vec<_>>()[..] {
                ["show", "servers", "state"] => operator.looked(pid, None, &shown),
                ["show", "servers", "state", name] => operator.looked(pid, Some(name), &shown),
                ["show", "info"] => operator.is(pid, &shown),
                _ => {}
            }
        }
    }

    fn shown(&self) -> Shown {
        let backends = self.worker.iter().flat_map(|worker| &worker.backends);
        let servers = backends.flat_map(|(backend, servers)| {
            let server = |(name, server): (&String, &Server)| {
                ((backend.clone(), name.clone()), server.maint)
            };
            servers.iter().map(server)
        });
        servers.collect()
    }

    /// No server may take requests that the registry has not named all the time.
    fn check_gone(&mut self, what: &str) {
        let Some(worker) = &self.worker else {
            return;
        };
        let serves = |(backend, name): &&Key| {
            let servers = worker.backends.get(backend);
            let server = servers.and_then(|servers| servers.get(name));
            server.is_some_and(|server| !server.maint)
        };
        if let Some((backend, name)) = self.gone.iter().find(serves) {
            let words = format!("after {what} {backend}/{name} serves, which was taken out");
            self.broken.push(words);
        }
    }

    /// No server that the registry has named all the time may be missing in a backend that the worker has.
    fn check_kept(&mut self, what: &str) {
        let Some(worker) = &self.worker else {
            return;
        };
        for (backend, name) in &self.kept {
            let Some(servers) = worker.backends.get(backend) else {
                continue;
            };
            if !servers.contains_key(name) {
                self.broken
                    .push(format!("{what} leaves {backend}/{name} out"));
            }
        }
    }

    /// Why the worker does not do this.
    fn refusal(&self, text: &str) -> Option<&'static str> {
        let worker = self.worker.as_ref()?;
        let (backend, command) = change(text)?;
        let applies = |(what, only): &&(Refusing, Option<u32>)| {
            let here = what.backend.as_ref().is_none_or(|name| *name == backend);
            let which = what.command.is_none_or(|which| which == command);
            here && which && only.is_none_or(|pid| pid == worker.pid) && {
                what.words != STATIC || (command == "weight" && is_dynamic(worker, text))
            }
        };
        let (what, _) = self.refusing.iter().find(applies)?;
        Some(what.words)
    }

    /// No worker may be asked for ever.
    fn count(&mut self, refused: BTreeSet<(String, &'static str)>) {
        let Some(pid) = self.worker.as_ref().map(|worker| worker.pid) else {
            return;
        };
        for (backend, command) in refused {
            let times = self.asked.entry((pid, backend.clone(), command));
            let times = times.or_default();
            *times += 1;
            if *times == PATIENCE + 1 {
                let what = format!("`{command}` in {backend} is asked for again and again");
                self.broken.push(what);
            }
        }
    }

    /// The reply with its severity tag; `None` = nobody runs.
    fn command(&mut self, text: &str, stale: bool) -> Option<String> {
        if self.trace && !text.starts_with("show") {
            let pid = self.worker.as_ref().map_or(0, |worker| worker.pid);
            println!("  worker {pid}: {text}");
        }
        self.worker.as_ref()?;
        if let Some(words) = self.refusal(text) {
            return Some(format!("[3]: {words}\n"));
        }
        let words: Vec<&str> = text.split(' ').collect();
        let looks = words[0] == "show";
        let worker = if stale && looks {
            self.former.as_mut()?
        } else {
            self.worker.as_mut()?
        };
        let reply = match words[..] {
            ["show", "info"] => format!(
                "Version: 2.6.12\nPid: {}\nUptime_sec: 1\nStopping: 0\ndescription: {}\n",
                worker.pid, worker.description
            ),
            ["show", "servers", "state"] => table(worker, None),
            ["show", "servers", "state", backend] => match worker.backends.get(backend) {
                Some(_) => table(worker, Some(backend)),
                None => "[3]: Can't find backend.\n".to_owned(),
            },
            [
                "add",
                "server",
                server,
                address,
                "id",
                id,
                "weight",
                weight,
                ref options @ ..,
            ] => {
                let (backend, name) = server.split_once('/')?;
                let agent = options.contains(&"agent-check");
                let check = options.contains(&"check");
                add(worker, backend, name, (address, id, weight), (agent, check))
            }
            ["enable", "health", server] => {
                let (backend, name) = server.split_once('/')?;
                let servers = worker.backends.get_mut(backend);
                if let Some(server) = servers.and_then(|servers| servers.get_mut(name)) {
                    server.checked = true;
                }
                String::new()
            }
            [on @ ("enable" | "disable"), "agent", server] => {
                let (backend, name) = server.split_once('/')?;
                let servers = worker.backends.get_mut(backend)?;
                if let Some(server) = servers.get_mut(name)
                    && server.agent.is_some()
                {
                    server.agent = Some(on == "enable");
                    server.out &= on != "enable";
                }
                String::new()
            }
            ["del", "server", server] => {
                let busy = self.faults.busy;
                let (backend, name) = server.split_once('/')?;
                let has_connections = self.happens(busy);
                let worker = self.worker.as_mut()?;
                delete(worker, backend, name, has_connections)
            }
            ["set", "server", server, ref change @ ..] => {
                let (backend, name) = server.split_once('/')?;
                let out = matches!(change, ["state", "maint"]);
                let key = (backend.to_owned(), name.to_owned());
                // One of weight 0 takes no requests: it gets its weight by way of maint.
                let servers = worker.backends.get(backend);
                let takes = servers.and_then(|servers| servers.get(name));
                let takes = takes.is_some_and(|server| server.weight > 0);
                if out && takes && self.kept.contains(&key) && !self.operator.may_hold(&key) {
                    self.broken
                        .push(format!("{text}: the registry has named it all the time"));
                }
                self.check_operator(&key, text, change);
                let worker = self.worker.as_mut()?;
                set(worker, backend, name, change)
            }
            _ => {
                self.broken.push(format!("an unknown command: {text}"));
                "[3]: Unknown command.\n".to_owned()
            }
        };
        Some(reply)
    }
}

/// Servers that commands name.
fn about(batch: &[String]) -> Vec<((String, String), Instant)> {
    let now = Instant::now();
    let named = batch.iter().filter_map(|command| {
        let (backend, name) = command.split(' ').find_map(|word| word.split_once('/'))?;
        Some(((backend.to_owned(), name.to_owned()), now))
    });
    named.collect()
}

/// What haproxy says of lines that name servers or backends that are not there.
fn absent(text: &str) -> Vec<String> {
    let model = Model::parse(text, Ours::All);
    let has = |backend: &str, server: &str| {
        let servers = model.servers.get(backend);
        servers.is_some_and(|servers| servers.contains_key(server))
    };
    let is_backend = |name: &str| {
        let mut sections = model.sections.iter();
        sections.any(|s| s.keyword == "backend" && s.name == name)
    };
    let mut found = Vec::new();
    for section in &model.sections {
        let here = &section.name;
        for line in &section.lines {
            let words: Vec<&str> = line.text.split([' ', '(', ')']).collect();
            for pair in words.windows(2) {
                let ok = match *pair {
                    ["use-server", server] => has(here, server),
                    ["use_backend", backend] => is_backend(backend),
                    ["srv_is_up" | "srv_conn", server] => {
                        let (backend, server) = server.split_once('/').unwrap_or((here, server));
                        has(backend, server)
                    }
                    _ => true,
                };
                if !ok {
                    let [_, name] = *pair else { continue };
                    let (number, keyword) = (line.number, &section.keyword);
                    found.push(format!(
                        "[x:{number}] : {keyword} '{here}' : unable to find '{name}'."
                    ));
                }
            }
        }
    }
    found
}

/// Backend and which of [`COMMANDS`]; `None` = nothing is changed.
fn change(text: &str) -> Option<(String, &'static str)> {
    let words: Vec<&str> = text.split(' ').collect();
    let (server, command) = match words[..] {
        ["add", "server", server, ..] => (server, "add"),
        ["del", "server", server] => (server, "del"),
        ["enable", _, server] => (server, "enable"),
        ["set", "server", server, "agent", _] => (server, "enable"),
        ["disable", _, server] => (server, "maint"),
        ["set", "server", server, "state", "ready"] => (server, "ready"),
        ["set", "server", server, "state", _] => (server, "maint"),
        ["set", "server", server, "weight", _] => (server, "weight"),
        ["set", "server", server, "addr", ..] => (server, "addr"),
        _ => return None,
    };
    Some((server.split_once('/')?.0.to_owned(), command))
}

/// A weight that a static algorithm does not take.
fn is_dynamic(worker: &Worker, text: &str) -> bool {
    let words: Vec<&str> = text.split(' ').collect();
    let ["set", "server", server, "weight", weight] = words[..] else {
        return false;
    };
    let server = server.split_once('/').and_then(|(backend, name)| {
        let servers = worker.backends.get(backend)?;
        servers.get(name)
    });
    let weight: Option<u16> = weight.parse().ok();
    server.is_some_and(|server| weight.is_some_and(|w| w != 0 && w != server.initial))
}

fn add(
    worker: &mut Worker,
    backend: &str,
    name: &str,
    what: (&str, &str, &str),
    (agent, check): (bool, bool),
) -> String {
    let (address, id, weight) = what;
    let Some(servers) = worker.backends.get_mut(backend) else {
        return "[3]: No such backend.\n".to_owned();
    };
    if servers.contains_key(name) {
        return "[3]: Already exists a server with the same name in backend.\n".to_owned();
    }
    let (Ok(address), Ok(id), Ok(weight)) = (address.parse(), id.parse(), weight.parse()) else {
        return "[3]: unknown keyword.\n".to_owned();
    };
    if servers.values().any(|server| server.id == id) {
        return format!("[3]: 'id' : custom id {id} already used at x:1 ('server y').\n");
    }
    let server = Server {
        address,
        id,
        maint: true,
        disabled: false,
        weight,
        initial: weight,
        has_check: check,
        checked: false,
        agent: agent.then_some(false),
        commanded: false,
        out: false,
    };
    servers.insert(name.to_owned(), server);
    "[6]: New server registered.\n".to_owned()
}

fn delete(worker: &mut Worker, backend: &str, name: &str, busy: bool) -> String {
    let servers = worker.backends.get_mut(backend);
    let Some((servers, server)) =
        servers.and_then(|s| s.get(name).cloned().map(|found| (s, found)))
    else {
        return "[3]: No such server.\n".to_owned();
    };
    if !server.maint {
        return "[3]: Only servers in maintenance mode can be deleted.\n".to_owned();
    }
    if busy {
        return "[3]: Server still has connections attached to it, cannot remove it.\n".to_owned();
    }
    servers.remove(name);
    "[6]: Server deleted.\n".to_owned()
}

fn set(worker: &mut Worker, backend: &str, name: &str, change: &[&str]) -> String {
    let servers = worker.backends.get_mut(backend);
    let Some(server) = servers.and_then(|servers| servers.get_mut(name)) else {
        return "[3]: No such server.\n".to_owned();
    };
    match change {
        ["state", state] => {
            server.maint = *state == "maint";
            server.commanded = server.maint;
            server.out &= server.maint;
        }
        ["agent", "up"] if server.agent == Some(true) => {}
        ["weight", "100%"] => server.weight = server.initial,
        ["weight", weight] => {
            server.weight = weight.parse().unwrap_or_default();
            server.out = server.commanded && server.weight == 0;
        }
        ["addr", ip, "port", port] => {
            if let (Ok(ip), Ok(port)) = (ip.parse(), port.parse()) {
                server.address = SocketAddr::new(ip, port);
            }
            return "[6]: IP changed.\n".to_owned();
        }
        _ => return "[3]: unknown.\n".to_owned(),
    }
    String::new()
}

fn table(worker: &Worker, only: Option<&str>) -> String {
    let mut text = "1\n# be_id be_name srv_id srv_name srv_addr srv_op_state srv_admin_state srv_uweight srv_iweight srv_time_since_last_change srv_check_status srv_check_result srv_check_state srv_agent_state srv_port\n".to_owned();
    for (backend, servers) in &worker.backends {
        if only.is_some_and(|only| only != backend) {
            continue;
        }
        for (name, server) in servers {
            let (op, admin) = match (server.maint, server.disabled) {
                (true, false) => (0, 1),
                (true, true) => (0, 5),
                (false, true) => (2, 4),
                (false, false) => (2, 0),
            };
            let mut check = 2 * u8::from(server.has_check) + 4 * u8::from(server.checked);
            if server.maint && server.checked {
                check += 8;
            }
            let line = writeln!(
                text,
                "2 {backend} {} {name} {} {op} {admin} {} {} 0 15 3 {check} {} {}",
                server.id,
                server.address.ip(),
                server.weight,
                server.initial,
                match server.agent {
                    None => 0,
                    Some(false) => 18,
                    Some(true) => 22,
                },
                server.address.port()
            );
            assert!(line.is_ok());
        }
    }
    text
}
