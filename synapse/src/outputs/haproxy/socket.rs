//! haproxy's stats socket: typed commands out, typed replies in. The only place that writes or reads its text.
//!
//! Each batch goes over a connection of its own: a kept connection stays with the old worker after a reload and would
//! change a table nobody uses any more. Names are validated before anything is sent, so no text can end a command.
//! A time-out is reported as such and proves nothing about haproxy's table; the caller backs off and reads again.
//!
//! A conversation is `prompt`, one command a line, `quit`, all written at once; haproxy answers each line and closes.
//! Measured on 2.2.9, 2.6.12, 3.0.11 and 3.2.26:
//! - the prompt ends the answer to each *line* on all of them; within a line of several commands 3.2 prints it once, at its
//!   end, and 2.2 to 3.0 after each command;
//! - the empty line that is documented as the end of each answer is missing on 2.6 after `Server deleted.` and after
//!   `Backend must use a dynamic load balancing ...`, so it cannot tell where an answer ends;
//! - 3.0 and 3.2 take a second line only in interactive mode; 5,000 lines in one go (137 kB) are answered by all when the
//!   client reads while it writes; a line a command costs haproxy as much as one line for all (5.6 µs each on 2.6).
//!
//! What comes must be exactly that: an answer for each line, then the end. Anything else is [`ApiError::Unexpected`].

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use smartstack_common::net;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::time::timeout;

use crate::outputs::haproxy::plan::{Change, Op};

mod command;
pub mod reply;

pub use command::{AdminState, Check, Command};
use reply::Misfit;
pub use reply::{Info, Refusal, Reply, ServerRow};

/// Bytes of a batch: so much is in doubt when an answer is lost, and has to be done within the limit.
const BATCH: usize = 8 * 1024;
/// A reply above this is not haproxy's: 100,000 servers make 7 MB.
const REPLY: usize = 256 * 1024 * 1024;
/// Room for a reply at first: haproxy's `tune.bufsize`.
const READ: usize = 16 * 1024;
/// Interactive mode marks where a reply ends; tags tell failures from information.
const OPENING: &str = "prompt\nset severity-output number\n";
/// haproxy closes: what came until then is all there is.
const CLOSING: &str = "quit\n";

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
    /// The attempt could not be made, for want of something here: it says nothing of haproxy.
    #[error("cannot ask haproxy on stats socket `{path}`: {what}")]
    Short {
        /// The socket.
        path: PathBuf,
        /// Of what, in words.
        what: &'static str,
    },
    /// Any other failure.
    #[error("stats socket `{path}` failed")]
    Io {
        /// The socket.
        path: PathBuf,
        /// The failure.
        source: io::Error,
    },
    /// The answer has not the form that haproxy 2.2 to 3.2 give it. What was sent may have been done.
    #[error(
        "cannot talk to this haproxy{}: stats socket `{path}` answered {what} with `{reply}`",
        version.as_ref().map(|v| format!(" ({v})")).unwrap_or_default()
    )]
    Unexpected {
        /// The socket.
        path: PathBuf,
        /// Such as `HAProxy 3.2.26-1`; `None` = it does not tell that either.
        version: Option<String>,
        /// The command.
        what: String,
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

    /// It says something of this host alone, not of haproxy.
    #[must_use]
    pub fn is_ours(&self) -> bool {
        matches!(self, Self::Short { .. })
    }

    /// Somebody listens, and asking again would change nothing: it is as if there were no socket.
    #[must_use]
    pub fn is_useless(&self) -> bool {
        matches!(self, Self::Forbidden(_) | Self::Unexpected { .. })
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

    /// Whether there is a socket to ask, and none that was given up.
    #[must_use]
    pub fn is_configured(&self) -> bool {
        !self.sockets.is_empty()
    }

    /// From now on it is as if there were no socket.
    pub fn give_up(&mut self) {
        self.sockets.clear();
    }

    /// A socket that was given up is used again. Whether there was one.
    pub fn take_up(&mut self) -> bool {
        let was_given_up = self.sockets.is_empty() && !self.configured.is_empty();
        if was_given_up {
            self.sockets.clone_from(&self.configured);
        }
        was_given_up
    }

    /// Several sockets may be of one process, and a change must reach each process once: keeps the first that answers of
    /// each pid. As configured when none answers. Costs nothing with one socket.
    pub async fn tell_apart(&mut self) {
        if self.configured.len() < 2 || !self.is_configured() {
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
        for (own, result) in commands.iter_mut().zip(&mut results) {
            // What must not be sent costs itself and none of the others.
            if let Some(error) = own.iter().find_map(|command| command.text().err()) {
                *result = Err(Refusal::Unsendable(error.to_string()));
                own.clear();
            }
        }
        let is_add = |op: &Op| matches!(op.change, Change::Add(_));
        let adds = (0..ops.len()).filter(|i| is_add(&ops[*i]) && !commands[*i].is_empty());
        let adds: Vec<usize> = adds.collect();
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
        let text = self.show(Command::ShowInfo).await?;
        self.info_of(&text).await
    }

    /// `show servers state` of the first socket; a backend that is not there has no servers.
    ///
    /// # Errors
    /// As [`Self::run`], and an answer that is none.
    pub async fn servers(&self, backend: Option<&str>) -> Result<Vec<ServerRow>, ApiError> {
        let command = Command::ShowServersState(backend.map(str::to_owned));
        match self
            .first()
            .run(std::slice::from_ref(&command))
            .await?
            .pop()
        {
            Some(Reply::Refused(Refusal::NoSuchBackend)) => Ok(Vec::new()),
            reply => self.rows_of(&self.text(&command, reply).await?).await,
        }
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
        let replies = self.first().run(&commands).await?;
        for (command, reply) in commands.iter().zip(replies) {
            if reply == Reply::Refused(Refusal::NoSuchBackend) {
                continue;
            }
            let table = self.text(command, Some(reply)).await?;
            rows.extend(self.rows_of(&table).await?);
        }
        Ok(rows)
    }

    /// `show info` and the whole `show servers state` of one worker: over one connection to the first socket.
    ///
    /// # Errors
    /// As [`Self::info`].
    pub async fn info_and_servers(&self) -> Result<(Info, Vec<ServerRow>), ApiError> {
        let commands = [Command::ShowInfo, Command::ShowServersState(None)];
        let mut replies = self.first().run(&commands).await?.into_iter();
        let info = self.text(&commands[0], replies.next()).await?;
        let table = self.text(&commands[1], replies.next()).await?;
        Ok((self.info_of(&info).await?, self.rows_of(&table).await?))
    }

    async fn show(&self, command: Command) -> Result<String, ApiError> {
        let reply = self.first().run(std::slice::from_ref(&command)).await?;
        self.text(&command, reply.into_iter().next()).await
    }

    /// What is shown is shown by one process: the first.
    fn first(&self) -> Self {
        Self {
            configured: Vec::new(),
            sockets: self.sockets.iter().take(1).cloned().collect(),
            limit: self.limit,
        }
    }

    async fn text(&self, of: &Command, reply: Option<Reply>) -> Result<String, ApiError> {
        let words = match reply {
            Some(Reply::Text(text)) => return Ok(text),
            Some(Reply::Refused(refusal)) => refusal.to_string(),
            Some(Reply::Done) | None => String::new(),
        };
        Err(self.unexpected(&of.text()?, &words).await)
    }

    async fn info_of(&self, text: &str) -> Result<Info, ApiError> {
        match Info::parse(text) {
            Some(info) => Ok(info),
            None => Err(self.unexpected("show info", text).await),
        }
    }

    async fn rows_of(&self, text: &str) -> Result<Vec<ServerRow>, ApiError> {
        match ServerRow::parse_all(text) {
            Ok(rows) => Ok(rows),
            Err(row) => Err(self.unexpected("show servers state", &row).await),
        }
    }

    async fn unexpected(&self, what: &str, reply: &str) -> ApiError {
        let path = self.sockets.first().cloned().unwrap_or_default();
        self.unexpected_at(&path, format!("`{what}`"), reply).await
    }

    /// Asked in the plainest way, it may tell who it is. When it does not answer even that, it has ended meanwhile.
    async fn unexpected_at(&self, path: &Path, what: String, reply: &str) -> ApiError {
        let Ok(Ok(plain)) = timeout(self.limit, everything(path, "show info\n")).await else {
            return ApiError::Closed(path.to_owned());
        };
        let reply: String = reply.chars().take(200).collect();
        ApiError::Unexpected {
            path: path.to_owned(),
            version: reply::version_of(&plain),
            what,
            reply: reply.escape_debug().to_string(),
        }
    }

    async fn exchange(&self, path: &Path, batch: &[String]) -> Result<Vec<Reply>, ApiError> {
        #[cfg(test)]
        if let Some(simulated) = crate::outputs::haproxy::process::simulated::Simulated::current() {
            return simulated.exchange(path, batch).await;
        }
        let lines = format!("{OPENING}{}\n{CLOSING}", batch.join("\n"));
        match timeout(self.limit, everything(path, &lines)).await {
            Err(_) => Err(ApiError::Timeout {
                path: path.to_owned(),
                limit: self.limit,
            }),
            Ok(Err(source)) if let Some(what) = net::shortage(&source) => Err(ApiError::Short {
                path: path.to_owned(),
                what,
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
            Ok(Ok(text)) => match reply::of_lines(&text, batch) {
                Ok(replies) => Ok(replies),
                Err(Misfit { what, words }) => Err(self.unexpected_at(path, what, &words).await),
            },
        }
    }
}

/// Commands in pieces that stay under [`BATCH`].
fn batches(texts: &[String]) -> Vec<&[String]> {
    let mut pieces = Vec::new();
    let (mut start, mut bytes) = (0, OPENING.len());
    for (index, text) in texts.iter().enumerate() {
        if index > start && bytes + text.len() + 1 >= BATCH {
            pieces.push(&texts[start..index]);
            (start, bytes) = (index, OPENING.len());
        }
        bytes += text.len() + 1;
    }
    if start < texts.len() {
        pieces.push(&texts[start..]);
    }
    pieces
}

/// Everything that is answered to this over a connection of its own, up to its end. Reads while it writes: haproxy stops reading when its replies are not taken.
async fn everything(path: &Path, lines: &str) -> io::Result<String> {
    let (mut from, mut to) = UnixStream::connect(path).await?.into_split();
    let write = async { to.write_all(lines.as_bytes()).await };
    let read = async {
        let mut text = Vec::with_capacity(READ);
        while from.read_buf(&mut text).await? > 0 {
            if text.len() > REPLY {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
        }
        Ok(text)
    };
    let ((), text) = tokio::try_join!(write, read)?;
    if text.is_empty() {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    Ok(String::from_utf8_lossy(&text).into_owned())
}

#[cfg(test)]
mod tests;
