//! The bytes of the snapshot file: serialised from cached records, read with suspicion. Blocking; called at the start and
//! from the writer's thread.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::payload::Payload;
use super::{FORMAT, Hold, Snapshot, SourceRecord, Worker};
use crate::source::{Child, Children};

/// Files above this many bytes are not read (100,000 servers make about 20 MB).
const MAX_FILE: u64 = 1 << 30;
/// How many unusable files are kept for a look.
const KEPT: u32 = 3;

/// What reading gave.
#[derive(Debug)]
pub struct Loaded {
    /// The snapshot, if there is a usable one.
    pub snapshot: Option<Snapshot>,
    /// Why there is none although there was a file: to be logged and shown.
    pub problem: Option<Unusable>,
}

/// Why the file was not used, and where it is now.
#[derive(Debug, thiserror::Error)]
#[error("the snapshot `{path}` is not used: {reason}{}", aside.as_ref().map(|a| format!(" (kept as `{}`)", a.display())).unwrap_or_default())]
pub struct Unusable {
    path: PathBuf,
    reason: String,
    aside: Option<PathBuf>,
}

/// Reads the snapshot of the machine with id `machine`. A file that cannot be used is renamed `<path>.bad-<n>`, so that
/// it is neither believed nor overwritten, and counts as none.
#[must_use]
pub fn read(path: &Path, machine: &str) -> Loaded {
    let text = match read_text(path) {
        Ok(text) => text,
        Err(None) => {
            return Loaded {
                snapshot: None,
                problem: None,
            };
        }
        Err(Some(reason)) => return unusable(path, reason),
    };
    match parse(&text) {
        Ok(snapshot) if snapshot.machine == machine => Loaded {
            snapshot: Some(snapshot),
            problem: None,
        },
        Ok(snapshot) => unusable(
            path,
            format!(
                "it is of another machine (`{}`, this is `{machine}`)",
                short(&snapshot.machine)
            ),
        ),
        Err(reason) => unusable(path, reason),
    }
}

/// Reads the snapshot without touching it: `None` when there is no usable one.
#[must_use]
pub fn peek(path: &Path, machine: &str) -> Option<Snapshot> {
    parse(&read_text(path).ok()?)
        .ok()
        .filter(|snapshot| snapshot.machine == machine)
}

fn unusable(path: &Path, reason: String) -> Loaded {
    let aside = set_aside(path);
    Loaded {
        snapshot: None,
        problem: Some(Unusable {
            path: path.to_owned(),
            reason,
            aside,
        }),
    }
}

/// `Err(None)`: there is no file.
fn read_text(path: &Path) -> Result<String, Option<String>> {
    let found = match std::fs::metadata(path) {
        Ok(found) => found,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Err(None),
        Err(error) => return Err(Some(format!("it cannot be read: {error}"))),
    };
    if !found.is_file() {
        // Opening a pipe would wait for its other end.
        return Err(Some("it is not a regular file".to_owned()));
    }
    if found.len() > MAX_FILE {
        return Err(Some(format!(
            "{} bytes, above the limit of {MAX_FILE}",
            found.len()
        )));
    }
    let bytes = std::fs::read(path).map_err(|error| Some(format!("it cannot be read: {error}")))?;
    String::from_utf8(bytes).map_err(|_| Some("it is not UTF-8 text".to_owned()))
}

fn set_aside(path: &Path) -> Option<PathBuf> {
    let numbered = |n: u32| {
        let mut name = path.as_os_str().to_owned();
        name.push(format!(".bad-{n}"));
        PathBuf::from(name)
    };
    // When all are taken the last one is replaced: the first ones show how it began.
    let aside = (1..KEPT)
        .map(numbered)
        .find(|p| !p.exists())
        .unwrap_or_else(|| numbered(KEPT));
    std::fs::rename(path, &aside).ok().map(|()| aside)
}

/// Text from a file in a message.
fn short(text: &str) -> String {
    text.chars()
        .take(40)
        .flat_map(char::escape_default)
        .collect()
}

#[derive(Deserialize)]
struct Body {
    machine: String,
    #[serde(default)]
    worker: Option<Worker>,
    #[serde(default)]
    resolved: BTreeMap<String, Vec<IpAddr>>,
    #[serde(default)]
    ids: BTreeMap<String, BTreeMap<String, u32>>,
    #[serde(default)]
    operator: BTreeMap<String, String>,
    #[serde(default)]
    holds: BTreeMap<String, HoldBody>,
    #[serde(default)]
    sources: BTreeMap<String, SourceBody>,
}

#[derive(Deserialize)]
struct HoldBody {
    source: String,
    children: BTreeMap<String, Payload>,
}

#[derive(Deserialize)]
struct SourceBody {
    agreed_at: Option<f64>,
    children: BTreeMap<String, Payload>,
}

/// Reads the text of a snapshot file.
pub(super) fn parse(text: &str) -> Result<Snapshot, String> {
    let damaged = || "it is damaged: not the beginning and end a snapshot has".to_owned();
    let (format, rest) = text
        .strip_prefix("{\"format\":")
        .and_then(|t| t.split_once(','))
        .ok_or_else(damaged)?;
    if format != FORMAT.to_string() {
        return Err(format!(
            "it has format `{}`, this program reads {FORMAT}",
            short(format)
        ));
    }
    let (sum, rest) = rest
        .strip_prefix("\"sha256\":\"")
        .and_then(|t| t.split_once("\",\"body\":"))
        .ok_or_else(damaged)?;
    let body = rest.strip_suffix("}\n").ok_or_else(damaged)?;
    if sum != checksum(body) {
        return Err("it is damaged: its checksum does not match".to_owned());
    }
    let body: Body =
        serde_json::from_str(body).map_err(|e| format!("its content is not as expected: {e}"))?;
    let source = |s: SourceBody| SourceRecord {
        agreed_at: s.agreed_at.and_then(time),
        fresh: false,
        children: children(s.children),
    };
    let hold = |h: HoldBody| Hold {
        source: h.source,
        children: children(h.children),
    };
    Ok(Snapshot {
        machine: body.machine,
        sources: body
            .sources
            .into_iter()
            .map(|(key, s)| (key, source(s)))
            .collect(),
        resolved: Arc::new(body.resolved),
        ids: Arc::new(body.ids),
        operator: Arc::new(body.operator),
        holds: body
            .holds
            .into_iter()
            .map(|(key, h)| (key, hold(h)))
            .collect(),
        worker: body.worker.map(Arc::new),
    })
}

fn children(payloads: BTreeMap<String, Payload>) -> Arc<Children> {
    let child = |payload: Payload| Child {
        data: payload.0,
        czxid: 0,
        mzxid: 0,
    };
    Arc::new(
        payloads
            .into_iter()
            .map(|(name, payload)| (name, child(payload)))
            .collect(),
    )
}

fn time(seconds: f64) -> Option<SystemTime> {
    UNIX_EPOCH.checked_add(Duration::try_from_secs_f64(seconds).ok()?)
}

fn seconds(time: SystemTime) -> f64 {
    // Whole milliseconds: short to write and exact enough.
    let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
    (since.as_secs_f64() * 1000.0).round() / 1000.0
}

fn checksum(body: &str) -> String {
    Sha256::digest(body.as_bytes())
        .iter()
        .fold(String::with_capacity(64), |mut hex, byte| {
            let _infallible = write!(hex, "{byte:02x}").is_ok();
            hex
        })
}

/// Serialised sets by the identity of their `Arc`, so that one change serialises one source.
#[derive(Debug, Default)]
pub(super) struct Cache(BTreeMap<String, (Arc<Children>, Arc<str>)>);

impl Cache {
    /// The bytes of the file. Only sets that are not the same `Arc` as last time are serialised.
    pub(super) fn render(&mut self, snapshot: &Snapshot, now: SystemTime) -> String {
        let mut last = std::mem::take(&mut self.0);
        let mut json = |key: String, children: &Arc<Children>| {
            let text = match last.remove(&key) {
                Some((same, text)) if Arc::ptr_eq(&same, children) => text,
                _ => set_json(children).into(),
            };
            self.0.insert(key, (children.clone(), Arc::clone(&text)));
            text
        };
        let mut body = String::from("{\"machine\":");
        body += &to_json(&snapshot.machine);
        for (key, value) in [
            ("worker", to_json(&snapshot.worker.as_deref())),
            ("resolved", to_json(&*snapshot.resolved)),
            ("ids", to_json(&*snapshot.ids)),
            ("operator", to_json(&*snapshot.operator)),
        ] {
            body += &format!(",\"{key}\":{value}");
        }
        body += ",\"holds\":{";
        for (n, (service, hold)) in snapshot.holds.iter().enumerate() {
            let comma = if n == 0 { "" } else { "," };
            let set = json(format!("hold {service}"), &hold.children);
            body += &format!(
                "{comma}{}:{{\"source\":{},\"children\":{set}}}",
                to_json(service),
                to_json(&hold.source)
            );
        }
        body += "},\"sources\":{";
        for (n, (key, source)) in snapshot.sources.iter().enumerate() {
            let comma = if n == 0 { "" } else { "," };
            let set = json(format!("source {key}"), &source.children);
            let agreed = to_json(
                &(if source.fresh {
                    Some(now)
                } else {
                    source.agreed_at
                })
                .map(seconds),
            );
            body += &format!(
                "{comma}{}:{{\"agreed_at\":{agreed},\"children\":{set}}}",
                to_json(key)
            );
        }
        body += "}}";
        format!(
            "{{\"format\":{FORMAT},\"sha256\":\"{}\",\"body\":{body}}}\n",
            checksum(&body)
        )
    }
}

fn set_json(children: &Children) -> String {
    let payloads: BTreeMap<&str, Payload> = children
        .iter()
        .map(|(name, child)| (name.as_str(), Payload(child.data.clone())))
        .collect();
    to_json(&payloads)
}

fn to_json<T: Serialize>(value: &T) -> String {
    serde_json::to_string(value).expect("text, numbers and maps with text keys always serialise")
}
