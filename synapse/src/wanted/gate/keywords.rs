//! Which of haproxy's server keywords the registry may use, and with which values. How many arguments a keyword takes is
//! told by [`crate::config::keyword`].

use std::net::{IpAddr, SocketAddr};

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

/// Keywords, without a leading `no-`, that decide what haproxy connects to or checks, and how. A server that asks for one
/// which it may not use is refused: without it, requests or checks would go somewhere else or in another form, such as
/// plain text to a TLS port. All others tune, and their server works without them.
const DECISIVE: &[&str] = &[
    "addr",
    "agent-addr",
    "agent-check",
    "agent-port",
    "agent-send",
    "alpn",
    "ca-file",
    "check",
    "check-alpn",
    "check-proto",
    "check-send-proxy",
    "check-sni",
    "check-ssl",
    "check-via-socks4",
    "ciphers",
    "ciphersuites",
    "client-sigalgs",
    "crl-file",
    "crt",
    "curves",
    "force-sslv3",
    "force-tlsv10",
    "force-tlsv11",
    "force-tlsv12",
    "force-tlsv13",
    "interface",
    "log-proto",
    "namespace",
    "npn",
    "port",
    "proto",
    "proxy-v2-options",
    "redir",
    "send-proxy",
    "send-proxy-v2",
    "send-proxy-v2-ssl",
    "send-proxy-v2-ssl-cn",
    "sigalgs",
    "sni",
    "socks4",
    "source",
    "ssl",
    "ssl-max-ver",
    "ssl-min-ver",
    "sslv3",
    "tlsv10",
    "tlsv11",
    "tlsv12",
    "tlsv13",
    "track",
    "usesrc",
    "verify",
    "verifyhost",
    "ws",
];

/// Whether a keyword decides what haproxy connects to or checks, and how.
#[must_use]
pub fn is_decisive(keyword: &str) -> bool {
    let positive = keyword.strip_prefix("no-").unwrap_or(keyword);
    DECISIVE.binary_search(&positive).is_ok()
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
        "port" | "agent-port" => (between(1, 65_535), "a port of 1..65535"),
        // A name would be haproxy's to resolve: one that does not resolve refuses the whole file.
        "addr" | "agent-addr" | "source" | "socks4" => {
            (is_address(value), "an IP address, or one with a port")
        }
        _ => (true, ""),
    };
    if fits { Ok(()) } else { Err(allowed) }
}

/// An IP address, an IPv6 one with or without brackets, or one with a port.
fn is_address(text: &str) -> bool {
    let bare = text
        .strip_prefix('[')
        .and_then(|text| text.strip_suffix(']'));
    bare.unwrap_or(text).parse::<IpAddr>().is_ok() || text.parse::<SocketAddr>().is_ok()
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
    use crate::config::keyword::arity;

    #[test]
    fn the_arity_of_what_is_allowed_is_known() {
        assert!(ALLOWED.iter().all(|keyword| arity(keyword).is_some()));
    }

    #[test]
    fn the_table_is_sorted_and_of_known_keywords() {
        assert!(DECISIVE.is_sorted());
        for keyword in DECISIVE {
            let known = arity(keyword).or_else(|| arity(&format!("no-{keyword}")));
            assert!(known.is_some(), "{keyword}");
        }
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
            ("port", "65535"),
            ("addr", "10.0.0.1"),
            ("source", "[::1]:80"),
            ("sni", "anything"),
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
            ("agent-port", "0"),
            ("port", "+1"),
            ("addr", "a.example"),
            ("source", "*"),
            ("socks4", "10.0.0.1:"),
        ] {
            assert!(check_value(keyword, value).is_err(), "{keyword} {value}");
        }
    }
}
