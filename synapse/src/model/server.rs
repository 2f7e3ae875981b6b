//! A server as wanted in one backend: validated, addressed, named. What rendering and planning work on.

use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;

/// 16 hexadecimal digits that stand for a server's options in haproxy.
pub type Digest = Arc<str>;

/// Address of a server that a line names and that the registry does not have. Nobody has it (RFC 5737), so that it also
/// tells such a server from one that an operator has disabled.
pub const NOWHERE: IpAddr = IpAddr::V4(Ipv4Addr::new(192, 0, 2, 1));

/// A validated server of a backend. Every text in it is safe to stand in haproxy.cfg and on the stats socket.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Server {
    /// haproxy's server name, unique in the backend: `<name>_<host>:<port>`, or `<host>:<port>`.
    pub name: String,
    /// Host as published: an address or a name.
    pub host: String,
    /// What haproxy connects to.
    pub address: IpAddr,
    /// What haproxy connects to.
    pub port: u16,
    /// The registry's weight, 0..256; rendered only with `use_nerve_weights`.
    pub weight: Option<u16>,
    /// `haproxy_server_options` after the allow-list.
    pub options: Option<String>,
    /// Explicit id (`haproxy_server_id` of a default server, or `id N` in its options).
    pub explicit_id: Option<u32>,
    /// The znode it comes from.
    pub znode: Option<String>,
    /// Digits after the last `_` of the znode's name.
    pub sequence: Option<u64>,
    /// Put in maint by an operator: rendered as `disabled` across our reloads.
    pub disabled: bool,
}

impl Server {
    /// The registry does not have it, but a line names it: it stays in the file, out of rotation.
    #[must_use]
    pub fn is_parked(&self) -> bool {
        self.disabled && self.address == NOWHERE
    }

    /// The same without the registry's part.
    #[must_use]
    pub fn parked(&self) -> Self {
        Self {
            address: NOWHERE,
            weight: self.weight.filter(|weight| *weight > 0),
            znode: None,
            sequence: None,
            disabled: true,
            ..self.clone()
        }
    }

    /// A server of which only the NAME is known, such as `i1_10.0.0.1:80`.
    #[must_use]
    pub fn unknown(name: &str) -> Self {
        let (left, port) = name.rsplit_once(':').unwrap_or((name, ""));
        let host = left.rsplit_once('_').map_or(left, |(_, host)| host);
        Self {
            name: name.to_owned(),
            host: host.to_owned(),
            address: NOWHERE,
            port: port.parse().ok().filter(|port| *port > 0).unwrap_or(1),
            weight: None,
            options: None,
            explicit_id: None,
            znode: None,
            sequence: None,
            disabled: true,
        }
    }
}

/// A server with its id, ready to be rendered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Identified {
    /// The server. Shared: most servers of a service are the same after a change.
    pub server: Arc<Server>,
    /// haproxy's id, unique in the backend.
    pub id: u32,
}

/// A registry entry that is not used, and why.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, serde::Serialize)]
pub struct Rejected {
    /// The znode (or `default_servers[N]`).
    pub znode: String,
    /// The reason in words. Holds at most a short, escaped piece of the data.
    pub reason: String,
}
