//! Runs a child process to its end within a time limit, with its whole process group, and keeps the end of what it said.
//!
//! Output goes to an unlinked file, not a pipe: a daemon that the child leaves behind may keep it open for ever, and
//! neither blocks us nor is hurt by our end.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;
use tokio::process::Command;
use tokio::time::timeout;

/// Bytes kept of the output: the end, where the reason stands.
pub(super) const TAIL: u64 = 16 * 1024;

/// A child that ended by itself.
#[derive(Debug)]
pub(super) struct Finished {
    /// How it ended.
    pub(super) status: ExitStatus,
    /// The last [`TAIL`] bytes of standard output and error.
    pub(super) output: String,
}

/// Why a program gave no result.
#[derive(Debug, thiserror::Error)]
pub enum ChildError {
    /// It could not be started.
    #[error("cannot start `{program}`")]
    Start {
        /// The program.
        program: String,
        /// The failure.
        source: io::Error,
    },
    /// It was still running at the limit and was killed with all its children.
    #[error("`{program}` was still running after {limit:?} and was killed")]
    Timeout {
        /// The program.
        program: String,
        /// The limit.
        limit: Duration,
        /// What it had said.
        output: String,
    },
}

impl ChildError {
    /// What the program said before it was killed.
    #[must_use]
    pub fn output(&self) -> &str {
        match self {
            Self::Start { .. } => "",
            Self::Timeout { output, .. } => output,
        }
    }
}

/// What becomes of a child when the caller's future is dropped: synapse is ending.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Left {
    /// Nobody needs its result.
    Killed,
    /// It changes something and is not to stop half-way.
    Running,
}

/// Kills the group unless the child has ended or is to go on: also when the caller's future is dropped.
struct Group(Option<Pid>);

impl Drop for Group {
    fn drop(&mut self) {
        if let Some(pid) = self.0 {
            // Gone already is as good.
            let _gone = killpg(pid, Signal::SIGKILL).is_err();
        }
    }
}

/// A shell command line, as Ruby runs `reload_command` and `check_command`.
pub(super) fn shell(line: &str) -> Command {
    let mut command = Command::new("/bin/sh");
    command.arg("-c").arg(line);
    command
}

/// Runs it to its end. Its standard input is empty.
pub(super) async fn run(
    mut command: Command,
    name: &str,
    limit: Duration,
    left: Left,
) -> Result<Finished, ChildError> {
    let start = |source| ChildError::Start {
        program: name.to_owned(),
        source,
    };
    let mut output = tempfile::tempfile().map_err(start)?;
    command.stdin(Stdio::null()).process_group(0);
    command
        .stdout(output.try_clone().map_err(start)?)
        .stderr(output.try_clone().map_err(start)?);
    let mut child = command.spawn().map_err(start)?;
    let pid = child.id().and_then(|pid| i32::try_from(pid).ok());
    let pid = pid.map(Pid::from_raw);
    let mut group = Group(pid.filter(|_| left == Left::Killed));
    match timeout(limit, child.wait()).await {
        Ok(status) => {
            group.0 = None;
            Ok(Finished {
                status: status.map_err(start)?,
                output: tail(&mut output, 0),
            })
        }
        Err(_) => {
            drop(Group(pid));
            // Reaped at once: it was killed.
            drop(child.wait().await);
            Err(ChildError::Timeout {
                program: name.to_owned(),
                limit,
                output: tail(&mut output, 0),
            })
        }
    }
}

/// The end of a file, beginning not before `from`.
pub(super) fn tail(file: &mut File, from: u64) -> String {
    let length = file.metadata().map_or(0, |m| m.len());
    let mut bytes = Vec::new();
    let start = from.max(length.saturating_sub(TAIL)).min(length);
    if file.seek(SeekFrom::Start(start)).is_ok() {
        // A piece is better than nothing.
        drop(file.take(TAIL).read_to_end(&mut bytes));
    }
    String::from_utf8_lossy(&bytes).trim_end().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn output_and_status_are_kept_and_daemons_do_not_hold_us() {
        let done = run(
            shell("sleep 30 & echo said; echo also >&2; exit 3"),
            "x",
            Duration::from_secs(20),
            Left::Killed,
        )
        .await
        .unwrap();
        assert_eq!(
            (done.status.code(), done.output.as_str()),
            (Some(3), "said\nalso")
        );
    }

    #[tokio::test]
    async fn the_whole_group_is_killed_at_the_limit() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("pid");
        let line = format!(
            "sleep 60 & echo $! > {}; echo started; wait",
            file.display()
        );
        let error = run(shell(&line), "x", Duration::from_millis(500), Left::Running)
            .await
            .unwrap_err();
        assert_eq!(error.output(), "started");
        let pid: u32 = std::fs::read_to_string(&file)
            .unwrap()
            .trim()
            .parse()
            .unwrap();
        // It is killed, and dies when the kernel gets to it.
        let what = "the grandchild ends";
        smartstack_common::testing::eventually(what, Duration::from_secs(20), async || {
            match smartstack_common::process::start_time(pid) {
                None => Ok(()),
                Some(_) => Err(format!("{pid} lives")),
            }
        })
        .await;
    }

    #[tokio::test]
    async fn what_changes_something_goes_on_when_nobody_waits() {
        for (left, goes_on) in [(Left::Running, true), (Left::Killed, false)] {
            let folder = tempfile::tempdir().unwrap();
            let pid = folder.path().join("pid");
            let line = format!("echo $$ > {}; sleep 600", pid.display());
            let running = run(shell(&line), "x", Duration::from_secs(600), left);
            let begun = smartstack_common::testing::eventually(
                "it has begun",
                Duration::from_secs(20),
                async || {
                    let text = std::fs::read_to_string(&pid).unwrap_or_default();
                    text.trim().parse::<i32>().map_err(|e| e.to_string())
                },
            );
            let pid = tokio::select! {
                pid = begun => pid,
                done = running => panic!("{done:?}"),
            };
            let pid = u32::try_from(pid).unwrap();
            let lives = || smartstack_common::process::start_time(pid).is_some();
            if goes_on {
                assert!(lives());
                killpg(Pid::from_raw(i32::try_from(pid).unwrap()), Signal::SIGKILL).unwrap();
            }
            smartstack_common::testing::eventually(
                "it ends",
                Duration::from_secs(20),
                async || {
                    if lives() { Err("it lives") } else { Ok(()) }
                },
            )
            .await;
        }
    }

    #[tokio::test]
    async fn a_missing_program_is_named() {
        let error = run(
            Command::new("/no/such/program"),
            "/no/such/program",
            Duration::from_secs(1),
            Left::Killed,
        )
        .await
        .unwrap_err();
        assert!(error.to_string().contains("/no/such/program"));
    }
}
