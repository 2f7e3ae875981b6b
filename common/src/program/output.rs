//! Printing, and running on one thread.

use std::io::{self, Write};

use tokio::task::LocalSet;

use super::Exit;
use crate::exit;
use crate::telemetry::{self, LogFormat};

/// Prints on stdout. The exit code: a reader that has had enough (`schema | head`) is no failure.
#[must_use]
pub fn print(text: &str) -> u8 {
    match writeln!(io::stdout().lock(), "{}", text.trim_end()) {
        Ok(()) => exit::OK,
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => exit::OK,
        Err(error) => {
            complain(&format!("cannot write to stdout: {error}"));
            exit::START
        }
    }
}

/// Prints on stderr; in a program that logs without waiting for it.
pub fn complain(text: &str) {
    telemetry::complain(text);
}

/// Runs `work` with logs on stderr; the last lines are out when it returns, unless nobody reads them.
pub(super) fn logging(format: LogFormat, work: impl FnOnce() -> u8) -> u8 {
    match telemetry::start(format) {
        Ok(_logs) => work(),
        Err(error) => {
            complain(&format!("cannot start the thread for the log: {error}"));
            exit::START
        }
    }
}

/// Runs to the end on one thread: a sidecar should cost one core at most.
pub fn blocking(work: impl Future<Output = Exit>) -> u8 {
    match tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
    {
        Ok(runtime) => {
            let code = LocalSet::new()
                .block_on(&runtime, work)
                .unwrap_or_else(|code| code);
            // A name server or disk that hangs must not hold up the exit.
            runtime.shutdown_background();
            code
        }
        Err(error) => {
            complain(&format!("cannot start the runtime: {error}"));
            exit::START
        }
    }
}
