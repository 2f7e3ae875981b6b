//! The master CLI of `haproxy -W -S`: which processes there are, and reloading.
//!
//! Each command goes over a connection of its own and ends with `quit`: the master of 2.6 does not close after its
//! answer. While the master re-executes itself its socket resets or refuses; callers try again.

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::time::{Instant, sleep, timeout};

/// Time limit of `show proc`.
const LIMIT: Duration = Duration::from_secs(2);
/// How long a master may refuse: at its start its worker answers first, and a re-execution takes up to a second.
pub(super) const SILENCE: Duration = Duration::from_secs(3);
const PAUSE: Duration = Duration::from_millis(20);

/// A master socket.
#[derive(Debug, Clone)]
pub struct Master {
    path: PathBuf,
}

/// The master gave no usable answer.
#[derive(Debug, thiserror::Error)]
pub enum MasterError {
    /// Nobody answers, or not to the end.
    #[error("master socket `{path}` does not answer")]
    Io {
        /// The socket.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// This is no master's answer.
    #[error("master socket `{path}` answered `{reply}` (is it the socket of `haproxy -S`?)")]
    Unexpected {
        /// The socket.
        path: PathBuf,
        /// A piece of the answer.
        reply: String,
    },
}

/// `show proc`.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Processes {
    /// The master's pid; it stays through reloads.
    pub master: u32,
    /// Reloads tried so far, failed ones included.
    pub reloads: u32,
    /// Failed ones since the last success.
    pub failed: u32,
    /// The current worker.
    pub worker: Option<u32>,
    /// Former workers that still serve old connections.
    pub old_workers: Vec<u32>,
}

/// What `reload` answered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Asked {
    /// Nothing (haproxy before 2.7): it is on its way.
    Unknown,
    /// `Success=1`.
    Success,
    /// `Success=0`, with the new process's words.
    Failure(String),
}

impl Master {
    /// At this path.
    #[must_use]
    pub fn new(path: PathBuf) -> Self {
        Self { path }
    }

    /// Where it is.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// `show proc`.
    ///
    /// # Errors
    /// Nobody answers within 2 s, or not a master.
    pub async fn processes(&self) -> Result<Processes, MasterError> {
        let text = self.ask("show proc;quit\n", LIMIT).await?;
        Processes::parse(&text).ok_or_else(|| MasterError::Unexpected {
            path: self.path.clone(),
            reply: text.chars().take(200).collect(),
        })
    }

    /// `show proc`, tried until it is answered or [`SILENCE`] is over.
    ///
    /// # Errors
    /// Of the last attempt.
    pub(super) async fn settled(&self) -> Result<Processes, MasterError> {
        let deadline = Instant::now() + SILENCE;
        loop {
            match self.processes().await {
                Err(MasterError::Io { .. }) if Instant::now() < deadline => sleep(PAUSE).await,
                other => return other,
            }
        }
    }

    /// `reload`. Waits for the answer of haproxy 2.7 and later; earlier ones close at once.
    ///
    /// # Errors
    /// Nobody takes it, or there is no answer within `limit`.
    pub async fn reload(&self, limit: Duration) -> Result<Asked, MasterError> {
        Ok(Asked::parse(&self.ask("reload\n", limit).await?))
    }

    async fn ask(&self, line: &str, limit: Duration) -> Result<String, MasterError> {
        let exchange = async {
            let mut stream = UnixStream::connect(&self.path).await?;
            stream.write_all(line.as_bytes()).await?;
            let mut answer = Vec::new();
            let end = stream.read_to_end(&mut answer).await;
            // The master that re-executes itself on `reload` may reset instead of closing.
            match end {
                Err(error)
                    if answer.is_empty() && error.kind() != io::ErrorKind::ConnectionReset =>
                {
                    Err(error)
                }
                _ => Ok(String::from_utf8_lossy(&answer).into_owned()),
            }
        };
        let answer = timeout(limit, exchange)
            .await
            .unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()));
        answer.map_err(|source| MasterError::Io {
            path: self.path.clone(),
            source,
        })
    }
}

impl Asked {
    fn parse(text: &str) -> Self {
        match text.lines().find_map(|l| l.strip_prefix("Success=")) {
            Some("1") => Self::Success,
            Some(_) => Self::Failure(
                text.lines()
                    .filter(|l| !l.starts_with("Success=") && *l != "--")
                    .collect::<Vec<_>>()
                    .join("\n"),
            ),
            None => Self::Unknown,
        }
    }
}

impl Processes {
    /// `None` when no master is listed.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let mut found = Self::default();
        let mut old = false;
        for line in text.lines() {
            if line.starts_with('#') {
                old = line.contains("old workers");
                continue;
            }
            let words: Vec<&str> = line.split_ascii_whitespace().collect();
            let (Some(Ok(pid)), Some(kind)) =
                (words.first().map(|w| w.parse::<u32>()), words.get(1))
            else {
                continue;
            };
            match *kind {
                "master" => {
                    found.master = pid;
                    found.reloads = words.get(2)?.parse().ok()?;
                    let failed = line
                        .split_once("[failed: ")
                        .and_then(|(_, rest)| rest.split_once(']'));
                    found.failed = failed.and_then(|(n, _)| n.parse().ok()).unwrap_or(0);
                }
                "worker" if old => found.old_workers.push(pid),
                "worker" => found.worker = Some(pid),
                _ => {}
            }
        }
        (found.master != 0).then_some(found)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn processes_are_read() {
        let text = "#<PID>          <type>          <reloads>       <uptime>        <version>      \n29079           master          2 [failed: 1]   0d00h00m01s     2.6.12\n# workers\n29085           worker          1               0d00h00m01s     2.6.12\n# old workers\n29080           worker          2               0d00h00m01s     2.6.12\n# programs\n\n";
        let expected = Processes {
            master: 29079,
            reloads: 2,
            failed: 1,
            worker: Some(29085),
            old_workers: vec![29080],
        };
        assert_eq!(Processes::parse(text), Some(expected));
        assert_eq!(Processes::parse("Unknown command"), None);
        // Before 2.5 no failures are shown.
        assert_eq!(
            Processes::parse("1 master 3 0d00h00m01s 2.4.0\n")
                .unwrap()
                .failed,
            0
        );
    }

    #[test]
    fn answers_of_later_versions_are_read() {
        assert_eq!(Asked::parse(""), Asked::Unknown);
        assert_eq!(Asked::parse("Success=1\n--\n[NOTICE] x\n"), Asked::Success);
        assert_eq!(
            Asked::parse("Success=0\n--\n[ALERT] x\n"),
            Asked::Failure("[ALERT] x".to_owned())
        );
    }
}
