//! synapse: watches the services' ZooKeeper paths and keeps the local haproxy in step with them.
//!
//! ```text
//! program/    cli, run, offline                          starts, stops, prints; decides nothing
//! outputs/    haproxy/                                    what is made of what is wanted
//! wanted/     guard, intake, funnel, gate, service        which servers each service should have
//! report/     status, metrics                             what was said, for people and tools
//! sources/    zookeeper/, decode, names                   read, never judge
//! snapshot/   what is remembered on disk
//! config/     keys, types, defaults, reading
//! model/      source, server, payload: the words of all rooms
//! ```
//!
//! An arrow only goes down this list; sources and outputs never meet.

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
