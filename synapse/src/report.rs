//! What is told: `/status` and `/metrics`. Views over what the tasks last published.

pub mod metrics;
pub mod status;
