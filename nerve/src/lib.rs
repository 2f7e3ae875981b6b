//! nerve: health-checks the local services and keeps an ephemeral ZooKeeper node for each while it is healthy.

pub mod config;
