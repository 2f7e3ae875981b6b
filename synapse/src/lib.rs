//! synapse: watches the services' ZooKeeper paths and keeps the local haproxy in step with them.

pub mod app;
pub mod assembly;
pub mod cfg;
pub mod cli;
pub mod config;
pub mod decode;
pub mod desired;
pub mod discovery;
pub mod effective;
pub mod generation;
pub mod good;
pub mod guard;
pub mod haproxy;
pub mod ids;
pub mod intake;
pub mod lines;
pub mod metrics;
pub mod offline;
pub mod order;
pub mod plan;
pub mod quarantine;
pub mod reconciler;
pub mod render;
pub mod resolve;
pub mod ruby_state;
pub mod runtime_api;
pub mod seed;
pub mod server;
pub mod services;
#[cfg(test)]
mod simulation;
pub mod snapshot;
pub mod sorted;
pub mod source;
pub mod sources;
pub mod status;
pub mod validate;
