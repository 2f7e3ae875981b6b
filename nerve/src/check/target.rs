//! Where a check connects, as it is configured, and what else every check has.

use std::cell::Cell;
use std::time::Duration;

use smartstack_common::config::{Cursor, Map};

/// A host as it can be connected to and published: no blanks, no brackets.
pub(crate) fn host(cursor: &Cursor<'_>) -> Option<String> {
    cursor.filled(|text| match text {
        "" => Err("must be an address or a name".to_owned()),
        _ if text.starts_with('[') => {
            Err("an IPv6 address is written without brackets here".to_owned())
        }
        _ if text.contains(|c: char| c.is_whitespace() || c.is_control() || c == '/') => {
            Err("must be an address or a name, without port or path".to_owned())
        }
        _ => Ok(text.to_owned()),
    })
}

/// The advertised port as checks can use it.
pub(crate) fn port_number(port: &serde_json::Value) -> Option<u16> {
    let number = match port {
        serde_json::Value::String(text) => text.trim().parse().ok(),
        port => port
            .as_f64()
            .filter(|number| number.fract() == 0.0 && (1.0..=65535.0).contains(number))
            .map(|n| n as u16),
    };
    number.filter(|port| *port > 0)
}

/// What a check takes from its service.
pub(crate) struct Inherited<'a> {
    pub(crate) service: &'a str,
    pub(crate) host: Option<&'a str>,
    pub(crate) port: Option<&'a serde_json::Value>,
    /// Set when a check connects to the service's port.
    pub(crate) port_needed: Cell<bool>,
}

/// Where a check connects: its own host and port, else the service's.
pub(super) fn target(
    map: &Map<'_>,
    service: &Inherited<'_>,
    connects: bool,
) -> Option<(String, u16)> {
    let (own_host, own_port) = (map.key("host"), map.key("port"));
    let host = if own_host.has_value() {
        host(&own_host)
    } else {
        service.host.map(str::to_owned)
    };
    if own_port.has_value() {
        return Some((host?, own_port.integer(1..=65535)?));
    }
    if connects {
        service.port_needed.set(true);
    }
    Some((host?, port_number(service.port?)?))
}

pub(super) const MILLISECOND: Duration = Duration::from_millis(1);

/// What every check is read from.
pub(super) struct Given<'a> {
    pub(super) map: &'a Map<'a>,
    pub(super) timeout: Duration,
    /// Host and port, unless that is an error already.
    pub(super) target: Option<(String, u16)>,
}
