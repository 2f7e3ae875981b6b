//! synapse: watches the services' ZooKeeper paths and keeps the local haproxy in step with them.

pub mod cfg;
pub mod config;
pub mod discovery;
pub mod effective;
pub mod generation;
pub mod haproxy;
pub mod plan;
pub mod quarantine;
pub mod resolve;
pub mod runtime_api;
pub mod seed;
pub mod server;
pub mod snapshot;
pub mod source;
