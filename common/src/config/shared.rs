//! Readers of the settings both programs have. Called by their `config::read`.

use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_yaml::Value;

use super::cursor::{Cursor, Map};
use super::environment::Environment;
use super::keys::preset;
use super::limits::{Use, fits, must_fit};
use super::report::Report;
use super::source::{Program, Source};
use crate::http::Bind;
use crate::units::{Ensemble, ZkPath};

/// An ensemble: a list of `host:port`, or one text of them with commas.
#[must_use]
pub fn ensemble(cursor: &Cursor<'_>) -> Option<Ensemble> {
    let entries: Vec<Cursor<'_>> = cursor
        .list_or_one()
        .into_iter()
        .map(Cursor::required)
        .collect();
    let texts: Vec<String> = entries.iter().filter_map(Cursor::filled_text).collect();
    // What is missing has been noted.
    if !cursor.has_value() || texts.len() < entries.len() {
        return None;
    }
    let hosts: Vec<&str> = texts
        .iter()
        .flat_map(|text| text.split(','))
        .map(str::trim)
        .filter(|h| !h.is_empty())
        .collect();
    Ensemble::new(&hosts)
        .map_err(|message| cursor.error(message))
        .ok()
}

/// The last line of defence: a service that was written and not read must have left an error. `before` is how many there
/// were before it was read.
pub fn unread(source: &Source, service: &Cursor<'_>, before: usize) {
    if source.errors() == before {
        service.error_hint(
            "cannot be read, and nothing says why",
            "a defect of this program: please report it with the file",
        );
    }
}

/// An absolute znode path. Ruby fails on a trailing slash only at run time; here it is an error at once.
#[must_use]
pub fn zk_path(cursor: &Cursor<'_>) -> Option<ZkPath> {
    cursor.filled(|text| {
        ZkPath::new(text).map_err(|message| match message.split_once("` ") {
            Some((_, what)) => format!("not a znode path: it {what}"),
            None => format!("not a znode path: {message}"),
        })
    })
}

/// How a ZooKeeper session is to be kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Session {
    /// Time-out asked for.
    pub timeout: Duration,
    /// Spread of what is done after a reconnection.
    pub jitter: Duration,
}

/// `session_timeout` and `jitter` of the top level's `zookeeper`.
#[must_use]
pub fn session(zookeeper: &Map<'_>) -> Session {
    let timeout = zookeeper.key("session_timeout");
    let jitter = zookeeper.key("jitter");
    Session {
        timeout: timeout.or_preset(|key| key.duration_at_least(Duration::from_millis(100))),
        jitter: jitter.or_preset(Cursor::duration),
    }
}

/// The path of a file or socket. Only text: a number is nobody's file name without quotes. Empty counts as not given.
#[must_use]
pub fn path(cursor: &Cursor<'_>, environment: &Environment) -> Option<PathBuf> {
    path_or(cursor, environment, "a path")
}

fn path_or(cursor: &Cursor<'_>, environment: &Environment, allowed: &str) -> Option<PathBuf> {
    match cursor.value()? {
        Value::String(text) if text.is_empty() => None,
        Value::String(_) => cursor.filled(|text| Ok(environment.path(text))),
        _ => cursor.wrong(allowed),
    }
}

/// The admin listener's settings.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Admin {
    /// Where to listen.
    pub bind: Bind,
    /// Whether the configuration names it: then failing to bind is fatal, else a warning.
    pub configured: bool,
}

/// The control socket's settings.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Socket {
    /// Default `$RUNTIME_DIRECTORY/<program>.sock` or `/run/<program>/<program>.sock`.
    pub path: PathBuf,
    /// Whether the configuration names it: then failing to bind is fatal, else a warning.
    pub configured: bool,
}

/// The listeners of a program; `None` = off.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Listeners {
    /// The read-only one.
    pub admin: Option<Admin>,
    /// The control socket.
    pub socket: Option<Socket>,
}

impl Listeners {
    /// Where `program` listens unless a configuration says otherwise.
    #[must_use]
    pub fn of(program: Program, environment: &Environment) -> Self {
        let name = program.name;
        Self {
            admin: Some(Admin {
                bind: Bind::Tcp(preset::<&str>(program.keys, "admin.bind").to_owned()),
                configured: false,
            }),
            socket: Some(Socket {
                path: environment.runtime_file(name, &format!("{name}.sock")),
                configured: false,
            }),
        }
    }

    /// The same by the configuration at `path`, of which nothing else is read: orders work while the rest is broken. With
    /// what is wrong with it; where it cannot be read, the places are the default ones.
    #[must_use]
    pub fn read(
        path: &Path,
        program: Program,
        environment: &Environment,
    ) -> (Self, Option<Report>) {
        let source = Source::open(path, program, environment);
        let read = source.root().and_then(|root| {
            let read = |top: &Map<'_>| listeners(top, program, environment);
            root.object(read).flatten()
        });
        let found = read.unwrap_or_else(|| Self::of(program, environment));
        (found, source.finish(Some(())).err())
    }
}

/// The top level's `admin` of `program`: `bind`, and `socket` (a path, or `false`). `admin: false` turns off both.
#[must_use]
pub fn listeners(top: &Map<'_>, program: Program, environment: &Environment) -> Option<Listeners> {
    let admin = &top.key("admin");
    let default = || Listeners::of(program, environment);
    let read = |map: &Map<'_>| {
        let key = map.key("bind");
        let given = key.filled(|text| parse_bind(text, environment));
        if let Some(Bind::Unix(path)) = &given {
            must_fit(&key, path, "the admin socket", Use::Socket);
        }
        let given = given.map(|bind| Admin {
            bind,
            configured: true,
        });
        let key = map.key("socket");
        let path = match key.is_boolean() {
            Some(_) => None,
            None => path_or(&key, environment, "a path, or `false`"),
        };
        if let Some(path) = &path {
            must_fit(&key, path, "the control socket", Use::Socket);
        }
        let named = path.map(|path| Socket {
            path,
            configured: true,
        });
        Listeners {
            admin: given.or_else(|| default().admin),
            socket: match key.is_boolean() {
                Some(false) => None,
                _ => named.or_else(|| default().socket),
            },
        }
    };
    let read = match admin.is_boolean() {
        Some(false) => Some(Listeners {
            admin: None,
            socket: None,
        }),
        Some(true) => Some(default()),
        None => admin.object(read),
    };
    let default = read.as_ref().and_then(|read| read.socket.as_ref());
    if let Some(socket) = default.filter(|socket| !socket.configured)
        && let Err(problem) = fits(&socket.path, "the control socket", Use::Socket)
    {
        admin.warn_hint(problem, "set `admin.socket`, or `admin: {socket: false}`");
    }
    read
}

/// `host:port` or `unix:/path`.
pub(crate) fn parse_bind(text: &str, environment: &Environment) -> Result<Bind, String> {
    if let Some(path) = text.strip_prefix("unix:") {
        return match path {
            "" => Err("must be `host:port` or `unix:/path`".to_owned()),
            path => Ok(Bind::Unix(environment.path(path))),
        };
    }
    match text.rsplit_once(':') {
        Some((host, port))
            if !host.is_empty() && !host.contains(' ') && port.parse::<u16>().is_ok() =>
        {
            Ok(Bind::Tcp(text.to_owned()))
        }
        _ => Err("must be `host:port` or `unix:/path`".to_owned()),
    }
}
