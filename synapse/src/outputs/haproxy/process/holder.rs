//! Who has a TCP address that cannot be bound: a listener, a connection that lives, or one that has ended.
//!
//! Measured (haproxy 2.6.12 and 3.0.11, both as the probe): a port is refused while anything has it that was opened without
//! SO_REUSEADDR, be it only the local port of an outgoing connection, and for the minute (TIME_WAIT) after that; what was
//! accepted by a listener that had the option is in nobody's way. The kernel says for all of these "address in use".
//!
//! [`holder`] is pure, of the text of `/proc/net/tcp` and `/proc/net/tcp6`; [`words`] reads them.

use std::fs;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

/// What has it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Holder {
    /// Somebody listens there.
    Listener { inode: u64 },
    /// It is the local end of a connection.
    Connection { peer: SocketAddr, inode: u64 },
    /// It was, and no process has it any more.
    Ended,
}

const LISTEN: u8 = 0x0a;

/// Who has the address, in words that follow it. `datagrams`: the UDP one.
pub(super) fn words(address: SocketAddr, datagrams: bool) -> String {
    let read = |name| fs::read_to_string(name).unwrap_or_default();
    let table = match datagrams {
        false => read("/proc/net/tcp") + &read("/proc/net/tcp6"),
        true => read("/proc/net/udp") + &read("/proc/net/udp6"),
    };
    const KEEP_OFF: &str = "net.ipv4.ip_local_reserved_ports keeps connections off a port";
    match holder(&table, address) {
        // What is bound and does not listen is in no table.
        None => "is in use by another process".to_owned(),
        Some(Holder::Listener { inode }) => {
            format!("is in use by another process{}", process(inode))
        }
        Some(Holder::Connection { inode, .. }) if datagrams => {
            format!("is in use by another process{}", process(inode))
        }
        Some(Holder::Connection { peer, inode }) => format!(
            "is the local port of a connection to {peer}{}; it is free when that has ended ({KEEP_OFF})",
            process(inode)
        ),
        Some(Holder::Ended) => {
            format!("is held by a connection that has ended, for about a minute ({KEEP_OFF})")
        }
    }
}

/// Listeners first, then what lives.
fn holder(table: &str, address: SocketAddr) -> Option<Holder> {
    let holders = table.lines().filter_map(|line| row(line, address));
    holders.min_by_key(|holder| match holder {
        Holder::Listener { .. } => 0,
        Holder::Connection { .. } => 1,
        Holder::Ended => 2,
    })
}

/// `sl local remote state queues timer retransmits uid timeout inode …`
fn row(line: &str, wanted: SocketAddr) -> Option<Holder> {
    let words: Vec<&str> = line.split_ascii_whitespace().collect();
    let (local, peer) = (socket(words.get(1)?)?, socket(words.get(2)?)?);
    let overlaps = local.ip() == wanted.ip().to_canonical()
        || local.ip().is_unspecified() && (local.is_ipv6() || wanted.is_ipv4())
        || wanted.ip().is_unspecified() && (wanted.is_ipv6() || local.is_ipv4());
    if local.port() != wanted.port() || !overlaps {
        return None;
    }
    let state = u8::from_str_radix(words.get(3)?, 16).ok()?;
    Some(match (state, words.get(9)?.parse().ok()?) {
        (LISTEN, inode) => Holder::Listener { inode },
        (_, 0) => Holder::Ended,
        (_, inode) => Holder::Connection { peer, inode },
    })
}

/// `0100007F:1F90`: words of 32 bits in the machine's order of bytes.
fn socket(text: &str) -> Option<SocketAddr> {
    let (host, port) = text.split_once(':')?;
    let port = u16::from_str_radix(port, 16).ok()?;
    let word = |at: usize| {
        let word = u32::from_str_radix(host.get(at..at + 8)?, 16).ok()?;
        Some(word.to_ne_bytes())
    };
    let ip = match host.len() {
        8 => IpAddr::V4(Ipv4Addr::from(word(0)?)),
        32 => {
            let words = [word(0)?, word(8)?, word(16)?, word(24)?];
            let octets: [u8; 16] = words.concat().try_into().ok()?;
            Ipv6Addr::from(octets).to_canonical()
        }
        _ => return None,
    };
    Some(SocketAddr::new(ip, port))
}

/// ` (pid 12, `nginx`)` where we may see whose socket it is.
fn process(inode: u64) -> String {
    let socket = format!("socket:[{inode}]");
    let Ok(processes) = fs::read_dir("/proc") else {
        return String::new();
    };
    let has = |path: &std::path::Path| {
        let descriptors = fs::read_dir(path.join("fd"))
            .into_iter()
            .flatten()
            .flatten();
        let mut links = descriptors.filter_map(|entry| fs::read_link(entry.path()).ok());
        links.any(|link| link.as_os_str() == socket.as_str())
    };
    let mut numbered = processes.flatten().filter_map(|entry| {
        let pid: u32 = entry.file_name().to_str()?.parse().ok()?;
        Some((pid, entry.path()))
    });
    let Some((pid, path)) = numbered.find(|(_, path)| has(path)) else {
        return String::new();
    };
    // A process calls itself as it likes.
    let name = fs::read_to_string(path.join("comm")).unwrap_or_default();
    let name: String = name
        .chars()
        .filter(|c| !c.is_control() && *c != '`')
        .collect();
    format!(" (pid {pid}, `{name}`)")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn listeners_come_before_connections_and_these_before_what_has_ended() {
        let row = |local: &str, peer: &str, state: &str, inode: u64| {
            format!(
                "  0: {local} {peer} {state} 00000000:00000000 00:00000000 00000000  0  0 {inode} 1 0 100 0 0 10 0\n"
            )
        };
        let header = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode\n";
        let none = "00000000000000000000000000000000:0000";
        let ended = row("0100007F:1F90", "0200007F:C000", "06", 0);
        let lives = row("0100007F:1F90", "0200007F:0050", "01", 7);
        let listens = row("00000000:1F90", "00000000:0000", "0A", 9);
        let both = row("00000000000000000000000000000000:1F90", none, "0A", 11);
        let mapped = row("0000000000000000FFFF00000100007F:1F90", none, "01", 12);
        let at = |text: &str, address: &str| {
            holder(&format!("{header}{text}"), address.parse().unwrap())
        };
        let here = "127.0.0.1:8080";
        assert_eq!(at("", here), None);
        assert_eq!(at(&ended, here), Some(Holder::Ended));
        let peer = "127.0.0.2:80".parse().unwrap();
        let connection = Some(Holder::Connection { peer, inode: 7 });
        assert_eq!(at(&(ended.clone() + &lives), here), connection);
        let listener = |inode| Some(Holder::Listener { inode });
        assert_eq!(at(&(ended + &lives + &listens), here), listener(9));
        assert_eq!(at(&both, here), listener(11));
        assert!(matches!(
            at(&mapped, here),
            Some(Holder::Connection { inode: 12, .. })
        ));
        // Wildcards, other addresses, other ports, other families.
        assert_eq!(at(&lives, "0.0.0.0:8080"), connection);
        assert_eq!(at(&lives, "[::]:8080"), connection);
        assert_eq!(at(&both, "[::1]:8080"), listener(11));
        for other in ["127.0.0.2:8080", "127.0.0.1:8081", "[::1]:8080"] {
            assert_eq!(at(&lives, other), None, "{other}");
        }
        assert_eq!(at(&listens, "[::1]:8080"), None);
        for garbage in [
            "",
            "x",
            "0: 1:2:3",
            "0: 0100007F:1F90 0:0",
            "0: 0100007F:1F90 00000000:0000 ZZ 0 0 0 0 0 9",
        ] {
            assert_eq!(at(garbage, here), None, "{garbage}");
        }
    }
}
