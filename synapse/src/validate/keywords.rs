//! haproxy's server keywords: how many arguments each takes, and which of them the registry may use.
//!
//! The one table of its kind: the gate drops an unlisted keyword together with its arguments, the planner reads server
//! lines with it. Source: configuration manual of haproxy 2.6, chapter 5.2, and `add server help` of later versions.

/// Keywords accepted from the registry (`haproxy_server_options` of a znode) besides those the configuration adds.
pub const ALLOWED: [&str; 15] = [
    "weight",
    "backup",
    "maxconn",
    "minconn",
    "maxqueue",
    "check",
    "inter",
    "fastinter",
    "downinter",
    "rise",
    "fall",
    "slowstart",
    "disabled",
    "send-proxy",
    "send-proxy-v2",
];

const NONE: &[&str] = &[
    "agent-check",
    "allow-0rtt",
    "backup",
    "check",
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
    "stick",
    "strict-maxconn",
    "tfo",
    "tls-tickets",
];

const ONE: &[&str] = &[
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
    "cookie",
    "crl-file",
    "crt",
    "downinter",
    "error-limit",
    "fall",
    "fastinter",
    "guid",
    "hash-key",
    "id",
    "init-addr",
    "init-state",
    "inter",
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
    "slowstart",
    "sni",
    "socks4",
    "ssl-max-ver",
    "ssl-min-ver",
    "tcp-ut",
    "track",
    "verify",
    "verifyhost",
    "weight",
    "ws",
];

/// How many arguments a server keyword takes; `None` when that is not known or not fixed (`source`).
#[must_use]
pub fn arity(keyword: &str) -> Option<usize> {
    if NONE.binary_search(&keyword).is_ok() {
        Some(0)
    } else if ONE.binary_search(&keyword).is_ok() {
        Some(1)
    } else {
        None
    }
}

/// Whether `value` is one haproxy accepts for `keyword`. Keywords without a rule of their own accept any word.
///
/// # Errors
/// What is allowed, in words.
pub fn check_value(keyword: &str, value: &str) -> Result<(), &'static str> {
    let number = || {
        value
            .bytes()
            .all(|b| b.is_ascii_digit())
            .then(|| value.parse::<u32>().ok())
            .flatten()
    };
    let between = |low: u32, high: u32| number().is_some_and(|n| (low..=high).contains(&n));
    // haproxy keeps most numbers in an `int`.
    const INT: u32 = i32::MAX as u32;
    let (fits, allowed) = match keyword {
        "weight" => (between(0, 256), "an integer of 0..256"),
        "maxconn" | "minconn" | "maxqueue" => (between(0, INT), "an integer of 0..2147483647"),
        "rise" | "fall" => (between(1, 1_000_000), "an integer of 1..1000000"),
        "id" => (between(1, INT), "an integer of 1..2147483647"),
        "inter" | "fastinter" | "downinter" => (
            milliseconds(value).is_some_and(|ms| ms > 0),
            "a time of 1ms..24d",
        ),
        "slowstart" => (milliseconds(value).is_some(), "a time of 0..24d"),
        _ => (true, ""),
    };
    if fits { Ok(()) } else { Err(allowed) }
}

/// haproxy's time format (manual, 2.5): digits and `us ms s m h d`, milliseconds without a unit, at most 2^31-1 ms.
fn milliseconds(text: &str) -> Option<u64> {
    let split = text
        .find(|c: char| !c.is_ascii_digit())
        .unwrap_or(text.len());
    let (number, unit) = text.split_at(split);
    let number: u64 = number.parse().ok()?;
    let ms = match unit {
        "us" => Some(number / 1000),
        "" | "ms" => Some(number),
        "s" => number.checked_mul(1000),
        "m" => number.checked_mul(60_000),
        "h" => number.checked_mul(3_600_000),
        "d" => number.checked_mul(86_400_000),
        _ => None,
    };
    ms.filter(|ms| *ms <= i32::MAX as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tables_are_sorted_and_cover_what_is_allowed() {
        assert!(NONE.is_sorted() && ONE.is_sorted());
        assert!(ALLOWED.iter().all(|keyword| arity(keyword).is_some()));
        assert_eq!(
            (
                arity("backup"),
                arity("weight"),
                arity("source"),
                arity("nope")
            ),
            (Some(0), Some(1), None, None)
        );
    }

    #[test]
    fn values() {
        for (keyword, value) in [
            ("weight", "0"),
            ("weight", "256"),
            ("maxconn", "0"),
            ("inter", "2s"),
            ("inter", "100"),
            ("inter", "24d"),
            ("slowstart", "0"),
            ("rise", "3"),
            ("port", "anything"),
        ] {
            assert_eq!(check_value(keyword, value), Ok(()), "{keyword} {value}");
        }
        for (keyword, value) in [
            ("weight", "257"),
            ("weight", "-1"),
            ("weight", ""),
            ("weight", "1e2"),
            ("maxconn", "99999999999"),
            ("inter", "0"),
            ("inter", "25d"),
            ("inter", "2 s"),
            ("inter", "5s5"),
            ("inter", "100us"),
            ("fall", "0"),
            ("id", "3000000000"),
        ] {
            assert!(check_value(keyword, value).is_err(), "{keyword} {value}");
        }
    }
}
