//! Tries what a start of haproxy needs and `haproxy -c` does not look at: addresses to bind, folders of sockets, `chroot`,
//! `user`.
//!
//! Why beforehand (each measured by a reload on a running master and worker, as root or as another user, with some 330
//! requests in 4 s):
//!
//! | what fails in the new worker | 2.6.12, 3.0.11 | 3.2 |
//! |---|---|---|
//! | a TCP or UDP address, taken or not of this host | the old worker stops listening for 2 s while the new one tries again: 187 to 205 requests refused | the same |
//! | `chroot`, `user`, `group` | everything ends, the master too: nothing is served from then on | only the new worker |
//! | `user 0`, `user root`, `group 0` without the right to it | nothing: haproxy takes 0 for "none" | nothing |
//! | a socket in a folder that does not exist | only the new worker | only the new worker |
//!
//! What ends only the new worker is tried for the sake of the words. Limits of descriptors are not tried.
//!
//! The probes bind without listening, so no connection can reach them. What only our own rights or limits forbid proves
//! nothing about a haproxy with others.

use std::collections::BTreeSet;
use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::sys::socket::{
    AddressFamily, SockFlag, SockType, SockaddrStorage, bind as bind_socket, setsockopt, socket,
    sockopt,
};
use nix::unistd::{Gid, Group, Uid, User, getegid, geteuid};

use super::{bind, holder};
use crate::outputs::haproxy::cfg::{Line, Model, Section};

/// A line of the candidate that haproxy could not start with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Obstacle {
    /// Where it stands: number of the section in the model.
    pub section: usize,
    /// The line.
    pub line: Line,
    /// What is in the way.
    pub words: String,
}

/// Something that is opened at a start.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
enum Needed {
    Tcp(SocketAddr),
    /// The same with `transparent`: it may be an address of another host.
    Foreign(SocketAddr),
    Udp(SocketAddr),
    Unix(PathBuf),
    Chroot(PathBuf),
    User(String),
    Group(String),
}

/// Every line that haproxy could not start with, but for what it has already. `own_rights`: it is started with our
/// rights, so that what is forbidden to us is forbidden to it.
#[must_use]
pub fn obstacles(candidate: &Model, running: &Model, own_rights: bool) -> Vec<Obstacle> {
    let held: BTreeSet<Needed> = running
        .sections
        .iter()
        .flat_map(|section| section.lines.iter().flat_map(|line| needed(section, line)))
        .collect();
    let sections = || candidate.sections.iter().flat_map(|section| &section.lines);
    let moved = sections().any(|line| line.text.starts_with("unix-bind prefix"));
    let mut found = Vec::new();
    let mut tried = BTreeSet::new();
    for (index, section) in candidate.sections.iter().enumerate() {
        for line in &section.lines {
            for need in needed(section, line) {
                let elsewhere = moved && matches!(need, Needed::Unix(_));
                if elsewhere || held.contains(&need) || !tried.insert(need.clone()) {
                    continue;
                }
                if let Some(words) = need.refusal(&line.text, own_rights) {
                    found.push(Obstacle {
                        section: index,
                        line: line.clone(),
                        words,
                    });
                }
            }
        }
    }
    found
}

fn needed(section: &Section, line: &Line) -> Vec<Needed> {
    let words: Vec<&str> = line.text.split_ascii_whitespace().collect();
    if line.text.contains(['"', '\'', '$', '\\']) {
        return Vec::new();
    }
    if words.contains(&"namespace") {
        return Vec::new();
    }
    match (section.keyword.as_str(), &words[..]) {
        (_, ["bind", addresses, options @ ..]) => {
            let foreign = options.contains(&"transparent");
            let needed = addresses.split(',').flat_map(address);
            needed
                .map(|need| match need {
                    Needed::Tcp(address) if foreign => Needed::Foreign(address),
                    need => need,
                })
                .collect()
        }
        (_, ["dgram-bind", addresses, ..]) => addresses
            .split(',')
            .flat_map(bind::read)
            .map(Needed::Udp)
            .collect(),
        ("global", ["stats", "socket", address, ..]) => self::address(address),
        ("global", ["chroot", path, ..]) => vec![Needed::Chroot(path.into())],
        ("global", ["user" | "uid", name, ..]) => vec![Needed::User((*name).to_owned())],
        ("global", ["group" | "gid", name, ..]) => vec![Needed::Group((*name).to_owned())],
        _ => Vec::new(),
    }
}

fn address(text: &str) -> Vec<Needed> {
    if let Some(path) = text
        .strip_prefix("unix@")
        .or(Some(text).filter(|text| text.starts_with('/')))
    {
        return vec![Needed::Unix(path.into())];
    }
    let udp = text
        .strip_prefix("quic4@")
        .map(str::to_owned)
        .or_else(|| text.strip_prefix("quic6@").map(|a| format!("ipv6@{a}")));
    match udp {
        Some(text) => bind::read(&text).into_iter().map(Needed::Udp).collect(),
        None => bind::read(text).into_iter().map(Needed::Tcp).collect(),
    }
}

impl Needed {
    /// Why haproxy cannot have it, by a line that says `text`; `None` = it can, or nobody can tell.
    fn refusal(&self, text: &str, own_rights: bool) -> Option<String> {
        let refusal = |address: SocketAddr, kind, foreign: bool| {
            let error = bound(address, kind, text).err()?;
            let allowed = foreign && error == Errno::EADDRNOTAVAIL;
            let words = of_address(address, kind, error, own_rights);
            words.filter(|_| !allowed)
        };
        match self {
            Self::Tcp(address) => refusal(*address, SockType::Stream, false),
            Self::Foreign(address) => refusal(*address, SockType::Stream, true),
            Self::Udp(address) => refusal(*address, SockType::Datagram, false),
            Self::Unix(path) => of_socket(path, own_rights),
            Self::Chroot(path) => of_chroot(path, own_rights),
            Self::User(name) if own_rights => of_user(name),
            Self::Group(name) if own_rights => of_group(name),
            Self::User(_) | Self::Group(_) => None,
        }
    }
}

/// As haproxy binds: with SO_REUSEADDR and SO_REUSEPORT, and for the families that the line says.
fn bound(address: SocketAddr, kind: SockType, text: &str) -> nix::Result<OwnedFd> {
    let family = match address {
        SocketAddr::V4(_) => AddressFamily::Inet,
        SocketAddr::V6(_) => AddressFamily::Inet6,
    };
    let probe = socket(family, kind, SockFlag::SOCK_CLOEXEC, None)?;
    setsockopt(&probe, sockopt::ReuseAddr, &true)?;
    setsockopt(&probe, sockopt::ReusePort, &true)?;
    if address.is_ipv6() {
        let mut words = text.split_ascii_whitespace();
        if let Some(word) = words.find(|word| matches!(*word, "v6only" | "v4v6")) {
            setsockopt(&probe, sockopt::Ipv6V6Only, &(word == "v6only"))?;
        }
    }
    bind_socket(probe.as_raw_fd(), &SockaddrStorage::from(address))?;
    Ok(probe)
}

fn of_address(
    address: SocketAddr,
    kind: SockType,
    error: Errno,
    own_rights: bool,
) -> Option<String> {
    let words = match error {
        Errno::EADDRINUSE => holder::words(address, kind == SockType::Datagram),
        Errno::EADDRNOTAVAIL => "is not an address of this host".to_owned(),
        errno @ (Errno::EACCES | Errno::EPERM) if own_rights => {
            format!("may not be bound: {errno}")
        }
        // Our own rights and limits.
        Errno::EACCES | Errno::EPERM => return None,
        Errno::EMFILE | Errno::ENFILE | Errno::ENOMEM | Errno::ENOBUFS => return None,
        other => format!("cannot be bound: {other}"),
    };
    Some(format!("{address} {words}"))
}

/// haproxy makes the socket under another name in the same folder, then renames it.
fn of_socket(path: &Path, own_rights: bool) -> Option<String> {
    // A relative one is relative to haproxy's folder.
    let folder = path.parent().filter(|_| path.is_absolute())?;
    let told = |why: &dyn std::fmt::Display| {
        Some(format!(
            "the socket `{}` cannot be made: {why}",
            path.display()
        ))
    };
    match std::fs::metadata(folder) {
        Ok(found) if !found.is_dir() => {
            return told(&format!("`{}` is not a folder", folder.display()));
        }
        Ok(_) => {}
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            return told(&format!("the folder `{}` does not exist", folder.display()));
        }
        Err(_) => return None,
    }
    if !own_rights {
        return None;
    }
    let mut probe = path.as_os_str().to_owned();
    probe.push(format!(".{}.try", std::process::id()));
    let probe = PathBuf::from(probe);
    let tried = UnixDatagram::bind(&probe);
    drop(std::fs::remove_file(&probe));
    match tried {
        Err(error) if error.raw_os_error().is_some() => told(&error),
        // Paths that are too long for the probe's name may fit haproxy's.
        _ => None,
    }
}

fn of_chroot(path: &Path, own_rights: bool) -> Option<String> {
    let told = |why: &str| Some(format!("`chroot {}` would fail: {why}", path.display()));
    match std::fs::metadata(path) {
        Ok(found) if !found.is_dir() => return told("it is not a folder"),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            return told("the folder does not exist");
        }
        _ => {}
    }
    match own_rights && !may(Capability::Chroot) {
        true => told("only root may do that"),
        false => None,
    }
}

fn of_user(name: &str) -> Option<String> {
    let wanted = match name.parse() {
        Ok(number) => Uid::from_raw(number),
        Err(_) => User::from_name(name).ok()??.uid,
    };
    cannot_become(wanted.as_raw(), geteuid().as_raw(), may(Capability::User))
        .then(|| format!("user `{name}` cannot be taken on: only root may do that"))
}

fn of_group(name: &str) -> Option<String> {
    let wanted = match name.parse() {
        Ok(number) => Gid::from_raw(number),
        Err(_) => Group::from_name(name).ok()??.gid,
    };
    cannot_become(wanted.as_raw(), getegid().as_raw(), may(Capability::Group))
        .then(|| format!("group `{name}` cannot be taken on: only root may do that"))
}

/// 0 is "none" to haproxy: it stays who it is.
fn cannot_become(wanted: u32, own: u32, may: bool) -> bool {
    wanted != 0 && wanted != own && !may
}

/// Bits of linux/capability.h.
enum Capability {
    Group = 6,
    User = 7,
    Chroot = 18,
}

/// Whether a program that we start may do that: root, or handed down.
fn may(what: Capability) -> bool {
    if geteuid().is_root() {
        return true;
    }
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let mut lines = status.lines();
    let handed_down = lines.find_map(|line| line.strip_prefix("CapAmb:"));
    let bits = handed_down.and_then(|hex| u64::from_str_radix(hex.trim(), 16).ok());
    bits.is_some_and(|bits| bits & (1 << what as u32) != 0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::outputs::haproxy::cfg::Ours;

    use std::net::{TcpListener, TcpStream, UdpSocket};
    use std::time::Duration;

    use smartstack_common::testing::eventually;

    fn of(text: &str, running: &str) -> Vec<String> {
        let model = |text: &str| Model::parse(text, Ours::All);
        let found = obstacles(&model(text), &model(running), true);
        found.into_iter().map(|o| o.words).collect()
    }

    #[test]
    fn every_error_of_an_address_is_found_and_what_haproxy_has_is_not_tried() {
        let other = TcpListener::bind("127.0.0.1:0").unwrap();
        let datagrams = UdpSocket::bind("127.0.0.1:0").unwrap();
        let (tcp, udp) = (other.local_addr().unwrap(), datagrams.local_addr().unwrap());
        let (me, name) = (
            std::process::id(),
            std::fs::read_to_string("/proc/self/comm").unwrap(),
        );
        let taken = format!(
            "{tcp} is in use by another process (pid {me}, `{}`)",
            name.trim()
        );
        let text = format!("frontend f\n bind {tcp}\n");
        assert_eq!(of(&text, ""), std::slice::from_ref(&taken));
        assert_eq!(of(&text, &text), [""; 0]);
        let transparent =
            |address: &str| of(&format!("frontend f\n bind {address} transparent\n"), "").len();
        assert_eq!(transparent(&tcp.to_string()), 1);
        assert_eq!(transparent("203.0.113.9:80"), 0);
        // In an extra section, in `global`, and over UDP.
        for text in [
            format!("listen l\n bind 127.0.0.1:0,{tcp} ssl crt x\n"),
            format!("global\n stats socket ipv4@{tcp} level admin\n"),
        ] {
            assert_eq!(of(&text, ""), std::slice::from_ref(&taken));
        }
        for text in [
            format!("log-forward l\n dgram-bind {udp}\n"),
            format!("frontend f\n bind quic4@{udp} ssl\n"),
        ] {
            assert_eq!(
                of(&text, ""),
                [taken.replace(&tcp.to_string(), &udp.to_string())]
            );
        }
        for address in ["203.0.113.9:80", "[2001:db8::9]:80"] {
            let found = of(&format!("frontend f\n bind {address}\n"), "");
            assert!(
                matches!(&found[..], [words] if words.contains(address)),
                "{found:?}"
            );
        }
        drop((other, datagrams));
        assert_eq!(of(&text, ""), [""; 0]);
    }

    #[test]
    fn what_only_we_may_not_do_proves_nothing_about_another_haproxy() {
        let address = SocketAddr::from(([127, 0, 0, 1], 80));
        assert_eq!(
            of_address(address, SockType::Stream, Errno::EACCES, false),
            None
        );
        let words = of_address(address, SockType::Stream, Errno::EACCES, true).unwrap();
        assert!(words.contains("may not be bound"), "{words}");
        assert_eq!(
            of_address(address, SockType::Stream, Errno::EMFILE, true),
            None
        );
    }

    /// haproxy starts in the first and the last of these cases, and in no other (measured on 2.6 and 3.0).
    #[tokio::test]
    async fn a_connection_is_told_from_a_listener_and_one_that_is_over_is_no_refusal_where_haproxy_starts()
     {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let there = listener.local_addr().unwrap();
        let line = |address: SocketAddr| format!("frontend f\n bind {address}\n");
        let connect = || {
            let client = TcpStream::connect(there).unwrap();
            (client, listener.accept().unwrap().0)
        };
        let has_ended = async |local: SocketAddr| {
            eventually("TIME_WAIT", Duration::from_secs(30), async || {
                let table = std::fs::read_to_string("/proc/net/tcp").unwrap();
                let row = format!(":{:04X} ", local.port());
                let mut rows = table.lines().filter(|line| line.contains(&row));
                rows.any(|row| row.contains(" 06 "))
                    .then_some(())
                    .ok_or(table.len())
            })
            .await;
        };
        // An outgoing connection has the port: haproxy could not start either.
        let (client, accepted) = connect();
        let local = client.local_addr().unwrap();
        let found = of(&line(local), "");
        let words = format!(
            "{local} is the local port of a connection to {there} (pid {}",
            std::process::id()
        );
        assert!(
            found.len() == 1 && found[0].starts_with(&words),
            "{found:?}"
        );
        // It ends first: the port is the kernel's for a minute.
        drop(client);
        drop(accepted);
        has_ended(local).await;
        let found = of(&line(local), "");
        let words = format!("{local} is held by a connection that has ended");
        assert!(
            found.len() == 1 && found[0].starts_with(&words),
            "{found:?}"
        );
        // The accepting side ends first, and its listener had SO_REUSEADDR: nobody is in the way.
        let (client, accepted) = connect();
        drop(accepted);
        drop(client);
        drop(listener);
        has_ended(there).await;
        assert_eq!(of(&line(there), ""), [""; 0]);
    }

    #[test]
    fn a_wildcard_of_ipv6_alone_is_tried_as_that() {
        let other = TcpListener::bind("0.0.0.0:0").unwrap();
        let port = other.local_addr().unwrap().port();
        let of =
            |options: &str| of(&format!("frontend f\n bind [::]:{port} {options}\n"), "").len();
        assert_eq!((of(""), of("v4v6"), of("v6only")), (1, 1, 0));
    }

    /// Who shares a port of datagrams shares it with haproxy too (measured on 2.6 and 3.0).
    #[test]
    fn a_port_of_datagrams_that_is_shared_is_no_refusal() {
        let any = SocketAddr::from(([127, 0, 0, 1], 0));
        let other = UdpSocket::from(bound(any, SockType::Datagram, "").unwrap());
        let line = format!(
            "log-forward l\n dgram-bind {}\n",
            other.local_addr().unwrap()
        );
        assert_eq!(of(&line, ""), [""; 0]);
    }

    #[test]
    fn user_0_is_no_other_user() {
        assert!(cannot_become(1, 65534, false));
        assert!(!cannot_become(1, 65534, true) && !cannot_become(65534, 65534, false));
        assert!(!cannot_become(0, 65534, false));
    }

    #[test]
    fn folders_of_sockets_and_of_chroot_are_looked_at() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("file");
        std::fs::File::create(&file).unwrap();
        let (dir, file) = (dir.path().display(), file.display());
        for (text, words) in [
            (
                format!("frontend f\n bind unix@{dir}/no/x.sock mode 600\n"),
                "does not exist",
            ),
            (
                format!("frontend f\n bind {file}/x.sock\n"),
                "is not a folder",
            ),
            (
                format!("global\n stats socket {dir}/no/x.sock level admin\n"),
                "does not exist",
            ),
            (format!("global\n chroot {dir}/no\n"), "does not exist"),
            (format!("global\n chroot {file}\n"), "is not a folder"),
        ] {
            let found = of(&text, "");
            assert!(
                matches!(&found[..], [found] if found.contains(words)),
                "{text}: {found:?}"
            );
        }
        let good = format!("global\n stats socket {dir}/x.sock level admin\n");
        assert_eq!(of(&good, ""), [""; 0]);
        assert_eq!(std::fs::read_dir(dir.to_string()).unwrap().count(), 1);
    }
}
