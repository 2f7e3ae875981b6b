//! Logs on stderr, one line per event, as text or JSON; what systemd is told.
//!
//! Logging never stops the program: lines wait in a bounded queue, a thread of its own writes them, and what stderr does
//! not take is dropped and counted (`log_lines_dropped`). Panics go the same way.

mod lines;
mod systemd;

use std::backtrace::{Backtrace, BacktraceStatus};
use std::io::{self, IsTerminal, Write};
use std::panic::PanicHookInfo;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use nix::errno::Errno;
use prometheus_client::metrics::counter::Counter;
use tracing_subscriber::EnvFilter;

use self::lines::Lines;
pub use self::systemd::{Notice, notify, watchdog_time};

/// Bytes of lines that may wait for stderr: some thousands of lines.
const QUEUE: usize = 1 << 20;
/// At the end of the program: how long a stderr that takes nothing is waited for, and one that takes slowly.
const STUCK: Duration = Duration::from_millis(500);
const SLOW: Duration = Duration::from_secs(2);
/// The pause before a stderr that somebody made non-blocking, and that is full, is tried again.
const FULL: Duration = Duration::from_millis(20);

/// There is one stderr.
static LINES: OnceLock<Arc<Lines>> = OnceLock::new();

/// How log lines look.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, clap::ValueEnum)]
pub enum LogFormat {
    /// For people.
    #[default]
    Text,
    /// One JSON object a line.
    Json,
}

/// Gets the last lines out when it is dropped, also by a panic; never for long.
#[derive(Debug)]
#[must_use]
pub struct Logs(());

impl Drop for Logs {
    fn drop(&mut self) {
        flush();
    }
}

/// Starts logging. `RUST_LOG` rules; without it the level is info, or debug when `DEBUG` is set (as in the Ruby
/// programs). The ZooKeeper client writes a line for every attempt, our own code one for every transition: without
/// `RUST_LOG` only the client's errors are shown. Call once.
///
/// # Errors
/// When the thread that writes the lines cannot be started.
pub fn start(format: LogFormat) -> io::Result<Logs> {
    let default = if std::env::var_os("DEBUG").is_some() {
        "debug"
    } else {
        "info,zookeeper_client=error"
    };
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new(default));
    let lines = Arc::new(Lines::new(QUEUE));
    let notice = |count| {
        tracing::warn!(count, "log lines dropped: stderr did not take them");
    };
    let writer = Arc::clone(&lines);
    std::thread::Builder::new()
        .name("logs".to_owned())
        .spawn(move || writer.write_all(write, notice))?;
    LINES.get_or_init(|| lines);
    let builder = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .log_internal_errors(false)
        .with_writer(|| Queued);
    match format {
        LogFormat::Text => builder.with_ansi(io::stderr().is_terminal()).init(),
        LogFormat::Json => builder.json().flatten_event(true).init(),
    }
    std::panic::set_hook(Box::new(tell_panic));
    Ok(Logs(()))
}

/// Prints `text` on stderr: behind the log lines once there are any, without waiting for it.
pub(crate) fn complain(text: &str) {
    let line = format!("{}\n", text.trim_end());
    match LINES.get() {
        Some(lines) => lines.push(line.as_bytes()),
        None => {
            // Nobody to tell of it.
            let _told = io::stderr().lock().write_all(line.as_bytes()).is_ok();
        }
    }
}

/// Waits until the lines so far are written, as long as stderr takes them; 2 s at most.
pub(crate) fn flush() {
    if let Some(lines) = LINES.get() {
        lines.flush(STUCK, SLOW);
    }
}

/// Counts the log lines that stderr did not take.
#[must_use]
pub fn dropped() -> Counter {
    LINES
        .get()
        .map_or_else(Counter::default, |lines| lines.dropped().clone())
}

/// The help of [`dropped`] in `/metrics`, where its name is `log_lines_dropped`.
pub const DROPPED_HELP: &str = "Log lines dropped, as stderr did not take them";

/// A writer for one event.
struct Queued;

impl Write for Queued {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        if let Some(lines) = LINES.get() {
            lines.push(line);
        }
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Writes to stderr, without the lock of the standard library: whoever holds that while nobody reads holds it for ever.
#[expect(
    clippy::disallowed_methods,
    reason = "it blocks the thread of the log alone"
)]
fn write(mut line: &[u8]) -> io::Result<()> {
    while !line.is_empty() {
        match nix::unistd::write(io::stderr(), line) {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(count) => line = line.get(count..).unwrap_or_default(),
            Err(Errno::EINTR) => {}
            Err(Errno::EAGAIN) => std::thread::sleep(FULL),
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

/// In place of the standard library's hook, which writes to stderr itself, and waits for it.
fn tell_panic(panic: &PanicHookInfo<'_>) {
    let place = panic.location().map(ToString::to_string);
    let place = place.unwrap_or_else(|| "?".to_owned());
    let thread = std::thread::current();
    let thread = thread.name().unwrap_or("?");
    let message = panic.payload_as_str().unwrap_or("?");
    let backtrace = Backtrace::capture();
    let backtrace = match backtrace.status() {
        BacktraceStatus::Captured => format!("\n{backtrace}"),
        _ => String::new(),
    };
    tracing::error!(thread, place, "panic, a defect: {message}{backtrace}");
}
