//! What becomes of servers without us, seen soon: an operator's maint, a check's verdict, what others change.
//!
//! The backends are read one after the other, some at each look, so that each is read about every 1.5 s and haproxy is
//! never asked for everything at once (measured with 2.6 at 1,000 backends of 10 servers: 7 ms at a time and about 2 % of a
//! core of haproxy's; `show servers state` of everything 22 ms, `show stat` 94 ms). Above [`MOST`] servers a look, a round
//! takes longer in proportion: haproxy's time is for requests.

use std::collections::{BTreeMap, VecDeque};

use smartstack_common::clock::Moment;

use super::aim::Touched;
use super::{InFlight, Reconciler};
use crate::outputs::haproxy::plan::RunningServer;

/// Looks in which everything is read.
const LOOKS: usize = 3;
/// Most servers read at a look.
const MOST: usize = 3500;

/// How far the reading has come.
#[derive(Debug, Default)]
pub(super) struct States {
    /// Backends that this round has still to read.
    left: VecDeque<String>,
    /// When this round began.
    began: Option<Moment>,
    /// When the last round that was completed began: nothing that is known is older.
    read_at: Option<Moment>,
    /// Servers that may be read before the next one waits.
    credit: usize,
}

impl States {
    /// Everything was read.
    pub(super) fn all_read(&mut self, now: Moment) {
        self.read_at = Some(now);
        self.left.clear();
        self.began = None;
    }

    /// When what is known was read, at the latest.
    pub(super) fn read_at(&self) -> Option<Moment> {
        self.read_at
    }

    /// The backends to be read now, of these with so many servers each.
    fn next<'a>(
        &mut self,
        now: Moment,
        backends: impl Iterator<Item = (&'a String, usize)>,
    ) -> Vec<String> {
        let sizes: BTreeMap<&String, usize> = backends.collect();
        if self.left.is_empty() {
            self.left = sizes.keys().map(|name| (*name).clone()).collect();
            self.began = Some(now);
        }
        let total: usize = sizes.values().map(|size| size + 1).sum();
        let a_look = total.div_ceil(LOOKS).min(MOST);
        self.credit = (self.credit + a_look).min(total);
        let mut next = Vec::new();
        while let Some(name) = self.left.front() {
            let size = sizes.get(name).map_or(0, |size| size + 1);
            if size > self.credit {
                break;
            }
            self.credit -= size;
            next.extend(self.left.pop_front());
        }
        next
    }

    /// They were read.
    fn read(&mut self) {
        if self.left.is_empty() {
            self.read_at = self.began;
        }
    }
}

impl Reconciler {
    /// Reads some backends. Returns whether anything is not as it was believed to be.
    pub(super) async fn look_at_states(&mut self) -> bool {
        if self.worker.stale || self.jobs.in_flight == Some(InFlight::Reload) {
            return false;
        }
        let (Some(observed), Some(whole)) = (&self.worker.observed, &self.aim.wanted) else {
            return false;
        };
        let ours = whole.desired().backends.keys();
        let sizes = ours.map(|name| (name, observed.names(name).count()));
        let backends = self.worker.states.next(Moment::now(), sizes);
        if backends.is_empty() {
            return false;
        }
        let rows = match self.worker.api.servers_of(&backends).await {
            Ok(rows) => rows,
            Err(error) => {
                self.socket_failed(&error);
                return false;
            }
        };
        self.worker.states.read();
        self.worker.fallbacks.looked(Some(&backends));
        let notes = self.notes();
        let changed = self.worker.observed.as_ref();
        let changed = changed.map(|observed| observed.changed(&backends, &rows, &notes));
        let changed = changed.unwrap_or_default();
        if changed.is_empty() {
            return false;
        }
        let before: Vec<Option<BTreeMap<String, RunningServer>>> = changed
            .iter()
            .map(|name| observed.running.backends.get(name).cloned())
            .collect();
        let rows = rows
            .into_iter()
            .filter(|row| changed.contains(&row.backend));
        self.take(&changed, rows.collect());
        self.hear().await;
        let Some(observed) = self.worker.observed.take() else {
            return false;
        };
        for (name, before) in changed.iter().zip(&before) {
            for (kind, count) in observed.differs(name, before.as_ref()) {
                self.differs(kind, count);
            }
        }
        self.worker.observed = Some(observed);
        self.aim.touched.add(Touched::whole(changed));
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Names of each look until everything was read twice.
    fn rounds(sizes: &[usize]) -> Vec<usize> {
        let names: Vec<String> = (0..sizes.len()).map(|i| format!("b{i:04}")).collect();
        let mut states = States::default();
        let mut looks = Vec::new();
        while looks.iter().sum::<usize>() < 2 * sizes.len() {
            let next = states.next(Moment::now(), names.iter().zip(sizes.iter().copied()));
            states.read();
            looks.push(next.len());
        }
        looks
    }

    #[test]
    fn everything_is_read_in_three_looks_and_never_much_at_once() {
        assert!(rounds(&[1]).len() <= 6);
        assert!(rounds(&[10; 7]).len() <= 6);
        let looks = rounds(&[9; 1000]);
        assert!(
            looks.len() <= 7 && looks.iter().all(|n| *n <= 350),
            "{looks:?}"
        );
        // Ten times as much takes ten times as long.
        let looks = rounds(&[99; 1000]);
        assert!(
            looks.len() >= 50 && looks.iter().all(|n| *n <= 70),
            "{looks:?}"
        );
        // One that is larger than a look waits until its turn.
        let looks = rounds(&[10_000, 1]);
        assert!((6..12).contains(&looks.len()), "{looks:?}");
    }
}
