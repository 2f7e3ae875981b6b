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
use smartstack_common::atomic;

use super::{FORMAT, Hold, Ids, Snapshot, SourceRecord, Worker};
use crate::model::payload::Payload;
use crate::model::server::Digest as OptionDigest;

use crate::model::source::{Child, Children};
use crate::snapshot::holds::Saved;

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
    // The file, not a link to it.
    let path = &atomic::resolve(path).ok()?;
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
    boot: String,
    #[serde(default)]
    worker: Option<WorkerBody>,
    #[serde(default)]
    resolved: BTreeMap<String, Vec<IpAddr>>,
    #[serde(default)]
    ids: Ids,
    #[serde(default)]
    operator: BTreeMap<String, String>,
    #[serde(default)]
    holds: BTreeMap<String, HoldBody>,
    #[serde(default)]
    guards: BTreeMap<String, BTreeMap<String, Saved>>,
    #[serde(default)]
    sources: BTreeMap<String, SourceBody>,
}

#[derive(Deserialize)]
struct WorkerBody {
    pid: u32,
    #[serde(default)]
    start: Option<u64>,
    /// By `backend/NAME`.
    #[serde(default)]
    options: BTreeMap<String, OptionDigest>,
}

#[derive(Deserialize)]
struct HoldBody {
    source: String,
    children: BTreeMap<String, Payload>,
}

#[derive(Deserialize)]
struct SourceBody {
    agreed_at: Option<f64>,
    #[serde(default)]
    agreed_boot: Option<f64>,
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
        agreed_boot: s
            .agreed_boot
            .and_then(|at| Duration::try_from_secs_f64(at).ok()),
        fresh: false,
        children: children(s.children),
    };
    let hold = |h: HoldBody| Hold {
        source: h.source,
        children: children(h.children),
    };
    Ok(Snapshot {
        machine: body.machine,
        boot: body.boot,
        sources: body
            .sources
            .into_iter()
            .map(|(key, s)| (key, source(s)))
            .collect(),
        resolved: Arc::new(
            body.resolved
                .into_iter()
                .filter(|(_, addresses)| !addresses.is_empty())
                .collect(),
        ),
        ids: body.ids,
        operator: Arc::new(body.operator),
        holds: body
            .holds
            .into_iter()
            .map(|(key, h)| (key, hold(h)))
            .collect(),
        guards: body.guards,
        worker: body.worker.map(|w| Arc::new(worker(w))),
    })
}

fn worker(body: WorkerBody) -> Worker {
    let mut options: BTreeMap<String, BTreeMap<String, OptionDigest>> = BTreeMap::new();
    for (key, digest) in body.options {
        if let Some((backend, name)) = key.split_once('/') {
            let servers = options.entry(backend.to_owned()).or_default();
            servers.insert(name.to_owned(), digest);
        }
    }
    Worker {
        pid: body.pid,
        start: body.start,
        options: options.into_iter().map(|(b, o)| (b, Arc::new(o))).collect(),
    }
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

/// Serialised records by the identity of their `Arc`, so that one change serialises one source and one backend.
#[derive(Debug, Default)]
pub(super) struct Cache {
    sets: Texts<Children>,
    ids: Texts<BTreeMap<String, u32>>,
    options: Texts<BTreeMap<String, OptionDigest>>,
}

/// Texts of records of one kind.
#[derive(Debug)]
struct Texts<T> {
    last: BTreeMap<String, (Arc<T>, Arc<str>)>,
    next: BTreeMap<String, (Arc<T>, Arc<str>)>,
}

impl<T> Default for Texts<T> {
    fn default() -> Self {
        Self {
            last: BTreeMap::new(),
            next: BTreeMap::new(),
        }
    }
}

impl<T> Texts<T> {
    /// The record's text: made anew unless it is the same `Arc` as in the file before.
    fn text(&mut self, key: String, record: &Arc<T>, make: impl Fn(&T) -> String) -> Arc<str> {
        let text = match self.last.remove(&key) {
            Some((same, text)) if Arc::ptr_eq(&same, record) => text,
            _ => make(record).into(),
        };
        self.next
            .insert(key, (Arc::clone(record), Arc::clone(&text)));
        text
    }

    /// The file is complete: what it did not name is forgotten.
    fn turn(&mut self) {
        self.last = std::mem::take(&mut self.next);
    }
}

impl Cache {
    /// The bytes of the file. Only records that are not the same `Arc` as last time are serialised.
    pub(super) fn render(
        &mut self,
        snapshot: &Snapshot,
        (now, since_boot): (SystemTime, Duration),
    ) -> String {
        let mut body = format!("{{\"machine\":{}", to_json(&snapshot.machine));
        body += &format!(",\"boot\":{}", to_json(&snapshot.boot));
        self.worker(&mut body, snapshot.worker.as_deref());
        body += &format!(",\"resolved\":{}", to_json(&*snapshot.resolved));
        body += ",\"ids\":{";
        list(&mut body, &snapshot.ids, |out, (backend, ids)| {
            let text = self.ids.text(backend.clone(), ids, to_json);
            push(out, &[&to_json(backend), ":", &text]);
        });
        body += &format!("}},\"operator\":{}", to_json(&*snapshot.operator));
        body += ",\"holds\":{";
        list(&mut body, &snapshot.holds, |out, (service, hold)| {
            let set = self
                .sets
                .text(format!("hold {service}"), &hold.children, set_json);
            let source = to_json(&hold.source);
            push(
                out,
                &[
                    &to_json(service),
                    ":{\"source\":",
                    &source,
                    ",\"children\":",
                    &set,
                    "}",
                ],
            );
        });
        body += "}";
        if !snapshot.guards.is_empty() {
            body += &format!(",\"guards\":{}", to_json(&snapshot.guards));
        }
        body += ",\"sources\":{";
        list(&mut body, &snapshot.sources, |out, (key, source)| {
            let set = self
                .sets
                .text(format!("source {key}"), &source.children, set_json);
            let (agreed_at, agreed_boot) = if source.fresh {
                (Some(now), Some(since_boot))
            } else {
                (source.agreed_at, source.agreed_boot)
            };
            let agreed = to_json(&agreed_at.map(seconds));
            let boot = to_json(&agreed_boot.map(|at| (at.as_secs_f64() * 1e3).round() / 1e3));
            push(
                out,
                &[
                    &to_json(key),
                    ":{\"agreed_at\":",
                    &agreed,
                    ",\"agreed_boot\":",
                    &boot,
                    ",\"children\":",
                    &set,
                    "}",
                ],
            );
        });
        body += "}}";
        self.sets.turn();
        self.ids.turn();
        self.options.turn();
        format!(
            "{{\"format\":{FORMAT},\"sha256\":\"{}\",\"body\":{body}}}\n",
            checksum(&body)
        )
    }

    fn worker(&mut self, body: &mut String, worker: Option<&Worker>) {
        let Some(worker) = worker else {
            return body.push_str(",\"worker\":null");
        };
        let (pid, start) = (worker.pid, to_json(&worker.start));
        *body += &format!(",\"worker\":{{\"pid\":{pid},\"start\":{start},\"options\":{{");
        let known = worker
            .options
            .iter()
            .filter(|(_, servers)| !servers.is_empty());
        list(body, known, |out, (backend, servers)| {
            let make = |servers: &BTreeMap<String, OptionDigest>| {
                let mut text = String::new();
                list(&mut text, servers, |out, (name, digest)| {
                    let key = to_json(&format!("{backend}/{name}"));
                    push(out, &[&key, ":", &to_json(digest)]);
                });
                text
            };
            out.push_str(&self.options.text(backend.clone(), servers, make));
        });
        body.push_str("}}");
    }
}

fn push(out: &mut String, parts: &[&str]) {
    parts.iter().for_each(|part| out.push_str(part));
}

/// Appends the items with commas between them.
fn list<I>(
    out: &mut String,
    items: impl IntoIterator<Item = I>,
    mut one: impl FnMut(&mut String, I),
) {
    for (index, item) in items.into_iter().enumerate() {
        if index > 0 {
            out.push(',');
        }
        one(out, item);
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
