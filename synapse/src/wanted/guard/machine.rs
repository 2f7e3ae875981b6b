//! The guard's state and its rules.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use super::{Change, Gone, Held, NO_EVIDENCE, WhenEmpty};
use crate::config::guard::{Mode, Settings, Unannounced};
use crate::model::member::{Address, Evidence, Member, Why};
use crate::model::source::is_sequential;

mod saving;

/// What the guard asks about the world.
pub trait Facts {
    /// haproxy's check of a lost address.
    fn evidence(&self, address: &Address, held: &Held) -> Evidence;
    /// Whether another service has this address registered now.
    fn elsewhere(&self, address: &Address) -> bool;
}

/// A set that stands for less than this is on the way to another one.
const MOMENT: Duration = Duration::from_secs(1);

/// What the last set is worth as the baseline of the next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Base {
    /// There is none: the first set with a member is taken as it is.
    Nothing,
    /// A remembered set too old to be compared with; against an empty one it still stands.
    Old,
    /// It counts.
    Good,
}

/// An unannounced loss of the window.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Loss {
    member: Member,
    at: Duration,
    shared: bool,
    /// Whoever registered it announces nothing: it counts as withdrawn, unless the whole set goes.
    believed: bool,
}

/// The guard of one source for one service.
#[derive(Debug, Clone, PartialEq)]
pub struct Guard {
    settings: Settings,
    when_empty: WhenEmpty,
    base: Base,
    /// Addresses registered at the last step.
    size: usize,
    losses: BTreeMap<Address, Loss>,
    added: BTreeMap<Address, Duration>,
    /// Sizes in the window, with the removals that were announced or believed until then: those do not count as losses.
    sizes: VecDeque<(Duration, usize, usize)>,
    conceded: usize,
    held: BTreeMap<Address, Held>,
    /// As large as before the loss: the holds end.
    whole: usize,
    /// Times it began to hold.
    trips: u64,
    /// Rises with every change of what is held.
    revision: u64,
}

impl Guard {
    /// A guard whose registry begins with `size` remembered addresses; `old`: remembered since before this boot, or for
    /// too long to be compared with.
    #[must_use]
    pub fn new(settings: Settings, when_empty: WhenEmpty, size: usize, old: bool) -> Self {
        let base = match (size, old) {
            (0, _) => Base::Nothing,
            (_, true) => Base::Old,
            (_, false) => Base::Good,
        };
        Self {
            settings,
            when_empty,
            base,
            size,
            losses: BTreeMap::new(),
            added: BTreeMap::new(),
            sizes: VecDeque::new(),
            conceded: 0,
            held: BTreeMap::new(),
            whole: 0,
            trips: 0,
            revision: 0,
        }
    }

    /// Takes other settings. Changed ones begin a new window; what is held stays for as long as the new `hold` allows.
    pub fn configure(&mut self, settings: Settings, when_empty: WhenEmpty) {
        if self.settings == settings && self.when_empty == when_empty {
            return;
        }
        if settings.mode != self.settings.mode {
            self.let_all_go();
        }
        for held in self.held.values_mut() {
            let longest = held.judged_from + settings.hold;
            held.until = match held.until {
                None if when_empty == WhenEmpty::Keep => None,
                until => Some(until.map_or(longest, |until| until.min(longest))),
            };
        }
        (self.settings, self.when_empty) = (settings, when_empty);
        self.losses.clear();
        self.added.clear();
        self.sizes.clear();
    }

    /// Ends every hold now. Returns how many there were.
    pub fn release(&mut self) -> usize {
        let held = self.held.len();
        self.losses.clear();
        self.let_all_go();
        held
    }

    fn let_all_go(&mut self) {
        if !self.held.is_empty() {
            self.held.clear();
            self.revision += 1;
        }
        self.whole = 0;
    }

    /// One step: what changed in the registry since the last one (`None`: it has not been asked), and the time.
    pub fn step(&mut self, change: Option<Change>, facts: &dyn Facts, now: Duration) {
        if self.settings.mode == Mode::Off {
            if let Some(change) = change {
                self.size = change.size;
                if self.size > 0 {
                    self.base = Base::Good;
                }
            }
            return;
        }
        if let Some(change) = change {
            self.take(change, facts, now);
        }
        self.end_holds(facts, now);
    }

    fn take(&mut self, change: Change, facts: &dyn Facts, now: Duration) {
        let before = std::mem::replace(&mut self.size, change.size);
        match self.base {
            Base::Good => {}
            Base::Nothing | Base::Old if change.size > 0 => {
                // The first word of the registry is taken as it is.
                self.base = Base::Good;
                self.losses.clear();
                self.let_all_go();
                self.sizes.clear();
                self.sizes.push_back((now, change.size, self.conceded));
                return;
            }
            Base::Nothing => return,
            Base::Old => self.base = Base::Good,
        }
        if self.sizes.is_empty() {
            // What was there before the first change of the window counts.
            let remembered = before + self.losses.len();
            let conceded = self.conceded.saturating_sub(self.believed());
            self.sizes.push_back((now, remembered, conceded));
        }
        let mut withdrawn = Vec::new();
        let mut lost = false;
        for Gone {
            address,
            member,
            announced,
            announces,
        } in change.gone
        {
            self.added.remove(&address);
            let believed = !announces && self.settings.unannounced == Unannounced::Believe;
            if announced || believed {
                self.conceded += 1;
                self.whole = self.whole.saturating_sub(1);
            }
            if announced {
                withdrawn.push((address, member));
            } else {
                lost = true;
                let shared = facts.elsewhere(&address);
                let loss = Loss {
                    member,
                    at: now,
                    shared,
                    believed,
                };
                self.losses.insert(address, loss);
            }
        }
        self.arrived(change.new, now);
        self.prune(now);
        self.sizes.push_back((now, self.size, self.conceded));
        if self.size == 0 && (lost || !withdrawn.is_empty()) {
            self.emptied(lost, withdrawn, facts, now);
        } else if self.is_whole() {
            self.made_good();
        } else if lost && self.too_many(now) {
            self.trip(Why::Share, Some(now + self.settings.hold), now);
        }
    }

    fn arrived(&mut self, new: Vec<(Address, Arc<str>)>, now: Duration) {
        // A fixed name that registers another address: its owner has left the former one.
        let fixed: BTreeSet<Arc<str>> = new
            .iter()
            .filter(|(_, znode)| !is_sequential(znode))
            .map(|(_, znode)| Arc::clone(znode))
            .collect();
        for (address, _) in new {
            let held = self.held.remove(&address).is_some();
            self.revision += u64::from(held);
            if self.losses.remove(&address).is_none() && !held {
                self.added.insert(address, now);
            }
        }
        if !fixed.is_empty() {
            self.losses.retain(|_, l| !fixed.contains(&l.member.znode));
            self.leave(|_, held| fixed.contains(&held.member.znode));
        }
    }

    /// Forgets what is older than the window; of the sizes one older stays: it is what the window began with.
    fn prune(&mut self, now: Duration) {
        let from = now.saturating_sub(self.settings.window);
        self.losses.retain(|_, loss| loss.at >= from);
        self.added.retain(|_, at| *at >= from);
        while self.sizes.get(1).is_some_and(|(at, ..)| *at < from) {
            self.sizes.pop_front();
        }
    }

    /// Every loss has an addition, and the set is as large as it has been in the window, apart from moments in which some were
    /// there twice.
    fn is_whole(&self) -> bool {
        let next = self.sizes.iter().skip(1);
        let stood = self.sizes.iter().zip(next).enumerate();
        let stood = stood.filter(|(n, ((at, ..), (next, ..)))| *n == 0 || *next >= *at + MOMENT);
        let largest = stood.map(|(_, (then, _))| self.without_withdrawn(then));
        self.held.is_empty()
            && self.counted() <= self.added.len()
            && self.size >= largest.max().unwrap_or(0)
    }

    /// What was lost until now is replaced, and no later loss brings it back. The additions that made up for it make up for
    /// nothing else.
    fn made_good(&mut self) {
        let mut replaced = self.counted();
        // What is left of the additions stands for losses that were believed, the oldest first.
        let mut believed: Vec<Duration> = self
            .losses
            .values()
            .filter(|loss| loss.believed)
            .map(|loss| loss.at)
            .collect();
        believed.sort_unstable();
        believed.truncate(self.added.len() - replaced);
        replaced += believed.len();
        let until = believed.last().copied();
        self.losses
            .retain(|_, loss| loss.believed && until.is_none_or(|until| loss.at > until));
        self.added.retain(|_, _| {
            let used = replaced > 0;
            replaced -= usize::from(used);
            !used
        });
    }

    /// Losses that count.
    fn counted(&self) -> usize {
        self.losses.len() - self.believed()
    }

    fn believed(&self) -> usize {
        self.losses.values().filter(|loss| loss.believed).count()
    }

    /// The largest set of the window, without what has been withdrawn since or was believed gone.
    fn largest(&self) -> usize {
        let sizes = self.sizes.iter().map(|then| self.without_withdrawn(then));
        sizes.max().unwrap_or(self.size)
    }

    fn without_withdrawn(&self, (_, size, conceded): &(Duration, usize, usize)) -> usize {
        size.saturating_sub(self.conceded.saturating_sub(*conceded))
    }

    fn too_many(&self, now: Duration) -> bool {
        let from = now.saturating_sub(self.settings.window);
        let lately = |held: &&Held| held.since >= from && held.why != Why::Last;
        let lost = self.counted() + self.held.values().filter(lately).count();
        let unmatched = lost.saturating_sub(self.added.len());
        #[expect(
            clippy::cast_precision_loss,
            reason = "sizes of sets are far below 2^52"
        )]
        let least = (1.0 - self.settings.max_loss) * self.largest() as f64;
        #[expect(
            clippy::cast_precision_loss,
            reason = "sizes of sets are far below 2^52"
        )]
        let size = self.size as f64;
        unmatched > self.settings.min_loss && size < least
    }

    /// The set has become empty.
    fn emptied(
        &mut self,
        lost: bool,
        withdrawn: Vec<(Address, Member)>,
        facts: &dyn Facts,
        now: Duration,
    ) {
        let end = Some(now + self.settings.hold);
        match (self.when_empty, lost) {
            (WhenEmpty::Keep, true) => {
                for held in self.held.values_mut().filter(|h| h.why != Why::Last) {
                    (held.why, held.until) = (Why::Empty, None);
                }
                self.trip(Why::Empty, None, now);
            }
            (WhenEmpty::Empty, true) => self.trip(Why::Empty, end, now),
            (WhenEmpty::Keep, false) => {
                // What else vanished in the window was believed, and stays so.
                self.losses.clear();
                for (address, member) in withdrawn {
                    let shared = facts.elsewhere(&address);
                    let loss = Loss {
                        member,
                        at: now,
                        shared,
                        believed: false,
                    };
                    self.losses.insert(address, loss);
                }
                self.trip(Why::Last, end, now);
            }
            (WhenEmpty::Defaults, true) if self.too_many(now) => self.trip(Why::Share, end, now),
            (WhenEmpty::Empty | WhenEmpty::Defaults, _) => {}
        }
    }

    /// Holds every loss of the window that counts; when nothing is left, every one.
    fn trip(&mut self, why: Why, until: Option<Duration>, now: Duration) {
        if self.held.is_empty() {
            self.trips += 1;
        }
        let (mut losses, believed) = std::mem::take(&mut self.losses)
            .into_iter()
            .partition::<BTreeMap<_, _>, _>(|(_, loss)| !loss.believed);
        if why == Why::Empty {
            self.conceded = self.conceded.saturating_sub(believed.len());
            losses.extend(believed);
        } else {
            self.losses = believed;
        }
        for (address, loss) in losses {
            let held = Held {
                member: loss.member,
                since: loss.at,
                judged_from: now,
                until,
                why,
                shared: loss.shared,
            };
            self.held.insert(address, held);
        }
        // Of a larger set some were there twice, or have been given up.
        let all = self.size + self.held.len();
        self.whole = self.whole.max(self.largest()).min(all);
        self.revision += 1;
    }

    /// Drops what matches: those are not waited for any more.
    fn leave(&mut self, matches: impl Fn(&Address, &Held) -> bool) {
        let before = self.held.len();
        self.held.retain(|address, held| !matches(address, held));
        let left = before - self.held.len();
        if left > 0 {
            self.revision += 1;
            self.whole = self.whole.saturating_sub(left);
        }
    }

    fn end_holds(&mut self, facts: &dyn Facts, now: Duration) {
        if self.held.is_empty() {
            return;
        }
        if self.size > 0 {
            if self.size >= self.whole {
                return self.let_all_go();
            }
            // They have said that they leave, and they are the last ones no more.
            self.leave(|_, held| held.why == Why::Last);
            for held in self.held.values_mut().filter(|h| h.until.is_none()) {
                // The registry has a member again: the others have `hold` from here.
                held.until = Some(now + self.settings.hold);
                held.judged_from = now;
                held.why = Why::Share;
                self.revision += 1;
            }
        }
        let shadow = self.settings.mode == Mode::Shadow;
        let ends = |address: &Address, held: &Held| {
            if !held.shared && facts.elsewhere(address) {
                return true;
            }
            let Some(until) = held.until else {
                return false;
            };
            let evidence = if shadow {
                Evidence::Nothing
            } else {
                facts.evidence(address, held)
            };
            let unjudged = now >= held.judged_from + NO_EVIDENCE;
            now >= until
                || match evidence {
                    Evidence::Passing | Evidence::Awaited => false,
                    Evidence::Failing => true,
                    Evidence::Pending | Evidence::Nothing => unjudged,
                }
        };
        self.leave(ends);
        if self.held.is_empty() {
            self.whole = 0;
        }
    }

    /// What is served although the registry does not name it. Nothing in shadow.
    pub fn held(&self) -> impl Iterator<Item = (&Address, &Held)> {
        let on = self.settings.mode == Mode::On;
        self.held.iter().filter(move |_| on)
    }

    /// What it would hold, or holds.
    #[must_use]
    pub fn holding(&self) -> usize {
        self.held.len()
    }

    /// The registry is empty, and that is believed: nothing may stand in for it but the configuration.
    #[must_use]
    pub fn believes_empty(&self) -> bool {
        self.settings.mode == Mode::On
            && self.base == Base::Good
            && self.size == 0
            && self.held.is_empty()
    }

    /// Whether time alone may change something.
    #[must_use]
    pub fn is_waiting(&self) -> bool {
        !self.held.is_empty()
    }

    /// Times it began to hold, or would have.
    #[must_use]
    pub fn trips(&self) -> u64 {
        self.trips
    }

    /// When the first of what is (or would be) held was lost, and when the last hold ends; `None` = without end.
    #[must_use]
    pub fn times(&self) -> Option<(Duration, Option<Duration>)> {
        let since = self.held.values().map(|h| h.since).min()?;
        let until: Option<Vec<Duration>> = self.held.values().map(|h| h.until).collect();
        Some((since, until.and_then(|all| all.into_iter().max())))
    }

    /// Rises with every change of what is held.
    #[must_use]
    pub fn revision(&self) -> u64 {
        self.revision
    }

    /// What an empty registry means.
    #[must_use]
    pub fn when_empty(&self) -> WhenEmpty {
        self.when_empty
    }

    /// The settings in force.
    #[must_use]
    pub fn settings(&self) -> &Settings {
        &self.settings
    }

    /// Why it holds, in words; `None` when it does not. In shadow: what it would do.
    #[must_use]
    pub fn words(&self) -> Option<String> {
        let count = self.held.len();
        let (_, until) = self.times()?;
        let of = |why: Why| self.held.values().filter(|h| h.why == why).count();
        let (empty, last) = (of(Why::Empty), of(Why::Last));
        let reason = if empty > 0 {
            "nothing is registered any more"
        } else if last == count {
            "the last servers were withdrawn"
        } else {
            "too many vanished at once without being withdrawn"
        };
        let verb = match self.settings.mode {
            Mode::Shadow => "would be held",
            Mode::On | Mode::Off => "held",
        };
        let end = match until {
            Some(_) => format!(
                "while haproxy's checks of them pass (30s without `check`), at most {:?}",
                self.settings.hold
            ),
            None => "until something is registered again".to_owned(),
        };
        // Those that were withdrawn are not missed.
        let before = match self.whole {
            0 => String::new(),
            whole => format!(", {whole} before"),
        };
        Some(format!(
            "{count} {verb}: {reason} ({} registered{before}); {end}",
            self.size
        ))
    }
}
