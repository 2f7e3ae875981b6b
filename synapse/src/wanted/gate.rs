//! The gate: nothing from the registry reaches haproxy.cfg or the stats socket without passing here.
//!
//! Pure. A [`Candidate`] becomes a [`Server`] whose every text is safe, or is refused with the reason. What can be
//! left out without losing the server (a bad weight, an unlisted option) is left out with a note. Called by
//! [`crate::wanted::funnel`]. Facts about haproxy 2.6: a name outside `[A-Za-z0-9._:-]` refuses the whole file, one longer
//! than 16,000 characters hangs `add server`, `$` and quotes expand the environment, `#` begins a comment.

mod expand;
pub mod keywords;
mod options;
#[cfg(test)]
mod tests;

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use smartstack_common::instance::Instance;

pub use expand::{Target, expand};

use crate::config::DefaultServer;
use crate::model::server::Server;

/// Longest server name handed to haproxy.
const MAX_NAME: usize = 128;

/// What the gate needs to know besides the candidate.
#[derive(Clone, Copy)]
pub struct Gate<'a> {
    /// The address of a host that is a name; `None` = never resolved.
    pub resolved: &'a dyn Fn(&str) -> Option<IpAddr>,
    /// Keywords allowed in the registry's `haproxy_server_options` beyond [`keywords::ALLOWED`].
    pub allowed_options: &'a [String],
}

/// Where a server comes from, and with it how far its options are trusted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Origin<'a> {
    /// A znode: options by allow-list.
    Znode(&'a str),
    /// The local configuration: options as they are.
    Local,
}

/// A server before the gate.
#[derive(Debug, Clone, PartialEq)]
pub struct Candidate<'a> {
    /// Address or name.
    pub host: &'a str,
    /// 1..65535, after the override.
    pub port: u16,
    /// Name, if any.
    pub name: Option<&'a str>,
    /// 0..256.
    pub weight: Option<u16>,
    /// Text of `haproxy_server_options`.
    pub options: Option<&'a str>,
    /// `haproxy_server_id`.
    pub id: Option<u32>,
    /// Who says so.
    pub origin: Origin<'a>,
}

impl<'a> Candidate<'a> {
    /// From the registry.
    #[must_use]
    pub fn from_instance(znode: &'a str, instance: &'a Instance, port: u16) -> Self {
        Self {
            host: &instance.host,
            port,
            name: instance.name.as_deref(),
            weight: instance.weight,
            options: instance.haproxy_server_options.as_deref(),
            id: None,
            origin: Origin::Znode(znode),
        }
    }

    /// From `default_servers`.
    #[must_use]
    pub fn from_default(server: &'a DefaultServer, port: u16) -> Self {
        Self {
            host: &server.host,
            port,
            name: server.name.as_deref(),
            weight: server.weight,
            options: server.haproxy_server_options.as_deref(),
            id: server.haproxy_server_id,
            origin: Origin::Local,
        }
    }
}

impl Gate<'_> {
    /// Lets a candidate through. The second value says what was left out of it.
    ///
    /// # Errors
    /// Why it cannot be rendered.
    pub fn admit(&self, candidate: &Candidate<'_>) -> Result<(Server, Vec<String>), String> {
        let host = unbracketed(candidate.host);
        if let Some(bad) = candidate
            .name
            .and_then(|name| name.chars().find(|c| is_unsafe(*c)))
        {
            return Err(format!("`name` holds {bad:?}"));
        }
        let address = self.address(host, candidate.origin)?;
        let name = server_name(candidate.name, host, candidate.port)?;
        let mut left_out = Vec::new();
        let target = Target {
            host,
            address,
            port: candidate.port,
            name: &name,
        };
        let options = candidate.options.map(|text| expand(text, target));
        let (options, id) = match (options, candidate.origin) {
            (None, _) => (None, None),
            (Some(text), Origin::Znode(_)) => {
                options::filter(&text, self.allowed_options, &mut left_out)?
            }
            (Some(text), Origin::Local) => options::local(&text)?,
        };
        let (znode, sequence) = match candidate.origin {
            Origin::Znode(znode) => (
                Some(znode.to_owned()),
                crate::sources::decode::sequence(znode),
            ),
            Origin::Local => (None, None),
        };
        let server = Server {
            name,
            host: host.to_owned(),
            address,
            port: candidate.port,
            weight: candidate.weight,
            options,
            explicit_id: candidate.id.filter(|id| *id > 0).or(id),
            znode,
            sequence,
            disabled: false,
        };
        Ok((server, left_out))
    }

    fn address(&self, host: &str, origin: Origin<'_>) -> Result<IpAddr, String> {
        let address = match host.parse::<IpAddr>() {
            Ok(address) => address,
            Err(_) if is_dns_name(host) => {
                (self.resolved)(host).ok_or_else(|| format!("host `{host}` does not resolve"))?
            }
            Err(_) => {
                return Err(format!(
                    "host {} is neither an address nor a DNS name",
                    excerpt(host)
                ));
            }
        };
        // haproxy takes these for "the address that the client has asked for", which is one of this host: the user may mean
        // that, and Ruby's synapse serves it; of a node in the registry it says nothing.
        match (address, origin) {
            (address, _) if !address.is_unspecified() => Ok(address),
            (IpAddr::V4(_), Origin::Local) => Ok(Ipv4Addr::LOCALHOST.into()),
            (IpAddr::V6(_), Origin::Local) => Ok(Ipv6Addr::LOCALHOST.into()),
            (_, Origin::Znode(_)) => Err(format!("host `{host}` is the unspecified address")),
        }
    }
}

/// `<name>_<host>:<port>` or `<host>:<port>`, every character haproxy refuses in the name mapped to `_`.
fn server_name(name: Option<&str>, host: &str, port: u16) -> Result<String, String> {
    let mut text = match name {
        Some(name) if !name.is_empty() => format!("{name}_{host}:{port}"),
        _ => format!("{host}:{port}"),
    };
    if !text.chars().all(is_name_char) {
        text = text.replace(|c| !is_name_char(c), "_");
    }
    if text.starts_with('-') {
        text.replace_range(..1, "_");
    }
    if text.len() > MAX_NAME {
        return Err(format!(
            "server name {} has {} characters, at most {MAX_NAME} are allowed",
            excerpt(&text),
            text.len()
        ));
    }
    Ok(text)
}

/// Characters haproxy accepts in names of servers and backends.
#[must_use]
pub fn is_name_char(c: char) -> bool {
    c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | ':' | '-')
}

/// Characters that refuse the whole znode wherever they would be rendered.
fn is_unsafe(c: char) -> bool {
    c.is_control() || matches!(c, '"' | '\'' | '\\' | '$' | '#' | ';' | '`')
}

fn unbracketed(host: &str) -> &str {
    host.strip_prefix('[')
        .and_then(|h| h.strip_suffix(']'))
        .unwrap_or(host)
}

/// A name that could stand in DNS. One whose last label is a number is a mistyped address.
fn is_dns_name(host: &str) -> bool {
    let host = host.strip_suffix('.').unwrap_or(host);
    let label_fits = |label: &str| {
        (1..=63).contains(&label.len())
            && label
                .bytes()
                .all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_'))
            && !label.starts_with('-')
            && !label.ends_with('-')
    };
    let numeric_tail = host
        .rsplit('.')
        .next()
        .is_some_and(|label| label.bytes().all(|b| b.is_ascii_digit()));
    host.len() <= 253 && host.split('.').all(label_fits) && !numeric_tail
}

/// A short, escaped piece of foreign text.
fn excerpt(text: &str) -> String {
    let short: String = text.chars().take(40).collect();
    let dots = if short.len() < text.len() { "…" } else { "" };
    format!("`{}{dots}`", short.escape_debug())
}
