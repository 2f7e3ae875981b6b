//! A registry that changes all the time, one change after the other, and what it has been.

use std::collections::BTreeSet;
use std::fmt;
use std::sync::{Arc, Mutex};

use serde_json::json;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;
use zookeeper_client::{Acls, Client, CreateMode};

/// Servers there are at least and at most.
const LEAST: usize = 3;
const MOST: usize = 30;

/// So many changes at most come between a list and the last read of what it named.
const BETWEEN: usize = 50;

/// A change: which server came, or went.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Change {
    Comes(u32),
    Goes(u32),
}

/// Every change so far; one that is under way is the last.
#[derive(Debug, Clone, Default)]
pub(crate) struct History(Vec<Change>);

/// The changes, until it is stopped.
pub(crate) struct Churn {
    history: Arc<Mutex<History>>,
    stop: oneshot::Sender<()>,
    task: JoinHandle<()>,
}

pub(crate) fn name(number: u32) -> String {
    format!(
        "i-{number}_127.0.{}.{}:9",
        number / 200 % 250,
        number % 200 + 1
    )
}

pub(crate) fn payload(number: u32, padding: usize) -> Vec<u8> {
    let host = format!("127.0.{}.{}", number / 200 % 250, number % 200 + 1);
    let payload = json!({"host": host, "port": 9, "name": format!("i-{number}"), "note": "x".repeat(padding)});
    payload.to_string().into_bytes()
}

fn node(path: &str, number: u32) -> String {
    format!("{path}/i-{number}_{number:010}")
}

pub(crate) async fn create(client: &Client, path: &str, number: u32, padding: usize) {
    let options = CreateMode::Persistent.with_acls(Acls::anyone_all());
    let (node, data) = (node(path, number), payload(number, padding));
    client.create(&node, &data, &options).await.unwrap();
}

pub(crate) async fn delete(client: &Client, path: &str, number: u32) {
    client.delete(&node(path, number), None).await.unwrap();
}

impl History {
    pub(crate) fn len(&self) -> usize {
        self.0.len()
    }

    /// What the registry is now.
    pub(crate) fn last(&self) -> BTreeSet<u32> {
        self.states().last().unwrap_or_default()
    }

    /// What it was after each change.
    fn states(&self) -> impl Iterator<Item = BTreeSet<u32>> {
        let mut state = BTreeSet::new();
        self.0.iter().map(move |change| {
            match change {
                Change::Comes(number) => state.insert(*number),
                Change::Goes(number) => state.remove(number),
            };
            state.clone()
        })
    }

    /// Whether it was exactly this after some change.
    pub(crate) fn was(&self, found: &BTreeSet<u32>) -> bool {
        self.states().any(|state| state == *found)
    }

    /// The number of the first state from number `from` on that this one can be.
    ///
    /// A name that was listed and had gone when it was read is left out: of that state everything is there but what went
    /// right after it. And what is remembered from `before` and not listed any more stays while something that has come
    /// meanwhile is being read, which may be what replaces it (a session that was swapped): after a start those are also
    /// servers that went while synapse was dead (2 snapshots of 46 on a busy machine, with 3 and 9 such servers).
    pub(crate) fn earliest(
        &self,
        found: &BTreeSet<u32>,
        before: &BTreeSet<u32>,
        from: usize,
    ) -> Option<usize> {
        let went_after = |at: usize, number: &u32| {
            self.0[at + 1..]
                .iter()
                .take(BETWEEN)
                .any(|c| *c == Change::Goes(*number))
        };
        self.states()
            .enumerate()
            .skip(from)
            .find_map(|(at, state)| {
                let mut missing = state.difference(found);
                let mut more = found.difference(&state);
                let same = more.all(|number| before.contains(number))
                    && missing.all(|number| went_after(at, number));
                same.then_some(at)
            })
    }
}

impl fmt::Display for History {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let last = &self.0[self.0.len().saturating_sub(60)..];
        write!(f, "{} changes, at the end {last:?}", self.len())
    }
}

impl Churn {
    pub(crate) async fn start(client: Client, path: &'static str, seed: u64) -> Self {
        let history = Arc::new(Mutex::new(History::default()));
        let (stop, mut stopped) = oneshot::channel();
        let noted = Arc::clone(&history);
        let task = tokio::spawn(async move {
            let mut rng = fastrand::Rng::with_seed(seed);
            let (mut there, mut next) = (Vec::new(), 0);
            while stopped.try_recv().is_err() {
                let grows = there.len() < LEAST || (there.len() < MOST && rng.bool());
                let change = if grows {
                    there.push(next);
                    next += 1;
                    Change::Comes(next - 1)
                } else {
                    Change::Goes(there.swap_remove(rng.usize(0..there.len())))
                };
                // Before it is made: what can be seen of it is in the history.
                noted.lock().unwrap().0.push(change);
                match change {
                    Change::Comes(number) => create(&client, path, number, 0).await,
                    Change::Goes(number) => delete(&client, path, number).await,
                }
                tokio::time::sleep(std::time::Duration::from_millis(rng.u64(0..40))).await;
            }
        });
        Self {
            history,
            stop,
            task,
        }
    }

    pub(crate) fn history(&self) -> History {
        self.history.lock().unwrap().clone()
    }

    pub(crate) async fn stop(self) -> History {
        // Err = it has ended by a panic, which the join tells.
        let _ended = self.stop.send(()).is_err();
        self.task.await.unwrap();
        self.history.lock().unwrap().clone()
    }
}
