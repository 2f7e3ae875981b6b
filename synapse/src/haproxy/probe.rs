//! Tries what a start of haproxy needs and `haproxy -c` does not look at: addresses to bind, folders of sockets, `chroot`,
//! `user`.
//!
//! Why beforehand: a new worker that cannot bind a TCP or UDP address, whatever the error, has the old one stop listening
//! for a second while it tries again, for all its frontends (measured on 2.6, 3.0 and 3.2: 500 to 760 of 1,100 requests
//! refused); a `chroot` or `user` that fails ends the whole haproxy 2.6. Sockets in folders and limits of descriptors fail
//! without touching the old worker: those are tried for the sake of the words only.
//!
//! The probes bind without listening, so no connection can reach them. What only our own rights or limits forbid proves
//! nothing about a haproxy with others.

use std::collections::BTreeSet;
use std::io;
use std::net::{SocketAddr, UdpSocket};
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::unistd::{Gid, Group, Uid, User, getegid, geteuid};
use tokio::net::TcpSocket;

use super::bind;
use crate::cfg::{Line, Model, Section};

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
                if let Some(words) = need.refusal(own_rights) {
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
    /// Why haproxy cannot have it; `None` = it can, or nobody can tell.
    fn refusal(&self, own_rights: bool) -> Option<String> {
        match self {
            Self::Tcp(address) => of_address(*address, tcp(*address), own_rights),
            Self::Foreign(address) => {
                let tried = tcp(*address);
                let foreign = tried
                    .as_ref()
                    .is_err_and(|error| error.kind() == io::ErrorKind::AddrNotAvailable);
                of_address(*address, tried, own_rights).filter(|_| !foreign)
            }
            Self::Udp(address) => of_address(*address, udp(*address), own_rights),
            Self::Unix(path) => of_socket(path, own_rights),
            Self::Chroot(path) => of_chroot(path, own_rights),
            Self::User(name) if own_rights => of_user(name),
            Self::Group(name) if own_rights => of_group(name),
            Self::User(_) | Self::Group(_) => None,
        }
    }
}

/// As haproxy binds: with SO_REUSEADDR and SO_REUSEPORT.
fn tcp(address: SocketAddr) -> io::Result<()> {
    let probe = if address.is_ipv4() {
        TcpSocket::new_v4()?
    } else {
        TcpSocket::new_v6()?
    };
    probe.set_reuseaddr(true)?;
    probe.set_reuseport(true)?;
    probe.bind(address)
}

fn udp(address: SocketAddr) -> io::Result<()> {
    UdpSocket::bind(address).map(drop)
}

fn of_address(address: SocketAddr, tried: io::Result<()>, own_rights: bool) -> Option<String> {
    let error = tried.err()?;
    let errno = Errno::from_raw(error.raw_os_error()?);
    let words = match errno {
        Errno::EADDRINUSE => "is in use by another process".to_owned(),
        Errno::EADDRNOTAVAIL => "is not an address of this host".to_owned(),
        Errno::EACCES | Errno::EPERM if own_rights => format!("may not be bound: {errno}"),
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
    (wanted != geteuid() && !may(Capability::User))
        .then(|| format!("user `{name}` cannot be taken on: only root may do that"))
}

fn of_group(name: &str) -> Option<String> {
    let wanted = match name.parse() {
        Ok(number) => Gid::from_raw(number),
        Err(_) => Group::from_name(name).ok()??.gid,
    };
    (wanted != getegid() && !may(Capability::Group))
        .then(|| format!("group `{name}` cannot be taken on: only root may do that"))
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
    use crate::cfg::Ours;

    fn of(text: &str, running: &str) -> Vec<String> {
        let model = |text: &str| Model::parse(text, Ours::All);
        let found = obstacles(&model(text), &model(running), true);
        found.into_iter().map(|o| o.words).collect()
    }

    #[test]
    fn every_error_of_an_address_is_found_and_what_haproxy_has_is_not_tried() {
        let other = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let datagrams = UdpSocket::bind("127.0.0.1:0").unwrap();
        let (tcp, udp) = (other.local_addr().unwrap(), datagrams.local_addr().unwrap());
        let text = format!("frontend f\n bind {tcp}\n");
        assert_eq!(
            of(&text, ""),
            [format!("{tcp} is in use by another process")]
        );
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
            assert_eq!(
                of(&text, ""),
                [format!("{tcp} is in use by another process")]
            );
        }
        for text in [
            format!("log-forward l\n dgram-bind {udp}\n"),
            format!("frontend f\n bind quic4@{udp} ssl\n"),
        ] {
            assert_eq!(
                of(&text, ""),
                [format!("{udp} is in use by another process")]
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
        let forbidden = || Err(io::Error::from_raw_os_error(Errno::EACCES as i32));
        assert_eq!(of_address(address, forbidden(), false), None);
        let words = of_address(address, forbidden(), true).unwrap();
        assert!(words.contains("may not be bound"), "{words}");
        let full = Err(io::Error::from_raw_os_error(Errno::EMFILE as i32));
        assert_eq!(of_address(address, full, true), None);
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
