//! From what checks find to what they say of a service. Pure: no socket, no clock, no registry.

mod hysteresis;
mod service;

pub(crate) use self::hysteresis::Health;
pub(crate) use self::service::{Machine, Verdict, freshness};
