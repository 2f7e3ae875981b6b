//! The health checks: one attempt, one connection of its own, one deadline over everything.
//!
//! No decision about health is taken here and nothing is retried: a request that had to be repeated is a failed one. What
//! only this host is to blame for (no descriptor, no port, no memory, a resolver that does not answer) is no failure of
//! the app: the attempt could not run. Called by `watch` once a round.
//!
//! Another check is a file of its own (its keys, how they are read, what is done, its deadline) and, here, its variant with a
//! row in `TYPES`.

mod connect;
mod http;
mod names;
mod outcome;
mod target;
mod tcp;
#[cfg(test)]
mod tests;

use std::time::Duration;

use smartstack_common::config::{
    Key, Kind, Map, Preset, count, defaulted, honoured, joined, later,
};

pub use self::http::HttpCheck;
pub(crate) use self::names::Names;
pub(crate) use self::outcome::{Finding, Outcome};
use self::target::{Given, MILLISECOND, target};
pub(crate) use self::target::{Inherited, host, port_number};
pub use self::tcp::TcpCheck;

/// One health check.
#[derive(Debug, Clone, PartialEq)]
pub struct Check {
    /// As Ruby names it: `http-<host>:<port><uri>`, or `<service> <type>-<host>:<port>`.
    pub name: String,
    /// Consecutive passes to go up, at least 1.
    pub rise: u32,
    /// Consecutive failures to go down, at least 1.
    pub fall: u32,
    /// What is done.
    pub kind: CheckKind,
}

/// What a check does.
#[derive(Debug, Clone, PartialEq)]
pub enum CheckKind {
    /// A GET answered by 200..399, the body holding `expect`.
    Http(HttpCheck),
    /// A connection.
    Tcp(TcpCheck),
    /// Always passes.
    Noop,
}

/// A word of `type`.
struct Type {
    word: &'static str,
    /// Whether it needs a port to connect to.
    connects: bool,
    /// The keys that only it has.
    keys: &'static [Key],
    read: fn(&Given<'_>) -> Option<CheckKind>,
}

const TYPES: &[Type] = &[
    Type {
        word: "http",
        connects: true,
        keys: http::KEYS,
        read: |given| http::read(given).map(CheckKind::Http),
    },
    Type {
        word: "tcp",
        connects: true,
        keys: &[],
        read: |given| tcp::read(given).map(CheckKind::Tcp),
    },
    Type {
        word: "noop",
        connects: false,
        keys: &[],
        read: |_| Some(CheckKind::Noop),
    },
    Type {
        word: "redis",
        connects: true,
        keys: &[],
        read: |given| tcp::read_instead(given).map(CheckKind::Tcp),
    },
    Type {
        word: "rabbitmq",
        connects: true,
        keys: &[
            later(
                "services.*.checks[].username",
                Kind::Any,
                "the check connects and says nothing",
            ),
            later(
                "services.*.checks[].password",
                Kind::Any,
                "the check connects and says nothing",
            ),
        ],
        read: |given| tcp::read_instead(given).map(CheckKind::Tcp),
    },
];

/// Every key of a check.
pub(crate) const KEYS: [Key; count(&TABLES)] = joined(&TABLES);

const WORDS: [&str; TYPES.len()] = {
    let (mut words, mut at) = ([""; TYPES.len()], 0);
    while at < TYPES.len() {
        words[at] = TYPES[at].word;
        at += 1;
    }
    words
};

const TABLES: [&[Key]; TYPES.len() + 1] = {
    let (mut tables, mut at) = ([COMMON; TYPES.len() + 1], 0);
    while at < TYPES.len() {
        tables[at + 1] = TYPES[at].keys;
        at += 1;
    }
    tables
};

const COUNT: std::ops::RangeInclusive<i128> = 1..=u32::MAX as i128;
const U32: i64 = u32::MAX as i64;

/// What every check has.
const COMMON: &[Key] = &[
    honoured(
        "services.*.checks[].type",
        Kind::OneOf(&WORDS),
        "required",
        "`http`, `tcp`, `noop`; `redis` and `rabbitmq` are checked by a connect, with a warning",
    ),
    honoured(
        "services.*.checks[].host",
        Kind::Text,
        "the service's",
        "where to connect",
    ),
    honoured(
        "services.*.checks[].port",
        Kind::Integer(1, 65535),
        "the service's",
        "where to connect",
    ),
    honoured(
        "services.*.checks[].name",
        Kind::Text,
        "made from type, host, port",
        "name in logs and status; of an http check always `http-<host>:<port><uri>`",
    ),
    defaulted(
        "services.*.checks[].timeout",
        Kind::Duration,
        Preset::Duration(Duration::from_millis(100)),
        "deadline of the check; of an http check the default of `read_timeout`",
    ),
    defaulted(
        "services.*.checks[].rise",
        Kind::Integer(1, U32),
        Preset::Integer(1),
        "passes in a row to go up (the first result counts at once)",
    ),
    defaulted(
        "services.*.checks[].fall",
        Kind::Integer(1, U32),
        Preset::Integer(1),
        "failures in a row to go down",
    ),
    later(
        "services.*.checks[].module",
        Kind::Any,
        "no Ruby code is loaded",
    ),
];

impl Check {
    /// Reads one entry of `checks`; what is wrong is noted there.
    pub(crate) fn read(map: &Map<'_>, service: &Inherited<'_>) -> Option<Self> {
        let types: Vec<(&str, &Type)> = TYPES.iter().map(|kind| (kind.word, kind)).collect();
        let Some(kind) = map.key("type").required().one_of(&types) else {
            map.ignore_rest();
            return None;
        };
        let name = map.key("name").text();
        let timeout = map.key("timeout");
        let rise = map.key("rise").or_preset(|key| key.integer(COUNT));
        let fall = map.key("fall").or_preset(|key| key.integer(COUNT));
        let given = Given {
            map,
            timeout: timeout.or_preset(|key| key.duration_at_least(MILLISECOND)),
            target: target(map, service, kind.connects),
        };
        let at = given.target.as_ref();
        let at = at.map_or(String::new(), |(host, port)| format!("-{host}:{port}"));
        let usual = || format!("{} {}{at}", service.service, kind.word);
        let kind = (kind.read)(&given)?;
        let name = match &kind {
            CheckKind::Http(http) => http.name(),
            _ => name.unwrap_or_else(usual),
        };
        Some(Self {
            name,
            rise,
            fall,
            kind,
        })
    }
}

/// Runs one attempt of the check.
pub(crate) async fn run(check: &Check, names: &Names) -> Outcome {
    match &check.kind {
        CheckKind::Http(settings) => http::run(settings, names).await,
        CheckKind::Tcp(settings) => tcp::run(settings, names).await,
        CheckKind::Noop => Outcome::Pass,
    }
}

/// The longest one attempt can take.
pub(crate) fn deadline(check: &Check) -> Duration {
    match &check.kind {
        CheckKind::Http(settings) => settings.deadline(),
        CheckKind::Tcp(settings) => settings.timeout,
        CheckKind::Noop => Duration::ZERO,
    }
}
