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

/// All services' wishes, by [`Wanted::key`].
pub(crate) type Wants = BTreeMap<String, Wanted>;

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

/// What a service wants in ZooKeeper at one of its places; the registrar's input.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Wanted {
    /// Its name.
    pub(crate) service: String,
    /// The node, should there be one.
    pub(crate) registration: Registration,
    /// What the checks say.
    pub(crate) verdict: Verdict,
    /// Whether an operator took it out.
    pub(crate) hold: Option<Hold>,
    /// Begin of the round behind the verdict; before the first one, when the service was set up.
    pub(crate) as_of: Instant,
    /// How long a result is fresh.
    pub(crate) window: Duration,
}

impl Wanted {
    /// Its key among all wishes: one for each service and place. Those of a service stand together.
    #[must_use]
    pub(crate) fn key(&self) -> String {
        let Registration { hosts, path, .. } = &self.registration;
        format!("{}{hosts}{path}", Self::keys_of(&self.service))
    }

    /// How all keys of a service begin, and no other's.
    #[must_use]
    pub(crate) fn keys_of(service: &str) -> String {
        // No name on one line holds it.
        format!("{}\n", service.replace('\n', " "))
    }

    /// The name in the key of a service.
    #[must_use]
    pub(crate) fn service_of(key: &str) -> &str {
        key.split_once('\n').map_or(key, |(service, _)| service)
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
        matches!(self.verdict, Verdict::Up | Verdict::Unproven)
    }

    /// What to do at `now`. `stale_since` is when its reader first saw it without a fresh result, `None` while it is
    /// fresh: after a stop of the process a fresh result must get its chance before a withdrawal.
    #[must_use]
    pub(crate) fn stance(&self, now: Instant, stale_since: Option<Instant>) -> Stance {
        let settled = matches!(self.verdict, Verdict::Left | Verdict::Leaving);
        match self.hold.filter(|_| !settled) {
            Some(hold @ (Hold::Drain | Hold::Disable)) => Stance::Absent(Reason::Held(hold)),
            Some(Hold::Unknown) => match self.by_checks(now, stale_since) {
                Stance::Present => Stance::Keep,
                other => other,
            },
            None => self.by_checks(now, stale_since),
        }
    }

    fn by_checks(&self, now: Instant, stale_since: Option<Instant>) -> Stance {
        match (self.verdict, stale_since) {
            (Verdict::Left, _) => Stance::Leave,
            (Verdict::Leaving, _) => Stance::Absent(Reason::Leaving),
            (Verdict::Down, _) => Stance::Absent(Reason::Unhealthy),
            (Verdict::Held, _) => Stance::Leave,
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
        for (verdict, fresh, just_stale, long_stale) in [
            (Verdict::Unknown, Stance::Leave, Stance::Leave, stale),
            (Verdict::Up, Stance::Present, Stance::Leave, stale),
            (Verdict::Unproven, Stance::Keep, Stance::Leave, stale),
            (Verdict::Down, unhealthy, unhealthy, unhealthy),
            (Verdict::Held, Stance::Leave, Stance::Leave, Stance::Leave),
            (Verdict::Leaving, leaving, leaving, leaving),
            (Verdict::Left, Stance::Leave, Stance::Leave, Stance::Leave),
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
            for hold in [Hold::Drain, Hold::Disable] {
                let held = Wanted {
                    hold: Some(hold),
                    ..wanted.clone()
                };
                let expected = match verdict {
                    Verdict::Left => Stance::Leave,
                    Verdict::Leaving => leaving,
                    _ => Stance::Absent(Reason::Held(hold)),
                };
                assert_eq!(held.stance(at(3), None), expected, "{verdict:?} {hold:?}");
            }
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
