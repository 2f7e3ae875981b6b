//! synapse: watches the services' ZooKeeper paths and keeps the local haproxy in step with them.

pub mod config;
pub mod decode;
pub mod desired;
pub mod ids;
pub mod order;
pub mod render;
pub mod server;
pub mod source;
pub mod validate;
