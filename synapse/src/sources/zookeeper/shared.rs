//! What the followers of one client share: the places for reads in flight, and a connection of their own for requests
//! that are suspected of taking connections down ([`super::suspects`]). Thin.

use std::sync::atomic::{AtomicBool, Ordering};

use smartstack_common::zk::{self, CallError, Trouble, call, call_limit};
use tokio::sync::{Mutex, Semaphore, SemaphorePermit};
use zookeeper_client::{AddWatchMode, Client, Error, SessionState};

use super::suspects::{Ask, Outcome};

/// Reads in flight on one client at most. A read is one packet each way, so that eight of them keep a connection of
/// several milliseconds busy; a hundred would only make a server that has just come back answer all of them late.
const READS_IN_FLIGHT: usize = 8;

/// One per client.
#[derive(Debug)]
pub struct Shared {
    settings: zk::Settings,
    reads: Semaphore,
    /// A server did not know what a recursive watch is.
    old: AtomicBool,
    /// A session beside the shared one, while there is something to test.
    own: Mutex<Option<Client>>,
}

impl Shared {
    /// Nothing is opened yet; `settings` are those of the client that the followers share.
    #[must_use]
    pub fn new(settings: zk::Settings) -> Self {
        Self {
            settings,
            reads: Semaphore::new(READS_IN_FLIGHT),
            old: AtomicBool::new(false),
            own: Mutex::new(None),
        }
    }

    /// Whether the servers are older than 3.6. Once found out this holds until the process ends: each further attempt would
    /// cost the connection, which such a server closes after an unknown request.
    pub(super) fn is_old(&self) -> bool {
        self.old.load(Ordering::Acquire)
    }

    /// The answer to a recursive watch of this path says so.
    pub(super) fn found_old(&self, path: &str) {
        if !self.old.swap(true, Ordering::AcqRel) {
            tracing::warn!(
                path,
                "the servers are older than ZooKeeper 3.6: changes are learnt by watching the lists of children"
            );
        }
    }

    /// Waits for a place among the reads in flight. Cancel-safe.
    pub(super) async fn place(&self) -> Option<SemaphorePermit<'_>> {
        // Never closed: an error would mean no limit, not no read.
        self.reads.acquire().await.ok()
    }

    /// Asks for these at once on a connection with nothing else in flight. Dropping it says nothing about them.
    pub(super) async fn test(&self, path: &str, asks: &[Ask]) -> Outcome {
        let mut own = self.own.lock().await;
        let usable = match own.take() {
            Some(client) => {
                let limit = call_limit(client.session_timeout());
                tokio::time::timeout(limit, connected(client)).await
            }
            None => Ok(None),
        };
        let client = match usable {
            Ok(Some(client)) => client,
            _ => match zk::open(&self.settings).await {
                Ok(client) => client,
                Err(error) => {
                    tracing::debug!(%error, "no connection for a suspected request");
                    return Outcome::Unreachable;
                }
            },
        };
        let limit = call_limit(client.session_timeout());
        let outcome = call(limit, ask(&client, path, asks, self.is_old())).await;
        *own = Some(client);
        match outcome {
            Ok(()) => Outcome::Answered,
            Err(CallError::Failed(error)) if Trouble::from(&error) == Trouble::Terminal => {
                Outcome::Unreachable
            }
            Err(error) if error.trouble() == Trouble::Lost => {
                tracing::debug!(path, asks = asks.len(), %error, "a suspected request failed on a connection of its own");
                Outcome::Lost
            }
            Err(_) => Outcome::Answered,
        }
    }

    /// Nothing is to be tested for a while: the session beside is closed, unless another source uses it.
    pub(super) fn rest(&self) {
        if let Ok(mut own) = self.own.try_lock() {
            own.take();
        }
    }
}

/// The client once it is connected (again); `None` when it never will be.
async fn connected(client: Client) -> Option<Client> {
    let mut states = client.state_watcher();
    let mut state = states.peek_state();
    loop {
        match state {
            SessionState::SyncConnected => return Some(client),
            state if state.is_terminated() => return None,
            _ => state = states.changed().await,
        }
    }
}

async fn ask(client: &Client, path: &str, asks: &[Ask], old: bool) -> Result<(), Error> {
    let mut reads = client.new_multi_reader();
    for ask in asks {
        match ask {
            Ask::Watch => {
                let watch = client.watch(path, AddWatchMode::PersistentRecursive);
                drop(watch.await?);
            }
            Ask::List => drop(client.get_children(path).await?),
            Ask::Child(name) if old => drop(client.get_data(&format!("{path}/{name}")).await?),
            Ask::Child(name) => reads.add_get_data(&format!("{path}/{name}"))?,
        }
    }
    reads.commit().await.map(drop)
}
