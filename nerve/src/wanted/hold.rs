//! What operators take out of the registries: which services, by which command, since when.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// Who took a service out, until `enable`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Hold {
    /// `nerve drain`: withdrawn, still checked.
    Drain,
    /// `nerve disable`: withdrawn, and its checks rest.
    Disable,
    /// What an operator had said is lost: not registered anew, and what is registered stays.
    Unknown,
}

impl Hold {
    /// The command's name.
    #[must_use]
    pub(crate) fn word(self) -> &'static str {
        match self {
            Hold::Drain => "drain",
            Hold::Disable => "disable",
            Hold::Unknown => "unknown",
        }
    }
}

/// Which services are held out, by name.
pub(crate) type Holds = BTreeMap<String, Held>;

/// That a service is held out.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Held {
    /// By which command.
    pub(crate) by: Hold,
    /// Seconds since 1970.
    pub(crate) since: f64,
}

/// Whether the holds make a service's checks rest.
pub(crate) fn disables(holds: &Holds, service: &str) -> bool {
    holds
        .get(service)
        .is_some_and(|held| held.by == Hold::Disable)
}
