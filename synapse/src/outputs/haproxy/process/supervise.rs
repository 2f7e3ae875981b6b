//! A haproxy of our own: `haproxy -W -db -S <master socket> -p <pid file> -f <file>` in a process group of its own, so that
//! neither our end nor a signal to our group reaches it; found again and adopted at the next start; started again with
//! a back-off when it dies. `-db` keeps it our child when `global` says `daemon` (measured on 2.2, 2.6, 3.0, 3.2: reloads
//! keep it, too); without it the child would end at once, and a master that nobody waited for would go on.
//!
//! Beside haproxy.cfg lie `<file>.master.sock`, `<file>.pid` and `<file>.log` (what haproxy writes to stderr; emptied
//! above 1 MB). Under systemd the unit needs `KillMode=process`.

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use smartstack_common::descriptors;
use smartstack_common::process::{ProcessId, boot_id, start_time};
use tokio::process::{Child, Command};
use tokio::time::{Instant, sleep};

use super::binary::{self, NotFound};
use super::child;
use super::master::{Master, Processes, SILENCE};

/// The log is emptied above this.
const LOG_MAX: u64 = 1024 * 1024;
const PAUSE: Duration = Duration::from_millis(50);

/// Why there is no haproxy of our own.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// No program.
    #[error(transparent)]
    NotFound(#[from] NotFound),
    /// The log file cannot be opened.
    #[error("cannot open `{path}` for what haproxy writes")]
    Log {
        /// The file.
        path: PathBuf,
        /// The failure.
        source: io::Error,
    },
    /// The program cannot be started.
    #[error("cannot start `{program}`")]
    Spawn {
        /// The program.
        program: PathBuf,
        /// The failure.
        source: io::Error,
    },
    /// A former haproxy of ours is there and does not answer. A second one would fight it for the ports.
    #[error(
        "haproxy master {pid} runs on `{config}` but does not answer on `{socket}` (stop it, and one will be started)"
    )]
    Hung {
        /// The former one.
        pid: u32,
        /// Its file.
        config: PathBuf,
        /// Its master socket.
        socket: PathBuf,
    },
}

/// How haproxy came to run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Origin {
    /// It ran already.
    Adopted,
    /// Started now.
    Started,
}

/// The supervised haproxy.
#[derive(Debug)]
pub struct Supervisor {
    binary: String,
    config: PathBuf,
    master: Master,
    pid_file: PathBuf,
    log: PathBuf,
    /// The master that runs, as far as is known.
    process: Option<ProcessId>,
    /// The handle when we started it: to reap it.
    child: Option<Child>,
}

impl Supervisor {
    /// For this file. Nothing is started yet.
    #[must_use]
    pub fn new(binary: &str, config: &Path) -> Self {
        let beside = |extension: &str| {
            let mut path = config.as_os_str().to_owned();
            path.push(extension);
            PathBuf::from(path)
        };
        Self {
            binary: binary.to_owned(),
            config: config.to_owned(),
            master: Master::new(beside(".master.sock")),
            pid_file: beside(".pid"),
            log: beside(".log"),
            process: None,
            child: None,
        }
    }

    /// The program of the next start.
    pub fn set_binary(&mut self, binary: &str) {
        binary.clone_into(&mut self.binary);
    }

    /// Its master CLI.
    #[must_use]
    pub fn master(&self) -> &Master {
        &self.master
    }

    /// Finds the haproxy that a former synapse left running, or starts one.
    ///
    /// # Errors
    /// See [`StartError`].
    pub async fn ensure(&mut self) -> Result<Origin, StartError> {
        if self.is_alive() {
            return Ok(Origin::Adopted);
        }
        if self.adopt().await? {
            return Ok(Origin::Adopted);
        }
        self.start()?;
        Ok(Origin::Started)
    }

    /// The master socket's answer is the identity: a pid file may be stale, a socket that answers is not.
    async fn adopt(&mut self) -> Result<bool, StartError> {
        let deadline = Instant::now() + SILENCE;
        loop {
            if let Ok(Processes { master, .. }) = self.master.processes().await
                && let Some(start) = start_time(master)
            {
                self.process = Some(ProcessId {
                    pid: master,
                    start,
                    boot: boot_id(),
                });
                return Ok(true);
            }
            let Some(pid) = self.former() else {
                return Ok(false);
            };
            if Instant::now() >= deadline {
                return Err(StartError::Hung {
                    pid,
                    config: self.config.clone(),
                    socket: self.master.path().to_owned(),
                });
            }
            sleep(PAUSE).await;
        }
    }

    /// The process of the pid file, if it is a haproxy with our master socket.
    fn former(&self) -> Option<u32> {
        let pid: u32 = std::fs::read_to_string(&self.pid_file)
            .ok()?
            .trim()
            .parse()
            .ok()?;
        start_time(pid)?;
        let arguments = std::fs::read(format!("/proc/{pid}/cmdline")).ok()?;
        let socket = self.master.path().as_os_str().as_encoded_bytes();
        arguments
            .split(|b| *b == 0)
            .any(|argument| argument.starts_with(socket))
            .then_some(pid)
    }

    fn start(&mut self) -> Result<(), StartError> {
        let program = binary::find(&self.binary)?;
        let log = |source| StartError::Log {
            path: self.log.clone(),
            source,
        };
        // Each process appends at the end, wherever that is after the file was emptied.
        let file = File::options()
            .append(true)
            .create(true)
            .open(&self.log)
            .map_err(log)?;
        let mut socket = self.master.path().as_os_str().to_owned();
        socket.push(",mode,600");
        let mut command = Command::from(descriptors::command(&program));
        command
            .arg("-W")
            .arg("-db")
            .arg("-S")
            .arg(socket)
            .arg("-p")
            .arg(&self.pid_file)
            .arg("-f")
            .arg(&self.config);
        command
            .stdin(Stdio::null())
            .stdout(file.try_clone().map_err(log)?)
            .stderr(file)
            .process_group(0);
        let child = command
            .spawn()
            .map_err(|source| StartError::Spawn { program, source })?;
        let pid = child.id().unwrap_or_default();
        self.process = start_time(pid).map(|start| ProcessId {
            pid,
            start,
            boot: boot_id(),
        });
        self.child = Some(child);
        Ok(())
    }

    /// The master's pid.
    #[must_use]
    pub fn pid(&self) -> Option<u32> {
        self.process.as_ref().map(|p| p.pid)
    }

    /// The master that was last seen does not run any more.
    pub(super) fn has_ended(&self) -> bool {
        self.process.as_ref().is_some_and(|p| !p.is_alive())
    }

    /// Whether the master runs. Reaps it when it does not.
    pub fn is_alive(&mut self) -> bool {
        if self
            .child
            .as_mut()
            .is_some_and(|child| !matches!(child.try_wait(), Ok(None)))
        {
            self.child = None;
            self.process = None;
        }
        self.process.as_ref().is_some_and(ProcessId::is_alive)
    }

    /// Where the log ends now. One that has grown too long is emptied first; where that fails it is tried again next time.
    #[must_use]
    pub fn mark_log(&self) -> u64 {
        let end = || self.log.metadata().map_or(0, |m| m.len());
        if end() > LOG_MAX {
            drop(
                File::options()
                    .write(true)
                    .open(&self.log)
                    .and_then(|file| file.set_len(0)),
            );
        }
        end()
    }

    /// What haproxy has written since.
    #[must_use]
    pub fn said_since(&self, end: u64) -> String {
        File::open(&self.log)
            .map(|mut file| child::tail(&mut file, end))
            .unwrap_or_default()
    }

    /// Its worker was killed because it hung. The master ends by itself, or hangs as well and is killed.
    pub async fn kill(&mut self) {
        let until = Instant::now() + SILENCE;
        while self.is_alive() && Instant::now() < until {
            sleep(PAUSE).await;
        }
        let pid = self.pid().filter(|_| self.is_alive());
        let Some(pid) = pid.and_then(|pid| i32::try_from(pid).ok()) else {
            return;
        };
        // Gone already is as good.
        let _gone = kill(Pid::from_raw(pid), Signal::SIGKILL).is_err();
        let until = Instant::now() + SILENCE;
        while self.is_alive() && Instant::now() < until {
            sleep(PAUSE).await;
        }
    }

    /// Ends it: requests in flight may finish until `deadline`, then they are cut.
    pub async fn stop(&mut self, deadline: Duration) {
        if !self.is_alive() {
            // Err = none that answers.
            let _ours = self.adopt().await.is_ok();
        }
        let Some(pid) = self
            .pid()
            .filter(|_| self.is_alive())
            .and_then(|pid| i32::try_from(pid).ok())
            .map(Pid::from_raw)
        else {
            return;
        };
        // One that re-executes itself loses the signal (measured on 2.6, right after a reload).
        let _answers = self.master.settled().await.is_ok();
        for (signal, limit) in [
            (Signal::SIGUSR1, deadline),
            (Signal::SIGTERM, SILENCE),
            (Signal::SIGKILL, SILENCE),
        ] {
            // Gone already is as good.
            let _gone = kill(pid, signal).is_err();
            let until = Instant::now() + limit;
            while self.is_alive() && Instant::now() < until {
                sleep(PAUSE).await;
            }
            if !self.is_alive() {
                return;
            }
        }
    }
}
