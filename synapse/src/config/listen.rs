//! What haproxy listens on, as its lines say it, and which of it is the same address. Pure.
//!
//! haproxy opens its sockets with `SO_REUSEPORT`: two sections on one address are accepted by `haproxy -c` and by the kernel,
//! and each connection goes to one of them. Compared are address families, wildcards, ranges of ports and paths; names are
//! compared as they are written, but for `localhost`. What cannot be read (variables, quotes, descriptors) is not judged.
//! Called for what a configuration shows, and by the output on the text that was put together.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::Path;

/// One socket.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Listener {
    /// As it is written.
    pub text: String,
    at: At,
    /// Its `interface` and `namespace`: another one is another network.
    network: Vec<String>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum At {
    Ip {
        host: Host,
        /// First and last port.
        ports: (u16, u16),
        udp: bool,
    },
    /// A unix socket, or an abstract one.
    Name(String),
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Host {
    /// All addresses of IPv4, of IPv6, or of both.
    Any {
        v4: bool,
        v6: bool,
    },
    One(IpAddr),
    /// A name other than `localhost`.
    Name(String),
}

impl Listener {
    /// What the words of a line after `bind` (or `stats socket`) open: addresses, then options.
    #[must_use]
    pub fn of_words<'a>(mut words: impl Iterator<Item = &'a str>) -> Vec<Self> {
        let addresses = words.next().unwrap_or_default();
        let options: Vec<&str> = words.collect();
        let has = |word: &str| options.contains(&word);
        let network = options
            .windows(2)
            .filter(|pair| matches!(pair[0], "interface" | "namespace"))
            .map(|pair| pair.join(" "))
            .collect::<Vec<_>>();
        let at = |text: &str| {
            Some(Self {
                text: text.to_owned(),
                at: At::read(text, has("v6only"))?,
                network: network.clone(),
            })
        };
        if has("transparent") {
            // Addresses of others.
            return Vec::new();
        }
        addresses.split(',').filter_map(at).collect()
    }

    /// What a line of a section of this kind opens.
    #[must_use]
    pub fn of_line(keyword: &str, line: &str) -> Vec<Self> {
        let mut words = line.split_ascii_whitespace();
        match (keyword, words.next()) {
            ("frontend" | "listen" | "peers" | "log-forward", Some("bind")) => {
                Self::of_words(words)
            }
            ("log-forward", Some("dgram-bind")) => {
                let mut all = Self::of_words(words);
                for listener in &mut all {
                    if let At::Ip { udp, .. } = &mut listener.at {
                        *udp = true;
                    }
                }
                all
            }
            ("global", Some("stats")) if words.next() == Some("socket") => Self::of_words(words),
            _ => Vec::new(),
        }
    }

    /// Whether it is the same address, whatever the network.
    pub(crate) fn is_at(&self, other: &Self) -> bool {
        self.at == other.at
    }

    /// A socket of our own, as a path.
    #[must_use]
    pub fn path(path: &Path) -> Self {
        let text = path.display().to_string();
        Self {
            at: At::Name(text.clone()),
            text,
            network: Vec::new(),
        }
    }

    /// Whether some connection could be for either.
    #[must_use]
    pub fn meets(&self, other: &Self) -> bool {
        self.network == other.network
            && match (&self.at, &other.at) {
                (At::Name(one), At::Name(two)) => one == two,
                (
                    At::Ip { host, ports, udp },
                    At::Ip {
                        host: other,
                        ports: others,
                        udp: other_udp,
                    },
                ) => {
                    udp == other_udp
                        && ports.0 <= others.1
                        && others.0 <= ports.1
                        && host.meets(other)
                }
                _ => false,
            }
    }

    /// Its ports, where it has any.
    #[must_use]
    pub fn ports(&self) -> Option<(u16, u16)> {
        match self.at {
            At::Ip { ports, .. } => Some(ports),
            At::Name(_) => None,
        }
    }

    /// Whether a connection of this host to that address and port arrives here; `own` are the host's addresses.
    #[must_use]
    pub fn takes(&self, address: IpAddr, port: u16, own: &BTreeSet<IpAddr>) -> bool {
        let At::Ip { host, ports, udp } = &self.at else {
            return false;
        };
        let in_namespace = self.network.iter().any(|n| n.starts_with("namespace"));
        if *udp || in_namespace || port < ports.0 || port > ports.1 {
            return false;
        }
        let address = match address.to_canonical() {
            // The kernel's way to say "this host".
            IpAddr::V4(Ipv4Addr::UNSPECIFIED) => IpAddr::V4(Ipv4Addr::LOCALHOST),
            IpAddr::V6(Ipv6Addr::UNSPECIFIED) => IpAddr::V6(Ipv6Addr::LOCALHOST),
            other => other,
        };
        match host {
            Host::Any { .. } => {
                host.meets(&Host::One(address)) && (address.is_loopback() || own.contains(&address))
            }
            _ => host.meets(&Host::One(address)),
        }
    }
}

impl At {
    fn read(text: &str, v6only: bool) -> Option<Self> {
        if text.contains(['"', '\'', '\\', '$']) {
            return None;
        }
        let (kind, rest) = match text.split_once('@') {
            Some((kind, rest)) => (kind, rest),
            None => ("", text),
        };
        let (family, udp) = match kind {
            "unix" | "uxst" | "uxdg" => return Some(Self::Name(rest.to_owned())),
            "abns" | "abnsz" => return Some(Self::Name(text.to_owned())),
            "" if rest.starts_with('/') => return Some(Self::Name(rest.to_owned())),
            "" | "tcp" | "mptcp" => (None, false),
            "ipv4" | "tcp4" | "mptcp4" => (Some(4), false),
            "ipv6" | "tcp6" | "mptcp6" => (Some(6), false),
            "udp" => (None, true),
            "udp4" | "quic4" => (Some(4), true),
            "udp6" | "quic6" => (Some(6), true),
            _ => return None,
        };
        let (host, ports) = rest.rsplit_once(':')?;
        let (first, last) = ports.split_once('-').unwrap_or((ports, ports));
        let ports: (u16, u16) = (first.parse().ok()?, last.parse().ok()?);
        if ports.0 == 0 || ports.1 < ports.0 {
            return None;
        }
        let bracketed = host.strip_prefix('[').and_then(|h| h.strip_suffix(']'));
        let host = match bracketed.unwrap_or(host) {
            "" | "*" if family == Some(6) => Host::any_v6(v6only),
            "" | "*" => Host::Any {
                v4: true,
                v6: false,
            },
            "localhost" if family == Some(6) => Host::One(Ipv6Addr::LOCALHOST.into()),
            "localhost" => Host::One(Ipv4Addr::LOCALHOST.into()),
            literal => match literal.parse::<IpAddr>() {
                Ok(IpAddr::V4(Ipv4Addr::UNSPECIFIED)) => Host::Any {
                    v4: true,
                    v6: false,
                },
                Ok(IpAddr::V6(Ipv6Addr::UNSPECIFIED)) => Host::any_v6(v6only),
                Ok(address) => Host::One(address.to_canonical()),
                Err(_) => Host::Name(literal.to_ascii_lowercase()),
            },
        };
        Some(Self::Ip { host, ports, udp })
    }
}

impl Host {
    /// `::` takes IPv4 as well, unless the line says otherwise (and the kernel's own default is not changed).
    fn any_v6(v6only: bool) -> Self {
        Self::Any {
            v4: !v6only,
            v6: true,
        }
    }

    fn meets(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Any { v4, v6 }, Self::Any { v4: w4, v6: w6 }) => (*v4 && *w4) || (*v6 && *w6),
            (Self::Any { v4, v6 }, Self::One(one)) | (Self::One(one), Self::Any { v4, v6 }) => {
                if one.is_ipv4() {
                    *v4
                } else {
                    *v6
                }
            }
            (Self::One(one), Self::One(two)) => one == two,
            (Self::Name(one), Self::Name(two)) => one == two,
            _ => false,
        }
    }
}

/// Indexes by single ports; what has none, or a range, is looked at each time.
#[derive(Debug, Default)]
pub(crate) struct ByPort {
    single: BTreeMap<u16, Vec<usize>>,
    wide: Vec<usize>,
}

impl ByPort {
    pub(crate) fn add(&mut self, index: usize, listener: &Listener) {
        match listener.ports() {
            Some((first, last)) if first == last => {
                self.single.entry(first).or_default().push(index);
            }
            _ => self.wide.push(index),
        }
    }

    /// Whoever may have that port.
    pub(crate) fn at(&self, port: u16) -> impl Iterator<Item = usize> + '_ {
        let single = self.single.get(&port).into_iter().flatten();
        single.chain(&self.wide).copied()
    }

    /// Whoever may have one of its ports.
    pub(crate) fn candidates(&self, listener: &Listener) -> Box<dyn Iterator<Item = usize> + '_> {
        match listener.ports() {
            Some((first, last)) if first == last => Box::new(self.at(first)),
            Some((first, last)) => {
                let single = self.single.range(first..=last).flat_map(|(_, all)| all);
                Box::new(single.chain(&self.wide).copied())
            }
            None => Box::new(self.wide.iter().copied()),
        }
    }
}
