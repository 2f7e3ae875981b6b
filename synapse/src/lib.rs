//! synapse: watches the services' ZooKeeper paths and keeps the local haproxy in step with them.

pub mod cfg;
pub mod config;
pub mod effective;
pub mod generation;
pub mod haproxy;
pub mod plan;
pub mod quarantine;
pub mod runtime_api;
pub mod server;
pub mod source;
