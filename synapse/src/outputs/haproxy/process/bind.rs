//! Addresses of `bind` lines. Pure; whether haproxy can have them is tried by `probe`.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use crate::outputs::haproxy::cfg::Model;

/// Longest port range that is probed port by port.
const RANGE: u16 = 64;

/// An address of a `bind` line.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Bind {
    /// The section.
    pub section: String,
    /// The address.
    pub address: SocketAddr,
}

/// TCP addresses of the `bind` lines, over all sections. Unix sockets, descriptors, QUIC, names other than `localhost`,
/// and anything with quotes or variables are left out.
#[must_use]
pub fn addresses(model: &Model) -> BTreeSet<Bind> {
    let mut binds = BTreeSet::new();
    for section in &model.sections {
        for line in &section.lines {
            let mut words = line.text.split_ascii_whitespace();
            if words.next() != Some("bind")
                || line
                    .text
                    .split_ascii_whitespace()
                    .any(|w| matches!(w, "transparent" | "namespace"))
            {
                continue;
            }
            let found = words.next().unwrap_or_default().split(',').flat_map(read);
            binds.extend(found.map(|address| Bind {
                section: section.name.clone(),
                address,
            }));
        }
    }
    binds
}

/// `*:80`, `:80`, `1.2.3.4:80-90`, `[::1]:80`, `ipv4@...`, `localhost:80`.
pub(super) fn read(text: &str) -> Vec<SocketAddr> {
    let (text, v6) = match text.split_once('@') {
        None => (text, false),
        Some(("ipv4" | "tcp" | "tcp4", rest)) => (rest, false),
        Some(("ipv6" | "tcp6", rest)) => (rest, true),
        Some(_) => return Vec::new(),
    };
    let Some((host, ports)) = text.rsplit_once(':') else {
        return Vec::new();
    };
    let host = host
        .strip_prefix('[')
        .and_then(|h| h.strip_suffix(']'))
        .unwrap_or(host);
    let host = match host {
        "" | "*" if v6 => Some(IpAddr::V6(Ipv6Addr::UNSPECIFIED)),
        "" | "*" => Some(IpAddr::V4(Ipv4Addr::UNSPECIFIED)),
        "localhost" => Some(IpAddr::V4(Ipv4Addr::LOCALHOST)),
        literal => literal.parse().ok(),
    };
    let (first, last) = ports.split_once('-').unwrap_or((ports, ports));
    match (host, first.parse::<u16>(), last.parse::<u16>()) {
        (Some(host), Ok(first), Ok(last)) if first > 0 && last.saturating_sub(first) < RANGE => {
            (first..=last)
                .map(|port| SocketAddr::new(host, port))
                .collect()
        }
        _ => Vec::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::outputs::haproxy::cfg::Ours;

    #[test]
    fn addresses_of_bind_lines() {
        let of = |line: &str| {
            let model = Model::parse(&format!("frontend f\n bind {line}\n"), Ours::All);
            addresses(&model)
                .into_iter()
                .map(|b| b.address.to_string())
                .collect::<Vec<_>>()
        };
        assert_eq!(of("127.0.0.1:80 ssl crt x"), ["127.0.0.1:80"]);
        assert_eq!(of("*:80,:81"), ["0.0.0.0:80", "0.0.0.0:81"]);
        assert_eq!(of("ipv6@:80"), ["[::]:80"]);
        assert_eq!(of("[::1]:80-81"), ["[::1]:80", "[::1]:81"]);
        assert_eq!(of("localhost:80"), ["127.0.0.1:80"]);
        for none in [
            "/run/x.sock",
            "unix@/x:1",
            "abns@x",
            "fd@3",
            "quic4@:443",
            "name:80",
            "\"$X\":80",
            ":0",
            "127.0.0.1:1-60000",
            "1.2.3.4:5 transparent",
        ] {
            assert_eq!(of(none), [""; 0], "{none}");
        }
    }
}
