//! The only place where text becomes a unit: ensembles, znode paths, ports, durations.

use std::fmt;
use std::net::Ipv6Addr;
use std::time::Duration;

/// A ZooKeeper ensemble as Airbnb's `hosts` / `zk_hosts` list names it: entries sorted as text, an optional chroot.
///
/// The chroot never goes into the connect string (an absent one would make every create fail); paths are prefixed
/// with it instead, see [`Ensemble::absolute`].
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Ensemble {
    hosts: String,
    chroot: String,
}

/// Whether the client can ever connect to it: `name:port`, `v4:port` or `[v6]:port`.
fn host_port(text: &str) -> Result<(), &'static str> {
    const FORM: &str = "is not `host:port` with a port of 1..65535";
    if text.contains([';', '|']) {
        return Err("is not `host:port`: hosts are separated by commas");
    }
    let (name, port) = text.rsplit_once(':').ok_or(FORM)?;
    if name.contains('%') {
        return Err(
            "has a zone id, which the ZooKeeper client does not take: write an address without",
        );
    }
    let is_v6 = |text: &str| text.parse::<Ipv6Addr>().is_ok();
    if is_v6(text) || is_v6(name) {
        return Err("is an IPv6 address without brackets; allowed: `[v6]:port`");
    }
    if !port.parse::<u16>().is_ok_and(|port| port > 0) {
        return Err(FORM);
    }
    match name.strip_prefix('[') {
        Some(rest) if rest.strip_suffix(']').is_some_and(is_v6) => Ok(()),
        Some(_) => Err("has no IPv6 address between the brackets; allowed: `[v6]:port`"),
        None if name.contains(':') => {
            Err("has two ports: only the one for clients; allowed: `host:port`")
        }
        None if name.is_empty() => Err(FORM),
        None if name
            .chars()
            .all(|c| c.is_alphanumeric() || ".-_".contains(c)) =>
        {
            Ok(())
        }
        None => Err(
            "names no host; allowed: `host:port`, letters, digits, `.`, `-` and `_` in the host",
        ),
    }
}

impl Ensemble {
    /// From the entries of the list. Each is `host:port`; one of them (as in Ruby: the last in sorted order) may end
    /// in `/chroot`.
    ///
    /// # Errors
    /// A sentence naming the entry and what is allowed.
    pub fn new<S: AsRef<str>>(entries: &[S]) -> Result<Self, String> {
        let mut sorted: Vec<&str> = entries.iter().map(|e| e.as_ref().trim()).collect();
        sorted.sort_unstable();
        sorted.dedup();
        if sorted.is_empty() {
            return Err("no host given; allowed: a list of `host:port`".to_owned());
        }
        let mut chroot = String::new();
        let mut hosts = Vec::with_capacity(sorted.len());
        for entry in sorted {
            let (host, root) = match entry.find('/') {
                Some(at) => entry.split_at(at),
                None => (entry, ""),
            };
            let root = root.trim_end_matches('/');
            if !root.is_empty() {
                if !chroot.is_empty() && chroot != root {
                    return Err(format!(
                        "two different chroots, `{chroot}` and `{root}`; allowed: one"
                    ));
                }
                ZkPath::new(root).map_err(|e| format!("chroot of `{entry}`: {e}"))?;
                root.clone_into(&mut chroot);
            }
            host_port(host).map_err(|why| format!("`{entry}` {why}"))?;
            hosts.push(host);
        }
        Ok(Self {
            hosts: hosts.join(","),
            chroot,
        })
    }

    /// The connect string, without the chroot.
    #[must_use]
    pub fn hosts(&self) -> &str {
        &self.hosts
    }

    /// The chroot, `""` or `/a/b`.
    #[must_use]
    pub fn chroot(&self) -> &str {
        &self.chroot
    }

    /// The path as the servers know it: chroot and path.
    #[must_use]
    pub fn absolute(&self, path: &ZkPath) -> String {
        format!("{}{}", self.chroot, path.as_str())
    }

    /// Airbnb's statsd tag: the first host up to its first dot, trailing digits cut (`zk-main-01.x:2181` is
    /// `zk-main-`; an entry without a dot keeps its port's colon, an IP address stays whole).
    #[must_use]
    pub fn cluster_tag(&self) -> &str {
        let first = self.hosts.split(',').next().unwrap_or_default();
        if first
            .rsplit_once(':')
            .is_some_and(|(host, _)| host.parse::<std::net::IpAddr>().is_ok())
        {
            return first;
        }
        first
            .split('.')
            .next()
            .unwrap_or_default()
            .trim_end_matches(|c: char| c.is_ascii_digit())
    }
}

impl fmt::Display for Ensemble {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}{}", self.hosts, self.chroot)
    }
}

/// An absolute znode path without a trailing slash, `.`/`..` parts or control bytes. Never `/` itself.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ZkPath(String);

impl ZkPath {
    /// # Errors
    /// A sentence saying what is wrong with it.
    pub fn new(text: &str) -> Result<Self, String> {
        if !text.starts_with('/') {
            return Err(format!("`{text}` does not begin with `/`"));
        }
        if text.len() == 1 {
            return Err("`/` is the root; allowed: a path below it".to_owned());
        }
        if text.ends_with('/') {
            return Err(format!("`{text}` ends in `/`"));
        }
        if text
            .chars()
            .any(|c| c.is_control() || ('\u{f000}'..='\u{f8ff}').contains(&c))
        {
            return Err(format!("{text:?} holds a character ZooKeeper refuses"));
        }
        if text[1..]
            .split('/')
            .any(|part| matches!(part, "" | "." | ".."))
        {
            return Err(format!("`{text}` holds an empty, `.` or `..` part"));
        }
        Ok(Self(text.to_owned()))
    }

    /// The text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for ZkPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A duration as the configuration writes it: a plain number is seconds (as in Ruby, fractions allowed), text may end
/// in `ms`, `s`, `m`, `h` or `d`.
///
/// # Errors
/// A sentence naming the value and what is allowed.
pub fn parse_duration(text: &str) -> Result<Duration, String> {
    let text = text.trim();
    let split = text
        .find(|c: char| c.is_ascii_alphabetic())
        .unwrap_or(text.len());
    let (number, unit) = text.split_at(split);
    let factor = match unit {
        "ms" => 0.001,
        "" | "s" => 1.0,
        "m" => 60.0,
        "h" => 3600.0,
        "d" => 86400.0,
        _ => {
            return Err(format!(
                "`{text}` is not a duration; allowed: seconds (`0.5`), `20ms`, `10s`, `5m`, `1h`"
            ));
        }
    };
    number
        .trim()
        .parse::<f64>()
        .ok()
        .filter(|n| n.is_finite() && *n >= 0.0)
        .and_then(|n| Duration::try_from_secs_f64(n * factor).ok())
        .ok_or_else(|| {
            format!(
                "`{text}` is not a duration; allowed: seconds (`0.5`), `20ms`, `10s`, `5m`, `1h`"
            )
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hosts_that_can_never_be_connected_to_are_refused() {
        for (good, hosts) in [
            ("zk-a:2181", "zk-a:2181"),
            ("10.0.0.1:2181/root", "10.0.0.1:2181"),
            ("[::1]:2181", "[::1]:2181"),
            ("[fd00::7:1]:65535", "[fd00::7:1]:65535"),
            ("zk_1.rack-2.example:1", "zk_1.rack-2.example:1"),
        ] {
            assert_eq!(Ensemble::new(&[good]).unwrap().hosts(), hosts);
        }
        for (bad, why) in [
            ("a:2181;b:2181", "commas"),
            ("a:2181|b:2181", "commas"),
            ("zk-a:2181:2888", "two ports"),
            ("10.0.0.1:2888:3888", "two ports"),
            ("::1", "without brackets"),
            ("::1:2181", "without brackets"),
            ("fd00::a:2181", "without brackets"),
            ("fe80::1%eth0:2181", "zone id"),
            ("[fe80::1%eth0]:2181", "zone id"),
            ("[::1]", "1..65535"),
            ("[zk-a]:2181", "between the brackets"),
            ("[::1:2181", "between the brackets"),
            ("zk-a", "1..65535"),
            ("zk-a:0", "1..65535"),
            (":2181", "1..65535"),
            ("zk a:2181", "names no host"),
            ("user@zk:2181", "names no host"),
            ("zk:2181\\", "1..65535"),
            ("{zk}:2181", "names no host"),
        ] {
            let error = Ensemble::new(&["zk:2181", bad]).unwrap_err();
            assert!(error.contains(why) && error.contains(bad), "{bad}: {error}");
        }
    }
}
