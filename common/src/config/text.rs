//! Text before it is YAML: `<%= ENV['X'] %>` becomes the variable's value; any other ERB is refused with its place.
//!
//! Ruby's synapse runs every file through ERB; running Ruby code is what we leave out.

use super::places::Position;

/// Something about the text that the report must say.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Remark {
    /// ERB that is not read.
    Refused { tag: String },
    /// A variable that is not set: nothing stands in its place, as in Ruby.
    Unset { name: String },
    /// `ENV.fetch('X')` without a default, and `X` is not set.
    Missing { name: String },
}

/// The text with its tags replaced, and what was odd.
pub(super) fn expand(
    text: &str,
    variable: impl Fn(&str) -> Option<String>,
) -> (String, Vec<(Position, Remark)>) {
    let mut out = String::with_capacity(text.len());
    let mut remarks = Vec::new();
    let mut rest = text;
    while let Some(start) = rest.find("<%") {
        let tag_at = text.len() - rest.len() + start;
        out.push_str(&rest[..start]);
        if rest[start..].starts_with("<%%") {
            out.push_str("<%");
            rest = &rest[start + 3..];
            continue;
        }
        let end = rest[start..]
            .find("%>")
            .map_or(rest.len(), |end| start + end + 2);
        let tag = &rest[start..end];
        rest = &rest[end..];
        if tag.starts_with("<%#") {
            continue;
        }
        let mut note = |remark| remarks.push((position(text, tag_at), remark));
        match Reference::parse(tag) {
            None => note(Remark::Refused {
                tag: tag.lines().next().unwrap_or_default().to_owned(),
            }),
            Some(Reference {
                name,
                fallback,
                required,
            }) => match (variable(name), fallback) {
                (Some(value), _) => out.push_str(&value),
                (None, Some(fallback)) => out.push_str(fallback),
                (None, None) if required => note(Remark::Missing {
                    name: name.to_owned(),
                }),
                (None, None) => note(Remark::Unset {
                    name: name.to_owned(),
                }),
            },
        }
    }
    out.push_str(rest);
    (out, remarks)
}

fn position(text: &str, at: usize) -> Position {
    let before = &text[..at];
    let line_start = before.rfind('\n').map_or(0, |at| at + 1);
    Position {
        line: before.matches('\n').count() + 1,
        column: before[line_start..].chars().count() + 1,
    }
}

/// `ENV['X']`, `ENV.fetch('X')` or `ENV.fetch('X', 'default')`.
struct Reference<'a> {
    name: &'a str,
    fallback: Option<&'a str>,
    required: bool,
}

impl<'a> Reference<'a> {
    fn parse(tag: &'a str) -> Option<Self> {
        let code = tag.strip_prefix("<%=")?.strip_suffix("%>")?;
        let code = code.strip_suffix('-').unwrap_or(code).trim();
        let rest = code.strip_prefix("ENV")?;
        if let Some(index) = rest.strip_prefix('[') {
            let (name, rest) = quoted(index)?;
            return (rest == "]").then_some(Self {
                name,
                fallback: None,
                required: false,
            });
        }
        let (name, rest) = quoted(rest.strip_prefix(".fetch(")?)?;
        if rest == ")" {
            return Some(Self {
                name,
                fallback: None,
                required: true,
            });
        }
        let (fallback, rest) = quoted(rest.strip_prefix(',')?)?;
        (rest == ")").then_some(Self {
            name,
            fallback: Some(fallback),
            required: true,
        })
    }
}

/// The first character that looks like a blank and is none to YAML, where it stands neither in quotes nor in a comment.
pub(super) fn first_blank(text: &str) -> Option<(Position, char)> {
    if text.is_ascii() {
        return None;
    }
    let mut quote = None;
    let mut before = ' ';
    let mut comment = false;
    for (at, c) in text.char_indices() {
        match (c, quote) {
            ('\n', _) => comment = false,
            _ if comment => {}
            (c, None) if is_false_blank(c) => return Some((position(text, at), c)),
            ('#', None) if before.is_ascii_whitespace() => comment = true,
            // An apostrophe inside a word is none.
            ('\'' | '"', None) if !before.is_alphanumeric() => quote = Some(c),
            (c, Some(open)) if c == open && before != '\\' => quote = None,
            _ => {}
        }
        before = c;
    }
    None
}

/// A character in the text that looks like a blank and is none, for a message.
#[must_use]
pub fn false_blank(text: &str) -> Option<String> {
    text.chars().find(|c| is_false_blank(*c)).map(blank)
}

fn is_false_blank(c: char) -> bool {
    let invisible = matches!(c, '\u{200b}'..='\u{200d}' | '\u{2060}' | '\u{feff}');
    !c.is_ascii() && (c.is_whitespace() || invisible)
}

/// Such a character for a message: its number, and its name where many know it.
pub(super) fn blank(c: char) -> String {
    let name = match c {
        '\u{a0}' => " (no-break space)",
        '\u{3000}' => " (ideographic space)",
        '\u{200b}' => " (zero-width space)",
        '\u{feff}' => " (byte-order mark)",
        _ => "",
    };
    format!("U+{:04X}{name}", u32::from(c))
}

/// A variable that whoever makes the files has left unfilled: `$NAME`, `${name}`, `{{ name }}`. Nothing here replaces it.
pub(super) fn unfilled(text: &str) -> Option<&str> {
    let of = |start: usize, end: Option<usize>| end.map(|end| &text[start..end]);
    let mut rest = 0;
    while let Some(at) = text[rest..].find(['$', '{']).map(|at| rest + at) {
        let from = &text[at..];
        let closed = |open: &str, close: &str| {
            let inner = from.strip_prefix(open)?;
            inner
                .find(close)
                .map(|end| at + open.len() + end + close.len())
        };
        let name = |c: char| c.is_ascii_uppercase() || c.is_ascii_digit() || c == '_';
        let plain = || {
            let inner = from.strip_prefix('$')?;
            let length = inner.find(|c| !name(c)).unwrap_or(inner.len());
            let begins = inner.starts_with(|c: char| c.is_ascii_uppercase());
            (begins && length > 1).then(|| at + 1 + length)
        };
        let end = closed("${", "}")
            .or_else(|| closed("{{", "}}"))
            .or_else(plain);
        if end.is_some() {
            return of(at, end);
        }
        rest = at + 1;
    }
    None
}

/// A quoted word without escapes, and what follows it.
fn quoted(text: &str) -> Option<(&str, &str)> {
    let text = text.trim_start();
    let quote = text.chars().next().filter(|c| matches!(c, '\'' | '"'))?;
    let (word, rest) = text[1..].split_once(quote)?;
    (!word.contains(['\\', '#'])).then_some((word, rest.trim()))
}
