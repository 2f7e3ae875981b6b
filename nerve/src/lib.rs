//! nerve: health-checks the local services and keeps an ephemeral ZooKeeper node for each while it is healthy.

pub mod check;
pub mod config;
pub mod hysteresis;
pub mod node;
pub mod registration;
pub mod service;
pub mod throttle;
