//! One-shot watches on servers that do not know how to remove one (before 3.5). Thin.
//!
//! The client asks the server to remove a watch when its watcher is dropped: also when the answer to a request comes for which
//! nobody waits any more, on a later connection it may be. Such a server closes the connection then, of all who share it,
//! with their requests in flight, which are dropped, and so on (measured: five connections until twelve sources were read).
//! Therefore requests that arm a watch are seen to their end, and a watch is let go without a word: it goes with its event,
//! or with the session.

use std::fmt;
use std::pin::Pin;

use tokio::sync::oneshot;
use zookeeper_client::{Error, OneshotWatcher, WatchedEvent};

type Event = Pin<Box<dyn Future<Output = WatchedEvent> + Send>>;

/// A watch that is armed. To drop it does not tell the server.
pub struct Armed(Option<Event>);

impl Armed {
    /// The watch of this watcher.
    #[must_use]
    pub fn new(watcher: OneshotWatcher) -> Self {
        Self(Some(Box::pin(watcher.changed())))
    }

    /// Waits for the event; for ever after it has come. Cancel-safe: it goes on when polled again.
    pub async fn changed(&mut self) -> WatchedEvent {
        let event = match &mut self.0 {
            Some(event) => event.await,
            None => std::future::pending().await,
        };
        self.0 = None;
        event
    }

    /// Another one of the same kind is armed on the same path: the client does not tell the server about this one, and
    /// forgets it.
    pub fn replaced(mut self) {
        self.0 = None;
    }
}

impl Drop for Armed {
    fn drop(&mut self) {
        std::mem::forget(self.0.take());
    }
}

impl fmt::Debug for Armed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Armed")
    }
}

/// Makes a request that arms a watch, and takes the answer also when this is dropped.
///
/// # Errors
/// The request's, or that the program ends.
pub async fn arm<T: Send + 'static>(
    request: impl Future<Output = Result<T, Error>> + Send + 'static,
) -> Result<T, Error> {
    let (sender, answer) = oneshot::channel();
    tokio::spawn(async move {
        // What nobody wants is dropped here, or in the channel.
        let _unwanted = sender.send(request.await);
    });
    // Only a runtime that ends takes the task away.
    answer.await.unwrap_or(Err(Error::ClientClosed))
}
