//! nerve: health-checks the local services and keeps an ephemeral ZooKeeper node for each while it is healthy.
//!
//! The rooms. An arrow only goes down this list; `house.rs` checks it.
//!
//! ```text
//! program/    cli, run                     starts, stops, prints; the owner of all tasks
//! operator/   control, recall              drain, enable, disable, and their proof
//! registrar/  lease/, zookeeper            keeps what is wanted registered: wishes in, a report out; one task per ensemble
//! watch       rounds of checks             one task per service
//! report/     status, metrics, heartbeat   what is told: pages, numbers, signs of life
//! boards/     who publishes what           one writer for each value; wishes: what is wanted now
//! state       sessions and holds on disk
//! wanted/     Wanted, Intent, Stance, PlaceKey, Hold    pure
//! health/     hysteresis, service, Verdict              pure
//! config/     keys, reading, types
//! check/      one file per check: its keys, how they are read, what is done, its deadline
//! ```
//!
//! ```text
//! watch: interval ▶ check::run ─Outcome▶ health::Machine (hysteresis) ─Verdict▶ boards   (one task per service)
//! program: configuration, stop, USR2 ─places, Intent▶ boards
//! control: drain, enable, disable ▶ state file ─holds▶ boards, answered when the registrar has confirmed it
//!
//! boards::Wishes (what these three say, put together by the reader) ─Wanted▶ registrar    (one per ensemble)
//! zk::supervise ─Link▶ registrar: lease::reconciler ▶ lease::plan ▶ lease::job ▶ ZooKeeper
//! recall: state file ▶ holds of earlier runs, before anything is registered
//! status, metrics, heartbeat: views over what the tasks last published
//! ```

mod boards;
pub mod check;
pub mod config;
mod health;
#[cfg(test)]
mod house;
mod operator;
pub mod program;
mod registrar;
mod report;
mod state;
mod wanted;
mod watch;

pub use program::{RunError, run};
