//! What the services want, put together from what the program, the checks and the operators say. Nobody writes it.

use std::collections::BTreeMap;

use tokio::sync::watch;

use super::reports::ServiceReport;
use crate::wanted::{Holds, Places, Wanted, Wants};

/// A reader of all wishes.
#[derive(Debug)]
pub(crate) struct Wishes {
    pub(super) places: watch::Receiver<Places>,
    pub(super) services: watch::Receiver<BTreeMap<String, ServiceReport>>,
    pub(super) holds: watch::Receiver<Holds>,
}

impl Wishes {
    /// The wishes as they are now, at one ensemble or all.
    pub(crate) fn read(&mut self, hosts: Option<&str>) -> Wants {
        let places = self.places.borrow_and_update();
        let services = self.services.borrow_and_update();
        let holds = self.holds.borrow_and_update();
        let mut wants = Wants::new();
        for (key, placed) in places.iter() {
            // One whose checks are not set up is on its way out.
            let Some(checks) = services.get(&key.service) else {
                continue;
            };
            if hosts.is_none_or(|hosts| hosts == key.hosts) {
                let wanted = Wanted {
                    service: key.service.clone(),
                    registration: placed.registration.clone(),
                    intent: placed.intent,
                    verdict: checks.verdict,
                    hold: holds.get(&key.service).map(|held| held.by),
                    as_of: checks.as_of,
                    window: checks.window,
                };
                wants.insert(key.clone(), wanted);
            }
        }
        wants
    }

    /// Returns when they are others than last read, but for younger results of the same kind. May be dropped anywhere.
    pub(crate) async fn changed(&mut self) {
        // Watch receives.
        tokio::select! {
            Ok(()) = self.places.changed() => {}
            Ok(()) = self.services.changed() => {}
            Ok(()) = self.holds.changed() => {}
            else => std::future::pending().await,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::super::Boards;
    use super::*;
    use crate::config::NodeType;
    use crate::health::Verdict;
    use crate::wanted::{Held, Hold, Intent, PlaceKey, Placed, Registration};

    fn place(service: &str, hosts: &str) -> (PlaceKey, Placed) {
        let registration = Registration {
            hosts: hosts.to_owned(),
            path: "/s".to_owned(),
            instance_id: "i".to_owned(),
            prefix: "i_".to_owned(),
            node_type: NodeType::Ephemeral,
            payload: Vec::new(),
        };
        let key = PlaceKey::new(service, &registration);
        let intent = Intent::Follow;
        (
            key,
            Placed {
                registration,
                intent,
            },
        )
    }

    /// Each of the three is seen, wakes its readers, and says nothing of another service or ensemble.
    #[tokio::test]
    async fn wishes_are_what_three_writers_say() {
        let (boards, senders) = Boards::new();
        let mut wishes = boards.wishes();
        let places = [
            place("web", "z:1"),
            place("web", "y:1"),
            place("api", "z:1"),
        ];
        senders.places.send_replace(Places::from(places));
        wishes.changed().await;
        assert!(wishes.read(None).is_empty(), "no checks are set up");
        for service in ["web", "api"] {
            let report = ServiceReport::new(Duration::from_secs(1));
            boards.services.entry(service).post(report);
        }
        wishes.changed().await;
        let wants = wishes.read(None);
        assert_eq!(wants.len(), 3);
        assert!(
            wants
                .values()
                .all(|w| w.verdict == Verdict::Unknown && w.hold.is_none())
        );
        assert_eq!(wishes.read(Some("z:1")).len(), 2);

        boards.services.entry("web").change(|report| {
            report.verdict = Verdict::Up;
            true
        });
        wishes.changed().await;
        let held = Held {
            by: Hold::Drain,
            since: 0.0,
        };
        senders
            .holds
            .send_replace(Holds::from([("api".to_owned(), held)]));
        wishes.changed().await;
        for (key, wanted) in wishes.read(None) {
            let web = key.service == "web";
            assert_eq!(wanted.verdict == Verdict::Up, web, "{key:?}");
            assert_eq!(wanted.hold == Some(Hold::Drain), !web, "{key:?}");
        }
        // Without news nobody is woken, and the value is there all the same.
        boards.services.entry("web").change(|report| {
            report.verdict = Verdict::Down;
            false
        });
        let woken = tokio::time::timeout(Duration::from_millis(10), wishes.changed());
        assert!(woken.await.is_err());
        assert!(
            wishes
                .read(None)
                .values()
                .any(|w| w.verdict == Verdict::Down)
        );
    }
}
