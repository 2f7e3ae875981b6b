//! synapse: watches the services' ZooKeeper paths and keeps the local haproxy in step with them.
//!
//! ```text
//! program/    cli, run, offline                          starts, stops, prints; decides nothing
//! outputs/    haproxy/                                    what is made of what is wanted (its own map: outputs/haproxy.rs)
//! wanted/     guard, intake, funnel, gate, service; keeper   which servers each service should have, and why
//! report/     status, metrics                             what was said, for people and tools
//! sources/    zookeeper/, decode, names                   read, never judge
//! snapshot/   file, writer, lock, holds                   what is remembered on disk
//! config/     keys, types, defaults, reading              what the operator wrote
//! model/      source, member, server, payload, text       the words of all rooms
//! ```
//!
//! A znode on its way: `sources::zookeeper` reads it, `wanted::guard` decides whether a loss is believed, `wanted::intake` makes
//! one set of several sources, `wanted::funnel` names and filters, `wanted::gate` lets through what is safe;
//! `outputs::haproxy::backend` gives an id, `render` a line, `plan` a command, `reconciler` sends it.
//!
//! An arrow only goes down this list; sources and outputs never meet (`cargo test -p synapse --lib house`).

pub mod config;
#[cfg(test)]
mod house;
pub mod model;
pub mod outputs;
pub mod program;
pub mod report;
pub mod snapshot;
pub mod sources;
#[cfg(test)]
mod testing;
pub mod wanted;
