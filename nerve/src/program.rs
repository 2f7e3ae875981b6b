//! Starts, stops, prints: the command line and the owner of all tasks.

pub mod cli;
mod run;
mod summary;

pub use self::run::{RunError, run};
