//! Which requests take connections down. Pure.
//!
//! A request that makes the server, or a device between, close the connection (an answer above a frame limit, a defect)
//! would do so again after each reconnection, and stop everything else that shares the client. So:
//!
//! | a request was | then it is |
//! |---|---|
//! | in flight when the connection was lost | *struck*: asked for after and apart from the rest, in groups of half the size |
//! | in flight at a second loss without an answer in between | *suspected*: not sent on the shared connection any more; tested on a connection of its own, by halves |
//! | alone in flight when a connection of its own was lost, twice | *guilty*: left out with the reason, tested again after 30 s, later up to 10 min |
//! | answered, anywhere, whatever the answer | trusted again |
//!
//! A test only shows that the answer arrives: what is used is then read on the shared connection, whose order of events
//! and answers the copy depends on. A connection lost by chance twice in a row makes innocents suspected, which costs
//! them one test each. Not being able to connect says nothing about any request.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::time::Duration;

use tokio::time::Instant;

/// Losses that make a request suspected.
const SUSPECTED: u32 = 2;
/// Losses of a connection of its own that prove it.
const GUILTY: u32 = 2;
/// First pause before a guilty request is tested again; it doubles with each further loss.
const RETRY: Duration = Duration::from_secs(30);
/// Longest such pause.
const LONGEST_RETRY: Duration = Duration::from_secs(600);
/// Pause after a test that could not be made; and the least one between tests of a child that keeps changing.
const PAUSE: Duration = Duration::from_secs(5);

/// Something to ask for.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Ask {
    /// The recursive watch of the path.
    Watch,
    /// The list of its children.
    List,
    /// The data of one child.
    Child(String),
}

impl fmt::Display for Ask {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Watch => f.write_str("the watch of the path"),
            Self::List => f.write_str("the list of its children"),
            Self::Child(name) => write!(f, "the data of `{name}`"),
        }
    }
}

/// What a test on a connection of its own has shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// An answer came, be it an error.
    Answered,
    /// The connection was lost, or the answer could not be understood.
    Lost,
    /// There was no connection to ask on.
    Unreachable,
}

#[derive(Debug, Clone)]
struct Suspect {
    /// Connections lost while it was in flight, since its last answer.
    losses: u32,
    /// Of these, connections of its own with nothing else in flight.
    alone: u32,
    /// With how many others it is asked for at most, itself included.
    group: usize,
    /// When it is to be tested.
    due: Instant,
    /// When it was tested last.
    tested: Option<Instant>,
}

/// The requests of one source that were in flight when a connection was lost.
#[derive(Debug, Clone, Default)]
pub struct Suspects {
    known: BTreeMap<Ask, Suspect>,
    in_flight: Vec<Ask>,
}

/// Children to be read, by how it is safe to ask for them.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Sorted {
    /// As many at once as one likes.
    pub plain: Vec<String>,
    /// In these groups, after the rest.
    pub apart: Vec<Vec<String>>,
    /// Not at all, and why.
    pub never: Vec<(String, String)>,
}

impl Suspects {
    /// These are asked for now, on the shared connection.
    pub fn asked(&mut self, asks: Vec<Ask>) {
        self.in_flight = asks;
    }

    /// What was asked for is answered.
    pub fn answered(&mut self) {
        for ask in std::mem::take(&mut self.in_flight) {
            self.known.remove(&ask);
        }
    }

    /// The shared connection was lost with what was in flight on it.
    pub fn connection_lost(&mut self, now: Instant) {
        let lost = std::mem::take(&mut self.in_flight);
        self.strike(lost, now, false);
    }

    fn strike(&mut self, lost: Vec<Ask>, now: Instant, own: bool) {
        let size = lost.len();
        for ask in lost {
            let suspect = self.known.entry(ask).or_insert(Suspect {
                losses: 0,
                alone: 0,
                group: size,
                due: now,
                tested: None,
            });
            suspect.losses += 1;
            suspect.group = (size / 2).max(1);
            suspect.due = now;
            if own {
                suspect.tested = Some(now);
                suspect.alone += u32::from(size == 1);
                if let Some(more) = suspect.alone.checked_sub(GUILTY) {
                    let pause = RETRY.saturating_mul(2_u32.saturating_pow(more));
                    suspect.due = now + pause.min(LONGEST_RETRY);
                }
            }
        }
    }

    /// Whether it must not be sent on the shared connection.
    #[must_use]
    pub fn is_suspected(&self, ask: &Ask) -> bool {
        self.known.get(ask).is_some_and(|s| s.losses >= SUSPECTED)
    }

    /// Why it is not asked for on the shared connection, in words.
    #[must_use]
    pub fn reason(&self, ask: &Ask) -> Option<String> {
        let suspect = self.known.get(ask).filter(|s| s.losses >= SUSPECTED)?;
        Some(if suspect.alone >= GUILTY {
            format!(
                "{ask} takes each connection down that asks for it, {} times alone on one of its own: its answer may be \
                 too large for something between, or for `jute.maxbuffer`; asked for again later",
                suspect.alone
            )
        } else {
            format!(
                "{ask} was being asked for when {} connections in a row were lost: tested on one of its own",
                suspect.losses
            )
        })
    }

    /// Sorts names that are to be read.
    #[must_use]
    pub fn sort(&self, names: Vec<String>) -> Sorted {
        let mut sorted = Sorted::default();
        let mut struck: BTreeMap<usize, Vec<String>> = BTreeMap::new();
        if self.known.is_empty() {
            sorted.plain = names;
            return sorted;
        }
        for name in names {
            let ask = Ask::Child(name);
            let reason = self.reason(&ask);
            let group = self.known.get(&ask).map(|suspect| suspect.group);
            let Ask::Child(name) = ask else { continue };
            match (reason, group) {
                (Some(reason), _) => sorted.never.push((name, reason)),
                (None, Some(group)) => struck.entry(group).or_default().push(name),
                (None, None) => sorted.plain.push(name),
            }
        }
        for (group, names) in struck {
            sorted.apart.extend(names.chunks(group).map(<[_]>::to_vec));
        }
        sorted
    }

    /// When the next test is due, if any.
    #[must_use]
    pub fn due(&self) -> Option<Instant> {
        self.suspected().map(|(_, suspect)| suspect.due).min()
    }

    /// What to test now, together: the largest group that is due. The path's own requests go alone and first.
    #[must_use]
    pub fn test(&self, now: Instant) -> Vec<Ask> {
        let due = || self.suspected().filter(|(_, s)| s.due <= now);
        let Some((first, suspect)) = due().min_by_key(|(ask, s)| {
            (
                matches!(ask, Ask::Child(_)),
                std::cmp::Reverse(s.group),
                *ask,
            )
        }) else {
            return Vec::new();
        };
        if !matches!(first, Ask::Child(_)) {
            return vec![first.clone()];
        }
        let alike =
            due().filter(|(ask, s)| matches!(ask, Ask::Child(_)) && s.group == suspect.group);
        let alike = alike.map(|(ask, _)| ask.clone());
        alike.take(suspect.group).collect()
    }

    /// Takes the outcome of a test. Returns the children that are trusted again.
    pub fn tested(&mut self, asks: Vec<Ask>, outcome: Outcome, now: Instant) -> Vec<String> {
        match outcome {
            Outcome::Answered => {
                let mut trusted = Vec::new();
                for ask in asks {
                    self.known.remove(&ask);
                    if let Ask::Child(name) = ask {
                        trusted.push(name);
                    }
                }
                return trusted;
            }
            Outcome::Lost => self.strike(asks, now, true),
            Outcome::Unreachable => {
                for ask in asks {
                    if let Some(suspect) = self.known.get_mut(&ask) {
                        suspect.due = now + PAUSE;
                    }
                }
            }
        }
        Vec::new()
    }

    /// How many requests are proven to take connections down.
    #[must_use]
    pub fn guilty(&self) -> usize {
        self.known.values().filter(|s| s.alone >= GUILTY).count()
    }

    /// The child has changed, so its answer may be another one now.
    pub fn changed(&mut self, name: &str, now: Instant) {
        if self.known.is_empty() {
            return;
        }
        if let Some(suspect) = self.known.get_mut(&Ask::Child(name.to_owned())) {
            let soon = suspect.tested.map_or(now, |at| now.max(at + PAUSE));
            suspect.due = suspect.due.min(soon);
        }
    }

    /// Only these children exist.
    pub fn retain(&mut self, names: &BTreeSet<&str>) {
        self.known.retain(|ask, _| match ask {
            Ask::Child(name) => names.contains(name.as_str()),
            Ask::Watch | Ask::List => true,
        });
    }

    fn suspected(&self) -> impl Iterator<Item = (&Ask, &Suspect)> {
        let suspected = |(_, suspect): &(&Ask, &Suspect)| suspect.losses >= SUSPECTED;
        self.known.iter().filter(suspected)
    }
}

#[cfg(test)]
mod tests;
