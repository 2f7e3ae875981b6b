//! haproxy.cfg, read back: text becomes structure (opaque lines, by section) and our server lines (by backend and name).
//!
//! Pure. It never judges whether haproxy would accept the text: what it does not understand is structure, kept as it
//! stands. Called on each fragment after rendering, and on whole files; a whole file's model is the merge of its
//! fragments' models.

pub mod balance;
pub mod binds;
pub mod effective;
pub mod generation;
pub mod named;

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::ops::{Deref, Range};
use std::sync::{Arc, OnceLock};

use sha2::{Digest, Sha256};

/// First words that open a section (management manual and configuration manual of haproxy 2.6 to 3.3).
const SECTIONS: [&str; 19] = [
    "global",
    "defaults",
    "frontend",
    "backend",
    "listen",
    "userlist",
    "peers",
    "mailers",
    "resolvers",
    "cache",
    "program",
    "http-errors",
    "ring",
    "log-forward",
    "log-profile",
    "fcgi-app",
    "crt-store",
    "traces",
    "acme",
];

/// Which server lines are ours. Every other server line is structure.
#[derive(Debug, Clone, Copy)]
pub enum Ours<'a> {
    /// The names given to the template, by backend.
    Names(&'a BTreeMap<String, BTreeSet<String>>),
    /// Every plain server line: for a file whose model is not known.
    All,
}

impl Ours<'_> {
    fn has(self, backend: &str, name: &str) -> bool {
        match self {
            Ours::Names(names) => names.get(backend).is_some_and(|set| set.contains(name)),
            Ours::All => true,
        }
    }
}

/// What a text says. Line numbers are 1-based and count from the start of that text.
#[derive(Debug, Clone, Default)]
pub struct Model {
    /// Sections in order. A text that begins without a section header opens with a section of keyword `""`.
    pub sections: Vec<Arc<Section>>,
    /// Our servers: backend, name. Only names that [`Ours`] admits, only lines that can be read without quoting rules.
    pub servers: Servers,
    /// Lines of the text.
    pub lines: usize,
}

/// Server lines by backend and name. Those that were put behind a text are read when somebody asks for them: mostly nobody
/// does.
#[derive(Debug, Clone, Default)]
pub struct Servers {
    read: OnceLock<ServerLines>,
    unread: Option<Tail>,
}

/// Backend, name.
type ServerLines = BTreeMap<String, BTreeMap<String, ServerLine>>;

/// Nothing but server lines of one backend, up to the end of a text.
#[derive(Debug, Clone)]
struct Tail {
    text: Arc<str>,
    from: usize,
    backend: String,
    number: usize,
}

impl Deref for Servers {
    type Target = ServerLines;

    fn deref(&self) -> &ServerLines {
        let read = || self.unread.as_ref().map(Tail::read).unwrap_or_default();
        self.read.get_or_init(read)
    }
}

impl From<ServerLines> for Servers {
    fn from(lines: ServerLines) -> Self {
        Self {
            read: lines.into(),
            unread: None,
        }
    }
}

impl Servers {
    pub(crate) fn into_lines(self) -> ServerLines {
        let _read = self.len();
        self.read.into_inner().unwrap_or_default()
    }
}

impl Tail {
    fn read(&self) -> ServerLines {
        let lines = self.text.get(self.from..).unwrap_or_default().lines();
        let servers = lines
            .enumerate()
            .filter_map(|(index, line)| read_server(self.number + index, line.trim()));
        let servers: BTreeMap<String, ServerLine> = servers.collect();
        let any = (!servers.is_empty()).then(|| (self.backend.clone(), servers));
        any.into_iter().collect()
    }
}

/// A section without our server lines. Equal when header and lines are, wherever they stand.
#[derive(Debug, Clone)]
pub struct Section {
    /// First word of the header, such as `backend`.
    pub keyword: String,
    /// Second word of the header; empty when there is none.
    pub name: String,
    /// The name after `from`: the defaults section used instead of the last one.
    pub from: Option<String>,
    /// Line number of the header (0: no header).
    pub number: usize,
    /// Opaque lines, without comments and blank lines, each with its number.
    pub lines: Vec<Line>,
    /// SHA-256 of header and lines.
    pub digest: [u8; 32],
}

impl PartialEq for Section {
    fn eq(&self, other: &Self) -> bool {
        self.digest == other.digest
    }
}

impl Eq for Section {}

/// A line of the structure.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Line {
    /// Line number.
    pub number: usize,
    /// Trimmed text.
    pub text: String,
}

/// One of our server lines.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServerLine {
    /// Line number.
    pub number: usize,
    /// What haproxy connects to.
    pub address: SocketAddr,
    /// Everything after the address.
    pub options: String,
}

impl Model {
    /// Reads a whole file or a fragment. Any text has a model.
    #[must_use]
    pub fn parse(text: &str, ours: Ours<'_>) -> Self {
        let mut model = Self::default();
        let mut servers = ServerLines::new();
        let mut open = Draft::default();
        let mut conditions = 0_usize;
        for (index, raw) in text.lines().enumerate() {
            model.lines = index + 1;
            let text = raw.trim();
            if text.is_empty() || text.starts_with('#') {
                continue;
            }
            let line = || Line {
                number: index + 1,
                text: text.to_owned(),
            };
            let first = text.split_ascii_whitespace().next().unwrap_or_default();
            match first {
                ".if" => conditions += 1,
                ".endif" => conditions = conditions.saturating_sub(1),
                _ => {}
            }
            if SECTIONS.contains(&first) {
                let next = Draft::header(line());
                model
                    .sections
                    .extend(std::mem::replace(&mut open, next).close());
                continue;
            }
            if conditions == 0
                && let Some((name, server)) = open.server(index + 1, text)
                && ours.has(&open.name, &name)
            {
                let servers = servers.entry(open.name.clone()).or_default();
                // Two equal names are fatal to the file: the second stays visible as structure.
                if let std::collections::btree_map::Entry::Vacant(free) = servers.entry(name) {
                    free.insert(server);
                    continue;
                }
            }
            open.lines.push(line());
        }
        model.sections.extend(open.close());
        model.servers = Servers::from(servers);
        model
    }

    /// The model of `text`: the first `from` bytes are this one's, then come `count` server lines of a backend, plain, all
    /// ours, none of another's name. `None` when the former text has conditions or servers of its own.
    #[must_use]
    pub fn with_servers(
        &self,
        backend: &str,
        text: &Arc<str>,
        from: usize,
        count: usize,
    ) -> Option<Self> {
        let last = self.sections.last()?;
        let plain = |line: &Line| !line.text.starts_with(['.']) && !line.text.starts_with("server");
        let simple = self.servers.is_empty() && last.lines.iter().all(plain);
        let tail = Tail {
            text: Arc::clone(text),
            from,
            backend: backend.to_owned(),
            number: self.lines + 1,
        };
        (last.keyword == "backend" && last.name == backend && simple).then(|| Self {
            sections: self.sections.clone(),
            servers: Servers {
                read: OnceLock::new(),
                unread: Some(tail),
            },
            lines: self.lines + count,
        })
    }

    /// Appends the model of the text that follows this one. Costs the size of `next` only; line numbers stay those of
    /// each text (see [`FragmentMap`]).
    pub fn merge(&mut self, next: &Self) {
        self.sections.extend(next.sections.iter().cloned());
        self.lines += next.lines;
        let mut all = std::mem::take(&mut self.servers).into_lines();
        for (backend, servers) in &*next.servers {
            all.entry(backend.clone())
                .or_default()
                .extend(servers.iter().map(|(n, s)| (n.clone(), s.clone())));
        }
        self.servers = all.into();
    }

    /// Whether both say the same apart from our servers.
    #[must_use]
    pub fn same_structure(&self, other: &Self) -> bool {
        self.sections == other.sections
    }

    /// The generation written in the text's `description`, if any.
    #[must_use]
    pub fn generation(&self) -> Option<&str> {
        let global = self.sections.iter().filter(|s| s.keyword == "global");
        let descriptions = global
            .flat_map(|s| &s.lines)
            .filter_map(|l| l.text.strip_prefix("description"));
        descriptions
            .filter_map(generation::parse_description)
            .next_back()
    }
}

/// A section being read.
#[derive(Default)]
struct Draft {
    header: Option<Line>,
    keyword: String,
    name: String,
    from: Option<String>,
    lines: Vec<Line>,
}

impl Draft {
    fn header(line: Line) -> Self {
        let words: Vec<&str> = line.text.split_ascii_whitespace().collect();
        let word = |i: usize| words.get(i).copied().unwrap_or_default().to_owned();
        let from = words.iter().position(|w| *w == "from").map(|i| word(i + 1));
        Self {
            keyword: word(0),
            name: if word(1) == "from" {
                String::new()
            } else {
                word(1)
            },
            from,
            lines: Vec::new(),
            header: Some(line),
        }
    }

    /// The line as a server of this section, when it can be read without haproxy's quoting rules.
    fn server(&self, number: usize, text: &str) -> Option<(String, ServerLine)> {
        if !matches!(self.keyword.as_str(), "backend" | "listen") || !is_plain(text) {
            return None;
        }
        read_server(number, text)
    }

    /// `None` when nothing stood before the first header.
    fn close(self) -> Option<Arc<Section>> {
        if self.header.is_none() && self.lines.is_empty() {
            return None;
        }
        let mut hash = Sha256::new();
        let header = self.header.as_ref().map_or("", |h| h.text.as_str());
        for text in std::iter::once(header).chain(self.lines.iter().map(|l| l.text.as_str())) {
            if let Some(stable) = generation::without_mark(text) {
                hash.update(stable.as_bytes());
                hash.update(b"\n");
            }
        }
        Some(Arc::new(Section {
            keyword: self.keyword,
            name: self.name,
            from: self.from,
            number: self.header.map_or(0, |h| h.number),
            lines: self.lines,
            digest: hash.finalize().into(),
        }))
    }
}

/// A plain server line: name and the rest.
pub(crate) fn read_server(number: usize, text: &str) -> Option<(String, ServerLine)> {
    let (_, rest) = next_word(text).filter(|(word, _)| *word == "server")?;
    let (name, rest) = next_word(rest)?;
    let (address, options) = next_word(rest)?;
    let server = ServerLine {
        number,
        address: parse_address(address)?,
        options: options.to_owned(),
    };
    Some((name.to_owned(), server))
}

/// The first word and what follows it, both without surrounding blanks.
fn next_word(text: &str) -> Option<(&str, &str)> {
    let (word, rest) = text.split_once([' ', '\t']).unwrap_or((text, ""));
    (!word.is_empty()).then(|| (word, rest.trim_start()))
}

/// No quotes, escapes, variables or comments: splitting at blanks gives haproxy's words.
pub(crate) fn is_plain(text: &str) -> bool {
    let special = |byte| matches!(byte, b'"' | b'\'' | b'\\' | b'$' | b'#');
    !text.bytes().any(special)
}

/// `1.2.3.4:80`, `[::1]:80` or `::1:80`, as haproxy reads it (the port follows the last colon).
fn parse_address(text: &str) -> Option<SocketAddr> {
    let (host, port) = text.rsplit_once(':')?;
    let host = host
        .strip_prefix('[')
        .and_then(|h| h.strip_suffix(']'))
        .unwrap_or(host);
    Some(SocketAddr::new(
        host.parse::<IpAddr>().ok()?,
        port.parse().ok()?,
    ))
}

/// Which fragment a line of the concatenated file belongs to.
#[derive(Debug, Clone, Default)]
pub struct FragmentMap {
    /// End (exclusive, 1-based line number in the file) of each fragment, ascending.
    ends: Vec<usize>,
}

impl FragmentMap {
    /// From the number of lines of each fragment, in the order of the file.
    #[must_use]
    pub fn new(lines: impl IntoIterator<Item = usize>) -> Self {
        let mut end = 1;
        Self {
            ends: lines
                .into_iter()
                .map(|n| {
                    end += n;
                    end
                })
                .collect(),
        }
    }

    /// Index of the fragment and line number inside it.
    #[must_use]
    pub fn locate(&self, line: usize) -> Option<(usize, usize)> {
        let fragment = self.ends.partition_point(|end| *end <= line);
        let lines = self.range(fragment)?;
        lines
            .contains(&line)
            .then(|| (fragment, line - lines.start + 1))
    }

    /// Line numbers of a fragment in the file.
    #[must_use]
    pub fn range(&self, fragment: usize) -> Option<Range<usize>> {
        let start = if fragment == 0 {
            1
        } else {
            *self.ends.get(fragment - 1)?
        };
        Some(start..*self.ends.get(fragment)?)
    }
}

#[cfg(test)]
mod tests;
