//! What was created and did not settle anything is not created again at once.
//!
//! Pure. Whatever is believed about who owns a node, and whoever deletes it: the same creation comes again after a pause
//! that doubles each time, so that a mistake costs an error in `/status` and never a storm of nodes. A withdrawal in
//! between, or another session, makes it a new one.

use std::collections::BTreeMap;
use std::time::Duration;

use tokio::time::Instant;

use super::super::plan::{Change, Create};

/// The pause after the first of a row of equal creations, and the longest.
const PAUSES: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(30));
/// Equal creations further apart are not of one row.
const ROW: Duration = Duration::from_secs(60);

/// The last creation of each service.
#[derive(Debug, Default)]
pub(super) struct Brake(BTreeMap<String, Row>);

/// Equal creations, each less than [`ROW`] after the one before.
#[derive(Debug)]
struct Row {
    create: Create,
    last: Instant,
    times: u32,
}

impl Row {
    fn not_before(&self) -> Instant {
        let doubled = 2_u32.saturating_pow(self.times.saturating_sub(1));
        self.last + PAUSES.0.saturating_mul(doubled).min(PAUSES.1)
    }

    fn goes_on(&self, now: Instant) -> bool {
        now < self.last + ROW
    }
}

impl Brake {
    /// This took place, or may have.
    pub(super) fn wrote(&mut self, change: &Change, now: Instant) {
        let Some(service) = &change.service else {
            return;
        };
        let Some(create) = &change.create else {
            self.0.remove(service);
            return;
        };
        let row = self.0.get_mut(service);
        match row.filter(|row| row.create == *create && row.goes_on(now)) {
            Some(row) => {
                row.last = now;
                row.times = row.times.saturating_add(1);
            }
            None => {
                let row = Row {
                    create: create.clone(),
                    last: now,
                    times: 1,
                };
                self.0.insert(service.clone(), row);
            }
        }
    }

    /// Until when it has to wait; `None` = not at all.
    pub(super) fn holds(&self, change: &Change, now: Instant) -> Option<Instant> {
        let row = self.0.get(change.service.as_ref()?)?;
        let same = change.create.as_ref() == Some(&row.create);
        let until = row.not_before();
        (same && row.goes_on(now) && now < until).then_some(until)
    }

    /// What an operator reads about a service whose creations do not last.
    pub(super) fn words(&self, service: &str) -> Option<String> {
        let row = self.0.get(service).filter(|row| row.times > 1)?;
        Some(format!(
            "its node was created {} times in a row and each time was not there as ours afterwards: somebody deletes it, or \
             the servers say that it is another session's; it is created again with pauses of up to {:?}",
            row.times, PAUSES.1
        ))
    }

    /// Forgets the services that are not wanted any more.
    pub(super) fn retain(&mut self, is_wanted: impl Fn(&String) -> bool) {
        self.0.retain(|service, _| is_wanted(service));
    }

    /// Another session: what the one before has created is gone, or goes.
    pub(super) fn release(&mut self) {
        self.0.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::NodeType;

    fn change(service: &str, payload: &str) -> Change {
        Change {
            service: Some(service.to_owned()),
            create: (!payload.is_empty()).then(|| Create {
                prefix: "i_".to_owned(),
                node_type: NodeType::EphemeralSequential,
                payload: payload.into(),
            }),
            delete: Vec::new(),
            withdraw: Vec::new(),
            displaces: None,
            pressing: false,
        }
    }

    #[test]
    fn equal_creations_come_ever_more_rarely() {
        let (mut brake, begin) = (Brake::default(), Instant::now());
        let (mut now, mut in_a_minute, mut in_an_hour) = (begin, 0, 0);
        while now < begin + Duration::from_secs(3600) {
            let again = change("a", "1");
            if brake.holds(&again, now).is_none() {
                brake.wrote(&again, now);
                in_an_hour += 1;
                in_a_minute += u32::from(now < begin + ROW);
            }
            now += Duration::from_millis(10);
        }
        assert_eq!((in_a_minute, in_an_hour), (10, 128));
        assert!(brake.words("a").unwrap().contains("128 times"));
    }

    #[test]
    fn what_is_not_the_same_creation_waits_for_nothing() {
        let (mut brake, now) = (Brake::default(), Instant::now());
        brake.wrote(&change("a", "1"), now);
        assert!(brake.holds(&change("a", "1"), now).is_some());
        assert!(brake.words("a").is_none(), "once is no row");
        for other in [change("a", "2"), change("b", "1"), change("a", "")] {
            assert_eq!(brake.holds(&other, now), None);
        }
        // Withdrawn in between, as by an app that goes up and down.
        brake.wrote(&change("a", ""), now);
        assert_eq!(brake.holds(&change("a", "1"), now), None);
        brake.wrote(&change("a", "1"), now);
        assert_eq!(brake.holds(&change("a", "1"), now + ROW), None);
        brake.release();
        assert_eq!(brake.holds(&change("a", "1"), now), None);
    }
}
