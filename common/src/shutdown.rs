//! Signals: TERM, INT or QUIT asks for a clean stop, a second one ends the process at once, HUP asks for a re-read, USR2 to
//! leave everything to a successor.
//!
//! Those that stop are read by a thread of its own: the second one works whatever the program waits for.

use std::io;
use std::time::{Duration, Instant};

use signal_hook::consts::{SIGINT, SIGQUIT, SIGTERM};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::watch;

use crate::{exit, telemetry};

/// Signals that come together are one: `timeout` sends its signal to the process and then to the group, and so do a
/// terminal and a wrapper that passes signals on.
const TOGETHER: Duration = Duration::from_millis(500);

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
    stop: Shutdown,
    hup: Signal,
    usr2: Option<Signal>,
}

/// What a signal asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Request {
    /// TERM, INT or QUIT. There is no other request after it.
    Stop,
    /// HUP.
    Reload,
    /// USR2, of a program that can.
    Leave,
}

impl Signals {
    /// `leaves`: USR2 is listened to as well.
    ///
    /// # Errors
    /// When the process cannot install handlers.
    pub fn install(leaves: bool) -> io::Result<Self> {
        let mut stops = signal_hook::iterator::Signals::new([SIGTERM, SIGINT, SIGQUIT])?;
        let (sender, stop) = Shutdown::channel();
        let listen = move || stopping(stops.forever(), &sender);
        std::thread::Builder::new()
            .name("signals".to_owned())
            .spawn(listen)?;
        Ok(Self {
            stop,
            hup: signal(SignalKind::hangup())?,
            usr2: leaves
                .then(|| signal(SignalKind::user_defined2()))
                .transpose()?,
        })
    }

    /// [`Request::Stop`]; a HUP waits for [`Self::next`]. Cancel-safe, as that.
    pub async fn stop(&mut self) {
        self.stop.wait().await;
    }

    /// The next request. Cancel-safe (a watch receive and signals' receives).
    pub async fn next(&mut self) -> Request {
        let usr2 = async {
            match &mut self.usr2 {
                Some(usr2) => usr2.recv().await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            biased;
            () = self.stop.wait() => Request::Stop,
            _ = self.hup.recv() => Request::Reload,
            _ = usr2 => Request::Leave,
        }
    }
}

/// Asks for the stop at the first signal, and ends the process at the second.
#[expect(
    clippy::disallowed_methods,
    reason = "a thread of its own has the clock of the system"
)]
fn stopping(signals: impl Iterator<Item = i32>, stop: &watch::Sender<bool>) {
    let mut first = None::<Instant>;
    for _ in signals {
        match first {
            None => {
                first = Some(Instant::now());
                stop.send_replace(true);
            }
            Some(at) if at.elapsed() < TOGETHER => {}
            Some(_) => end(),
        }
    }
}

#[expect(
    clippy::exit,
    reason = "the other threads may wait for something that never comes"
)]
fn end() {
    tracing::warn!("second signal: ending at once, whatever is under way is left as it is");
    telemetry::flush();
    std::process::exit(exit::OK.into());
}
