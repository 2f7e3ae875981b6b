//! Readers of the settings both programs have. Called by their `config::read`.

use std::path::PathBuf;
use std::time::Duration;

use super::cursor::{Cursor, Map};
use super::source::Environment;
use crate::admin::Bind;
use crate::units::{Ensemble, ZkPath};

/// An ensemble: a list of `host:port`, or one text of them with commas.
#[must_use]
pub fn ensemble(cursor: &Cursor<'_>) -> Option<Ensemble> {
    let entries = cursor.list_or_one();
    let texts: Vec<String> = entries.iter().filter_map(Cursor::text).collect();
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

/// An absolute znode path. Ruby fails on a trailing slash only at run time; here it is an error at once.
#[must_use]
pub fn zk_path(cursor: &Cursor<'_>) -> Option<ZkPath> {
    cursor.parsed(|text| {
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
    let timeout = zookeeper
        .key("session_timeout")
        .duration_at_least(Duration::from_millis(100));
    let jitter = zookeeper.key("jitter").duration();
    Session {
        timeout: timeout.unwrap_or(Duration::from_secs(10)),
        jitter: jitter.unwrap_or(Duration::from_millis(500)),
    }
}

/// The listeners of a program with a control socket; each with whether the configuration names it, `None` = off.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Listeners {
    /// The read-only one.
    pub bind: Option<(Bind, bool)>,
    /// The control socket.
    pub socket: Option<(PathBuf, bool)>,
}

/// The top level's `admin` of `program`: `bind`, and `socket` (a path, or `false`). `admin: false` turns off both.
#[must_use]
pub fn listeners(
    admin: &Cursor<'_>,
    default: &str,
    program: &str,
    environment: &Environment,
) -> Option<Listeners> {
    let bind = || Some((Bind::Tcp(default.to_owned()), false));
    let socket = || {
        let name = format!("{program}.sock");
        Some((environment.runtime_file(program, &name), false))
    };
    let read = |map: &Map<'_>| {
        let given = map.key("bind").parsed(|text| parse_bind(text, environment));
        let key = map.key("socket");
        let socket = match key.is_boolean() {
            Some(false) => None,
            Some(true) => socket(),
            None => key
                .text()
                .map(|path| (environment.path(&path), true))
                .or_else(socket),
        };
        let bind = given.map(|bind| (bind, true)).or_else(bind);
        Listeners { bind, socket }
    };
    match admin.is_boolean() {
        Some(false) => Some(Listeners {
            bind: None,
            socket: None,
        }),
        Some(true) => Some(Listeners {
            bind: bind(),
            socket: socket(),
        }),
        None => admin.object(read),
    }
}

fn parse_bind(text: &str, environment: &Environment) -> Result<Bind, String> {
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
