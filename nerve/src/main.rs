//! The `nerve` program: all of it is in the library.

use std::process::ExitCode;

fn main() -> ExitCode {
    ExitCode::from(nerve::program::cli::main(std::env::args_os()))
}
