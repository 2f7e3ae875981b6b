//! What systemd is told, and asks, through the environment and a datagram socket. Without them nothing happens.
//!
//! Telling never waits: a systemd that does not read (a frozen pid 1) must not stop its services. The crate `sd-notify`
//! waits for it.

use std::ffi::OsStr;
use std::io;
use std::os::linux::net::SocketAddrExt as _;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::time::Duration;

/// What systemd is told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Notice {
    /// The program does its work.
    Ready,
    /// It makes progress (see [`crate::watchdog`]).
    Alive,
    /// It is ending.
    Stopping,
}

impl Notice {
    fn text(&self) -> &'static str {
        match self {
            Notice::Ready => "READY=1\n",
            Notice::Alive => "WATCHDOG=1\n",
            Notice::Stopping => "STOPPING=1\n",
        }
    }
}

/// Tells systemd (`NOTIFY_SOCKET`); a failure is a debug line, never more.
pub fn notify(notice: &Notice) {
    let Some(socket) = std::env::var_os("NOTIFY_SOCKET").filter(|path| !path.is_empty()) else {
        return;
    };
    let told = match send(&socket, notice.text(), false) {
        // The next one comes soon.
        Err(error) if error.kind() == io::ErrorKind::WouldBlock && *notice != Notice::Alive => {
            let text = notice.text();
            let wait = move || send(&socket, text, true);
            std::thread::Builder::new().spawn(wait).map(drop)
        }
        told => told,
    };
    if let Err(error) = told {
        tracing::debug!(%error, "systemd could not be told");
    }
}

fn send(socket: &OsStr, text: &str, wait: bool) -> io::Result<()> {
    let address = match socket.as_bytes() {
        [b'@', name @ ..] => SocketAddr::from_abstract_name(name)?,
        _ => SocketAddr::from_pathname(socket)?,
    };
    let datagram = UnixDatagram::unbound()?;
    datagram.set_nonblocking(!wait)?;
    datagram.send_to_addr(text.as_bytes(), &address).map(|_| ())
}

/// How long systemd waits for [`Notice::Alive`] before it restarts this process (`WATCHDOG_USEC`), if it does at all.
#[must_use]
pub fn watchdog_time() -> Option<Duration> {
    let variable = |name| std::env::var(name).ok();
    of_watchdog(
        variable("WATCHDOG_USEC"),
        variable("WATCHDOG_PID"),
        std::process::id(),
    )
}

fn of_watchdog(microseconds: Option<String>, pid: Option<String>, own: u32) -> Option<Duration> {
    // Without a pid it is for whoever reads it.
    if pid.is_some_and(|pid| pid.parse() != Ok(own)) {
        return None;
    }
    let microseconds = microseconds?.parse().ok().filter(|time| *time > 0)?;
    Some(Duration::from_micros(microseconds))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn told_by_path_and_by_name_and_never_waiting() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("notify.sock");
        let by_path = UnixDatagram::bind(&path).unwrap();
        let name = format!("smartstack-test-{}", std::process::id());
        let address = SocketAddr::from_abstract_name(&name).unwrap();
        let by_name = UnixDatagram::bind_addr(&address).unwrap();
        let name = format!("@{name}");
        for (socket, systemd) in [(path.as_os_str(), &by_path), (OsStr::new(&name), &by_name)] {
            send(socket, Notice::Ready.text(), false).unwrap();
            let mut text = [0; 64];
            let length = systemd.recv(&mut text).unwrap();
            assert_eq!(&text[..length], b"READY=1\n");
            // Nobody reads: the kernel keeps a few hundred of them at most.
            let told = (0..100_000).find_map(|_| send(socket, "WATCHDOG=1\n", false).err());
            let kind = told.map(|error| error.kind());
            assert_eq!(kind, Some(io::ErrorKind::WouldBlock), "{socket:?}");
        }
        drop(by_path);
        assert!(
            send(path.as_os_str(), "READY=1\n", false).is_err(),
            "nobody there"
        );
    }

    #[test]
    fn watchdog_is_for_the_process_that_it_names() {
        let of = |time: Option<&str>, pid: Option<&str>| {
            of_watchdog(time.map(str::to_owned), pid.map(str::to_owned), 7)
        };
        let minute = Some(Duration::from_secs(60));
        assert_eq!(of(Some("60000000"), Some("7")), minute);
        assert_eq!(of(Some("60000000"), None), minute);
        for (time, pid) in [
            (Some("60000000"), Some("8")),
            (Some("60000000"), Some("x")),
            (Some("0"), None),
            (Some("soon"), None),
            (None, Some("7")),
        ] {
            assert_eq!(of(time, pid), None, "{time:?} {pid:?}");
        }
    }
}
