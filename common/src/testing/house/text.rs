//! Source text as words: what is neither blank, comment nor the inside of a text, each with its line.

/// A word of the source.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Word {
    pub(super) kind: Kind,
    pub(super) line: usize,
}

/// What a word is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Kind {
    /// A name or keyword.
    Name(String),
    /// `::`, `..`, `->`, `=>`, or any other sign.
    Sign(&'static str),
    /// A sign of which nothing hangs.
    Other(char),
    /// A bracket that opens, with the number of the word after the one that closes it.
    Open(char, usize),
    Close,
    /// A text, a character, a number, a lifetime.
    Literal,
}

impl Word {
    pub(super) fn name(&self) -> Option<&str> {
        match &self.kind {
            Kind::Name(name) => Some(name),
            _ => None,
        }
    }

    pub(super) fn is(&self, sign: &str) -> bool {
        self.kind == Kind::Name(sign.to_owned())
            || matches!(self.kind, Kind::Sign(own) if own == sign)
    }
}

/// Signs of which something hangs.
const SIGNS: &[&str] = &[
    "::", "..", "->", "=>", ".", ",", ";", "#", "!", "<", ">", "*", "$",
];

/// The words of a file.
pub(super) fn words(text: &str) -> Vec<Word> {
    let mut words: Vec<Word> = Vec::new();
    let mut open = Vec::new();
    let (mut rest, mut line) = (text, 1);
    while let Some(first) = rest.chars().next() {
        let (length, kind) = word(rest, first);
        let after = words.len() + 1;
        match kind {
            Some(Kind::Open(..)) => open.push(words.len()),
            Some(Kind::Close) => {
                if let Some(at) = open.pop()
                    && let Kind::Open(_, end) = &mut words[at].kind
                {
                    *end = after;
                }
            }
            _ => {}
        }
        words.extend(kind.map(|kind| Word { kind, line }));
        let (read, further) = rest.split_at(length);
        line += read.matches('\n').count();
        rest = further;
    }
    words
}

/// The length of what begins here, and what it is, unless it is nothing.
fn word(text: &str, first: char) -> (usize, Option<Kind>) {
    let until = |end: &str| text.find(end).map_or(text.len(), |at| at + end.len());
    match first {
        _ if text.starts_with("//") => (until("\n"), None),
        _ if text.starts_with("/*") => (comment(text), None),
        _ if first.is_whitespace() => (first.len_utf8(), None),
        '(' | '[' | '{' => (1, Some(Kind::Open(first, 0))),
        ')' | ']' | '}' => (1, Some(Kind::Close)),
        '"' => (quoted(text, 1), Some(Kind::Literal)),
        '\'' => (character(text), Some(Kind::Literal)),
        '0'..='9' => (number(text), Some(Kind::Literal)),
        _ if is_of_name(first) => name(text),
        _ => match SIGNS.iter().find(|sign| text.starts_with(**sign)) {
            Some(sign) => (sign.len(), Some(Kind::Sign(sign))),
            None => (first.len_utf8(), Some(Kind::Other(first))),
        },
    }
}

fn is_of_name(c: char) -> bool {
    c == '_' || c.is_alphanumeric()
}

fn name(text: &str) -> (usize, Option<Kind>) {
    let length = text.find(|c| !is_of_name(c)).unwrap_or(text.len());
    let (name, after) = text.split_at(length);
    let hashes = after.len() - after.trim_start_matches('#').len();
    match name {
        "b" if after.starts_with('\'') => (1 + character(after), Some(Kind::Literal)),
        "b" | "c" if after.starts_with('"') => (quoted(text, 2), Some(Kind::Literal)),
        "r" | "br" | "cr" if after[hashes..].starts_with('"') => {
            let end = format!("\"{}", &after[..hashes]);
            let begin = length + hashes + 1;
            let found = text[begin..]
                .find(&end)
                .map_or(text.len(), |at| begin + at + end.len());
            (found, Some(Kind::Literal))
        }
        name => (length, Some(Kind::Name(name.to_owned()))),
    }
}

/// Comments may hold comments.
fn comment(text: &str) -> usize {
    let (mut at, mut depth) = (2, 1);
    while depth > 0 && at < text.len() {
        match &text.as_bytes()[at..] {
            [b'/', b'*', ..] => (at, depth) = (at + 2, depth + 1),
            [b'*', b'/', ..] => (at, depth) = (at + 2, depth - 1),
            _ => at += 1,
        }
    }
    at
}

/// From `begin` on to the quote that no backslash precedes.
fn quoted(text: &str, begin: usize) -> usize {
    let mut escaped = false;
    let end = text[begin..].find(|c| {
        let ends = c == '"' && !escaped;
        escaped = c == '\\' && !escaped;
        ends
    });
    end.map_or(text.len(), |at| begin + at + 1)
}

/// A character, or a lifetime.
fn character(text: &str) -> usize {
    let mut inside = text[1..].chars();
    match inside.next() {
        Some('\\') => text[3..].find('\'').map_or(text.len(), |at| 3 + at + 1),
        Some(c) if inside.next() == Some('\'') => 2 + c.len_utf8(),
        _ => 1 + text[1..].find(|c| !is_of_name(c)).unwrap_or(text.len() - 1),
    }
}

/// A dot is a part of it before another digit only: `0..3`, `1.max(2)`.
fn number(text: &str) -> usize {
    let digits = |text: &str| text.find(|c| !is_of_name(c)).unwrap_or(text.len());
    let whole = digits(text);
    match text[whole..].strip_prefix('.') {
        Some(rest) if rest.starts_with(|c: char| c.is_ascii_digit()) => whole + 1 + digits(rest),
        _ => whole,
    }
}
