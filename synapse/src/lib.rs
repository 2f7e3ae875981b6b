//! synapse: watches the services' ZooKeeper paths and keeps the local haproxy in step with them.

pub mod config;
pub mod discovery;
pub mod resolve;
pub mod seed;
pub mod server;
pub mod snapshot;
pub mod source;
