//! A service as a backend of haproxy: the ids and the order of its servers, what it had before the registry spoke, and whether
//! a server leads back to this host.

pub mod circles;
pub mod ids;
pub mod order;
pub mod ruby_state;
pub mod seed;
