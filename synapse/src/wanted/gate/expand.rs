//! `%{host}`, `%{port}` and `%{name}` in the options of server lines: the one place that replaces them.
//!
//! Where haproxy reads an address (`addr %{host}`), `%{host}` is the address in force: a name there would be haproxy's to
//! resolve, once, when it loads, and one that does not resolve refuses the whole file. Anywhere else
//! (`sni str(%{host})`, `verifyhost`, `agent-send`) it is the host as published.

use std::borrow::Cow;
use std::net::IpAddr;

use crate::model::server::Server;

/// Keywords whose argument haproxy reads as an address.
const ADDRESSES: [&str; 4] = ["addr", "agent-addr", "socks4", "source"];

/// What the placeholders stand for.
#[derive(Debug, Clone, Copy)]
pub struct Target<'a> {
    /// As published: an address or a name.
    pub host: &'a str,
    /// What haproxy connects to.
    pub address: IpAddr,
    /// Port.
    pub port: u16,
    /// haproxy's name of the server.
    pub name: &'a str,
}

impl<'a> Target<'a> {
    /// Of a server.
    #[must_use]
    pub fn of(server: &'a Server) -> Self {
        Self {
            host: &server.host,
            address: server.address,
            port: server.port,
            name: &server.name,
        }
    }
}

/// The text with its placeholders replaced; `%%` is `%`, any other `%` stays (Ruby's `format` crashes on it).
#[must_use]
pub fn expand(text: &str, target: Target<'_>) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find('%') {
        out.push_str(&rest[..at]);
        rest = &rest[at..];
        let (taken, with): (usize, Cow<'_, str>) = if rest.starts_with("%%") {
            (2, "%".into())
        } else if rest.starts_with("%{host}") {
            (7, host(&out, target))
        } else if rest.starts_with("%{port}") {
            (7, target.port.to_string().into())
        } else if rest.starts_with("%{name}") {
            (7, target.name.into())
        } else {
            (1, "%".into())
        };
        out.push_str(&with);
        rest = &rest[taken..];
    }
    out.push_str(rest);
    out
}

/// What `%{host}` is after this text.
fn host<'a>(before: &str, target: Target<'a>) -> Cow<'a, str> {
    let begin = before.rfind(char::is_whitespace).map_or(0, |at| at + 1);
    let (earlier, word) = before.split_at(begin);
    let keyword = earlier.split_whitespace().next_back();
    if !keyword.is_some_and(|keyword| ADDRESSES.contains(&keyword)) {
        return target.host.into();
    }
    match target.address {
        // haproxy takes a bare IPv6 address in some of these places only, one in brackets in all.
        IpAddr::V6(address) if !word.ends_with('[') => format!("[{address}]").into(),
        address => address.to_string().into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(host: &str, address: &str, text: &str) -> String {
        let target = Target {
            host,
            address: address.parse().unwrap(),
            port: 1,
            name: "n",
        };
        expand(text, target)
    }

    #[test]
    fn placeholders_and_other_percent_signs() {
        let text = "%{host}-%{port}-%{name} 100%% %[x] %{nope} %";
        assert_eq!(at("h", "10.0.0.1", text), "h-1-n 100% %[x] %{nope} %");
        assert_eq!(at("h", "10.0.0.1", "é%%é"), "é%é");
        assert_eq!(at("h", "10.0.0.1", "%%{host} %%%{host}"), "%{host} %h");
    }

    #[test]
    fn a_host_is_its_address_where_haproxy_reads_one() {
        for (text, v4, v6) in [
            (
                "check addr %{host}",
                "check addr 10.0.0.1",
                "check addr [fe80::1]",
            ),
            (
                "addr\t%{host}:%{port}",
                "addr\t10.0.0.1:1",
                "addr\t[fe80::1]:1",
            ),
            (
                "agent-addr [%{host}]",
                "agent-addr [10.0.0.1]",
                "agent-addr [fe80::1]",
            ),
            (
                "source %{host} check",
                "source 10.0.0.1 check",
                "source [fe80::1] check",
            ),
            (
                "socks4 %{host}:1080",
                "socks4 10.0.0.1:1080",
                "socks4 [fe80::1]:1080",
            ),
            (
                "sni str(%{host}) addr 1.1.1.1",
                "sni str(h) addr 1.1.1.1",
                "sni str(h) addr 1.1.1.1",
            ),
            ("verifyhost %{host}", "verifyhost h", "verifyhost h"),
            (
                "agent-send addr-%{host}",
                "agent-send addr-h",
                "agent-send addr-h",
            ),
            ("%{host}", "h", "h"),
        ] {
            assert_eq!(at("h", "10.0.0.1", text), v4);
            assert_eq!(at("h", "fe80::1", text), v6);
        }
    }
}
