//! The `synapse` program: all of it is in the library.

use std::process::ExitCode;

fn main() -> ExitCode {
    ExitCode::from(synapse::program::cli::main(std::env::args_os()))
}
