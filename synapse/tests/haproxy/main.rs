//! synapse's haproxy half against the real haproxy: the stats socket, the table, each way of reloading, supervision,
//! the check. What was measured about haproxy 2.6 and relied upon is asserted here.

#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

#[path = "../rig/agent.rs"]
mod agent;
mod agents;
mod facts;
mod queue;
mod reload;
mod site;
mod supervise;
mod talk;
