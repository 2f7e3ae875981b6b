//! Faults.

#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

mod boot;
mod clocks;
#[path = "../soak/disk.rs"]
mod disk;
mod disks;
mod ensembles;
mod members;
mod network;
mod processes;
mod proxies;
mod reconnects;
#[path = "../rig/mod.rs"]
mod rig;
mod row;
mod stage;

/// Whether the long forms are wanted: `FAULTS=long`, as `make faults` has it.
fn long() -> bool {
    std::env::var("FAULTS").is_ok_and(|form| form == "long")
}
