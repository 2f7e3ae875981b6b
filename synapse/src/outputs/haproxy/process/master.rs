//! The master CLI of `haproxy -W -S`: which processes there are, and reloading.
//!
//! Each command goes over a connection of its own and ends with `quit`, and its answer is what comes until the master
//! closes: without `quit` no master (measured on 2.2.9, 2.6.12, 3.0.11, 3.2.26) closes after `show proc`, nor that of 3.2
//! after `Another reload is still in progress.`. While a master re-executes itself its socket resets or refuses: an answer
//! that was cut off, or is empty, is none, and callers try again.

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
/// Between attempts while another reload is under way.
const BUSY: Duration = Duration::from_millis(100);

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
    /// Nothing: haproxy before 2.7 closes at once (measured on 2.2 and 2.6), or the answer was lost. Whether it reloads has
    /// to be seen.
    Unknown,
    /// Not done: it is loading a file already (3.1 and later).
    Busy,
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

    /// `reload`. Waits for the answer of haproxy 2.7 and later, and for its turn where another reload is under way.
    ///
    /// # Errors
    /// Nobody takes it, or there is no answer within `limit`.
    pub async fn reload(&self, limit: Duration) -> Result<Asked, MasterError> {
        let deadline = Instant::now() + limit;
        loop {
            let asked = Asked::parse(&self.say("reload;quit\n", limit).await?);
            if asked != Asked::Busy || Instant::now() >= deadline {
                return Ok(asked);
            }
            sleep(BUSY).await;
        }
    }

    async fn ask(&self, line: &str, limit: Duration) -> Result<String, MasterError> {
        match self.say(line, limit).await? {
            answer if answer.is_empty() => Err(self.io(io::ErrorKind::UnexpectedEof.into())),
            answer => Ok(answer),
        }
    }

    /// Sends a line. Everything that is answered to it; nothing when the master closes without a word, or cuts it off.
    async fn say(&self, line: &str, limit: Duration) -> Result<String, MasterError> {
        let exchange = async {
            let mut stream = UnixStream::connect(&self.path).await?;
            stream.write_all(line.as_bytes()).await?;
            let mut answer = Vec::new();
            match stream.read_to_end(&mut answer).await {
                Ok(_) => Ok(String::from_utf8_lossy(&answer).into_owned()),
                Err(error) if error.kind() == io::ErrorKind::ConnectionReset => Ok(String::new()),
                Err(error) => Err(error),
            }
        };
        let answer = timeout(limit, exchange)
            .await
            .unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()));
        answer.map_err(|source| self.io(source))
    }

    fn io(&self, source: io::Error) -> MasterError {
        MasterError::Io {
            path: self.path.clone(),
            source,
        }
    }
}

impl Asked {
    fn parse(text: &str) -> Self {
        match text.lines().find_map(|l| l.strip_prefix("Success=")) {
            Some("1") => Self::Success,
            Some(_) if text.contains("Another reload is still in progress") => Self::Busy,
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
    /// `None` when no master is listed. Columns as measured: before 2.5 one for the relative pid stands before the reloads.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let mut found = Self::default();
        let (mut old, mut reloads) = (false, 2);
        for line in text.lines() {
            if line.starts_with('#') {
                old = line.contains("old workers");
                if line.contains("<relative PID>") {
                    reloads = 3;
                }
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
                    found.reloads = words.get(reloads)?.parse().ok()?;
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
        // 2.2 counts no failures: after one it shows the old worker and no other.
        let is_old = reloads == 3;
        if is_old && found.worker.is_none() && !found.old_workers.is_empty() {
            found.failed = 1;
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
        // Of 2.2.9, after a reload that failed.
        let text = "#<PID>          <type>          <relative PID>  <reloads>       <uptime>        <version>      \n22101           master          0               5               0d00h00m05s     2.2.9-2+deb11u6\n# workers\n# old workers\n22145           worker          [was: 1]        1               0d00h00m02s     2.2.9-2+deb11u6\n# programs\n\n";
        let expected = Processes {
            master: 22101,
            reloads: 5,
            failed: 1,
            worker: None,
            old_workers: vec![22145],
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
        // 3.2.26.
        assert_eq!(
            Asked::parse("Success=0\n--\nAnother reload is still in progress.\n\n"),
            Asked::Busy
        );
    }

    /// Answers each connection with the next of these.
    fn answering(folder: &Path, answers: Vec<&'static str>) -> Master {
        let path = folder.join("m.sock");
        let listener = tokio::net::UnixListener::bind(&path).unwrap();
        tokio::spawn(async move {
            for answer in answers {
                let (mut client, _) = listener.accept().await.unwrap();
                let mut line = [0; 64];
                assert!(client.read(&mut line).await.unwrap() > 0);
                client.write_all(answer.as_bytes()).await.unwrap();
            }
        });
        Master::new(path)
    }

    #[tokio::test]
    async fn no_answer_is_none_and_a_busy_master_is_asked_again() {
        let folder = tempfile::tempdir().unwrap();
        let master = answering(folder.path(), vec!["", "# no table\n\n"]);
        assert!(matches!(
            master.processes().await,
            Err(MasterError::Io { .. })
        ));
        assert!(matches!(
            master.processes().await,
            Err(MasterError::Unexpected { .. })
        ));
        let folder = tempfile::tempdir().unwrap();
        let busy = "Success=0\n--\nAnother reload is still in progress.\n\n";
        let master = answering(folder.path(), vec![busy, busy, "Success=1\n--\n\n"]);
        let asked = master.reload(Duration::from_secs(20)).await.unwrap();
        assert_eq!(asked, Asked::Success);
    }
}
