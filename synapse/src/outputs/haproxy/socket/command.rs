//! The commands that are sent, and how an operation of a plan becomes some. Every name is validated here.
//!
//! Pure.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use super::ApiError;
use crate::outputs::haproxy::cfg::effective::{Options, is_sendable};
use crate::outputs::haproxy::plan::{Admit, Change, Checks, Op, Return};

/// Longest name sent; haproxy takes more, but some lengths hang it.
const NAME: usize = 128;
/// Most words of one command: haproxy drops those after the 64th without saying so.
const WORDS: usize = 60;
/// Most bytes of one command.
const LENGTH: usize = 8 * 1024 - 256;

/// A command of the stats socket.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Command {
    /// `show info`.
    ShowInfo,
    /// `show servers state [BACKEND]`.
    ShowServersState(Option<String>),
    /// `set server B/S state ready|drain|maint`.
    State {
        /// Backend.
        backend: String,
        /// Server.
        server: String,
        /// The state.
        state: AdminState,
    },
    /// `set server B/S weight W`; `None` = its initial weight (100 %).
    Weight {
        /// Backend.
        backend: String,
        /// Server.
        server: String,
        /// 0..256.
        weight: Option<u16>,
    },
    /// `add server B/S ADDR:PORT id N weight W ...`: in maint, unchecked. Never with `enabled`: 2.6 then shows it as up
    /// and gives it nothing.
    Add {
        /// Backend.
        backend: String,
        /// Server.
        server: String,
        /// What haproxy connects to.
        address: SocketAddr,
        /// haproxy's id.
        id: u32,
        /// 0..256.
        weight: u16,
        /// Everything else.
        options: Arc<Options>,
    },
    /// `set server B/S addr IP port PORT`.
    Address {
        /// Backend.
        backend: String,
        /// Server.
        server: String,
        /// What haproxy connects to.
        address: SocketAddr,
    },
    /// `set server B/S check-addr|agent-addr IP`.
    CheckAddress {
        /// Backend.
        backend: String,
        /// Server.
        server: String,
        /// Which check.
        check: Check,
        /// Where it goes; its port stays.
        address: IpAddr,
    },
    /// `enable health|agent B/S`.
    Enable {
        /// Backend.
        backend: String,
        /// Server.
        server: String,
        /// Which check.
        check: Check,
    },
    /// `disable agent B/S`: what it says from now on changes nothing, also in the answer under way (measured on 2.6 to 3.2).
    DisableAgent {
        /// Backend.
        backend: String,
        /// Server.
        server: String,
    },
    /// `set server B/S agent up`: as a server of the file begins. One that was added stays down without it until its agent
    /// says `up`, `ready` and weights being no such word (measured on 2.6 to 3.2).
    AgentUp {
        /// Backend.
        backend: String,
        /// Server.
        server: String,
    },
    /// `del server B/S`.
    Delete {
        /// Backend.
        backend: String,
        /// Server.
        server: String,
    },
}

/// Checks that can be switched on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Check {
    /// Of `check`.
    Health,
    /// Of `agent-check`.
    Agent,
}

/// States that can be set.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AdminState {
    /// Takes requests.
    Ready,
    /// No new ones but sticky sessions.
    Drain,
    /// No new ones.
    Maint,
}

impl Command {
    /// The commands of an operation.
    #[must_use]
    pub fn of(op: &Op) -> Vec<Self> {
        let weight = |weight| Self::Weight {
            backend: op.backend.clone(),
            server: op.server.clone(),
            weight,
        };
        let state = |state| Self::State {
            backend: op.backend.clone(),
            server: op.server.clone(),
            state,
        };
        let enable = |checks: Checks| {
            let enable = |check| Self::Enable {
                backend: op.backend.clone(),
                server: op.server.clone(),
                check,
            };
            let agent_up = Self::AgentUp {
                backend: op.backend.clone(),
                server: op.server.clone(),
            };
            let health = checks.health.then(|| enable(Check::Health));
            let agent = checks.agent.then(|| [enable(Check::Agent), agent_up]);
            health.into_iter().chain(agent.into_iter().flatten())
        };
        // The agent first: one that answers `ready` would end any maint.
        let maint = |agent: bool| {
            let disable = agent.then(|| Self::DisableAgent {
                backend: op.backend.clone(),
                server: op.server.clone(),
            });
            disable.into_iter().chain([state(AdminState::Maint)])
        };
        // Weight 0 as well: should anybody make it ready, it gets nothing. Whose maint it is does not hang on that.
        let retire = |agent| maint(agent).chain([weight(Some(0))]);
        // The weight first: haproxy hands its queue over when a server becomes ready, and to none of weight 0.
        let ready = |to| [weight(to), state(AdminState::Ready)];
        let returns = |after: Return| enable(after.checks).chain(ready(after.weight));
        match &op.change {
            Change::Add(addition) => {
                let checks = Checks::of(&addition.options);
                // Until it is admitted, its agent has no say.
                let begun = Checks {
                    agent: checks.agent && addition.admit != Admit::Checked,
                    ..checks
                };
                let add = Self::Add {
                    backend: op.backend.clone(),
                    server: op.server.clone(),
                    address: addition.address,
                    id: addition.id,
                    weight: addition.weight,
                    options: Arc::clone(&addition.options),
                };
                let admit = (addition.admit == Admit::Ready).then(|| state(AdminState::Ready));
                std::iter::once(add)
                    .chain(enable(begun))
                    .chain(admit)
                    .collect()
            }
            Change::Readdress {
                address,
                around,
                follows,
            } => {
                let own = Self::Address {
                    backend: op.backend.clone(),
                    server: op.server.clone(),
                    address: *address,
                };
                let checks = [
                    (Check::Health, follows.health),
                    (Check::Agent, follows.agent),
                ];
                // An agent that is not listened to takes no address (measured on 2.6, 3.0 and 3.2).
                let silenced = around.is_some_and(|after| after.checks.agent);
                let checks = checks.into_iter().filter(|(_, follows)| *follows);
                let checks = checks.flat_map(|(check, _)| {
                    let listen = silenced && check == Check::Agent;
                    let listen = listen.then(|| Self::Enable {
                        backend: op.backend.clone(),
                        server: op.server.clone(),
                        check,
                    });
                    listen.into_iter().chain([Self::CheckAddress {
                        backend: op.backend.clone(),
                        server: op.server.clone(),
                        check,
                        address: address.ip(),
                    }])
                });
                // The server itself last: cut off in between it is still elsewhere, and all of it is sent again.
                let moves = checks.chain(std::iter::once(own));
                match around {
                    None => moves.collect(),
                    Some(after) => retire(after.checks.agent)
                        .chain(moves)
                        .chain(returns(*after))
                        .collect(),
                }
            }
            Change::Maint { agent } => maint(*agent).collect(),
            Change::Retire { agent } => retire(*agent).collect(),
            Change::Return(after) => returns(*after).collect(),
            Change::Weight {
                weight: wanted,
                queue: false,
            } => vec![weight(Some(*wanted))],
            Change::Weight {
                weight: wanted,
                queue: true,
            } => maint(false).chain(ready(Some(*wanted))).collect(),
            Change::Delete => vec![Self::Delete {
                backend: op.backend.clone(),
                server: op.server.clone(),
            }],
        }
    }

    /// Its text.
    ///
    /// # Errors
    /// A name that must not be sent.
    pub(super) fn text(&self) -> Result<String, ApiError> {
        Ok(match self {
            Self::ShowInfo => "show info".to_owned(),
            Self::ShowServersState(None) => "show servers state".to_owned(),
            Self::ShowServersState(Some(backend)) => {
                format!("show servers state {}", name(backend)?)
            }
            Self::State {
                backend,
                server,
                state,
            } => {
                let state = match state {
                    AdminState::Ready => "ready",
                    AdminState::Drain => "drain",
                    AdminState::Maint => "maint",
                };
                format!(
                    "set server {}/{} state {state}",
                    name(backend)?,
                    name(server)?
                )
            }
            Self::Weight {
                backend,
                server,
                weight: Some(weight),
            } => {
                format!(
                    "set server {}/{} weight {weight}",
                    name(backend)?,
                    name(server)?
                )
            }
            Self::Weight {
                backend,
                server,
                weight: None,
            } => format!(
                "set server {}/{} weight 100%",
                name(backend)?,
                name(server)?
            ),
            Self::Add {
                backend,
                server,
                address,
                id,
                weight,
                options,
            } => {
                let mut text = format!(
                    "add server {}/{} {address} id {id} weight {weight}",
                    name(backend)?,
                    name(server)?
                );
                // What 2.6 gives every server of the file, but a server added at runtime only with both.
                for (keyword, value) in [("pool-purge-delay", "5s"), ("pool-max-conn", "-1")] {
                    if !options.has(keyword) {
                        text += &format!(" {keyword} {value}");
                    }
                }
                for word in options.to_string().split_ascii_whitespace() {
                    if !is_sendable(word) {
                        return Err(ApiError::Word(excerpt(word)));
                    }
                    text.push(' ');
                    text += word;
                }
                if text.split(' ').count() > WORDS || text.len() > LENGTH {
                    return Err(ApiError::Word(excerpt(&text)));
                }
                text
            }
            Self::Address {
                backend,
                server,
                address,
            } => format!(
                "set server {}/{} addr {} port {}",
                name(backend)?,
                name(server)?,
                address.ip(),
                address.port()
            ),
            Self::CheckAddress {
                backend,
                server,
                check,
                address,
            } => {
                let what = match check {
                    Check::Health => "check-addr",
                    Check::Agent => "agent-addr",
                };
                format!(
                    "set server {}/{} {what} {address}",
                    name(backend)?,
                    name(server)?
                )
            }
            Self::Enable {
                backend,
                server,
                check,
            } => {
                let check = match check {
                    Check::Health => "health",
                    Check::Agent => "agent",
                };
                format!("enable {check} {}/{}", name(backend)?, name(server)?)
            }
            Self::DisableAgent { backend, server } => {
                format!("disable agent {}/{}", name(backend)?, name(server)?)
            }
            Self::AgentUp { backend, server } => {
                format!("set server {}/{} agent up", name(backend)?, name(server)?)
            }
            Self::Delete { backend, server } => {
                format!("del server {}/{}", name(backend)?, name(server)?)
            }
        })
    }
}

fn name(text: &str) -> Result<&str, ApiError> {
    let allowed = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b':' | b'-');
    let valid =
        (1..=NAME).contains(&text.len()) && text.bytes().all(allowed) && !text.starts_with('-');
    if valid {
        Ok(text)
    } else {
        Err(ApiError::Name(excerpt(text)))
    }
}

fn excerpt(text: &str) -> String {
    text.chars()
        .take(NAME)
        .collect::<String>()
        .escape_default()
        .to_string()
}
