//! Killing haproxy, and when its sockets were gone and when the next one's were there. In a thread of its own that looks
//! several times per millisecond: a request is judged by these times.

use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// Pause between two looks.
const LOOK: Duration = Duration::from_micros(300);
/// A supervised haproxy is back long before.
const LIMIT: Duration = Duration::from_secs(30);

/// One kill.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Kill {
    /// Just before the first signal.
    pub(crate) at: Instant,
    /// All killed processes were seen to have ended: whatever they had open is closed.
    pub(crate) dead: Instant,
    /// A connection was taken again: by the one that was started in its place.
    pub(crate) listens: Instant,
}

/// Kills these processes and waits until `target` takes connections again.
pub(crate) fn kill_and_watch(pids: &[u32], target: SocketAddr) -> Kill {
    let at = now();
    for pid in pids {
        let pid = Pid::from_raw(i32::try_from(*pid).unwrap());
        // Err = it has ended by itself: a master ends with its worker.
        let _gone = kill(pid, Signal::SIGKILL).is_err();
    }
    wait("they end", || pids.iter().all(|pid| has_ended(*pid)));
    let dead = now();
    wait("another one listens", || TcpStream::connect(target).is_ok());
    Kill {
        at,
        dead,
        listens: now(),
    }
}

/// All its threads have: only then its sockets are closed.
fn has_ended(pid: u32) -> bool {
    let Ok(threads) = std::fs::read_dir(format!("/proc/{pid}/task")) else {
        return true;
    };
    threads.flatten().all(|thread| {
        let stat = std::fs::read_to_string(thread.path().join("stat")).unwrap_or_default();
        let state = stat.rsplit_once(") ").map(|(_, rest)| rest.as_bytes()[0]);
        matches!(state, None | Some(b'Z' | b'X'))
    })
}

#[expect(
    clippy::disallowed_methods,
    reason = "a thread of its own, in real time"
)]
fn wait(what: &str, holds: impl Fn() -> bool) {
    let end = now() + LIMIT;
    while !holds() {
        assert!(now() < end, "not within {LIMIT:?}: {what}");
        std::thread::sleep(LOOK);
    }
}

#[expect(clippy::disallowed_methods, reason = "as above")]
fn now() -> Instant {
    Instant::now()
}
