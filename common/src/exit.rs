//! Exit codes of both programs.

/// Done, or stopped by TERM or INT.
pub const OK: u8 = 0;
/// Could not start.
pub const START: u8 = 1;
/// Wrong usage of the command line.
pub const USAGE: u8 = 64;
/// A defect of the program.
pub const INTERNAL: u8 = 70;
/// Bad configuration.
pub const CONFIG: u8 = 78;
