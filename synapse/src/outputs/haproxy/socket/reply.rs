//! What haproxy answers on its stats socket, told apart by severity tag and, within failures, by the exact words of
//! haproxy 2.6, which 3.0 and 3.2 have kept (measured: [`Refusal::of`] reads alike what 2.6.12, 3.0.11 and 3.2.26 say).
//!
//! Pure.

use std::collections::HashMap;
use std::fmt;
use std::net::SocketAddr;

use crate::model::member::Evidence;
use crate::model::server::Digest;
use crate::outputs::haproxy::cfg::generation::{self, Generation};
use crate::outputs::haproxy::plan::{RunningServer, State};
use crate::outputs::haproxy::version::{self, Since, Version};

/// The answer to one command.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Reply {
    /// Nothing was said: done.
    Done,
    /// Information: done.
    Text(String),
    /// Not done.
    Refused(Refusal),
}

/// Why haproxy did not do it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Refusal {
    /// `No such server.`: fine for a removal.
    NoSuchServer,
    /// `No such backend.`: the worker has loaded another file.
    NoSuchBackend,
    /// The name is taken: compare addresses.
    AlreadyExists,
    /// The id is taken, perhaps by a server that awaits its deletion.
    IdUsed,
    /// The backend's algorithm takes no servers at runtime: reload.
    NotDynamic,
    /// A keyword that only the file may hold: reload.
    NotAccepted(String),
    /// To be deleted again later.
    HasConnections,
    /// Stays until the next reload: another server tracks it.
    PointedTo,
    /// To be deleted it must be in maint.
    NotInMaint,
    /// The backend's algorithm takes no weights but 0 and the initial one: reload.
    FixedWeights,
    /// The socket's level is below admin.
    Denied,
    /// Nothing was sent: a name or an option that must not be.
    Unsendable(String),
    /// Anything else, in haproxy's words.
    Other(String),
}

/// Ends the answer to each line.
const PROMPT: &str = "\n> ";
/// Answers before the first command's: to `prompt` and to `set severity-output number`, both empty.
const OPENING: usize = 2;

/// An answer that is not in the form of haproxy's.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Misfit {
    /// The command, or what was sent.
    pub(super) what: String,
    /// What came.
    pub(super) words: String,
}

/// All that came on one connection, as one reply for each of these commands: neither fewer nor more, nothing cut off, and
/// nothing untagged where only tagged words or silence can be.
pub(super) fn of_lines(text: &str, commands: &[String]) -> Result<Vec<Reply>, Misfit> {
    let mut pieces: Vec<&str> = text.split(PROMPT).collect();
    let rest = pieces.pop();
    let opens = pieces.iter().take(OPENING).all(|answer| answer.is_empty());
    if !opens || rest != Some("") || pieces.len() != OPENING + commands.len() {
        return Err(Misfit {
            what: format!("{} commands, one a line,", OPENING + commands.len()),
            words: text.to_owned(),
        });
    }
    let answers = commands.iter().zip(&pieces[OPENING..]);
    answers
        .map(|(command, answer)| {
            let told = answer.trim_matches('\n').lines().next();
            let fits = command.starts_with("show ") || told.is_none_or(|l| severity(l).is_some());
            fits.then(|| Reply::parse(answer)).ok_or_else(|| Misfit {
                what: format!("`{command}`"),
                words: (*answer).to_owned(),
            })
        })
        .collect()
}

/// `HAProxy 3.2.26-1` of a plain `show info`.
pub(super) fn version_of(text: &str) -> Option<String> {
    let field = |name: &str| {
        let mut lines = text.lines();
        lines.find_map(|line| line.strip_prefix(name)?.strip_prefix(": "))
    };
    Some(format!("{} {}", field("Name")?, field("Version")?))
}

impl Reply {
    /// Reads a reply that was preceded by `set severity-output number`.
    #[must_use]
    pub fn parse(text: &str) -> Self {
        let text = text.trim_matches('\n');
        if text.is_empty() {
            return Self::Done;
        }
        match text.lines().find_map(severity) {
            Some((0..=3, _)) => Self::Refused(Refusal::of(text)),
            // An unknown command is answered with a list, as information.
            Some((_, words)) if words.starts_with("Unknown command") => {
                Self::Refused(Refusal::Other("Unknown command".to_owned()))
            }
            // A warning, as is the answer to an address that was taken.
            Some((_, words)) if words.starts_with("Invalid addr") => {
                Self::Refused(Refusal::Other(words.to_owned()))
            }
            Some((_, words)) if !text.contains('\n') => Self::Text(words.to_owned()),
            _ => Self::Text(text.to_owned()),
        }
    }

    pub(super) fn refusal(self) -> Option<Refusal> {
        match self {
            Self::Refused(refusal) => Some(refusal),
            Self::Done | Self::Text(_) => None,
        }
    }

    /// Of two sockets' answers to one command, the one to act on.
    pub(super) fn worse(self, other: Self) -> Self {
        if matches!(self, Self::Refused(_)) {
            self
        } else {
            other
        }
    }
}

/// `[3]: words` → 3, `words`.
fn severity(line: &str) -> Option<(u8, &str)> {
    let (level, words) = line.strip_prefix('[')?.split_once("]: ")?;
    Some((level.parse().ok()?, words))
}

impl Refusal {
    /// By haproxy 2.6's words, with or without tags.
    #[must_use]
    pub fn of(text: &str) -> Self {
        let words = text
            .lines()
            .map(|line| severity(line).map_or(line, |(_, words)| words))
            .collect::<Vec<_>>()
            .join(" ");
        let has = |part: &str| words.contains(part);
        if has("No such server") {
            Self::NoSuchServer
        } else if has("No such backend") || has("Can't find backend") {
            Self::NoSuchBackend
        } else if has("Already exists a server") {
            Self::AlreadyExists
        } else if has("already used at") {
            Self::IdUsed
        } else if has("must use a dynamic load balancing") {
            Self::NotDynamic
        } else if has("is not accepted for dynamic server") || has("unknown keyword") {
            Self::NotAccepted(words)
        } else if has("still has connections attached") {
            Self::HasConnections
        } else if has("cannot be removed at runtime") {
            Self::PointedTo
        } else if has("Only servers in maintenance mode") {
            Self::NotInMaint
        } else if has("only accepts weights '0%' and '100%'") {
            Self::FixedWeights
        } else if has("Permission denied") {
            Self::Denied
        } else {
            Self::Other(words)
        }
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::NoSuchServer => "no such server",
            Self::NoSuchBackend => "No such backend",
            Self::AlreadyExists => "a server of that name exists already",
            Self::IdUsed => "the id is used by another server",
            Self::NotDynamic => "the backend's balance algorithm takes no servers at runtime",
            Self::HasConnections => "the server still has connections",
            Self::PointedTo => "another server tracks it",
            Self::NotInMaint => "the server is not in maintenance",
            Self::FixedWeights => {
                "the backend's balance algorithm takes no other weights at runtime"
            }
            Self::Denied => "permission denied (the stats socket needs level admin)",
            Self::NotAccepted(words) | Self::Unsendable(words) | Self::Other(words) => words,
        })
    }
}

/// `show info`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Info {
    /// The worker's.
    pub pid: u32,
    /// Such as `2.6.12-1+deb12u4`.
    pub version: String,
    /// Seconds since the worker began.
    pub uptime: u64,
    /// It is on its way out and serves only its old connections.
    pub stopping: bool,
    /// `description` of `global`.
    pub description: Option<String>,
}

impl Info {
    /// `None` when the text is not `show info`.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let fields: HashMap<&str, &str> = text
            .lines()
            .filter_map(|line| line.split_once(": "))
            .collect();
        Some(Self {
            pid: fields.get("Pid")?.parse().ok()?,
            version: (*fields.get("Version")?).to_owned(),
            uptime: fields.get("Uptime_sec")?.parse().ok()?,
            stopping: fields.get("Stopping").is_some_and(|s| *s != "0"),
            description: fields.get("description").map(|d| (*d).to_owned()),
        })
    }

    /// Why no server can be added to it at runtime.
    #[must_use]
    pub fn refuses_adds(&self) -> Option<String> {
        self.lacks(&version::ADDS)
            .then(|| format!("haproxy {} takes no servers at runtime", self.version))
    }

    /// Why no server with a cookie can be.
    #[must_use]
    pub fn refuses_cookies(&self) -> Option<String> {
        let words = "takes server keyword `cookie` only from the file";
        self.lacks(&version::COOKIES)
            .then(|| format!("haproxy {} {words}", self.version))
    }

    /// One that does not tell its version lacks everything: what it has is not tried on it.
    fn lacks(&self, what: &Since) -> bool {
        !Version::parse(&self.version).is_some_and(|version| version.has(what))
    }

    /// Of the file the worker has loaded.
    #[must_use]
    pub fn generation(&self) -> Option<Generation> {
        Generation::parse(generation::parse_description(self.description.as_deref()?)?)
    }
}

/// A row of `show servers state`. Bits as in `enum srv_admin` of haproxy's `server-t.h`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServerRow {
    /// Backend's name.
    pub backend: String,
    /// Server's name.
    pub name: String,
    /// Server's id.
    pub id: u32,
    /// `None` = unresolved.
    pub address: Option<SocketAddr>,
    /// 0 stopped, 1 starting, 2 running, 3 stopping.
    pub op_state: u8,
    /// 1 forced maint, 4 maint from the file, 8 forced drain.
    pub admin: u32,
    /// Weight in force before slowstart (`srv_uweight`).
    pub weight: u16,
    /// Weight from the file (`srv_iweight`).
    pub initial_weight: u16,
    /// Of its health check: 1 under way, 2 configured, 4 enabled, 8 paused (maint).
    pub check: u32,
    /// Of the last health check: 0 none yet, or one is under way, 2 failed, 3 passed, 4 passed with a condition.
    pub check_result: u8,
    /// Its last check passed (`srv_check_result`, `CHK_RES_PASSED` and above in haproxy's `check-t.h`).
    pub passed: bool,
    /// Of its agent check: bits as of [`Self::check`].
    pub agent: u32,
}

const CHECK_FAILED: u8 = 2;
const CHECK_PASSED: u8 = 3;
const FORCED_MAINT: u32 = 1;
const CONFIG_MAINT: u32 = 4;
const FORCED_DRAIN: u32 = 8;
const CHECK_UNDER_WAY: u32 = 1;
const CHECK_CONFIGURED: u32 = 2;
const CHECK_ENABLED: u32 = 4;
const CHECK_PAUSED: u32 = 8;

impl ServerRow {
    /// Reads the whole table; columns go by the names in its header.
    ///
    /// # Errors
    /// The row that could not be read.
    pub fn parse_all(text: &str) -> Result<Vec<Self>, String> {
        let header = text
            .lines()
            .find_map(|l| l.strip_prefix("# "))
            .ok_or_else(|| text.to_owned())?;
        let columns: HashMap<&str, usize> = header
            .split(' ')
            .enumerate()
            .map(|(i, name)| (name, i))
            .collect();
        let rows = text
            .lines()
            .skip_while(|l| !l.starts_with("# "))
            .skip(1)
            .filter(|l| !l.is_empty());
        rows.map(|row| Self::parse(row, &columns).ok_or_else(|| row.to_owned()))
            .collect()
    }

    fn parse(row: &str, columns: &HashMap<&str, usize>) -> Option<Self> {
        let values: Vec<&str> = row.split(' ').collect();
        let value = |name: &str| columns.get(name).and_then(|i| values.get(*i)).copied();
        let host = value("srv_addr")?.parse().ok();
        let port: u16 = value("srv_port")?.parse().ok()?;
        Some(Self {
            backend: value("be_name")?.to_owned(),
            name: value("srv_name")?.to_owned(),
            id: value("srv_id")?.parse().ok()?,
            address: host.map(|host| SocketAddr::new(host, port)),
            op_state: value("srv_op_state")?.parse().ok()?,
            admin: value("srv_admin_state")?.parse().ok()?,
            weight: value("srv_uweight")?.parse().ok()?,
            initial_weight: value("srv_iweight")?.parse().ok()?,
            check: value("srv_check_state")
                .and_then(|v| v.parse().ok())
                .unwrap_or(0),
            check_result: value("srv_check_result")
                .and_then(|v| v.parse().ok())
                .unwrap_or(0),
            passed: value("srv_check_result")?.parse::<u8>().ok()? >= CHECK_PASSED,
            agent: value("srv_agent_state")
                .and_then(|v| v.parse().ok())
                .unwrap_or(0),
        })
    }

    /// In maint, whoever put it there: that does not show. An agent and an operator can both write any weight and maint.
    #[must_use]
    pub fn is_in_maint(&self) -> bool {
        // `disabled` in the file sets both bits and keeps its own after `state ready`, also while a check has put the server
        // down (measured on 2.6, 3.0 and 3.2): it says nothing.
        self.admin & FORCED_MAINT != 0
    }

    /// Whether its agent is listened to; `None` = it has none.
    #[must_use]
    pub fn agent(&self) -> Option<bool> {
        (self.agent & CHECK_CONFIGURED != 0).then_some(self.agent & CHECK_ENABLED != 0)
    }

    /// Whose state it is; `ours` = it was put in maint by us, as far as it is.
    #[must_use]
    pub fn state(&self, ours: bool) -> State {
        if self.is_in_maint() {
            if ours {
                State::Retired
            } else {
                State::OperatorMaint
            }
        } else if self.admin & FORCED_DRAIN != 0 {
            State::OperatorDrain
        } else {
            State::Ready
        }
    }

    /// What its check says of it. haproxy does not tell when a check ran last: a result stands until the next one begins.
    /// While that is under way there is none (measured), so that the state decides. In maint haproxy keeps the result and
    /// forgets the state that came of it (measured), so that a failed check is all there is.
    #[must_use]
    pub fn evidence(&self) -> Evidence {
        let is = |bit: u32| self.check & bit != 0;
        match self.check_result {
            _ if !is(CHECK_ENABLED) => Evidence::Nothing,
            CHECK_FAILED if is(CHECK_PAUSED) => Evidence::Failing,
            _ if is(CHECK_PAUSED) => Evidence::Pending,
            0 if !is(CHECK_UNDER_WAY) => Evidence::Pending,
            _ if self.op_state == 0 => Evidence::Failing,
            0 => Evidence::Awaited,
            _ => Evidence::Passing,
        }
    }

    /// It has a check, which is not enabled.
    #[must_use]
    pub fn checks_are_off(&self) -> bool {
        self.check & CHECK_CONFIGURED != 0 && self.check & CHECK_ENABLED == 0
    }

    /// Whether its line says `disabled`, whatever became of it since (measured: the bit stays).
    #[must_use]
    pub fn was_disabled(&self) -> bool {
        self.admin & CONFIG_MAINT != 0
    }

    /// Takes new requests now, as far as the worker knows.
    #[must_use]
    pub fn is_serving(&self) -> bool {
        self.op_state != 0 && self.weight > 0 && self.state(false) == State::Ready
    }

    /// As plans see it; `digest` of its options when that is known for this worker, `ours` as of [`Self::state`].
    #[must_use]
    pub fn running(&self, digest: Option<Digest>, ours: bool) -> RunningServer {
        RunningServer {
            address: self.address,
            id: self.id,
            weight: self.weight,
            initial_weight: self.initial_weight,
            given: self.initial_weight,
            state: self.state(ours),
            agent: self.agent(),
            digest,
            awaits_check: false,
        }
    }
}
