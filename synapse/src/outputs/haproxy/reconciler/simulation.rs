//! The reconciler against a haproxy in memory, under a clock that does not wait: random states of the registry, of the
//! configuration and of haproxy, with answers lost, looks that are stale, deaths, reloads by others, agents that say
//! anything, and a synapse that is killed at any moment and started again. Seeds as in
//! [`crate::testing`]; replayed alone, a seed prints its steps and what
//! haproxy does.
//!
//! What must hold: the file on disk loads at every step, although lines name servers and services that come and go; a
//! server that every state of the registry has named since the last quiet moment is never taken out;
//! once nothing goes wrong any more, the table and the file are what the registry says; changes of servers alone never
//! reload; a server that no state of the registry has named since the last quiet moment is never in rotation, whatever its
//! agent says; what an operator has put in maint stays there, whatever its weight, and nothing else does: an operator
//! releases only what an operator has put in maint, so what we put there has to return by itself.
//!
//! Nobody can keep an operator's word that is lost before the table was looked at, with its worker: such servers may be in
//! maint or not. The same holds for a minute after the answer to a command about that very server was lost: a haproxy that
//! was stopped may do it so late, and our own removal must not stay out for good.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use smartstack_common::clock::Moment;
use smartstack_common::shutdown::Shutdown;
use tokio::sync::{mpsc, watch};
use tokio::task::{JoinHandle, LocalSet};
use tokio::time::sleep;

use super::{Outputs, Reconciler};
use crate::config::{Config, Discovery, FrontendPort, Reload, Service};
use crate::model::source::{Child, SourceKey, SourceView};
use crate::outputs::haproxy::cfg::effective::Scope;
use crate::outputs::haproxy::cfg::{Model, Ours};
use crate::outputs::haproxy::process::simulated::{COMMANDS, Faults, Refusing, STATIC, Simulated};
use crate::outputs::haproxy::render::tests::{config, service};
use crate::report::status::{Board, View};
use crate::snapshot::Snapshot;
use crate::sources::Sources;
use crate::wanted::keeper::Keeper;
use smartstack_common::units::ZkPath;
use smartstack_common::watchdog::Progress;

const FAULTS: Faults = Faults {
    lost: 30,
    unanswered: 60,
    stale: 30,
    reload: 150,
    busy: 300,
};

/// What haproxy says when it refuses; some of it its table belies.
const WORDS: [&str; 7] = [
    STATIC,
    "Permission denied",
    "Out of memory.",
    "unknown keyword 'x'.",
    "No such server.",
    "Already exists a server with the same name in backend.",
    "'id' : custom id 1 already used at x:1 ('server y').",
];
/// The service whose servers have agents.
const AGENTS: &str = "c";

/// Address (its last part) and weight of each server of a service.
type Registered = BTreeMap<u8, u16>;

/// Tells the reconciler what a source has.
type Publish = Box<dyn Fn(&SourceKey, SourceView)>;

struct Simulation {
    rng: fastrand::Rng,
    haproxy: Simulated,
    config: Config,
    configs: watch::Sender<Arc<Config>>,
    publish: Publish,
    view: watch::Receiver<Arc<View>>,
    snapshot: watch::Receiver<Arc<Snapshot>>,
    task: Option<JoinHandle<()>>,
    stop: watch::Sender<bool>,
    registry: BTreeMap<String, Registered>,
    /// Of each service, the servers named by every state since the last quiet moment.
    always: BTreeMap<String, BTreeSet<u8>>,
    /// Of each service, the servers named by any of them.
    ever: BTreeMap<String, BTreeSet<u8>>,
    /// Services that were left out or came back since the last quiet moment.
    moved: BTreeSet<String>,
    /// The file as it was at some time.
    older: Option<String>,
    file: std::path::PathBuf,
    trace: bool,
    steps: Vec<String>,
    kills: u64,
    created: i64,
}

fn name_of(service: &str, number: u8) -> String {
    let third = service.bytes().last().unwrap_or_default();
    format!("10.0.{third}.{number}:80")
}

impl Simulation {
    fn note(&mut self, step: String) {
        if self.trace {
            println!("{step}");
        }
        self.steps.push(step);
    }

    fn services(&self) -> Vec<String> {
        let services = self.config.services.iter();
        services.map(|service| service.name.clone()).collect()
    }

    /// Tells what the registry holds for a service.
    fn tell(&mut self, name: &str) {
        let Some(service) = self.config.services.iter().find(|s| s.name == name) else {
            return;
        };
        let Discovery::Zookeeper { ensemble, path, .. } = &service.discovery else {
            return;
        };
        let key = SourceKey {
            ensemble: ensemble.clone(),
            path: path.clone(),
        };
        let third = name.bytes().last().unwrap_or_default();
        let registered = self.registry.get(name).cloned().unwrap_or_default();
        let children = registered.iter().map(|(number, weight)| {
            let data =
                format!("{{\"host\":\"10.0.{third}.{number}\",\"port\":80,\"weight\":{weight}}}");
            self.created += 1;
            let child = Child {
                data: data.into_bytes().into(),
                czxid: self.created,
                mzxid: self.created,
            };
            (format!("i_{number:010}"), child)
        });
        let view = SourceView {
            children: Arc::new(children.collect()),
            confirmed: true,
            fresh: true,
            agreed_at: Some(Moment::now()),
            ..SourceView::default()
        };
        let named: BTreeSet<u8> = registered.keys().copied().collect();
        let always = self
            .always
            .entry(name.to_owned())
            .or_insert_with(|| named.clone());
        always.retain(|number| named.contains(number));
        self.ever.entry(name.to_owned()).or_default().extend(named);
        self.tell_kept();
        (self.publish)(&key, view);
    }

    fn tell_kept(&self) {
        let known = self
            .always
            .iter()
            .filter(|(name, _)| !self.moved.contains(*name));
        let kept = known.flat_map(|(service, numbers)| {
            numbers
                .iter()
                .map(move |number| (service.clone(), name_of(service, *number)))
        });
        let told = self
            .ever
            .iter()
            .filter(|(name, _)| !self.moved.contains(*name));
        let gone = told.flat_map(|(service, numbers)| {
            let others = (1..8).filter(|number| !numbers.contains(number));
            others.map(move |number| (service.clone(), name_of(service, number)))
        });
        self.haproxy.set_kept(kept.collect(), gone.collect());
    }

    /// Nothing is on its way: what is registered now is what was, until something changes.
    fn quiet(&mut self) {
        let services = self.services();
        self.always.retain(|name, _| services.contains(name));
        let absent = self.config.services.iter().filter(|s| s.haproxy.is_none());
        self.moved = absent.map(|service| service.name.clone()).collect();
        for name in services {
            let named = self
                .registry
                .get(&name)
                .into_iter()
                .flat_map(BTreeMap::keys);
            let named: BTreeSet<u8> = named.copied().collect();
            self.ever.insert(name.clone(), named.clone());
            self.always.insert(name.clone(), named);
        }
        self.tell_kept();
    }

    fn change_registry(&mut self) {
        let services = self.services();
        let name = services[self.rng.usize(..services.len())].clone();
        let registered = self.registry.entry(name.clone()).or_default();
        for _ in 0..self.rng.u8(1..4) {
            let number = self.rng.u8(1..8);
            match self.rng.u8(0..4) {
                // The last one stays: an empty registry is another matter.
                0 | 1 if registered.len() > 1 => _ = registered.remove(&number),
                2 => {
                    if let Some(weight) = registered.get_mut(&number) {
                        *weight = self.rng.u16(1..5);
                    }
                }
                _ => _ = registered.insert(number, 1),
            }
        }
        let step = format!("registry of {name}: {registered:?}");
        self.note(step);
        self.tell(&name);
    }

    fn change_structure(&mut self) {
        let at = self.rng.usize(..self.config.services.len());
        let other = self.rng.usize(..self.config.services.len());
        let (name, named) = (
            self.config.services[at].name.clone(),
            self.config.services[other].name.clone(),
        );
        let (own, its) = (
            name_of(&name, self.rng.u8(1..9)),
            name_of(&named, self.rng.u8(1..9)),
        );
        let service = &mut self.config.services[at];
        let line = match self.rng.u8(0..6) {
            0 | 1 => format!("timeout server {}s", self.rng.u8(1..90)),
            2 => format!("use-server {own} if TRUE"),
            3 => format!("acl up srv_is_up({named}/{its})"),
            4 => format!("use_backend {named} if TRUE"),
            // It leaves the file, and comes back into it.
            _ => {
                match service.haproxy.take() {
                    Some(haproxy) => service.disabled = Some(Box::new(haproxy)),
                    None => service.haproxy = service.disabled.take().map(|haproxy| *haproxy),
                }
                self.moved.insert(name);
                "disabled, or not".to_owned()
            }
        };
        if let Some(haproxy) = service
            .haproxy
            .as_mut()
            .filter(|_| !line.starts_with("disabled"))
        {
            match line.starts_with("timeout") || line.starts_with("use-server") {
                true => haproxy.backend = vec![line.clone()],
                false => haproxy.frontend = vec![line.clone()],
            }
        }
        self.tell_kept();
        self.note(format!("service {at} says `{line}`"));
        self.configs.send_replace(Arc::new(self.config.clone()));
    }

    /// haproxy refuses something from now on, this worker or all, in one backend or in all.
    fn refuse_something(&mut self) {
        let services = self.services();
        let what = Refusing {
            backend: (self.rng.u8(0..4) > 0)
                .then(|| services[self.rng.usize(..services.len())].clone()),
            command: (self.rng.u8(0..6) > 0).then(|| COMMANDS[self.rng.usize(..COMMANDS.len())]),
            words: WORDS[self.rng.usize(..WORDS.len())],
            once: self.rng.bool(),
        };
        self.note(format!("haproxy refuses {what:?}"));
        self.haproxy.refuse(what);
    }

    fn operator_event(&mut self) {
        let name = name_of("a", self.rng.u8(1..8));
        let (maint, weightless) = (self.rng.bool(), self.rng.bool());
        self.note(format!(
            "an operator sets maint {maint} on a/{name}, weight 0: {weightless}"
        ));
        self.haproxy.set_maint("a", &name, maint, weightless);
    }

    /// Synapse is killed, and started again on what it has left behind.
    async fn kill(&mut self) -> Result<(), String> {
        self.note("synapse is killed".to_owned());
        self.kills += 1;
        if let Some(task) = self.task.take() {
            task.abort();
            let _killed = task.await.is_err();
        }
        let known = self.snapshot.borrow().clone();
        let noted = known.operator.keys();
        let noted = noted.filter_map(|key| key.split_once('/'));
        let noted = noted.map(|(backend, name)| (backend.to_owned(), name.to_owned()));
        self.haproxy.forgotten(&noted.collect());
        if self.rng.bool() {
            self.operator_event();
        }
        self.start(&known).await?;
        for name in self.services() {
            self.tell(&name);
        }
        Ok(())
    }

    async fn start(&mut self, known: &Snapshot) -> Result<(), String> {
        let (stop, shutdown) = Shutdown::channel();
        let (view_sender, view) = watch::channel(Arc::new(View::default()));
        let (snapshot_sender, snapshot) = watch::channel(Arc::new(known.clone()));
        let outputs = Outputs {
            board: Arc::new(Board::default()),
            view: view_sender,
            snapshot: snapshot_sender,
        };
        let shared = Arc::new(self.config.clone());
        let keeper = Keeper::new(&shared, known, Sources::new(known, shutdown.clone(), None));
        self.publish = Box::new(keeper.publisher());
        let reconciler = Reconciler::start(Arc::clone(&shared), known, keeper, outputs, false)
            .await
            .map_err(|e| e.to_string())?;
        let (configs, changes) = watch::channel(shared);
        (self.configs, self.view, self.snapshot) = (configs, view, snapshot);
        self.stop = stop;
        self.task = Some(tokio::task::spawn_local(async move {
            let (_nobody, orders) = mpsc::channel(1);
            reconciler
                .run(changes, orders, Progress::new(), shutdown)
                .await;
        }));
        Ok(())
    }

    /// It serves what that file says, which may be an older one, until it is seen.
    fn foreign_reload(&mut self, text: &str) {
        for numbers in self.ever.values_mut() {
            numbers.extend(1..8);
        }
        self.tell_kept();
        self.haproxy.foreign_reload(text);
    }

    /// Whether it may have cost a reload.
    fn haproxy_event(&mut self) {
        match self.rng.u8(0..9) {
            6 | 7 => self.refuse_something(),
            8 => {
                self.note("haproxy refuses nothing any more".to_owned());
                self.haproxy.take_all();
            }
            5 => self.operator_event(),
            0 => {
                self.note("haproxy dies".to_owned());
                self.haproxy.kill();
            }
            1 => {
                self.note("the file is kept".to_owned());
                self.older = std::fs::read_to_string(&self.file).ok();
            }
            2 => {
                self.note("somebody reloads with the file".to_owned());
                if let Ok(text) = std::fs::read_to_string(&self.file) {
                    self.foreign_reload(&text);
                }
            }
            3 => {
                if let Some(text) = self.older.clone() {
                    self.note("somebody reloads with an older file".to_owned());
                    self.foreign_reload(&text);
                }
            }
            _ => {
                self.note("everything goes wrong now and then".to_owned());
                self.haproxy.set_faults(FAULTS);
            }
        }
    }

    fn moved_out(&self, name: &str) -> bool {
        let mut services = self.config.services.iter();
        services.any(|service| service.name == name && service.haproxy.is_none())
    }

    /// What is wrong although nothing is on its way; `None` = nothing. `held` = an operator's maints stand.
    fn difference(&self, held: bool) -> Option<String> {
        let (theirs, unsure) = match held {
            true => self.haproxy.held(),
            false => (BTreeSet::new(), BTreeSet::new()),
        };
        // Where there are agents, weights are theirs.
        let plain = |found: BTreeSet<(String, String, u16)>| -> BTreeSet<(String, String, u16)> {
            let known = |weight, backend: &str| if backend == AGENTS { 0 } else { weight };
            let found = found.into_iter();
            found
                .map(|(backend, name, w)| (backend.clone(), name, known(w, &backend)))
                .collect()
        };
        let wanted: BTreeSet<(String, String, u16)> = self
            .services()
            .iter()
            .filter(|name| !self.moved_out(name))
            .flat_map(|name| {
                let registered = self.registry.get(name).into_iter().flatten();
                registered.map(|(number, weight)| (name.clone(), name_of(name, *number), *weight))
            })
            .collect();
        let text = std::fs::read_to_string(&self.file).unwrap_or_default();
        let written: BTreeSet<(String, String, u16)> = Scope::default()
            .read(&Model::parse(&text, Ours::All))
            .iter()
            .flat_map(|(backend, found)| {
                let servers = found.servers.iter().filter(|(_, s)| !s.is_parked());
                servers.map(move |(name, s)| (backend.clone(), name.clone(), s.weight))
            })
            .collect();
        let view = self.view.borrow().clone();
        let (wanted, written) = (plain(wanted), plain(written));
        let is = |keys: &BTreeSet<(String, String)>, server: &(String, String, u16)| {
            keys.contains(&(server.0.clone(), server.1.clone()))
        };
        let serves = |found: &BTreeSet<(String, String, u16)>| {
            let may = |server: &_| wanted.contains(server) && !is(&theirs, server);
            let must = |server: &_| is(&theirs, server) || is(&unsure, server);
            found.iter().all(may) && wanted.iter().all(|s| must(s) || found.contains(s))
        };
        match self.haproxy.serving().map(plain) {
            None => Some("nobody runs".to_owned()),
            Some(found) if !serves(&found) => Some(format!(
                "haproxy serves {found:?}, the registry says {wanted:?}, in maint are {theirs:?}, perhaps {unsure:?}"
            )),
            Some(_) if written != wanted => Some(format!(
                "the file says {written:?}, the registry {wanted:?}"
            )),
            Some(_) if view.haproxy.divergence != 0 => {
                Some(format!("a divergence of {}", view.haproxy.divergence))
            }
            Some(_) if !self.haproxy.unchecked().is_empty() => {
                Some(format!("without checks: {:?}", self.haproxy.unchecked()))
            }
            Some(_) => None,
        }
    }

    /// Nothing goes wrong any more: everything must become what the registry says, whatever haproxy refuses, but for what an
    /// operator has put in maint; and that, too, once the operator has released it.
    async fn settle(&mut self) -> Result<(), String> {
        self.haproxy.set_faults(Faults::default());
        let (held, unsure) = self.haproxy.held();
        if !held.is_empty() || !unsure.is_empty() {
            self.wait(true).await;
            self.judge(true)?;
        }
        // A release may be lost with a worker, too: then there is another one.
        for _ in 0..3 {
            self.wait(false).await;
            if self.difference(false).is_none() {
                break;
            }
        }
        self.judge(false)?;
        self.quiet();
        Ok(())
    }

    async fn wait(&mut self, held: bool) {
        // The longest back-off is 60 s.
        for _ in 0..700 {
            if !held {
                let (theirs, unsure) = self.haproxy.held();
                for (backend, name) in theirs.union(&unsure).filter(|(b, _)| b != AGENTS) {
                    self.haproxy.set_maint(backend, name, false, false);
                }
            }
            self.haproxy.agents_speak(true);
            if self.difference(held).is_none() {
                break;
            }
            sleep(Duration::from_millis(250)).await;
        }
        for _ in 0..50 {
            sleep(Duration::from_millis(100)).await;
            self.haproxy.agents_speak(true);
        }
    }

    fn judge(&self, held: bool) -> Result<(), String> {
        let Some(difference) = self.difference(held) else {
            return Ok(());
        };
        let view = self.view.borrow().clone();
        Err(format!(
            "not in step after all is well: {difference}; {:?}, problems {:?}",
            view.haproxy, view.problems
        ))
    }

    async fn run(&mut self, servers_only: bool) -> Result<(), String> {
        for name in self.services() {
            let first = (1..=self.rng.u8(2..6)).map(|number| (number, 1)).collect();
            self.registry.insert(name.clone(), first);
            self.tell(&name);
        }
        self.settle().await?;
        let reloads = self.haproxy.reloads();
        if reloads != 1 {
            return Err(format!("{reloads} loads at the first start"));
        }
        for _ in 0..self.rng.u8(5..25) {
            self.haproxy.agents_speak(servers_only);
            match self.rng.u8(0..11) {
                0..=5 => self.change_registry(),
                10 => self.kill().await?,
                6 if !servers_only => self.change_structure(),
                7 if !servers_only => self.haproxy_event(),
                8 => {
                    self.note("answers are lost".to_owned());
                    self.haproxy.set_faults(Faults {
                        reload: 0,
                        stale: 0,
                        ..FAULTS
                    });
                }
                _ => {
                    let pause = Duration::from_millis(self.rng.u64(1..4000));
                    self.note(format!("{pause:?} pass"));
                    sleep(pause).await;
                }
            }
            self.haproxy.check_file();
            if self.rng.u8(0..8) == 0 {
                self.note("all is well again".to_owned());
                self.settle().await?;
            }
        }
        self.note("the end".to_owned());
        self.settle().await?;
        let cost = self.haproxy.reloads() - reloads;
        let last = self.view.borrow().haproxy.last_reload.clone();
        // Who is killed before the snapshot has the options of a server that came and went meanwhile does not know them when
        // it returns: one reload for each kill.
        let unknown = last
            .as_ref()
            .is_some_and(|last| last.reason.starts_with("unknown options"));
        if servers_only && cost > if unknown { self.kills } else { 0 } {
            return Err(format!(
                "{cost} reloads for changes of servers only: {last:?}"
            ));
        }
        Ok(())
    }
}

fn base(file: &Path, snapshot: &Path) -> Config {
    let mut config = config();
    config.haproxy.config_file_path = file.to_owned();
    config.haproxy.candidate_config_file_path = file.with_extension("tmp");
    config.haproxy.reload = Reload::Command("simulated".to_owned());
    config.haproxy.use_nerve_weights = true;
    config.snapshot_path = snapshot.to_owned();
    config.services = ["a", "b", "c"]
        .into_iter()
        .map(|name| {
            let Service { discovery, .. } = service(name);
            let Discovery::Zookeeper {
                ensemble, decode, ..
            } = discovery
            else {
                unreachable!("services of these tests are discovered in ZooKeeper")
            };
            let path = ZkPath::new(&format!("/{name}")).unwrap();
            let mut haproxy = service(name).haproxy;
            if let Some(haproxy) = &mut haproxy {
                haproxy.server_options = match name {
                    "b" => "check inter 5s".to_owned(),
                    AGENTS => "agent-check agent-port 1".to_owned(),
                    _ => std::mem::take(&mut haproxy.server_options),
                };
            }
            Service {
                haproxy,
                discovery: Discovery::Zookeeper {
                    ensemble,
                    path,
                    decode,
                },
                // A loss that nobody announces is another simulation's.
                guard: crate::config::guard::Settings {
                    mode: crate::config::guard::Mode::Off,
                    ..crate::config::guard::Settings::default()
                },
                ..service(name)
            }
        })
        .collect();
    for (port, service) in (3213..).zip(&mut config.services) {
        if let Some(haproxy) = &mut service.haproxy {
            haproxy.port = Some(FrontendPort::Port(port));
        }
    }
    // Lines that name servers, of which some are never there.
    let named = |number| name_of("a", number);
    let lines = [
        format!("use-server {} if {{ path /x }}", named(3)),
        format!("use-server {} if {{ path /y }}", named(8)),
        format!("acl up srv_is_up(a/{})", named(2)),
    ];
    let [own, never, others] = lines;
    for (service, line) in config
        .services
        .iter_mut()
        .zip([vec![own, never], vec![others]])
    {
        if let Some(haproxy) = &mut service.haproxy {
            match service.name.as_str() {
                "a" => haproxy.backend = line,
                _ => haproxy.frontend = line,
            }
        }
    }
    config
}

async fn simulate(seed: u64, trace: bool) -> Result<(), String> {
    let memory = Path::new("/dev/shm");
    let folder = if memory.is_dir() {
        memory
    } else {
        Path::new("/tmp")
    };
    let folder = tempfile::tempdir_in(folder).map_err(|e| e.to_string())?;
    let file = folder.path().join("haproxy.cfg");
    let haproxy = Simulated::start(seed, &file, trace);
    let config = base(&file, &folder.path().join("snapshot.json"));
    let mut simulation = Simulation {
        rng: fastrand::Rng::with_seed(seed ^ 0x5eed),
        haproxy: haproxy.clone(),
        configs: watch::channel(Arc::new(config.clone())).0,
        config,
        publish: Box::new(|_, _| {}),
        view: watch::channel(Arc::new(View::default())).1,
        snapshot: watch::channel(Arc::new(Snapshot::default())).1,
        task: None,
        stop: watch::channel(false).0,
        registry: BTreeMap::new(),
        always: BTreeMap::new(),
        ever: BTreeMap::new(),
        moved: BTreeSet::new(),
        older: None,
        file,
        trace,
        steps: Vec::new(),
        kills: 0,
        created: 0,
    };
    simulation.start(&Snapshot::default()).await?;
    let result = simulation.run(seed.is_multiple_of(3)).await;
    simulation.stop.send_replace(true);
    let ended = match simulation.task.take() {
        Some(task) => task.await.map_err(|e| e.to_string()),
        None => Ok(()),
    };
    haproxy.end();
    let broken = haproxy.broken();
    if let Some(first) = broken.first() {
        return Err(format!("{first}\nafter {:#?}", simulation.steps));
    }
    result.map_err(|e| format!("{e}\nafter {:#?}", simulation.steps))?;
    ended
}

#[test]
fn the_table_follows_the_registry_whatever_happens() {
    let trace = std::env::var_os("SYNAPSE_SIMULATION_SEED").is_some();
    crate::testing::run("reconciler::simulation", |seed| {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_time()
            .start_paused(true)
            .build()
            .unwrap();
        let result = LocalSet::new().block_on(&runtime, simulate(seed, trace));
        if let Err(problem) = result {
            panic!("seed {seed}: {problem}");
        }
    });
}
