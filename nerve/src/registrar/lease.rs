//! Nodes that live as long as a session: what to write when, whatever the registry.
//!
//! ```text
//! reconciler  what is due: links, wishes, looks and failures in, jobs out. Pure
//! plan        wishes and observed nodes of one parent in, changes out. Pure
//! throttle    how many registrations per second. Pure
//! job         writes what was planned and looks again
//! registry    what a job asks of the servers
//! ```

pub(crate) mod job;
pub(crate) mod plan;
pub(crate) mod reconciler;
pub(crate) mod registry;
pub(crate) mod throttle;
