//! The parts of a server line.

use std::borrow::Cow;
use std::net::IpAddr;

use serde::Serialize;
use sha1::{Digest as _, Sha1};

use crate::config::ServiceHaproxy;
use crate::model::server::Identified;
use crate::wanted::gate::{Target, expand};

/// A server as templates see it. Parts that a server has not are null; numbers that may be 0 are text, so that `if` holds.
#[derive(Serialize)]
pub(super) struct ServerView<'a> {
    name: &'a str,
    host: &'a str,
    address: String,
    port: u16,
    id: u32,
    cookie: Option<Cow<'a, str>>,
    server_options: Option<String>,
    options: Option<Cow<'a, str>>,
    weight: Option<String>,
    disabled: bool,
    znode: Option<&'a str>,
}

impl<'a> ServerView<'a> {
    pub(super) fn new(
        identified: &'a Identified,
        haproxy: &'a ServiceHaproxy,
        use_nerve_weights: bool,
    ) -> Self {
        let Identified { server, id } = identified;
        let weight = server.weight.filter(|_| use_nerve_weights);
        let expanded = expand(haproxy.server_options.trim(), Target::of(server));
        let server_options = if weight.is_some() {
            without_weight(&expanded)
        } else {
            expanded
        };
        let options = server.options.as_deref().map(|text| match weight {
            Some(_) => Cow::Owned(without_weight(text)),
            None => Cow::Borrowed(text),
        });
        Self {
            name: &server.name,
            host: &server.host,
            address: match server.address {
                IpAddr::V4(address) => format!("{address}:{}", server.port),
                IpAddr::V6(address) => format!("[{address}]:{}", server.port),
            },
            port: server.port,
            id: *id,
            cookie: has_cookie(haproxy).then(|| cookie(&server.name, haproxy.cookie_hash)),
            server_options: Some(server_options).filter(|text| !text.is_empty()),
            options: options.filter(|text| !text.is_empty()),
            weight: weight.map(|weight| weight.to_string()),
            disabled: server.disabled,
            znode: server.znode.as_deref(),
        }
    }
}

impl ServerView<'_> {
    /// As in `templates/service.cfg.tera`, without indentation and newline (tested to be the same).
    pub(super) fn line(&self) -> String {
        let mut line = format!("server {} {} id {}", self.name, self.address, self.id);
        let parts = [
            ("cookie ", self.cookie.as_deref()),
            ("", self.server_options.as_deref()),
            ("", self.options.as_deref()),
            ("weight ", self.weight.as_deref()),
            ("", self.disabled.then_some("disabled")),
        ];
        for (keyword, value) in parts {
            if let Some(value) = value {
                line.push(' ');
                line.push_str(keyword);
                line.push_str(value);
            }
        }
        line
    }
}

/// Not with a `mode tcp` line in the backend (Ruby's rule: the lines of the service, not the defaults).
fn has_cookie(haproxy: &ServiceHaproxy) -> bool {
    !haproxy
        .backend
        .iter()
        .any(|line| line.split_ascii_whitespace().eq(["mode", "tcp"]))
}

/// The server's name, or its SHA-1 as 40 hex digits (`cookie_value_method: hash`).
fn cookie(name: &str, hash: bool) -> Cow<'_, str> {
    if !hash {
        return Cow::Borrowed(name);
    }
    Cow::Owned(
        Sha1::digest(name.as_bytes())
            .iter()
            .map(|byte| format!("{byte:02x}"))
            .collect(),
    )
}

/// Cuts the first `weight N` out: the registry's weight stands at the end of the line instead.
fn without_weight(options: &str) -> String {
    let mut words: Vec<&str> = options.split_ascii_whitespace().collect();
    let is_number = |word: &str| !word.is_empty() && word.bytes().all(|b| b.is_ascii_digit());
    if let Some(at) = words
        .windows(2)
        .position(|pair| pair[0] == "weight" && is_number(pair[1]))
    {
        words.drain(at..at + 2);
    }
    words.join(" ")
}
