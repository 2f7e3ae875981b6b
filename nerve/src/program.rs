//! Starts, stops, prints: the command line and the owner of all tasks.

pub mod cli;
mod run;

pub use self::run::{RunError, run};
