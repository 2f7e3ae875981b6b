//! A client that can be given up at any moment.
//!
//! The client (zookeeper-client 0.11.2) cannot be told to reconnect, and dropped it does not end at once: while it has no
//! connection it goes on trying for 1.4 times the session's time-out, in steps that double each time (26 s, 51 s), and then
//! it closes the session that its successor has resumed. So the task that it spawns is run here, where it can be stopped:
//! nothing of it happens after that. No connection is closed by it and no session: that is what it is for.

use std::future::poll_fn;
use std::pin::pin;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use spawns_core::{Spawn, Task, enter};
use tokio::sync::oneshot;
use zookeeper_client::{Client, Connector, Error, StateWatcher};

/// A stopped client is kept for so long. Whoever waits for one of its watches would panic when it goes, and leaves when the
/// link changes, which is told before it is stopped.
const KEPT: Duration = Duration::from_secs(10);

/// A client, and its state.
pub(super) struct Held {
    pub(super) client: Client,
    pub(super) states: StateWatcher,
    stop: oneshot::Sender<()>,
}

impl Held {
    /// Connects.
    ///
    /// # Errors
    /// No server serves us, or it refuses us.
    pub(super) async fn connect(connector: Connector, hosts: &str) -> Result<Self, Error> {
        let (stop, stopped) = oneshot::channel();
        let spawner = Stoppable(Mutex::new(Some(stopped)));
        let mut connecting = pin!(connector.connect(hosts));
        let client = poll_fn(|context| {
            let _scope = enter(&spawner);
            connecting.as_mut().poll(context)
        })
        .await?;
        let states = client.state_watcher();
        Ok(Self {
            client,
            states,
            stop,
        })
    }

    /// Nothing more happens by it, unless it has come to its end by itself.
    pub(super) fn give_up(self) {
        if !self.states.peek_state().is_terminated() {
            // It may have ended at this moment.
            let _ended = self.stop.send(());
        }
    }

    /// Ends it: its session is closed. Gives what tells of the end.
    pub(super) fn close(self) -> StateWatcher {
        self.states
    }
}

/// Runs one task, until it is to stop.
struct Stoppable(Mutex<Option<oneshot::Receiver<()>>>);

impl Spawn for Stoppable {
    fn spawn(&self, task: Task) {
        let stopped = self.0.lock().unwrap_or_else(PoisonError::into_inner).take();
        let stopped = async {
            let told = match stopped {
                Some(stopped) => stopped.await.is_ok(),
                None => false,
            };
            if !told {
                std::future::pending::<()>().await;
            }
        };
        let mut session = Box::into_pin(task.future);
        tokio::spawn(async move {
            tokio::select! {
                biased;
                () = stopped => tokio::time::sleep(KEPT).await,
                () = session.as_mut() => {}
            }
        });
    }
}
