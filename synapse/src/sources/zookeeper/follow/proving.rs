//! The follower's dealings with requests that are suspected of taking connections down: it has them tested when they are
//! due ([`super::super::suspects`] says which), and reads again what is trusted again.

use std::pin::Pin;
use std::sync::{MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::{Instant, sleep};
use tracing::warn;

use super::super::Counters;
use super::super::reads::Caution;
use super::super::suspects::{Ask, Outcome};
use super::{Follower, until};

/// With nothing to test for longer than this, the session for tests is closed.
const REST: Duration = Duration::from_secs(5);

/// An outstanding test of suspected requests.
pub(super) type Testing = Pin<Box<dyn Future<Output = (Vec<Ask>, Outcome)> + Send>>;

impl Follower {
    /// Waits until one of the path's own requests is not suspected (any more), without which nothing can be followed.
    pub(super) async fn prove(&mut self, ask: &Ask) {
        loop {
            let Some(reason) = self.caution().suspects.reason(ask) else {
                return;
            };
            let problem = format!("cannot read `{}`: {reason}", self.path);
            if self.view.borrow().problem.as_ref() != Some(&problem) {
                warn!(source = %self.name, problem, "the registry cannot be read; the last known set stays");
            }
            self.lost(Some(problem));
            // Nobody would take its events.
            self.watcher = None;
            until(self.test_due()).await;
            let (asks, outcome) = self.test().await;
            self.tested(asks, outcome);
        }
    }

    pub(super) fn test_due(&self) -> Option<Instant> {
        self.caution().suspects.due()
    }

    /// Tests what is due on a connection of its own.
    pub(super) fn test(&mut self) -> Testing {
        let asks = self.caution().suspects.test(Instant::now());
        let (shared, path) = (self.shared.clone(), self.path.clone());
        Counters::add(&self.counters.tests, 1);
        // Everybody who watches this path has the same to test.
        let pause = self.settings.jitter.mul_f64(self.rng.f64());
        Box::pin(async move {
            sleep(pause).await;
            let outcome = shared.test(&path, &asks).await;
            (asks, outcome)
        })
    }

    /// Takes the outcome of a test: what is trusted again is read by the shared connection.
    pub(super) fn tested(&mut self, asks: Vec<Ask>, outcome: Outcome) {
        let (guilty, now, count) = (self.caution().suspects.guilty(), Instant::now(), asks.len());
        let example = asks.first().map(Ask::to_string).unwrap_or_default();
        let (trusted, more) = {
            let mut caution = self.caution();
            if outcome == Outcome::Lost {
                caution.chunk.too_many(count);
            }
            let trusted = caution.suspects.tested(asks, outcome, now);
            (trusted, caution.suspects.due())
        };
        Counters::add(
            &self.counters.tests_lost,
            usize::from(outcome == Outcome::Lost),
        );
        if self.caution().suspects.guilty() > guilty {
            warn!(source = %self.name, "{example} takes down each connection that asks for it; left out, asked for again later");
        }
        // The reason of what stays suspected may be another now.
        let mut again = trusted;
        let waiting = self.tree.skipped();
        let caution = self.caution();
        again.extend(waiting.into_iter().filter_map(|(name, shown)| {
            let reason = caution.suspects.reason(&Ask::Child(name.clone()))?;
            (reason != shown).then_some(name)
        }));
        drop(caution);
        self.tree.reread(again);
        if more.is_none_or(|due| due > now + REST) {
            self.shared.rest();
        }
    }

    pub(super) fn caution(&self) -> MutexGuard<'_, Caution> {
        self.caution.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Waits for the outstanding test; for ever when there is none. Cancel-safe: it goes on when polled again.
pub(super) async fn tested(testing: &mut Option<Testing>) -> (Vec<Ask>, Outcome) {
    match testing {
        Some(test) => test.await,
        None => std::future::pending().await,
    }
}
