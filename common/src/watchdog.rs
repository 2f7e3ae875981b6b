//! systemd's watchdog (`WatchdogSec=`), fed by progress and not by a clock: a program whose loops have come to a stand,
//! while its process lives, is restarted.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep};

use crate::telemetry::{Notice, notify, watchdog_time};

/// When a loop last came round. The loop and the watchdog each have a clone.
#[derive(Debug, Clone)]
pub struct Progress(Arc<Mutex<Instant>>);

impl Progress {
    /// The first round begins now.
    #[must_use]
    #[expect(clippy::new_without_default, reason = "it reads the clock")]
    pub fn new() -> Self {
        Self(Arc::new(Mutex::new(Instant::now())))
    }

    /// Called by the loop each time that it comes round.
    pub fn step(&self) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Instant::now();
    }

    /// When that was.
    #[must_use]
    pub fn last(&self) -> Instant {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Whether a loop that last came round at `last` has come to a stand: no round for longer than `limit`.
#[must_use]
pub fn is_stuck(last: Instant, now: Instant, limit: Duration) -> bool {
    now.saturating_duration_since(last) > limit
}

/// Feeds the watchdog while `stuck(now, limit)` names nothing that stands still; `limit` is half of systemd's time. Returns
/// at once where systemd asks for no feeding.
pub async fn feed(stuck: impl FnMut(Instant, Duration) -> Option<String>) {
    if let Some(time) = watchdog_time() {
        feed_every(time, stuck, || notify(&Notice::Alive)).await;
    }
}

/// The program stops: it is fed in place of `feeder`, whatever stands still. systemd has another limit for a stop.
pub fn stopping(feeder: &JoinHandle<()>) {
    notify(&Notice::Stopping);
    feeder.abort();
    drop(tokio::spawn(feed(|_, _| None)));
}

async fn feed_every(
    time: Duration,
    mut stuck: impl FnMut(Instant, Duration) -> Option<String>,
    mut alive: impl FnMut(),
) {
    let mut told = false;
    loop {
        let found = stuck(Instant::now(), time / 2);
        match &found {
            None => alive(),
            Some(what) if !told => {
                tracing::error!("no progress: {what}; systemd is going to restart this program");
            }
            Some(_) => {}
        }
        told = found.is_some();
        sleep(time / 4).await;
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use super::*;

    #[test]
    fn standing_still_is_longer_than_the_limit() {
        let (now, limit) = (Instant::now(), Duration::from_secs(30));
        for (age, stuck) in [(0, false), (30, false), (31, true), (3600, true)] {
            assert_eq!(
                is_stuck(now, now + Duration::from_secs(age), limit),
                stuck,
                "{age}"
            );
        }
        assert!(!is_stuck(now + limit, now, limit), "later than now");
    }

    #[tokio::test(flavor = "current_thread")]
    async fn it_is_fed_only_while_there_is_progress() {
        let (fed, loop_stands) = (Cell::new(0), Cell::new(false));
        let progress = Progress::new();
        let feeder = feed_every(
            Duration::from_millis(40),
            |now, limit| is_stuck(progress.last(), now, limit).then(|| "the loop".to_owned()),
            || fed.set(fed.get() + 1),
        );
        let scene = async {
            let round = async || {
                sleep(Duration::from_millis(5)).await;
                if !loop_stands.get() {
                    progress.step();
                }
            };
            while fed.get() < 5 {
                round().await;
            }
            loop_stands.set(true);
            while !is_stuck(progress.last(), Instant::now(), Duration::from_millis(20)) {
                round().await;
            }
            let before = fed.get();
            for _ in 0..20 {
                round().await;
            }
            assert_eq!(fed.get(), before, "fed without progress");
            loop_stands.set(false);
            while fed.get() == before {
                round().await;
            }
        };
        // Cancel-safe: the feeder has nothing to lose.
        tokio::select! {
            () = feeder => unreachable!("it feeds for ever"),
            () = scene => {}
        }
    }
}
