//! What a server line means once inheritance is applied: built-ins, then `default-server` of the defaults in force,
//! then of the section, then the line itself; the last word wins.
//!
//! Pure. Plans compare effective servers, never text. A keyword whose number of arguments is not known makes its
//! backend reload-only: from there on the words are kept as they stand and compared as one piece.

use crate::config::keyword;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use sha2::{Digest as _, Sha256};

use crate::model::server::{Digest, NOWHERE};
use crate::model::text::hex;
use crate::outputs::haproxy::cfg::{Model, Section, ServerLine, is_plain};

use crate::outputs::haproxy::cfg::balance::Balance;

/// Words of one server's options that fit into a command of the stats socket beside the others: haproxy drops the words
/// after the 64th without a word about it.
const MOST_WORDS: usize = 44;
/// Bytes of them, likewise.
const MOST_BYTES: usize = 4096;

/// haproxy's weight of a server that names none.
pub const DEFAULT_WEIGHT: u16 = 1;

/// Options of a server, by keyword. Holds what was said, also where it equals a built-in.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Options {
    words: BTreeMap<String, Vec<String>>,
    /// First keyword of unknown arity; it holds all words after it.
    unknown: Option<String>,
}

impl Options {
    /// Of the options part of a server line, or of `default-server`.
    #[must_use]
    pub fn of(text: &str) -> Self {
        let mut options = Self::default();
        options.add(&mut text.split_ascii_whitespace());
        options
    }

    /// Later words win.
    fn add(&mut self, words: &mut dyn Iterator<Item = &str>) {
        while let Some(word) = words.next() {
            let Some(arity) = keyword::arity(word) else {
                self.unknown.get_or_insert_with(|| word.to_owned());
                self.words
                    .insert(word.to_owned(), words.map(str::to_owned).collect());
                return;
            };
            if let Some(opposite) = keyword::opposite(word) {
                self.words.remove(opposite.as_ref());
            }
            let values = words
                .take(arity)
                .map(|value| keyword::canonical(word, value))
                .collect();
            self.words.insert(word.to_owned(), values);
        }
    }

    /// Without what haproxy does anyway.
    fn without_built_ins(mut self) -> Self {
        self.words
            .retain(|word, values| !keyword::is_built_in(word, values));
        self
    }

    /// Whether the keyword is set.
    #[must_use]
    pub fn has(&self, keyword: &str) -> bool {
        self.words.contains_key(keyword)
    }

    /// First argument of a keyword.
    #[must_use]
    pub fn get(&self, keyword: &str) -> Option<&str> {
        self.words.get(keyword)?.first().map(String::as_str)
    }

    /// The first keyword of unknown arity.
    #[must_use]
    pub fn unknown(&self) -> Option<&str> {
        self.unknown.as_deref()
    }

    /// Why a server with these options cannot be added over the stats socket.
    #[must_use]
    pub fn file_only(&self) -> Option<String> {
        if let Some(word) = &self.unknown {
            return Some(format!(
                "number of arguments of server keyword `{word}` is not known"
            ));
        }
        if let Some(word) = self.words.keys().find(|word| keyword::is_file_only(word)) {
            return Some(format!(
                "haproxy takes server keyword `{word}` only from the file"
            ));
        }
        let mut words = self
            .words
            .iter()
            .flat_map(|(word, values)| std::iter::once(word).chain(values));
        if let Some(word) = words.clone().find(|word| !is_sendable(word)) {
            return Some(format!("`{word}` cannot be sent over the stats socket"));
        }
        let (count, bytes) = words.by_ref().fold((0, 0), |(count, bytes), word| {
            (count + 1, bytes + word.len() + 1)
        });
        (count > MOST_WORDS || bytes > MOST_BYTES)
            .then(|| "servers have more options than one command can hold".to_owned())
    }

    /// Which checks have the server's own address written out: they go with the server to another one.
    #[must_use]
    pub fn follows(&self, address: IpAddr) -> Follows {
        let is_own = |keyword: &str| {
            let text = self.get(keyword)?;
            let bare = text
                .strip_prefix('[')
                .and_then(|text| text.strip_suffix(']'));
            Some(bare.unwrap_or(text).parse() == Ok(address))
        };
        Follows {
            health: is_own("addr") == Some(true),
            agent: is_own("agent-addr") == Some(true),
        }
    }

    /// [`Options::digest`] of a server at this address: the same wherever it is, as far as its checks follow it.
    fn digest_at(&self, address: IpAddr) -> Option<Digest> {
        let Follows { health, agent } = self.follows(address);
        if !health && !agent {
            return None;
        }
        let mut options = self.clone();
        for (keyword, follows) in [("addr", health), ("agent-addr", agent)] {
            if follows {
                options
                    .words
                    .insert(keyword.to_owned(), vec!["%{host}".to_owned()]);
            }
        }
        Some(options.digest())
    }

    /// Takes a number out; what does not parse stays for haproxy to refuse.
    fn take<N: std::str::FromStr>(&mut self, keyword: &str) -> Option<N> {
        let number = self.get(keyword)?.parse().ok()?;
        self.words.remove(keyword);
        Some(number)
    }

    /// 16 hexadecimal digits that stand for these options, kept per server because haproxy does not show them.
    #[must_use]
    pub fn digest(&self) -> Digest {
        hex(&Sha256::digest(self.to_string())[..8]).into()
    }
}

/// What goes with a server to another address, as one command each.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Follows {
    /// `addr`: where its health is checked.
    pub health: bool,
    /// `agent-addr`: where its agent is asked.
    pub agent: bool,
}

/// Whether a word stands for itself on the stats socket, where `;` ends a command, `\` escapes and `<<` begins a payload.
#[must_use]
pub fn is_sendable(word: &str) -> bool {
    !word.is_empty()
        && word.bytes().all(|b| {
            b.is_ascii_graphic() && !matches!(b, b';' | b'\\' | b'<' | b'"' | b'\'' | b'#' | b'$')
        })
}

/// Words in the order of their keywords, as `add server` takes them.
impl fmt::Display for Options {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let words = self
            .words
            .iter()
            .flat_map(|(word, values)| std::iter::once(word).chain(values));
        for (index, word) in words.enumerate() {
            write!(f, "{}{word}", if index == 0 { "" } else { " " })?;
        }
        Ok(())
    }
}

/// A server as haproxy runs it right after loading the file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Effective {
    /// What haproxy connects to.
    pub address: SocketAddr,
    /// `id N`; `None` = haproxy counts.
    pub id: Option<u32>,
    /// 0..256.
    pub weight: u16,
    /// Begins in maint.
    pub disabled: bool,
    /// The rest: without address, id, weight, `disabled`, built-ins and an inert cookie.
    /// Shared by the servers of a backend that have the same.
    pub options: Arc<Options>,
    /// [`Options::digest`] of `options`, with the server's own address in them as what it is: another address of a host
    /// that is a name makes no other options.
    pub digest: Digest,
}

impl Effective {
    /// Whether the weight is the agent's and not ours (configuration manual 5.2, `agent-check`).
    #[must_use]
    pub fn weight_is_agents(&self) -> bool {
        self.options.has("agent-check")
    }

    /// It stands in the file only because a line names it: see [`crate::model::server::Server::is_parked`].
    #[must_use]
    pub fn is_parked(&self) -> bool {
        self.disabled && self.address.ip() == NOWHERE
    }
}

/// A backend (or `listen`) section and its servers.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Backend {
    /// Our servers.
    pub servers: BTreeMap<String, Effective>,
    /// Names of server lines that are structure: never ours to touch.
    pub structural: BTreeSet<String>,
    /// The structure holds server lines whose names cannot be read: no server may be taken for a leftover of ours.
    pub unreadable: bool,
    /// Its servers have a cookie that counts: before haproxy 3.0 none can be added without a reload.
    pub cookie: bool,
    /// Why nothing can be added here without a reload, whatever haproxy's version: the balance algorithm, or what its
    /// servers have.
    pub reload_only: Option<String>,
    /// Why its servers keep the weights they were loaded with: the balance algorithm.
    pub fixed_weights: Option<String>,
}

/// What the sections read so far hand down to the next. A fold: read the frame, then each fragment.
#[derive(Debug, Clone, Default)]
pub struct Scope {
    last: Layer,
    named: BTreeMap<String, Layer>,
}

/// What a defaults section hands down.
#[derive(Debug, Clone, Default)]
struct Layer {
    options: Options,
    /// A `cookie` directive is in force.
    cookie: bool,
    /// Why `default-server` cannot be read.
    quoted: Option<usize>,
    balance: Balance,
}

impl Scope {
    /// Reads on: the backends of `model`, with what earlier sections hand down.
    pub fn read(&mut self, model: &Model) -> BTreeMap<String, Arc<Backend>> {
        self.read_after(model, BTreeMap::new(), &Changes::default())
    }

    /// As [`Scope::read`]. `former` is what the same scope made of the same sections before; all that is not the same are
    /// `changes` in the last of them.
    pub fn read_after(
        &mut self,
        model: &Model,
        mut former: BTreeMap<String, Arc<Backend>>,
        changes: &Changes,
    ) -> BTreeMap<String, Arc<Backend>> {
        let mut backends = BTreeMap::new();
        let last = model.sections.last();
        for section in &model.sections {
            match section.keyword.as_str() {
                "defaults" => {
                    let mut layer = section
                        .from
                        .as_ref()
                        .and_then(|f| self.named.get(f))
                        .cloned()
                        .unwrap_or_default();
                    section
                        .lines
                        .iter()
                        .for_each(|line| layer.read(&line.text, line.number));
                    if !section.name.is_empty() {
                        self.named.insert(section.name.clone(), layer.clone());
                    }
                    self.last = layer;
                }
                "backend" | "listen" => {
                    let layer = section
                        .from
                        .as_ref()
                        .and_then(|f| self.named.get(f))
                        .unwrap_or(&self.last);
                    // Where a former server had something that only the file may hold, that is looked for anew.
                    let is_last = last.is_some_and(|last| Arc::ptr_eq(last, section));
                    let former = former.remove(&section.name).filter(|_| is_last);
                    let former = former.filter(|former| former.reload_only.is_none());
                    let backend = match former {
                        Some(former) => {
                            let mut backend = Arc::unwrap_or_clone(former);
                            for name in &changes.gone {
                                backend.servers.remove(name);
                            }
                            let new = changes.new.iter().map(|(name, line)| (name, line));
                            backend.read(section, new.collect(), layer)
                        }
                        None => {
                            let servers = model.servers.get(&section.name);
                            let servers = servers.into_iter().flatten().collect();
                            Backend::default().read(section, servers, layer)
                        }
                    };
                    backends.insert(section.name.clone(), Arc::new(backend));
                }
                _ => {}
            }
        }
        backends
    }
}

impl Layer {
    fn read(&mut self, text: &str, number: usize) {
        let mut words = text.split_ascii_whitespace();
        match words.next() {
            Some("cookie") => self.cookie = true,
            Some("default-server") if is_plain(text) => self.options.add(&mut words),
            Some("default-server") => self.quoted = Some(number),
            Some(word) => self.balance.read(word, words.next()),
            None => {}
        }
    }
}

impl Layer {
    /// Why the servers of a backend that has none at the moment will not be added at runtime, as far as one can tell.
    fn expected(&self) -> Option<String> {
        Common::of(&[], self).file_only
    }
}

impl Backend {
    /// Takes these servers in as well.
    fn read(
        mut self,
        section: &Section,
        mut servers: Vec<(&String, &ServerLine)>,
        inherited: &Layer,
    ) -> Self {
        servers.sort_by_key(|(_, line)| line.number);
        let mut layer = inherited.clone();
        // The cookie directive counts wherever it stands; default-server only from its line on.
        layer.cookie |= section
            .lines
            .iter()
            .any(|l| l.text.split_ascii_whitespace().next() == Some("cookie"));
        let mut unread = section.lines.iter().peekable();
        let mut known: HashMap<Vec<&str>, Common> = HashMap::new();
        for (name, line) in servers {
            while let Some(earlier) = unread.next_if(|l| l.number < line.number) {
                layer.read(&earlier.text, earlier.number);
                known.clear();
            }
            let own = Own::of(&line.options, &layer);
            let common = known
                .entry(own.words.clone())
                .or_insert_with(|| Common::of(&own.words, &layer));
            let server = common.server(line.address, &own);
            if self.reload_only.is_none() {
                self.reload_only.clone_from(&common.file_only);
            }
            self.servers.insert(name.clone(), server);
        }
        unread.for_each(|line| layer.read(&line.text, line.number));
        if layer.quoted.is_some() {
            self.reload_only.get_or_insert_with(|| {
                "a `default-server` line uses quotes, escapes or variables".to_owned()
            });
        }
        let has_cookie = |server: &Effective| server.options.has("cookie");
        self.cookie =
            self.servers.values().any(has_cookie) || (self.servers.is_empty() && layer.cookie);
        if self.servers.is_empty() && self.reload_only.is_none() {
            self.reload_only = layer.expected();
        }
        self.reload_only = self.reload_only.or_else(|| layer.balance.is_static());
        self.fixed_weights = layer.balance.fixes_weights();
        section
            .lines
            .iter()
            .for_each(|line| self.read_structural(&line.text));
        self
    }

    /// Notes the name of a server line that is structure.
    fn read_structural(&mut self, text: &str) {
        let words: Vec<&str> = text.split_ascii_whitespace().collect();
        match words[..] {
            ["server", name, ..] if is_plain(name) => {
                self.structural.insert(name.to_owned());
            }
            ["server-template", prefix, count, ..] if is_plain(prefix) => {
                let (first, last) = count.split_once('-').unwrap_or(("1", count));
                match (first.parse::<u32>(), last.parse::<u32>()) {
                    (Ok(first), Ok(last)) if last.saturating_sub(first) <= 100_000 => {
                        self.structural
                            .extend((first..=last).map(|n| format!("{prefix}{n}")));
                    }
                    _ => self.unreadable = true,
                }
            }
            ["server" | "server-template", ..] => self.unreadable = true,
            _ => {}
        }
    }
}

/// What is different in the server lines at the end of a text.
#[derive(Debug, Clone, Default)]
pub struct Changes {
    /// Names whose lines are not there any more.
    pub gone: Vec<String>,
    /// Lines that were not there, by name.
    pub new: Vec<(String, ServerLine)>,
}

impl Changes {
    /// All names.
    #[must_use]
    pub fn names(&self) -> BTreeSet<String> {
        let new = self.new.iter().map(|(name, _)| name);
        self.gone.iter().chain(new).cloned().collect()
    }
}

/// What a server line says about this server alone, apart from what it says like its neighbours.
struct Own<'a> {
    id: Option<u32>,
    weight: Option<u16>,
    /// The other words, in order.
    words: Vec<&'a str>,
}

impl<'a> Own<'a> {
    fn of(text: &'a str, layer: &Layer) -> Self {
        let mut own = Self {
            id: None,
            weight: None,
            words: Vec::new(),
        };
        let mut words = text.split_ascii_whitespace();
        while let Some(word) = words.next() {
            let Some(arity) = keyword::arity(word) else {
                own.words.push(word);
                own.words.extend(words);
                break;
            };
            let value = if arity == 1 { words.next() } else { None };
            match (word, value) {
                ("cookie", _) if !layer.cookie => continue,
                ("id", Some(text)) if let Ok(id) = text.parse() => own.id = Some(id),
                ("weight", Some(text)) if let Ok(weight) = text.parse() => {
                    own.weight = Some(weight)
                }
                _ => own.words.extend([word].into_iter().chain(value)),
            }
        }
        own
    }
}

/// What servers with the same words and the same inheritance have in common: worked out once, held once.
#[derive(Clone)]
struct Common {
    id: Option<u32>,
    weight: u16,
    disabled: bool,
    options: Arc<Options>,
    digest: Digest,
    file_only: Option<String>,
}

impl Common {
    fn of(words: &[&str], layer: &Layer) -> Self {
        let mut options = layer.options.clone();
        options.add(&mut words.iter().copied());
        if !layer.cookie {
            options.words.remove("cookie");
        }
        let id = options.take("id");
        let weight = options.take("weight").unwrap_or(DEFAULT_WEIGHT);
        let disabled = options.words.remove("disabled").is_some();
        let options = options.without_built_ins();
        Self {
            id,
            weight,
            disabled,
            digest: options.digest(),
            file_only: options.file_only(),
            options: Arc::new(options),
        }
    }

    fn server(&self, address: SocketAddr, own: &Own<'_>) -> Effective {
        Effective {
            address,
            id: own.id.or(self.id),
            weight: own.weight.unwrap_or(self.weight),
            disabled: self.disabled,
            options: Arc::clone(&self.options),
            digest: (self.options.digest_at(address.ip()))
                .unwrap_or_else(|| Arc::clone(&self.digest)),
        }
    }
}

#[cfg(test)]
mod tests;
