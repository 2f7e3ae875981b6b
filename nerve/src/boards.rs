//! Who publishes what: the latest value of each task, for every reader. Nothing is decided here.
//!
//! Each value has one writer: who holds its [`Entry`], or its sender.
//!
//! ```text
//! services   a service's checks               its task (`watch`)
//! ensembles  how the registrations stand      the ensemble's registrar
//! rounds     when that last came round        the same
//! places     what is set up where             `program`
//! holds      what operators took out          `operator`
//! ```

mod board;
mod reports;
mod wishes;

use tokio::sync::watch;
use tokio::time::Instant;

pub(crate) use self::board::{Board, Entry};
pub(crate) use self::reports::{
    CheckReport, EnsembleReport, LeftOver, Observed, Registered, ServiceReport,
};
pub(crate) use self::wishes::Wishes;
use crate::wanted::{Holds, Places, disables};

/// All that is published.
#[derive(Debug, Clone)]
pub(crate) struct Boards {
    pub(crate) services: Board<ServiceReport>,
    pub(crate) ensembles: Board<EnsembleReport>,
    /// When the registrar of an ensemble last came round.
    pub(crate) rounds: Board<Instant>,
    pub(crate) places: watch::Receiver<Places>,
    /// Services that an operator has taken out.
    pub(crate) holds: watch::Receiver<Holds>,
}

/// For the one writer of each.
#[derive(Debug)]
pub(crate) struct Senders {
    pub(crate) places: watch::Sender<Places>,
    pub(crate) holds: watch::Sender<Holds>,
}

impl Boards {
    pub(crate) fn new() -> (Self, Senders) {
        let senders = Senders {
            places: watch::Sender::new(Places::new()),
            holds: watch::Sender::new(Holds::new()),
        };
        let boards = Self {
            services: Board::new(),
            ensembles: Board::new(),
            rounds: Board::new(),
            places: senders.places.subscribe(),
            holds: senders.holds.subscribe(),
        };
        (boards, senders)
    }

    /// What all services want.
    pub(crate) fn wishes(&self) -> Wishes {
        Wishes {
            places: self.places.clone(),
            services: self.services.subscribe(),
            holds: self.holds.clone(),
        }
    }

    /// Whether the checks of a service rest.
    pub(crate) fn is_disabled(&self, service: &str) -> bool {
        disables(&self.holds.borrow(), service)
    }

    /// What keeps nerve from being ready: services whose checks have not all run once, those that rest apart. ZooKeeper
    /// is not waited for.
    pub(crate) fn missing(&self) -> Option<String> {
        let services = self.services.borrow();
        let waiting: Vec<&str> = services
            .iter()
            .filter(|(name, s)| !s.checked && !self.is_disabled(name))
            .map(|(n, _)| n.as_str())
            .collect();
        (!waiting.is_empty()).then(|| format!("not checked yet: {}", waiting.join(", ")))
    }
}
