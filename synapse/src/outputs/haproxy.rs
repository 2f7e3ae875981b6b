//! haproxy: what is wanted becomes its configuration, and the running one is brought into step with it.
//!
//! ```text
//! version     what 2.2 ... 3.x take and say
//! cfg         its language: sections, server lines, inheritance, generation
//! plan render from what runs and what should run to what has to be done; from servers to text
//! socket file the stats socket; haproxy.cfg as pieces, and the last known good ones
//! backend     a service as a backend: ids, order, what it had before
//! process     checking, reloading, supervising
//! load        one try to load a file: check, blame, write, reload, proof
//! reconciler  the task that keeps all of it in step
//! ```

pub mod backend;
pub mod cfg;
pub mod disk;
pub mod file;
pub mod host;
pub mod load;
pub mod plan;
pub mod process;
pub mod reconciler;
pub mod render;
pub mod socket;
pub mod version;
