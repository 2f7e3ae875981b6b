//! Runs a child process to its end within a time limit, with its whole process group, and keeps the end of what it said.
//!
//! Output goes to an unlinked file, not a pipe: a daemon that the child leaves behind may keep it open for ever, and
//! neither blocks us nor is hurt by our end. What cannot be killed (a `sudo` in a `reload_command`) is never called killed, and
//! the same program is not started again beside it.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::process::{ExitStatus, Stdio};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use nix::sys::signal::{Signal, killpg};
use nix::unistd::{Pid, getpgid};
use smartstack_common::descriptors;
use smartstack_common::process::{ProcessId, boot_id, start_time};
use tokio::process::Command;
use tokio::time::{Instant, sleep, timeout};

/// Bytes kept of the output: the end, where the reason stands.
pub(crate) const TAIL: u64 = 16 * 1024;

/// A killed process is gone within this time, on a busy machine too.
const DYING: Duration = Duration::from_secs(2);
const LOOK: Duration = Duration::from_millis(10);

/// A child that ended by itself.
#[derive(Debug)]
pub(crate) struct Finished {
    /// How it ended.
    pub(crate) status: ExitStatus,
    /// The last [`TAIL`] bytes of standard output and error.
    pub(crate) output: String,
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
    /// It was still running at the limit, and so it is: processes of another user cannot be killed.
    #[error(
        "`{program}` was still running after {limit:?} and could not be killed (pid {})",
        pids(left)
    )]
    Left {
        /// The program.
        program: String,
        /// The limit.
        limit: Duration,
        /// What it had said.
        output: String,
        /// The processes that go on.
        left: Vec<u32>,
    },
    /// An earlier one that could not be killed still runs; two at a time would work against each other.
    #[error(
        "`{program}` is not started: the last one still runs and cannot be killed (pid {}); end it as its user",
        pids(left)
    )]
    StillRuns {
        /// The program.
        program: String,
        /// The processes that go on.
        left: Vec<u32>,
    },
}

fn pids(left: &[u32]) -> String {
    let words: Vec<String> = left.iter().map(u32::to_string).collect();
    words.join(", ")
}

impl ChildError {
    /// What the program said before it was killed.
    #[must_use]
    pub fn output(&self) -> &str {
        match self {
            Self::Start { .. } | Self::StillRuns { .. } => "",
            Self::Timeout { output, .. } | Self::Left { output, .. } => output,
        }
    }
}

/// What becomes of a child when the caller's future is dropped: synapse is ending.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Left {
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

/// What could not be killed, by the program's name.
static LEFT: Mutex<BTreeMap<String, Vec<ProcessId>>> = Mutex::new(BTreeMap::new());

/// The processes of an earlier run of `name` that go on.
fn left_by(name: &str) -> Vec<u32> {
    let mut left = LEFT.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(processes) = left.get_mut(name) {
        processes.retain(ProcessId::is_alive);
        if processes.is_empty() {
            left.remove(name);
        }
    }
    let processes = left.get(name).into_iter().flatten();
    processes.map(|process| process.pid).collect()
}

/// Kills a group and waits until nobody of it is there, at most [`DYING`]. Who still is.
async fn kill_group(group: Pid) -> Vec<ProcessId> {
    let until = Instant::now() + DYING;
    loop {
        // Gone already is as good; who may not be killed is seen below.
        let _gone = killpg(group, Signal::SIGKILL).is_err();
        let left = members(group);
        if left.is_empty() || Instant::now() >= until {
            return left;
        }
        sleep(LOOK).await;
    }
}

/// The living processes of a group.
fn members(group: Pid) -> Vec<ProcessId> {
    let entries = std::fs::read_dir("/proc").into_iter().flatten().flatten();
    let pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
    let of_group = pids.filter(|pid| {
        let pid = i32::try_from(*pid).map(Pid::from_raw);
        pid.is_ok_and(|pid| getpgid(Some(pid)) == Ok(group))
    });
    let living = of_group.filter_map(|pid| {
        let start = start_time(pid)?;
        let boot = boot_id();
        Some(ProcessId { pid, start, boot })
    });
    living.collect()
}

/// A shell command line, as Ruby runs `reload_command` and `check_command`.
pub(crate) fn shell(line: &str) -> Command {
    let mut command = Command::from(descriptors::command("/bin/sh"));
    command.arg("-c").arg(line);
    command
}

/// Runs it to its end. Its standard input is empty.
pub(crate) async fn run(
    mut command: Command,
    name: &str,
    limit: Duration,
    dropped: Left,
) -> Result<Finished, ChildError> {
    let start = |source| ChildError::Start {
        program: name.to_owned(),
        source,
    };
    let left = left_by(name);
    if !left.is_empty() {
        let program = name.to_owned();
        return Err(ChildError::StillRuns { program, left });
    }
    let mut output = tempfile::tempfile().map_err(start)?;
    command.stdin(Stdio::null()).process_group(0);
    command
        .stdout(output.try_clone().map_err(start)?)
        .stderr(output.try_clone().map_err(start)?);
    let mut child = command.spawn().map_err(start)?;
    let pid = child.id().and_then(|pid| i32::try_from(pid).ok());
    let pid = pid.map(Pid::from_raw);
    let mut group = Group(pid.filter(|_| dropped == Left::Killed));
    match timeout(limit, child.wait()).await {
        Ok(status) => {
            group.0 = None;
            Ok(Finished {
                status: status.map_err(start)?,
                output: tail(&mut output, 0),
            })
        }
        Err(_) => {
            let left = match pid {
                Some(group) => kill_group(group).await,
                None => Vec::new(),
            };
            let (program, output) = (name.to_owned(), tail(&mut output, 0));
            if left.is_empty() {
                group.0 = None;
                // Reaped at once: it was killed.
                drop(child.wait().await);
                return Err(ChildError::Timeout {
                    program,
                    limit,
                    output,
                });
            }
            let pids = left.iter().map(|process| process.pid).collect();
            let mut all = LEFT.lock().unwrap_or_else(PoisonError::into_inner);
            all.insert(program.clone(), left);
            Err(ChildError::Left {
                program,
                limit,
                output,
                left: pids,
            })
        }
    }
}

/// The end of a file, beginning not before `from`.
pub(crate) fn tail(file: &mut File, from: u64) -> String {
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
