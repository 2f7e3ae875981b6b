//! What is wanted in a registry: the words between checks, operators, the life of the program and the registrars. Pure.
//!
//! A registrar never knows of checks, nor a check of registries: between them is [`Wanted`], the latest value, never an
//! event. A registrar asks [`Wanted::stance`] each time it plans.

mod hold;
mod registration;

use std::collections::BTreeMap;
use std::time::Duration;

use tokio::time::Instant;

pub(crate) use self::hold::{Held, Hold, Holds, disables};
pub(crate) use self::registration::{Registration, claims};
use crate::health::Verdict;

/// All services' wishes.
pub(crate) type Wants = BTreeMap<PlaceKey, Wanted>;

/// What is set up, by the program alone.
pub(crate) type Places = BTreeMap<PlaceKey, Placed>;

/// What is set up at a place.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Placed {
    pub(crate) registration: Registration,
    pub(crate) intent: Intent,
}

/// A service at one of its places. Those of a service follow each other.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct PlaceKey {
    pub(crate) service: String,
    /// The ensemble's connect string, without chroot.
    pub(crate) hosts: String,
    /// Parent of the node, with chroot.
    pub(crate) path: String,
}

/// What the life of the program makes of a wish.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Intent {
    /// As the checks say, and the operator.
    Follow,
    /// The service has moved: stays as it is until its successor elsewhere is registered.
    Moving,
    /// To be withdrawn whatever the checks say: nerve is stopping.
    Withdraw,
    /// Stays as it is: nerve ends, and its successor will swap the node.
    HandOver,
}

/// Why a service is not to be registered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Reason {
    /// A check is down.
    Unhealthy,
    /// No fresh result has come for too long.
    Stale,
    /// nerve is stopping.
    Leaving,
    /// An operator took it out.
    Held(Hold),
}

impl std::fmt::Display for Reason {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Reason::Unhealthy => "unhealthy",
            Reason::Stale => "no fresh check result",
            Reason::Leaving => "nerve is stopping",
            Reason::Held(Hold::Drain) => "drained",
            Reason::Held(Hold::Disable) => "disabled",
            Reason::Held(Hold::Unknown) => "not known whether drained or disabled",
        })
    }
}

/// What is to be done about a registration now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Stance {
    /// Exactly one node of ours.
    Present,
    /// One node of ours if there is one already, made right if it is wrong; otherwise none.
    Keep,
    /// Hands off: nothing is created, swapped or deleted.
    Leave,
    /// No node of ours.
    Absent(Reason),
}

impl std::fmt::Display for Stance {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Stance::Present => f.write_str("present"),
            Stance::Keep => f.write_str("keep"),
            Stance::Leave => f.write_str("leave"),
            Stance::Absent(reason) => write!(f, "absent: {reason}"),
        }
    }
}

/// What a service wants in ZooKeeper at one of its places; the registrar's input.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Wanted {
    /// Its name.
    pub(crate) service: String,
    /// The node, should there be one.
    pub(crate) registration: Registration,
    /// What the life of the program makes of it.
    pub(crate) intent: Intent,
    /// What the checks say.
    pub(crate) verdict: Verdict,
    /// Whether an operator took it out.
    pub(crate) hold: Option<Hold>,
    /// Begin of the round behind the verdict; before the first one, when the service was set up.
    pub(crate) as_of: Instant,
    /// How long a result is fresh.
    pub(crate) window: Duration,
}

impl PlaceKey {
    pub(crate) fn new(service: &str, registration: &Registration) -> Self {
        Self {
            service: service.to_owned(),
            hosts: registration.hosts.clone(),
            path: registration.path.clone(),
        }
    }
}

impl Wanted {
    pub(crate) fn key(&self) -> PlaceKey {
        PlaceKey::new(&self.service, &self.registration)
    }

    /// Whether the verdict rests on a fresh result: not too old, and not from before `not_before`, when the process was
    /// last seen to have stood still.
    #[must_use]
    pub(crate) fn is_fresh(&self, now: Instant, not_before: Instant) -> bool {
        let young = now.saturating_duration_since(self.as_of) <= self.window;
        self.verdict != Verdict::Unknown && young && self.as_of >= not_before
    }

    /// Whether a fresh result would keep, or make, something registered.
    pub(crate) fn awaits_a_result(&self) -> bool {
        self.intent == Intent::Follow && matches!(self.verdict, Verdict::Up | Verdict::Unproven)
    }

    /// What to do at `now`. `stale_since` is when its reader first saw it without a fresh result, `None` while it is
    /// fresh: after a stop of the process a fresh result must get its chance before a withdrawal.
    #[must_use]
    pub(crate) fn stance(&self, now: Instant, stale_since: Option<Instant>) -> Stance {
        match (self.intent, self.hold) {
            (Intent::HandOver, _) => Stance::Leave,
            (Intent::Withdraw, _) => Stance::Absent(Reason::Leaving),
            (_, Some(hold @ (Hold::Drain | Hold::Disable))) => Stance::Absent(Reason::Held(hold)),
            (Intent::Moving, _) => Stance::Leave,
            (Intent::Follow, hold) => match self.by_checks(now, stale_since) {
                Stance::Present if hold == Some(Hold::Unknown) => Stance::Keep,
                stance => stance,
            },
        }
    }

    fn by_checks(&self, now: Instant, stale_since: Option<Instant>) -> Stance {
        match (self.verdict, stale_since) {
            (Verdict::Down, _) => Stance::Absent(Reason::Unhealthy),
            (Verdict::Up, None) => Stance::Present,
            (Verdict::Unproven, None) => Stance::Keep,
            (Verdict::Unknown, None) => Stance::Leave,
            (Verdict::Up | Verdict::Unproven | Verdict::Unknown, Some(since)) => {
                let given_up = now.saturating_duration_since(since) > self.window;
                if given_up {
                    Stance::Absent(Reason::Stale)
                } else {
                    Stance::Leave
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::NodeType;

    fn wanted(verdict: Verdict, as_of: Instant) -> Wanted {
        let registration = Registration {
            hosts: String::new(),
            path: String::new(),
            instance_id: String::new(),
            prefix: String::new(),
            node_type: NodeType::Ephemeral,
            payload: Vec::new(),
        };
        Wanted {
            service: "web".to_owned(),
            registration,
            intent: Intent::Follow,
            verdict,
            hold: None,
            as_of,
            window: Duration::from_secs(3),
        }
    }

    /// Every verdict: fresh, just stale, and stale for longer than its window.
    #[test]
    fn stance_of_every_verdict_at_every_age() {
        let begin = Instant::now();
        let at = |seconds| begin + Duration::from_secs(seconds);
        let (stale, unhealthy) = (
            Stance::Absent(Reason::Stale),
            Stance::Absent(Reason::Unhealthy),
        );
        let leaving = Stance::Absent(Reason::Leaving);
        let drained = Stance::Absent(Reason::Held(Hold::Drain));
        for (verdict, fresh, just_stale, long_stale) in [
            (Verdict::Unknown, Stance::Leave, Stance::Leave, stale),
            (Verdict::Up, Stance::Present, Stance::Leave, stale),
            (Verdict::Unproven, Stance::Keep, Stance::Leave, stale),
            (Verdict::Down, unhealthy, unhealthy, unhealthy),
        ] {
            let wanted = wanted(verdict, begin);
            assert_eq!(wanted.stance(at(3), None), fresh, "{verdict:?} fresh");
            assert_eq!(
                wanted.stance(at(103), Some(at(100))),
                just_stale,
                "{verdict:?} stale"
            );
            assert_eq!(
                wanted.stance(at(104), Some(at(100))),
                long_stale,
                "{verdict:?} stale for long"
            );
            // What the program and the operator make of it, whatever its age.
            for (intent, hold, expected) in [
                (Intent::Follow, Some(Hold::Drain), drained),
                (Intent::Moving, Some(Hold::Drain), drained),
                (Intent::Moving, Some(Hold::Unknown), Stance::Leave),
                (Intent::Moving, None, Stance::Leave),
                (Intent::Withdraw, Some(Hold::Drain), leaving),
                (Intent::Withdraw, None, leaving),
                (Intent::HandOver, Some(Hold::Drain), Stance::Leave),
                (Intent::HandOver, None, Stance::Leave),
            ] {
                let wanted = Wanted {
                    intent,
                    hold,
                    ..wanted.clone()
                };
                for stale in [None, Some(at(100)), Some(begin)] {
                    let stance = wanted.stance(at(103), stale);
                    assert_eq!(stance, expected, "{verdict:?} {intent:?} {hold:?}");
                }
            }
            let doubted = Wanted {
                hold: Some(Hold::Unknown),
                ..wanted.clone()
            };
            let kept = match fresh {
                Stance::Present => Stance::Keep,
                other => other,
            };
            assert_eq!(doubted.stance(at(3), None), kept, "{verdict:?}");
        }
    }

    #[test]
    fn fresh_is_young_and_from_after_the_last_standstill() {
        let begin = Instant::now();
        let at = |seconds| begin + Duration::from_secs(seconds);
        let up = wanted(Verdict::Up, at(10));
        assert!(up.is_fresh(at(13), at(10)));
        assert!(!up.is_fresh(at(14), at(10)));
        assert!(!up.is_fresh(at(12), at(11)));
        assert!(!wanted(Verdict::Unknown, at(10)).is_fresh(at(10), begin));
    }
}
