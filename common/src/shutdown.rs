//! Signals: TERM or INT asks for a clean stop, a second one ends the process at once, HUP asks for a re-read.

use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::watch;

/// Handed to every task: tells when the program is to stop.
#[derive(Debug, Clone)]
pub struct Shutdown(watch::Receiver<bool>);

impl Shutdown {
    /// A pair: send `true` (or drop the sender) to stop.
    #[must_use]
    pub fn channel() -> (watch::Sender<bool>, Self) {
        let (sender, receiver) = watch::channel(false);
        (sender, Self(receiver))
    }

    /// Returns once the program is to stop. Cancel-safe.
    pub async fn wait(&mut self) {
        // A dropped sender means that nobody can ask any more: stop as well.
        let _stopped = self.0.wait_for(|stop| *stop).await.is_ok();
    }

    /// Whether the program is to stop.
    #[must_use]
    pub fn is_stopping(&self) -> bool {
        *self.0.borrow()
    }
}

/// The signals a program listens to. Made first of all, so that an early HUP does not kill the process.
#[derive(Debug)]
pub struct Signals {
    term: Signal,
    int: Signal,
    hup: Signal,
}

/// What a signal asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Request {
    /// TERM or INT.
    Stop,
    /// HUP.
    Reload,
}

impl Signals {
    /// # Errors
    /// When the process cannot install handlers.
    pub fn install() -> std::io::Result<Self> {
        Ok(Self {
            term: signal(SignalKind::terminate())?,
            int: signal(SignalKind::interrupt())?,
            hup: signal(SignalKind::hangup())?,
        })
    }

    /// TERM or INT; a HUP waits for [`Self::next`]. Cancel-safe, as that.
    pub async fn stop(&mut self) {
        tokio::select! {
            _ = self.term.recv() => {}
            _ = self.int.recv() => {}
        }
    }

    /// The next request. Cancel-safe (each signal is a cancel-safe receive).
    pub async fn next(&mut self) -> Request {
        tokio::select! {
            _ = self.term.recv() => Request::Stop,
            _ = self.int.recv() => Request::Stop,
            _ = self.hup.recv() => Request::Reload,
        }
    }
}
