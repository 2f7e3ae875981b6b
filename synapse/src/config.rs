//! synapse's validated configuration. Ruby's key names and defaults at the file boundary, typed units inside.
//!
//! Owns the meaning of every key; [`load`] is called by the command line and by the reload on HUP. Touches nothing but the
//! files it reads. `keys` is the table of keys; `read` (top level), `service` and `text` fill the types below.

pub mod keyword;
pub mod lines;
pub mod listen;

pub mod guard;
mod keys;
mod read;
mod service;
mod sockets;
pub mod sources;
#[cfg(test)]
mod tests;
mod text;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

pub use smartstack_common::config::{
    Admin, Environment, Finding, Listeners, Loaded, Report, Severity, Socket,
};
use smartstack_common::units::{Ensemble, ZkPath};

/// What to load.
#[derive(Debug, Clone)]
pub struct LoadOptions {
    /// The main file.
    pub path: PathBuf,
    /// Environment variables and working directory.
    pub environment: Environment,
}

pub use self::read::PROGRAM;

/// Reads the main file and the files it names.
///
/// # Errors
/// Every problem of every file, warnings included, when one of them is an error.
pub fn load(options: &LoadOptions) -> Result<Loaded<Config>, Report> {
    read::load(options)
}

/// JSON Schema of the file.
#[must_use]
pub fn schema() -> serde_json::Value {
    smartstack_common::config::schema("synapse", keys::KEYS)
}

/// Everything synapse needs to run.
#[derive(Debug, Clone, PartialEq)]
pub struct Config {
    /// In the order of the file (it is the order of the sections in haproxy.cfg).
    pub services: Vec<Service>,
    /// haproxy and how to drive it.
    pub haproxy: Haproxy,
    /// Session time-out asked for.
    pub session_timeout: Duration,
    /// Spread of what is done after a reconnection.
    pub jitter: Duration,
    /// The admin listener and the control socket.
    pub listeners: Listeners,
    /// Default `$STATE_DIRECTORY/snapshot.json` or `/var/lib/synapse/snapshot.json`.
    pub snapshot_path: PathBuf,
    /// A source that has not agreed with its ensemble for longer gives way to what can stand in for it; `None` = never.
    pub max_stale: Option<Duration>,
    /// Full comparison of memory, file and live haproxy.
    pub audit_interval: Duration,
    /// With nothing to serve, the first file waits so long for the first word of every source.
    pub startup_wait: Duration,
    /// Shortest and longest time for which changes that follow a change are gathered.
    pub coalesce: (Duration, Duration),
}

/// One service.
#[derive(Debug, Clone, PartialEq)]
pub struct Service {
    /// The key in `services`; name of the frontend section.
    pub name: String,
    /// Where its servers come from.
    pub discovery: Discovery,
    /// All must hold.
    pub label_filters: Vec<LabelFilter>,
    /// Initial and fallback servers.
    pub default_servers: Vec<DefaultServer>,
    /// Default servers join every discovered set.
    pub keep_default_servers: bool,
    /// An empty discovery keeps the last set.
    pub use_previous_backends: bool,
    /// Replaces the port of every discovered server.
    pub backend_port_override: Option<u16>,
    /// Only the server with the smallest id.
    pub leader_election: bool,
    /// Rendering; `None` when `haproxy.disabled` is true.
    pub haproxy: Option<ServiceHaproxy>,
    /// What it would be, when `haproxy.disabled` is true: other lines may name its backend.
    pub disabled: Option<Box<ServiceHaproxy>>,
    /// Its own guard, else the top level's.
    pub guard: crate::config::guard::Settings,
}

impl Service {
    /// The name of its backend section; `None` = it is not rendered.
    #[must_use]
    pub fn backend(&self) -> Option<&str> {
        self.haproxy.as_ref().map(|h| h.backend_name.as_str())
    }
}

/// Where servers come from.
#[derive(Debug, Clone, PartialEq)]
pub enum Discovery {
    /// `base`: the default servers only.
    Base,
    /// `zookeeper`.
    Zookeeper {
        /// The ensemble.
        ensemble: Ensemble,
        /// Watched path.
        path: ZkPath,
        /// How payloads are read.
        decode: Decode,
    },
    /// `multi`: several of them.
    Multi(Multi),
}

/// Several sources of one service.
#[derive(Debug, Clone, PartialEq)]
pub struct Multi {
    /// How they make one set.
    pub resolver: Resolver,
    /// They, in the order of the file; for `sequential` in that of `sequential_order`.
    pub watchers: Vec<Watcher>,
}

/// How several sources make one set.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Resolver {
    /// What any of them has.
    Union,
    /// The first that is connected and has servers.
    Sequential,
}

/// One of several sources.
#[derive(Debug, Clone, PartialEq)]
pub struct Watcher {
    /// Its key in `watchers`.
    pub name: String,
    /// The ensemble.
    pub ensemble: Ensemble,
    /// Watched path.
    pub path: ZkPath,
    /// How payloads are read.
    pub decode: Decode,
    /// All must hold of a server of this source.
    pub label_filters: Vec<LabelFilter>,
}

/// How payloads are read.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Decode {
    /// nerve's JSON.
    Nerve,
    /// Finagle serversets.
    Serverset {
        /// One of `additionalEndpoints` instead of `serviceEndpoint`.
        endpoint_name: Option<String>,
    },
}

/// A condition on a label.
#[derive(Debug, Clone, PartialEq)]
pub struct LabelFilter {
    /// The label.
    pub label: String,
    /// Compared with strict types; null means absent.
    pub value: serde_json::Value,
    /// `equals` (true) or `not-equals` (false).
    pub equals: bool,
}

/// An entry of `default_servers`.
#[derive(Debug, Clone, PartialEq)]
pub struct DefaultServer {
    /// Optional name.
    pub name: Option<String>,
    /// Address or name.
    pub host: String,
    /// Port.
    pub port: u16,
    /// 0..256.
    pub weight: Option<u16>,
    /// Options of the server line (local text: not held to the allow-list).
    pub haproxy_server_options: Option<String>,
    /// Explicit id.
    pub haproxy_server_id: Option<u32>,
    /// Labels.
    pub labels: BTreeMap<String, serde_json::Value>,
}

/// The top-level `haproxy` section.
#[derive(Debug, Clone, PartialEq)]
pub struct Haproxy {
    /// Lines of `global`.
    pub global: Vec<String>,
    /// Lines of `defaults`.
    pub defaults: Vec<String>,
    /// Title and lines, in the order of the file.
    pub extra_sections: Vec<(String, Vec<String>)>,
    /// Where lines and sections stand in the user's file, for messages.
    pub places: BTreeMap<Part, Place>,
    /// Write the file.
    pub do_writes: bool,
    /// Reload.
    pub do_reloads: bool,
    /// Use the stats socket.
    pub do_socket: bool,
    /// Use `check_command` instead of `haproxy -c`.
    pub check_command: Option<String>,
    /// haproxy.cfg.
    pub config_file_path: PathBuf,
    /// Written first; default `<config_file_path>.tmp`.
    pub candidate_config_file_path: PathBuf,
    /// How haproxy is reloaded; `None` = never (`do_reloads: false`).
    pub reload: Reload,
    /// Time limit of one reload.
    pub reload_timeout: Duration,
    /// A supervised worker that has not answered for so long is replaced; `None` = never.
    pub replace_hung_after: Option<Duration>,
    /// Stats sockets (several with nbproc).
    pub socket_file_path: Vec<PathBuf>,
    /// Least time between starts of reloads.
    pub restart_interval: Duration,
    /// Adds uniform 0..J x interval to a postponed reload.
    pub restart_jitter: f64,
    /// When a server that is added takes requests; a service may say otherwise.
    pub admit: Admit,
    /// Ruby's state file: ids are read from it once.
    pub state_file_path: Option<PathBuf>,
    /// Seed of the shuffle; default: hash of the host's name.
    pub server_order_seed: Option<String>,
    /// Highest id handed out.
    pub max_server_id: u32,
    /// Default bind address, `localhost`; several are separated by commas.
    pub bind_address: String,
    /// Lines of the shared frontend; `None` = no shared frontend.
    pub shared_frontend: Option<Vec<String>>,
    /// Weights of znodes are rendered.
    pub use_nerve_weights: bool,
    /// The program; default `haproxy` (also looked for in /usr/sbin).
    pub binary: String,
    /// Missing hitless lines are added.
    pub hitless_defaults: bool,
    /// Keywords allowed in `haproxy_server_options` beyond the built-in list.
    pub allowed_server_options: Vec<String>,
    /// Frontends and backends have different names; `None` = as haproxy's version wants it.
    pub separate_names: Option<bool>,
    /// Template text read from the configured paths.
    pub templates: Templates,
}

/// A part of haproxy.cfg that belongs to no service and can be left out alone: by its place in the lists of [`Haproxy`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Part {
    /// A line of `global`.
    Global(usize),
    /// A line of `defaults`.
    Defaults(usize),
    /// An extra section.
    Section(usize),
    /// A line of the top level's `shared_frontend`.
    Shared(usize),
}

/// Where something stands in the user's file. Printed as `FILE:LINE:COLUMN: KEY`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    /// `FILE:LINE:COLUMN`.
    pub at: String,
    /// Like `haproxy.global[2]`.
    pub key_path: String,
}

impl std::fmt::Display for Place {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}: `{}`", self.at, self.key_path)
    }
}

/// How haproxy is reloaded.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Reload {
    /// `do_reloads: false`.
    Never,
    /// A shell command, success = exit 0 and the new worker seen.
    Command(String),
    /// The master CLI of a haproxy somebody else runs.
    MasterSocket(PathBuf),
    /// synapse starts `haproxy -W -S` itself.
    Supervise,
}

/// Template text; `None` = the built-in one.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Templates {
    /// `global.cfg.tera`.
    pub global: Option<TemplateText>,
    /// `service.cfg.tera`.
    pub service: Option<TemplateText>,
    /// `shared_frontend.cfg.tera`.
    pub shared_frontend: Option<TemplateText>,
    /// Replaces the whole file.
    pub whole: Option<TemplateText>,
}

/// A template and where it comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TemplateText {
    /// For messages.
    pub path: PathBuf,
    /// The text.
    pub text: String,
}

/// The per-service `haproxy` section, lines already sorted into their sections.
#[derive(Debug, Clone, PartialEq)]
pub struct ServiceHaproxy {
    /// Frontend: `None` = backend only.
    pub port: Option<FrontendPort>,
    /// Own, else the top level's; several are separated by commas.
    pub bind_address: String,
    /// Appended to the bind line.
    pub bind_options: Option<String>,
    /// Appended to each server line; `%{host} %{port} %{name}` replaced, `%%` is `%`.
    pub server_options: String,
    /// Accepted `frontend` lines, then the `listen` lines that belong there.
    pub frontend: Vec<String>,
    /// Accepted `backend` lines, then the `listen` lines that belong there.
    pub backend: Vec<String>,
    /// Lines for the shared frontend.
    pub shared_frontend: Vec<String>,
    /// Name of the backend section; default: the service's name.
    pub backend_name: String,
    /// Order of the server lines.
    pub backend_order: BackendOrder,
    /// SHA-1 of the server's name instead of the name as the cookie's value.
    pub cookie_hash: bool,
    /// When an added server takes requests; own, else the top level's.
    pub admit: Admit,
}

/// When a server that is added takes requests.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Admit {
    /// At once, as after a reload.
    Ready,
    /// A checked one after its first passed check; one without `check` at once.
    Checked,
}

/// The frontend's port.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum FrontendPort {
    /// `bind <address>:<port>`.
    Port(u16),
    /// `port: null`: `bind <address>`, e.g. a unix socket.
    AddressOnly,
}

/// Order of the server lines.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BackendOrder {
    /// By name.
    Asc,
    /// By name, descending.
    Desc,
    /// As discovered: by sequence number.
    NoShuffle,
    /// Sorted, then shuffled with the seed.
    Shuffle,
}
