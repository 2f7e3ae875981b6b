//! What an attempt comes to, and what an error of the system says: about the app, or about this host.

use std::fmt;
use std::io;
use std::time::Duration;

use nix::errno::Errno;
use smartstack_common::net;

/// What one attempt found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// As it should be.
    Pass,
    /// The reason in words, never the body of an answer.
    Fail(String),
    /// The deadline passed during this step.
    Timeout {
        /// What was going on.
        step: Step,
        /// The limit that was hit.
        after: Duration,
    },
    /// This host could not run it, for the reason in words: it says nothing about the app.
    NotRun(String),
}

/// What one attempt says about the app.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Finding {
    /// As it should be.
    Passed,
    /// Not as it should be.
    Failed,
    /// Nothing: this host could not run the check.
    NotRun,
}

/// A part of an attempt.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Step {
    /// Waiting for the connection.
    Connect,
    /// Waiting for the head of the answer.
    Head,
    /// Reading the body.
    Body,
}

impl Outcome {
    /// What it says about the app.
    #[must_use]
    pub(crate) fn finding(&self) -> Finding {
        match self {
            Outcome::Pass => Finding::Passed,
            Outcome::Fail(_) | Outcome::Timeout { .. } => Finding::Failed,
            Outcome::NotRun(_) => Finding::NotRun,
        }
    }

    /// Why not, if it did not.
    #[must_use]
    pub(crate) fn error(&self) -> Option<String> {
        match self {
            Outcome::Pass => None,
            Outcome::Fail(reason) => Some(reason.clone()),
            Outcome::Timeout { step, after } => {
                Some(format!("{step} within {} ms", after.as_millis()))
            }
            Outcome::NotRun(reason) => Some(format!("could not run: {reason}")),
        }
    }
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Step::Connect => "no connection",
            Step::Head => "no answer",
            Step::Body => "no complete body",
        })
    }
}

/// What an error of the system says, about the app or about this host.
pub(super) fn refused(what: &str, error: &io::Error) -> Outcome {
    match local(error) {
        Some(reason) => Outcome::NotRun(format!("{what}: {reason}")),
        None => Outcome::Fail(format!("{what}: {}", reason(error))),
    }
}

/// What this host is short of, when the error says so.
pub(super) fn local(error: &io::Error) -> Option<&'static str> {
    match Errno::from_raw(error.raw_os_error()?) {
        Errno::EAGAIN => Some("this host has no free port or process for it"),
        _ => net::shortage(error),
    }
}

/// An error of the system without its number.
pub(super) fn reason(error: &io::Error) -> String {
    match error.kind() {
        io::ErrorKind::ConnectionRefused if error.raw_os_error().is_some() => {
            "connection refused".to_owned()
        }
        io::ErrorKind::ConnectionReset => "connection reset".to_owned(),
        _ => error.to_string(),
    }
}
