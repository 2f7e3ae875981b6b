//! The keywords of server lines: how many arguments each takes, which cancels which, what haproxy does without them.
//!
//! Pure. Source: configuration manual 2.6 section 5.2, and what `haproxy -c` of 2.6 accepts (a test asks it); later
//! keywords from the manuals up to 3.2.

use std::borrow::Cow;

/// Keywords without an argument.
const FLAGS: &[&str] = &[
    "agent-check",
    "allow-0rtt",
    "backup",
    "check",
    "check-reuse-pool",
    "check-send-proxy",
    "check-ssl",
    "check-via-socks4",
    "disabled",
    "enabled",
    "force-sslv3",
    "force-tlsv10",
    "force-tlsv11",
    "force-tlsv12",
    "force-tlsv13",
    "no-agent-check",
    "no-backup",
    "no-check",
    "no-check-reuse-pool",
    "no-check-send-proxy",
    "no-check-ssl",
    "no-send-proxy",
    "no-send-proxy-v2",
    "no-send-proxy-v2-ssl",
    "no-send-proxy-v2-ssl-cn",
    "no-ssl",
    "no-ssl-reuse",
    "no-sslv3",
    "no-tfo",
    "no-tls-tickets",
    "no-tlsv10",
    "no-tlsv11",
    "no-tlsv12",
    "no-tlsv13",
    "no-verifyhost",
    "non-stick",
    "send-proxy",
    "send-proxy-v2",
    "send-proxy-v2-ssl",
    "send-proxy-v2-ssl-cn",
    "ssl",
    "ssl-reuse",
    "sslv3",
    "stick",
    "tfo",
    "tls-tickets",
    "tlsv10",
    "tlsv11",
    "tlsv12",
    "tlsv13",
];

/// Keywords with one argument. `usesrc` and `interface` follow `source ADDR` and are read as keywords of their own.
const VALUES: &[&str] = &[
    "addr",
    "agent-addr",
    "agent-inter",
    "agent-port",
    "agent-send",
    "alpn",
    "ca-file",
    "check-alpn",
    "check-proto",
    "check-sni",
    "ciphers",
    "ciphersuites",
    "client-sigalgs",
    "cookie",
    "crl-file",
    "crt",
    "curves",
    "downinter",
    "error-limit",
    "fall",
    "fastinter",
    "guid",
    "hash-key",
    "id",
    "idle-ping",
    "init-addr",
    "init-state",
    "inter",
    "interface",
    "log-bufsize",
    "log-proto",
    "max-reuse",
    "maxconn",
    "maxqueue",
    "minconn",
    "namespace",
    "npn",
    "observe",
    "on-error",
    "on-marked-down",
    "on-marked-up",
    "pool-conn-name",
    "pool-low-conn",
    "pool-max-conn",
    "pool-purge-delay",
    "port",
    "proto",
    "proxy-v2-options",
    "redir",
    "resolve-net",
    "resolve-opts",
    "resolve-prefer",
    "resolvers",
    "rise",
    "shard",
    "sigalgs",
    "slowstart",
    "sni",
    "socks4",
    "source",
    "ssl-max-ver",
    "ssl-min-ver",
    "tcp-ut",
    "track",
    "usesrc",
    "verify",
    "verifyhost",
    "weight",
    "ws",
];

/// Arguments that are durations in milliseconds unless they carry a unit.
const DURATIONS: &[&str] = &[
    "agent-inter",
    "downinter",
    "fastinter",
    "inter",
    "pool-purge-delay",
    "slowstart",
    "tcp-ut",
];

/// What haproxy does when a keyword is absent (configuration manual 5.2), with durations in milliseconds.
const BUILT_IN: &[(&str, &str)] = &[
    ("fall", "3"),
    ("inter", "2000"),
    ("maxconn", "0"),
    ("maxqueue", "0"),
    ("minconn", "0"),
    ("pool-max-conn", "-1"),
    ("pool-purge-delay", "5000"),
    ("rise", "2"),
    ("slowstart", "0"),
];

/// Keywords that `add server` of 2.6 refuses (measured); `cookie`, taken since 3.0, is looked at apart. Others that it may
/// refuse show by its answer.
const FILE_ONLY: &[&str] = &[
    "init-addr",
    "log-proto",
    "max-reuse",
    "namespace",
    "non-stick",
    "redir",
    "resolvers",
    "socks4",
    "tcp-ut",
];

/// Whether only a server line of the file can hold it.
#[must_use]
pub fn is_file_only(keyword: &str) -> bool {
    FILE_ONLY.binary_search(&keyword).is_ok()
}

/// Every keyword whose number of arguments is known.
pub fn all() -> impl Iterator<Item = &'static str> {
    FLAGS.iter().chain(VALUES).copied()
}

/// Number of arguments; `None` = unknown keyword.
#[must_use]
pub fn arity(keyword: &str) -> Option<usize> {
    // Both are sorted (a test looks): this runs for each word of each server.
    if FLAGS.binary_search(&keyword).is_ok() {
        Some(0)
    } else {
        VALUES.binary_search(&keyword).ok().map(|_| 1)
    }
}

/// The keyword that this one cancels.
pub(crate) fn opposite(keyword: &str) -> Option<Cow<'static, str>> {
    Some(match keyword {
        "enabled" => "disabled".into(),
        "disabled" => "enabled".into(),
        "stick" => "non-stick".into(),
        "non-stick" => "stick".into(),
        _ if FLAGS.binary_search(&keyword).is_ok() || keyword == "verifyhost" => {
            match keyword.strip_prefix("no-") {
                Some(positive) => positive.to_owned().into(),
                None => format!("no-{keyword}").into(),
            }
        }
        _ => return None,
    })
}

/// The same value always in the same form: durations in milliseconds.
pub(crate) fn canonical(keyword: &str, value: &str) -> String {
    let millis = DURATIONS
        .contains(&keyword)
        .then(|| millis(value))
        .flatten();
    millis.map_or_else(|| value.to_owned(), |ms| ms.to_string())
}

/// haproxy's time format (configuration manual 2.5).
fn millis(text: &str) -> Option<u64> {
    let digits = text
        .find(|c: char| !c.is_ascii_digit())
        .unwrap_or(text.len());
    let number: u64 = text[..digits].parse().ok()?;
    match &text[digits..] {
        "us" => number.is_multiple_of(1000).then_some(number / 1000),
        "" | "ms" => Some(number),
        "s" => number.checked_mul(1000),
        "m" => number.checked_mul(60_000),
        "h" => number.checked_mul(3_600_000),
        "d" => number.checked_mul(86_400_000),
        _ => None,
    }
}

/// Whether saying so changes nothing.
pub(crate) fn is_built_in(keyword: &str, values: &[String]) -> bool {
    match keyword {
        // On unless negated.
        "enabled" | "stick" | "ssl-reuse" | "tls-tickets" => true,
        "no-ssl-reuse" | "no-tls-tickets" => false,
        // `no-sslv3` and `no-tlsv1x` switch off what is on.
        _ if keyword.starts_with("no-")
            && !keyword.starts_with("no-sslv")
            && !keyword.starts_with("no-tlsv") =>
        {
            true
        }
        _ => values
            .first()
            .is_some_and(|value| BUILT_IN.contains(&(keyword, value.as_str()))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tables_are_sorted() {
        assert!(FLAGS.is_sorted() && VALUES.is_sorted() && FILE_ONLY.is_sorted());
    }
}
