//! What `nerve` and `synapse` share. Nothing lives here that only one of the two needs.
//!
//! ```text
//! config   one host file -> typed settings: YAML/JSON, conf dirs, sections, all errors at once, with places
//! units    the only place where text becomes an ensemble, a znode path, a duration
//! instance the znode payload: what nerve writes and synapse reads
//! zk       the ZooKeeper session supervisor: one owner of the client, everybody else watches a Link
//! backoff  full-jitter exponential back-off
//! clock    the clock since boot, by which everything is decided, and moments as they are shown
//! atomic   replace a file so that a crash leaves the old or the new one
//! net      TCP connections that lead to somebody else
//! descriptors  as many as the system grants, for those that are started what there was before
//! process  who is alive: pid + start time + boot id
//! sequence the number at the end of a sequential node's name
//! shutdown TERM/INT (stop), second one (exit at once), HUP (re-read)
//! http     one exchange as a client, one accept loop as a server
//! admin    the read-only HTTP listener: /live /ready /metrics /status
//! telemetry  logs to stderr, text or JSON; systemd notifications
//! program  the frame of both: options, commands, configuration, signals, listeners
//! exit     the exit codes
//! report   how an error is printed: its chain of causes, then a hint
//! testing  (feature) real ZooKeeper, real haproxy, tiny app, TCP proxy, steady client
//! ```

pub mod admin;
pub mod atomic;
pub mod backoff;
pub mod clock;
pub mod config;
pub mod descriptors;
pub mod exit;
pub mod http;
pub mod instance;
pub mod net;
pub mod process;
pub mod program;
pub mod report;
pub mod sequence;
pub mod shutdown;
pub mod telemetry;
#[cfg(feature = "testing")]
pub mod testing;
pub mod units;
pub mod watchdog;
pub mod zk;

/// The build's identity: package version and a hash of the sources, as printed by `--version`.
/// The test harness refuses to drive a program of another build.
pub const BUILD: &str = concat!(env!("CARGO_PKG_VERSION"), "+", env!("SMARTSTACK_BUILD"));
