//! The commands that are sent, and how an operation of a plan becomes some. Every name is validated here.
//!
//! Pure.

use super::ApiError;
use crate::plan::{Change, Op};

/// Longest name sent; haproxy takes more, but some lengths hang it.
const NAME: usize = 128;

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
        match op.change {
            Change::Retire => vec![weight(Some(0)), state(AdminState::Maint)],
            Change::Return { weight: wanted } => vec![weight(wanted), state(AdminState::Ready)],
            Change::Weight { weight: wanted } => vec![weight(Some(wanted))],
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
        Err(ApiError::Name(
            text.chars()
                .take(NAME)
                .collect::<String>()
                .escape_default()
                .to_string(),
        ))
    }
}
