//! What nerve tells: pages, numbers, signs of life. Views over the boards; nothing is decided here.

pub(crate) mod heartbeat;
pub(crate) mod metrics;
pub(crate) mod status;
