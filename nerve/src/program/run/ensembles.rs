//! One session and one registrar for each ensemble that the configuration names. Both end, and with them all that is
//! shown of the ensemble, when no service names it any more and nothing of this nerve's is left there to be withdrawn,
//! be it that it was never reached.
//!
//! The registrar alone knows what is left, so it ends by itself once it is told that nobody names its ensemble; the
//! session is closed then. One that is named again at that very moment gets another registrar.

use std::collections::BTreeSet;

use smartstack_common::shutdown::Shutdown;
use smartstack_common::zk::{self, Link};
use tokio::sync::watch;
use tokio::task::{Id, JoinError};

use super::{App, Connected, RunError, Task};
use crate::config::Place;
use crate::registrar::lease::reconciler::Manner;
use crate::registrar::zookeeper::{self as registrar, without_chroot};

impl App {
    /// To be called before anything is wished at the place.
    pub(super) fn connect(&mut self, place: &Place) {
        let hosts = place.ensemble.hosts().to_owned();
        if let Some(connected) = self.ensembles.get(&hosts) {
            connected.named.send_replace(true);
            return;
        }
        let ensemble = without_chroot(&place.ensemble);
        let link = watch::Sender::new(Link::Connecting);
        let named = watch::Sender::new(true);
        let setup = registrar::Setup {
            ensemble: (*ensemble).clone(),
            manner: Manner {
                jitter: self.config.jitter,
                write_rate: self.config.write_rate,
                write_rate_mode: self.config.write_rate_mode,
            },
            state_path: self.config.state_path.clone(),
            named: named.subscribe(),
            wishes: self.boards.wishes(),
            link: link.subscribe(),
            report: self.boards.ensembles.entry(&hosts),
            round: self.boards.rounds.entry(&hosts),
            metrics: self.metrics.clone(),
        };
        let settings = zk::Settings {
            ensemble: (*ensemble).clone(),
            session_timeout: self.config.session_timeout,
        };
        let (leave, mut left) = Shutdown::channel();
        let mut closing = self.closing.1.clone();
        let session = self
            .sessions
            .spawn(zk::supervise(settings, link, async move {
                // Watch receives.
                tokio::select! {
                    () = closing.wait() => {}
                    () = left.wait() => {}
                }
            }));
        self.spawn(Task::Registrar(hosts.clone()), registrar::run(setup));
        let connected = Connected {
            place: place.clone(),
            named,
            leave,
            session: session.id(),
        };
        self.ensembles.insert(hosts, connected);
    }

    /// Tells the registrars whether the services, as they are now, name their ensembles.
    pub(super) fn tell_named(&self) {
        let places = self.services.values().flat_map(|s| &s.service.places);
        let named: BTreeSet<&str> = places.map(|place| place.ensemble.hosts()).collect();
        for (hosts, connected) in &self.ensembles {
            let is_named = named.contains(hosts.as_str());
            connected
                .named
                .send_if_modified(|named| std::mem::replace(named, is_named) != is_named);
        }
    }

    /// A registrar has ended by itself: nothing of ours is left in its ensemble.
    pub(super) fn left(&mut self, hosts: &str) {
        let Some(connected) = self.ensembles.remove(hosts) else {
            return;
        };
        connected.leave.send_replace(true);
        self.boards.ensembles.remove(hosts);
        self.boards.rounds.remove(hosts);
        self.metrics.forget_ensemble(hosts);
        if *connected.named.borrow() {
            self.connect(&connected.place);
        } else {
            tracing::info!(
                hosts,
                "no service names the ensemble any more, and no node of ours is left there: its session is closed"
            );
        }
    }

    /// A session's supervisor has ended, which is in order for an ensemble that was left.
    pub(super) fn session_ended(&self, ended: Result<Id, JoinError>) -> Result<(), RunError> {
        let in_order = match ended {
            Ok(id) => self.ensembles.values().all(|one| one.session != id),
            Err(_) => false,
        };
        match in_order {
            true => Ok(()),
            false => Err(RunError::Ended("zookeeper session".to_owned())),
        }
    }
}
