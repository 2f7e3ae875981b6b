//! What a backend holds before the registry has answered (pure): a running haproxy is the truth, then haproxy.cfg on disk,
//! then the snapshot, then `default_servers`.
//!
//! Decides only which servers an *unconfirmed* source contributes. Never used once the source is confirmed. It fills an
//! empty backend; it never puts a server in maint, takes one away or gives it another address: whatever runs is kept as it
//! runs. Called by the reconciler per service.

use std::collections::{BTreeMap, HashMap};
use std::net::IpAddr;
use std::sync::Arc;

use crate::model::server::Server;
use crate::wanted::gate::{Target, expand};
use crate::wanted::service::{Seed, SeedOrigin as Origin};

#[cfg(test)]
mod tests;

/// A server of a backend as a running haproxy (`show servers state`) or haproxy.cfg has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Row {
    /// haproxy's server name.
    pub name: String,
    /// What haproxy connects to; `None` where it is not an IP address (a name in the file, a unix socket).
    pub address: Option<IpAddr>,
    /// What haproxy connects to.
    pub port: u16,
    /// haproxy's id; `None` in a file that gives none.
    pub id: Option<u32>,
    /// Weight as given by the configuration or the registry (`srv_iweight`), `None` where not given.
    pub weight: Option<u16>,
    /// What the server may do.
    pub state: RowState,
    /// The options of the server's line after its address, without `id N`, `cookie V` and `weight W`; `None` from a live
    /// table, which does not tell.
    pub options: Option<String>,
}

/// What a server may do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum RowState {
    /// Takes traffic, as far as its checks allow.
    #[default]
    Ready,
    /// No new sessions.
    Drain,
    /// In maint, or `disabled` in the file, by an operator's hand.
    Maint,
    /// In maint by our own doing, waiting for its deletion; or in a haproxy or file that is not ours: nobody uses it now,
    /// and the registry will tell.
    Retired,
}

/// The inputs for one backend, best first.
#[derive(Debug, Clone, Copy, Default)]
pub struct Inputs<'a> {
    /// Rows of the running haproxy; `None` = none runs or none answers (or the backend is unknown to it).
    pub live: Option<&'a [Row]>,
    /// Rows of haproxy.cfg on disk; `None` = no file or no such backend.
    pub file: Option<&'a [Row]>,
    /// What the funnel makes of a *valid* snapshot entry (see [`crate::snapshot::Snapshot::source`]); empty = none.
    pub snapshot: &'a [Arc<Server>],
    /// `default_servers` after the funnel.
    pub defaults: &'a [Arc<Server>],
    /// The service's `server_options` as configured (with `%{host}`, `%{port}`, `%{name}`), which stand before a server's
    /// own in the file.
    pub configured_options: &'a str,
}

/// Chooses, and tells the ids as far as they are known, by name. An input without any usable row counts as absent, so that an empty table does not hide a full snapshot.
#[must_use]
pub fn seed(inputs: &Inputs<'_>) -> (Seed, BTreeMap<String, u32>) {
    let rows = [(Origin::Live, inputs.live), (Origin::File, inputs.file)];
    for (origin, rows) in rows {
        let usable: Vec<(&Row, IpAddr)> = rows
            .unwrap_or_default()
            .iter()
            .filter(|row| row.state != RowState::Retired)
            .filter_map(|row| Some((row, row.address?)))
            .collect();
        if !usable.is_empty() {
            let known = Known::of(inputs);
            let servers = usable
                .iter()
                .map(|(row, address)| Arc::new(enrich(row, *address, &known, inputs)))
                .collect();
            let ids = usable
                .iter()
                .filter_map(|(row, _)| Some((row.name.clone(), row.id?)))
                .collect();
            return (Seed { origin, servers }, ids);
        }
    }
    let (origin, servers) = match inputs.snapshot {
        [] => (Origin::Defaults, inputs.defaults),
        servers => (Origin::Snapshot, servers),
    };
    let servers = servers.to_vec();
    (Seed { origin, servers }, BTreeMap::new())
}

/// NAME, address and port.
type Place<'a> = (&'a str, IpAddr, u16);

/// What is known beside the rows.
struct Known<'a> {
    servers: HashMap<Place<'a>, &'a Server>,
    /// Options of the file's lines.
    options: HashMap<Place<'a>, &'a str>,
}

impl<'a> Known<'a> {
    fn of(inputs: &Inputs<'a>) -> Self {
        let servers = inputs.defaults.iter().chain(inputs.snapshot);
        let lines = inputs.file.unwrap_or_default().iter().rev();
        Self {
            servers: servers
                .map(|s| ((&*s.name, s.address, s.port), &**s))
                .collect(),
            options: lines
                .filter_map(|f| Some(((&*f.name, f.address?, f.port), f.options.as_deref()?)))
                .collect(),
        }
    }
}

/// A row with what it does not tell: from the snapshot's server of that name and address, else from the options of the
/// file's line, else nothing.
fn enrich(row: &Row, address: IpAddr, known: &Known<'_>, inputs: &Inputs<'_>) -> Server {
    let place = (&*row.name, address, row.port);
    let disabled = row.state == RowState::Maint;
    if let Some(known) = known.servers.get(&place) {
        return Server {
            weight: row.weight.or(known.weight),
            disabled,
            ..(*known).clone()
        };
    }
    let line = known.options.get(&place).copied();
    let line = line.or(row.options.as_deref());
    let host = host_of(&row.name, row.port).unwrap_or_else(|| address.to_string());
    let target = Target {
        host: &host,
        address,
        port: row.port,
        name: &row.name,
    };
    let configured = expand(inputs.configured_options, target);
    let options = line.and_then(|line| own_options(line, &configured));
    Server {
        host,
        name: row.name.clone(),
        address,
        port: row.port,
        weight: row.weight,
        options,
        explicit_id: None,
        znode: None,
        sequence: None,
        disabled,
    }
}

/// The host in a name `<name>_<host>:<port>` or `<host>:<port>`.
fn host_of(name: &str, port: u16) -> Option<String> {
    let (left, number) = name.rsplit_once(':')?;
    let host = left.rsplit_once('_').map_or(left, |(_, host)| host);
    (number.parse() == Ok(port) && !host.is_empty()).then(|| host.to_owned())
}

/// What is left of a line's options without those the configuration puts before them (compared word by word).
fn own_options(line: &str, configured: &str) -> Option<String> {
    let mut words: Vec<&str> = line.split_ascii_whitespace().collect();
    let configured: Vec<&str> = configured.split_ascii_whitespace().collect();
    if words.starts_with(&configured) {
        words.drain(..configured.len());
    }
    words.retain(|word| *word != "disabled");
    (!words.is_empty()).then(|| words.join(" "))
}
