//! What is configured, validated: typed units, no text that means something else.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use smartstack_common::config::{Environment, Listeners};
use smartstack_common::units::{Ensemble, ZkPath};

use crate::check::Check;

/// What to load.
#[derive(Debug, Clone)]
pub struct LoadOptions {
    /// The main file.
    pub path: PathBuf,
    /// Wins over the file's `instance_id`.
    pub instance_id: Option<String>,
    /// Environment variables and working directory.
    pub environment: Environment,
}

/// Everything nerve needs to run.
#[derive(Debug, Clone, PartialEq)]
pub struct Config {
    /// Name in the payload and prefix of the znode's name.
    pub instance_id: String,
    /// By name.
    pub services: BTreeMap<String, Service>,
    /// Touched while the program makes progress.
    pub heartbeat_path: Option<PathBuf>,
    /// Session time-out asked for.
    pub session_timeout: Duration,
    /// Spread of what is done after a reconnection. Zero also turns off the spread after an outage.
    pub jitter: Duration,
    /// Registrations per second and ensemble.
    pub write_rate: u32,
    /// What that limit does.
    pub write_rate_mode: RateMode,
    /// The admin listener and the control socket.
    pub listeners: Listeners,
    /// Former session ids and holds; default `$STATE_DIRECTORY/state.json` or `/var/lib/nerve/state.json`.
    pub state_path: PathBuf,
    /// Time between the withdrawal and the exit.
    pub linger: Duration,
    /// At most this long for a clean stop.
    pub stop_deadline: Duration,
}

/// What the limit of registrations does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RateMode {
    /// Delays registrations above the rate.
    On,
    /// Only counts what it would delay.
    Shadow,
    /// Nothing.
    Off,
}

/// One service of this host.
#[derive(Debug, Clone, PartialEq)]
pub struct Service {
    /// The key in `services`.
    pub name: String,
    /// Advertised address, default host of the checks.
    pub host: String,
    /// Advertised port, with its configured type (number or text).
    pub port: serde_json::Value,
    /// Pause between rounds of checks.
    pub check_interval: Duration,
    /// How long a check that this host cannot run leaves the service as it is.
    pub check_grace: Duration,
    /// All must pass; empty = always up.
    pub checks: Vec<Check>,
    /// Checks are not run, the service is up.
    pub check_mocked: bool,
    /// Published when configured.
    pub weight: Option<u64>,
    /// Published verbatim when configured.
    pub haproxy_server_options: Option<serde_json::Value>,
    /// Published verbatim when configured.
    pub labels: Option<serde_json::Value>,
    /// Where it is registered: at least one place.
    pub places: Vec<Place>,
    /// How the node is named.
    pub node_type: NodeType,
    /// `base64_<len>_<payload>_` instead of `<instance_id>_` as the node's prefix.
    pub use_path_encoding: bool,
}

/// Where a service is registered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    /// The ensemble.
    pub ensemble: Ensemble,
    /// Parent of the node.
    pub path: ZkPath,
}

/// How the node is named. Both kinds are ephemeral.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NodeType {
    /// Prefix and ten digits, Ruby's default.
    EphemeralSequential,
    /// The bare prefix, ending in an underscore.
    Ephemeral,
}
