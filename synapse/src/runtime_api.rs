//! haproxy's stats socket: typed commands out, typed replies in. The only place that writes or reads its text.
//!
//! Each batch goes over a connection of its own: a kept connection stays with the old worker after a reload and would
//! change a table nobody uses any more. Names are validated before anything is sent, so no text can end a command.
//! A time-out is reported as such and proves nothing about haproxy's table; the caller backs off and reads again.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use memchr::memmem;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::time::timeout;

use crate::plan::{Change, Op};

mod command;
pub mod reply;

pub use command::{AdminState, Check, Command};
pub use reply::{Info, Refusal, Reply, ServerRow};

/// Bytes of a batch: haproxy 2.6 hangs or resets on commands of 16 kB and says nothing.
const BATCH: usize = 8 * 1024;
/// A reply above this is not haproxy's: 100,000 servers make 7 MB.
const REPLY: usize = 256 * 1024 * 1024;
/// Room for a reply at first: haproxy's `tune.bufsize`.
const READ: usize = 16 * 1024;
/// Ends each reply of the interactive mode.
const PROMPT: &[u8] = b"\n> ";
/// Interactive mode marks where a reply ends; tags tell failures from information.
const PREAMBLE: &str = "prompt;set severity-output number";
const PREAMBLE_REPLIES: usize = 2;

/// Why a socket gave no answer.
#[derive(Debug, thiserror::Error)]
pub enum ApiError {
    /// No socket is configured.
    #[error("no stats socket is configured")]
    Unconfigured,
    /// There is no such socket file: haproxy never started, or opens another one.
    #[error("stats socket `{0}` does not exist")]
    Missing(PathBuf),
    /// The file is there, nobody listens: haproxy is gone.
    #[error("nobody listens on stats socket `{0}`")]
    Refused(PathBuf),
    /// The program may not open it.
    #[error("no permission to open stats socket `{0}`")]
    Forbidden(PathBuf),
    /// No complete answer in time. What was sent may have been done.
    #[error("stats socket `{path}` did not answer within {limit:?}")]
    Timeout {
        /// The socket.
        path: PathBuf,
        /// The limit.
        limit: Duration,
    },
    /// The connection ended before the answer did. What was sent may have been done.
    #[error("stats socket `{0}` closed before it had answered")]
    Closed(PathBuf),
    /// Any other failure.
    #[error("stats socket `{path}` failed")]
    Io {
        /// The socket.
        path: PathBuf,
        /// The failure.
        source: io::Error,
    },
    /// haproxy answered something else than asked for.
    #[error("stats socket `{path}` answered `{what}` with `{reply}`")]
    Unexpected {
        /// The socket.
        path: PathBuf,
        /// The command.
        what: &'static str,
        /// A piece of the reply.
        reply: String,
    },
    /// A name that must not be sent. Nothing was sent.
    #[error(
        "`{0}` is not a name haproxy can have: 1 to 128 of A-Z a-z 0-9 . _ : -, not beginning with -"
    )]
    Name(String),
    /// An option that must not be sent, or too many. Nothing was sent.
    #[error("`{0}` cannot be sent over the stats socket")]
    Word(String),
}

impl ApiError {
    /// Nobody answers at all: haproxy is not running, or not with this socket.
    #[must_use]
    pub fn is_absent(&self) -> bool {
        matches!(self, Self::Missing(_) | Self::Refused(_))
    }
}

/// The stats sockets of one haproxy: one, or one for each process with `nbproc`.
#[derive(Debug, Clone)]
pub struct RuntimeApi {
    /// As configured.
    configured: Vec<PathBuf>,
    /// One for each process.
    sockets: Vec<PathBuf>,
    limit: Duration,
}

impl RuntimeApi {
    /// Sockets as configured; 2 s for each batch.
    #[must_use]
    pub fn new(sockets: Vec<PathBuf>) -> Self {
        Self {
            configured: sockets.clone(),
            sockets,
            limit: Duration::from_secs(2),
        }
    }

    /// Another time limit of a batch.
    #[must_use]
    pub fn with_limit(mut self, limit: Duration) -> Self {
        self.limit = limit;
        self
    }

    /// Whether there is a socket to ask.
    #[must_use]
    pub fn is_configured(&self) -> bool {
        !self.sockets.is_empty()
    }

    /// Several sockets may be of one process, and a change must reach each process once: keeps the first that answers of
    /// each pid. As configured when none answers. Costs nothing with one socket.
    pub async fn tell_apart(&mut self) {
        if self.configured.len() < 2 {
            return;
        }
        let mut processes = BTreeMap::new();
        for socket in &self.configured {
            let alone = Self {
                sockets: vec![socket.clone()],
                ..self.clone()
            };
            if let Ok(info) = alone.info().await {
                processes.entry(info.pid).or_insert_with(|| socket.clone());
            }
        }
        let one_each = self.configured.iter();
        let one_each = one_each.filter(|socket| processes.values().any(|of| of == *socket));
        self.sockets = one_each.cloned().collect();
        if self.sockets.is_empty() {
            self.sockets.clone_from(&self.configured);
        }
    }

    /// Sends commands in this order, to every socket. One reply for each command: with several sockets a refusal by any.
    ///
    /// # Errors
    /// The first socket that gave no answer. Commands may then have been done in part: read back before the next plan.
    pub async fn run(&self, commands: &[Command]) -> Result<Vec<Reply>, ApiError> {
        let texts = commands
            .iter()
            .map(Command::text)
            .collect::<Result<Vec<String>, _>>()?;
        let mut merged: Option<Vec<Reply>> = None;
        for socket in &self.sockets {
            let mut replies = Vec::with_capacity(texts.len());
            for batch in batches(&texts) {
                replies.extend(self.exchange(socket, batch).await?);
            }
            merged = Some(match merged {
                None => replies,
                Some(earlier) => earlier
                    .into_iter()
                    .zip(replies)
                    .map(|(a, b)| a.worse(b))
                    .collect(),
            });
        }
        merged.ok_or(ApiError::Unconfigured)
    }

    /// Executes the operations of a plan, additions first, then the others in order. One result for each: the first
    /// refusal among its commands. What follows an addition goes out only once that has been taken: a server of that name
    /// may be there in a state that is not ours to change.
    ///
    /// # Errors
    /// As [`Self::run`].
    pub async fn apply(&self, ops: &[Op]) -> Result<Vec<Result<(), Refusal>>, ApiError> {
        let mut commands: Vec<Vec<Command>> = ops.iter().map(Command::of).collect();
        let mut results: Vec<Result<(), Refusal>> = vec![Ok(()); ops.len()];
        let is_add = |op: &Op| matches!(op.change, Change::Add(_));
        let adds: Vec<usize> = (0..ops.len()).filter(|i| is_add(&ops[*i])).collect();
        if !adds.is_empty() {
            let first: Vec<Command> = adds.iter().map(|i| commands[*i].remove(0)).collect();
            for (index, reply) in adds.into_iter().zip(self.run(&first).await?) {
                if let Some(refusal) = reply.refusal() {
                    results[index] = Err(refusal);
                    commands[index].clear();
                }
            }
        }
        let mut replies = self.run(&commands.concat()).await?.into_iter();
        for (own, result) in commands.iter().zip(&mut results) {
            let refusals: Vec<Refusal> = replies
                .by_ref()
                .take(own.len())
                .filter_map(Reply::refusal)
                .collect();
            if let Some(refusal) = refusals.into_iter().next() {
                *result = Err(refusal);
            }
        }
        Ok(results)
    }

    /// `show info` of the first socket.
    ///
    /// # Errors
    /// As [`Self::run`], and an answer that is none.
    pub async fn info(&self) -> Result<Info, ApiError> {
        let text = self.show(Command::ShowInfo, "show info").await?;
        Info::parse(&text).ok_or_else(|| self.unexpected("show info", &text))
    }

    /// `show servers state` of the first socket; a backend that is not there has no servers.
    ///
    /// # Errors
    /// As [`Self::run`], and an answer that is none.
    pub async fn servers(&self, backend: Option<&str>) -> Result<Vec<ServerRow>, ApiError> {
        let text = match self
            .show(
                Command::ShowServersState(backend.map(str::to_owned)),
                "show servers state",
            )
            .await
        {
            Err(ApiError::Unexpected { reply, .. })
                if Refusal::of(&reply) == Refusal::NoSuchBackend =>
            {
                return Ok(Vec::new());
            }
            other => other?,
        };
        ServerRow::parse_all(&text).map_err(|row| self.unexpected("show servers state", &row))
    }

    /// `show servers state` of these backends, of the first socket; one that is not there has no servers.
    ///
    /// # Errors
    /// As [`Self::servers`].
    pub async fn servers_of(&self, backends: &[String]) -> Result<Vec<ServerRow>, ApiError> {
        let commands: Vec<Command> = backends
            .iter()
            .map(|backend| Command::ShowServersState(Some(backend.clone())))
            .collect();
        let mut rows = Vec::new();
        for reply in self.first().run(&commands).await? {
            if reply == Reply::Refused(Refusal::NoSuchBackend) {
                continue;
            }
            let table = self.text("show servers state", Some(reply))?;
            let table = ServerRow::parse_all(&table)
                .map_err(|row| self.unexpected("show servers state", &row))?;
            rows.extend(table);
        }
        Ok(rows)
    }

    /// `show info` and the whole `show servers state` of one worker: over one connection to the first socket.
    ///
    /// # Errors
    /// As [`Self::info`].
    pub async fn info_and_servers(&self) -> Result<(Info, Vec<ServerRow>), ApiError> {
        let mut replies = self
            .first()
            .run(&[Command::ShowInfo, Command::ShowServersState(None)])
            .await?
            .into_iter();
        let info = self.text("show info", replies.next())?;
        let table = self.text("show servers state", replies.next())?;
        let info = Info::parse(&info).ok_or_else(|| self.unexpected("show info", &info))?;
        let table = ServerRow::parse_all(&table)
            .map_err(|row| self.unexpected("show servers state", &row))?;
        Ok((info, table))
    }

    async fn show(&self, command: Command, what: &'static str) -> Result<String, ApiError> {
        let reply = self.first().run(&[command]).await?.pop();
        self.text(what, reply)
    }

    /// What is shown is shown by one process: the first.
    fn first(&self) -> Self {
        Self {
            configured: Vec::new(),
            sockets: self.sockets.iter().take(1).cloned().collect(),
            limit: self.limit,
        }
    }

    fn text(&self, what: &'static str, reply: Option<Reply>) -> Result<String, ApiError> {
        match reply {
            Some(Reply::Text(text)) => Ok(text),
            Some(Reply::Refused(refusal)) => Err(self.unexpected(what, &refusal.to_string())),
            Some(Reply::Done) | None => Err(self.unexpected(what, "")),
        }
    }

    fn unexpected(&self, what: &'static str, reply: &str) -> ApiError {
        let path = self.sockets.first().cloned().unwrap_or_default();
        ApiError::Unexpected {
            path,
            what,
            reply: reply.chars().take(200).collect(),
        }
    }

    async fn exchange(&self, path: &Path, batch: &[String]) -> Result<Vec<Reply>, ApiError> {
        #[cfg(test)]
        if let Some(simulated) = crate::haproxy::simulated::Simulated::current() {
            return simulated.exchange(path, batch).await;
        }
        match timeout(self.limit, converse(path, batch)).await {
            Err(_) => Err(ApiError::Timeout {
                path: path.to_owned(),
                limit: self.limit,
            }),
            Ok(Err(source)) => Err(match source.kind() {
                io::ErrorKind::NotFound => ApiError::Missing(path.to_owned()),
                io::ErrorKind::ConnectionRefused => ApiError::Refused(path.to_owned()),
                io::ErrorKind::PermissionDenied => ApiError::Forbidden(path.to_owned()),
                io::ErrorKind::UnexpectedEof
                | io::ErrorKind::BrokenPipe
                | io::ErrorKind::ConnectionReset => ApiError::Closed(path.to_owned()),
                _ => ApiError::Io {
                    path: path.to_owned(),
                    source,
                },
            }),
            Ok(Ok(replies)) => Ok(replies),
        }
    }
}

/// Commands in pieces whose line stays under [`BATCH`].
fn batches(texts: &[String]) -> Vec<&[String]> {
    let mut pieces = Vec::new();
    let (mut start, mut bytes) = (0, PREAMBLE.len());
    for (index, text) in texts.iter().enumerate() {
        if index > start && bytes + text.len() + 1 >= BATCH {
            pieces.push(&texts[start..index]);
            (start, bytes) = (index, PREAMBLE.len());
        }
        bytes += text.len() + 1;
    }
    if start < texts.len() {
        pieces.push(&texts[start..]);
    }
    pieces
}

/// One connection, one line, one reply for each command. Reads while it writes: haproxy stops reading when its replies
/// are not taken.
async fn converse(path: &Path, batch: &[String]) -> io::Result<Vec<Reply>> {
    let line = format!("{PREAMBLE};{}\n", batch.join(";"));
    let (mut from, mut to) = UnixStream::connect(path).await?.into_split();
    let write = async { to.write_all(line.as_bytes()).await };
    let read = async {
        let (mut text, mut searched, mut prompts) = (Vec::with_capacity(READ), 0, 0);
        while prompts < PREAMBLE_REPLIES + batch.len() {
            if from.read_buf(&mut text).await? == 0 || text.len() > REPLY {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            while let Some(at) = memmem::find(&text[searched..], PROMPT) {
                prompts += 1;
                searched += at + PROMPT.len();
            }
            searched = searched.max(text.len().saturating_sub(PROMPT.len() - 1));
        }
        Ok(text)
    };
    let ((), text) = tokio::try_join!(write, read)?;
    let text = String::from_utf8_lossy(&text);
    Ok(text
        .split("\n> ")
        .skip(PREAMBLE_REPLIES)
        .take(batch.len())
        .map(Reply::parse)
        .collect())
}

#[cfg(test)]
mod tests;
