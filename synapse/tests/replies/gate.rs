//! What stands between synapse and haproxy's stats socket: it passes every batch on to the real haproxy and notes each
//! command with its reply and with haproxy.cfg as it stood then. On demand it loses, cuts or delays a reply, changes a
//! word on the way, hands a batch to a connection that was opened earlier, or does not listen. It listens only while haproxy
//! does.

use std::collections::BTreeMap;
use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{UnixListener, UnixStream};
use tokio::task::{JoinHandle, JoinSet};

/// Ends each reply.
const PROMPT: &str = "\n> ";
/// Ends each batch.
const QUIT: &str = "\nquit\n";

/// A command that haproxy was given.
#[derive(Debug, Clone)]
pub(crate) struct Said {
    pub(crate) command: String,
    pub(crate) reply: String,
    /// haproxy.cfg when the command arrived.
    pub(crate) file: Arc<str>,
}

/// What becomes of a batch.
pub(crate) enum Meddle {
    /// haproxy gets it; its answer never arrives, and the connection stays open.
    Silence,
    /// haproxy gets it; the connection ends after so many bytes of its answer.
    Cut(usize),
    /// haproxy does not get it; the connection ends.
    Drop,
    /// haproxy gets it; its answer comes this much later.
    Late(Duration),
    /// haproxy gets another word.
    Replace(&'static str, &'static str),
    /// It goes over this connection, which is in interactive mode already.
    Over(UnixStream),
}

struct Rule {
    needle: String,
    left: usize,
    meddle: Meddle,
}

struct Shared {
    real: PathBuf,
    file: PathBuf,
    said: Mutex<Vec<Said>>,
    rules: Mutex<Vec<Rule>>,
    /// What is answered instead to these commands.
    frozen: Mutex<BTreeMap<String, String>>,
}

pub(crate) struct Gate {
    path: PathBuf,
    shared: Arc<Shared>,
    task: JoinHandle<()>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().expect("nothing panics under it")
}

impl Gate {
    /// At `path`, before the socket `real` of the haproxy that runs on `file`.
    pub(crate) fn open(path: PathBuf, real: PathBuf, file: PathBuf) -> Self {
        let shared = Arc::new(Shared {
            real,
            file,
            said: Mutex::default(),
            rules: Mutex::default(),
            frozen: Mutex::default(),
        });
        Self {
            task: listen(&path, &shared),
            path,
            shared,
        }
    }

    /// Until something of this backend is changed through here, looks at it alone see what is there now.
    pub(crate) async fn freeze(&self, backend: &str) {
        let command = format!("show servers state {backend}");
        let batch = format!("prompt\nset severity-output number\n{command}\n{QUIT}");
        let mut server = UnixStream::connect(&self.shared.real).await.unwrap();
        let replies = ask(&mut server, &batch).await.unwrap();
        let shown = replies.split(PROMPT).nth(2).unwrap().to_owned();
        lock(&self.shared.frozen).insert(command, shown);
    }

    /// Looks see what is there.
    pub(crate) fn thaw(&self) {
        lock(&self.shared.frozen).clear();
    }

    /// Nobody listens any more; the socket's file stays.
    pub(crate) fn close(&self) {
        self.task.abort();
    }

    /// It listens again.
    pub(crate) fn reopen(&mut self) {
        self.task = listen(&self.path, &self.shared);
    }

    /// The next `times` batches that contain `needle` are meddled with. [`Meddle::Over`] works once.
    pub(crate) fn meddle(&self, needle: impl Into<String>, times: usize, meddle: Meddle) {
        let needle = needle.into();
        lock(&self.shared.rules).push(Rule {
            needle,
            left: times,
            meddle,
        });
    }

    /// How many of them have not come yet.
    pub(crate) fn left(&self) -> usize {
        lock(&self.shared.rules).iter().map(|rule| rule.left).sum()
    }

    /// Nothing is meddled with any more.
    pub(crate) fn behave(&self) {
        lock(&self.shared.rules).clear();
    }

    /// The commands with `needle` that haproxy has been given, in order, and what it said.
    pub(crate) fn said(&self, needle: &str) -> Vec<Said> {
        let said = lock(&self.shared.said);
        said.iter()
            .filter(|said| said.command.contains(needle))
            .cloned()
            .collect()
    }

    /// Number of commands so far.
    pub(crate) fn count(&self) -> usize {
        lock(&self.shared.said).len()
    }

    /// The commands from number `from` on that change something.
    pub(crate) fn changes_since(&self, from: usize) -> Vec<String> {
        let said = lock(&self.shared.said);
        let commands = said[from..].iter().map(|said| &said.command);
        commands
            .filter(|command| !command.starts_with("show "))
            .cloned()
            .collect()
    }
}

impl Drop for Gate {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Listens as long as haproxy does.
fn listen(path: &Path, shared: &Arc<Shared>) -> JoinHandle<()> {
    let (path, shared) = (path.to_owned(), Arc::clone(shared));
    tokio::spawn(async move {
        loop {
            while UnixStream::connect(&shared.real).await.is_err() {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
            // Err = it is the first time.
            let _first = std::fs::remove_file(&path).is_err();
            let listener = UnixListener::bind(&path).unwrap();
            let mut connections = JoinSet::new();
            let mut haproxy_listens = true;
            while haproxy_listens {
                // An accept and a join: both cancel-safe.
                tokio::select! {
                    Some(served) = connections.join_next() => haproxy_listens = served.unwrap_or(true),
                    Ok((client, _)) = listener.accept() => {
                        let shared = Arc::clone(&shared);
                        connections.spawn(async move {
                            let error = serve(client, &shared).await.err().map(|error| error.kind());
                            error != Some(ErrorKind::ConnectionRefused)
                        });
                    }
                }
            }
        }
    })
}

impl Shared {
    /// The replies with what is frozen.
    fn shown(&self, batch: &str, replies: String) -> String {
        let mut frozen = lock(&self.frozen);
        let commands: Vec<&str> = batch.trim_end_matches(QUIT).lines().collect();
        frozen.retain(|look, _| {
            let backend = look.rsplit(' ').next().unwrap_or_default();
            let changed = format!(" {backend}/");
            !commands.iter().any(|command| command.contains(&changed))
        });
        if frozen.is_empty() {
            return replies;
        }
        let mut parts: Vec<&str> = replies.split(PROMPT).collect();
        for (part, command) in parts.iter_mut().zip(&commands) {
            if let Some(shown) = frozen.get(*command) {
                *part = shown;
            }
        }
        parts.join(PROMPT)
    }

    fn applies(&self, batch: &str) -> Option<Meddle> {
        let mut rules = lock(&self.rules);
        let at = rules.iter().position(|rule| batch.contains(&rule.needle))?;
        rules[at].left -= 1;
        if rules[at].left == 0 {
            return Some(rules.remove(at).meddle);
        }
        Some(match &rules[at].meddle {
            Meddle::Silence => Meddle::Silence,
            Meddle::Cut(bytes) => Meddle::Cut(*bytes),
            Meddle::Drop => Meddle::Drop,
            Meddle::Late(time) => Meddle::Late(*time),
            Meddle::Replace(from, to) => Meddle::Replace(from, to),
            Meddle::Over(_) => panic!("a connection can be used once"),
        })
    }

    /// Takes note of a batch, without the two commands that only set the mode.
    fn note(&self, batch: &str, replies: &str, file: &Arc<str>) {
        let commands = batch.trim_end_matches(QUIT).lines();
        let said = commands.zip(replies.split(PROMPT)).skip(2);
        lock(&self.said).extend(said.map(|(command, reply)| Said {
            command: command.to_owned(),
            reply: reply.trim().to_owned(),
            file: Arc::clone(file),
        }));
    }
}

/// One connection: one batch.
async fn serve(mut client: UnixStream, shared: &Shared) -> io::Result<()> {
    let mut batch = Vec::new();
    // A line that is no batch is passed on as it is: the question who haproxy is.
    let is_whole = |text: &[u8]| match text.starts_with(b"prompt\n") || text.len() < 7 {
        true => text.ends_with(QUIT.as_bytes()),
        false => text.ends_with(b"\n"),
    };
    while !is_whole(&batch) {
        if client.read_buf(&mut batch).await? == 0 {
            return Ok(());
        }
    }
    let mut batch = String::from_utf8_lossy(&batch).into_owned();
    let file = std::fs::read_to_string(&shared.file).unwrap_or_default();
    let file: Arc<str> = file.into();
    let meddle = shared.applies(&batch);
    let mut server = match meddle {
        Some(Meddle::Drop) => return Ok(()),
        Some(Meddle::Over(stream)) => {
            // `prompt` would end the interactive mode; of another empty answer there are others.
            batch = batch.replacen("prompt\n", "set severity-output none\n", 1);
            return answer(client, stream, &batch, shared, &file).await;
        }
        _ => UnixStream::connect(&shared.real).await?,
    };
    if let Some(Meddle::Replace(from, to)) = meddle {
        batch = batch.replace(from, to);
    }
    let replies = ask(&mut server, &batch).await?;
    shared.note(&batch, &replies, &file);
    let replies = shared.shown(&batch, replies);
    match meddle {
        Some(Meddle::Silence) => return gone(client).await,
        Some(Meddle::Cut(bytes)) => return client.write_all(&replies.as_bytes()[..bytes]).await,
        Some(Meddle::Late(time)) => tokio::time::sleep(time).await,
        _ => {}
    }
    client.write_all(replies.as_bytes()).await
}

async fn answer(
    mut client: UnixStream,
    mut server: UnixStream,
    batch: &str,
    shared: &Shared,
    file: &Arc<str>,
) -> io::Result<()> {
    let replies = ask(&mut server, batch).await?;
    shared.note(batch, &replies, file);
    client.write_all(replies.as_bytes()).await
}

/// Waits until the client has closed.
async fn gone(mut client: UnixStream) -> io::Result<()> {
    while client.read(&mut [0; 64]).await? > 0 {}
    Ok(())
}

/// All that haproxy answers.
async fn ask(server: &mut UnixStream, batch: &str) -> io::Result<String> {
    let (mut from, mut to) = server.split();
    let mut replies = String::new();
    tokio::try_join!(
        to.write_all(batch.as_bytes()),
        from.read_to_string(&mut replies)
    )?;
    Ok(replies)
}

/// A connection to the worker that serves now, in interactive mode: it stays with that worker.
pub(crate) async fn kept(real: &Path) -> UnixStream {
    let mut stream = UnixStream::connect(real).await.unwrap();
    stream.write_all(b"prompt\n").await.unwrap();
    let mut text = Vec::new();
    while !text.ends_with(PROMPT.as_bytes()) {
        assert!(stream.read_buf(&mut text).await.unwrap() > 0, "closed");
    }
    stream
}
