//! The pair as it runs on a host: real ZooKeeper, real haproxy, the real `nerve` and `synapse`, and clients that never
//! retry. Each test asserts what clients saw as well as what the programs say of themselves.

#![expect(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

#[path = "../rig/agent.rs"]
mod agent;
mod agents;
mod balance;
mod haproxy;
mod logs;
mod maint;
mod named;
mod pair;
mod programs;
mod registry;
mod restarts;
mod runtime;
mod serving;
mod waiting;
