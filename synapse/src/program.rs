//! The program: its command line, its tasks, and what it does without them (`check`, `render`). It decides nothing.

pub mod cli;
pub mod offline;
pub mod run;
mod summary;
