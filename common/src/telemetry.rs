//! Logs on stderr, one line per event, as text or JSON; systemd notifications.

use std::io::IsTerminal;

use tracing_subscriber::EnvFilter;

/// How log lines look.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, clap::ValueEnum)]
pub enum LogFormat {
    /// For people.
    #[default]
    Text,
    /// One JSON object a line.
    Json,
}

/// Starts logging. `RUST_LOG` rules; without it the level is info, or debug when `DEBUG` is set (as in the Ruby
/// programs). The ZooKeeper client writes a line for every attempt, our own code one for every transition: without
/// `RUST_LOG` only the client's errors are shown. Call once.
pub fn start(format: LogFormat) {
    let default = if std::env::var_os("DEBUG").is_some() {
        "debug"
    } else {
        "info,zookeeper_client=error"
    };
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new(default));
    let builder = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr);
    match format {
        LogFormat::Text => builder.with_ansi(std::io::stderr().is_terminal()).init(),
        LogFormat::Json => builder.json().flatten_event(true).init(),
    }
}

/// What systemd is told. Without `NOTIFY_SOCKET` nothing happens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Notice {
    /// The program does its work.
    Ready,
    /// One line for `systemctl status`.
    Status(String),
    /// It makes progress (see [`crate::watchdog`]).
    Alive,
    /// It is going.
    Stopping,
}

/// Tells systemd; a failure is a debug line, never more.
pub fn notify(notice: &Notice) {
    let state = match notice {
        Notice::Ready => sd_notify::NotifyState::Ready,
        Notice::Status(text) => sd_notify::NotifyState::Status(text),
        Notice::Alive => sd_notify::NotifyState::Watchdog,
        Notice::Stopping => sd_notify::NotifyState::Stopping,
    };
    if let Err(error) = sd_notify::notify(&[state]) {
        tracing::debug!(%error, "systemd could not be told");
    }
}
