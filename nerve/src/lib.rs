//! nerve: health-checks the local services and keeps an ephemeral ZooKeeper node for each while it is healthy.
//!
//! ```text
//! watch: interval ▶ check::run ─Outcome▶ service::Machine (hysteresis) ─▶ Wanted   (one task per service)
//!                                                                           │ latest value, all services
//! zk::supervise ─Link▶ registrar ◀──────────────────────────────────────────┘      (one per ensemble)
//!                        └ reconcile ▶ registration::plan ▶ registry: ZooKeeper
//! control: drain, enable, disable ▶ state file ▶ Wanted, answered when the registrar has confirmed it
//! recall: state file ▶ holds of earlier runs, before anything is registered
//! status, metrics, heartbeat: views over what the tasks last published
//! ```
//!
//! Checks never know of ZooKeeper, the registrar never of checks. `app` owns all tasks.

mod app;
pub mod check;
pub mod cli;

pub mod config;
mod control;
mod heartbeat;
pub mod hysteresis;
mod job;
mod metrics;
pub mod node;
mod recall;
mod reconcile;
mod registrar;
pub mod registration;
mod registry;
pub mod service;
mod state;
mod status;
pub mod throttle;
mod watch;

pub use app::{RunError, run};
