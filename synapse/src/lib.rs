//! synapse: watches the services' ZooKeeper paths and keeps the local haproxy in step with them.

pub mod config;
pub mod lines;
pub mod server;
pub mod source;
