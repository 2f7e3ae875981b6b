//! Keeps what is wanted registered. The contract of every registry: the wishes in, an `EnsembleReport` out.
//!
//! `lease` is what registries have in common whose nodes live as long as a session; `zookeeper` is the one of them.

pub(crate) mod lease;
pub(crate) mod zookeeper;
