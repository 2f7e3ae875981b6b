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

/// A quoted word without escapes, and what follows it.
fn quoted(text: &str) -> Option<(&str, &str)> {
    let text = text.trim_start();
    let quote = text.chars().next().filter(|c| matches!(c, '\'' | '"'))?;
    let (word, rest) = text[1..].split_once(quote)?;
    (!word.contains(['\\', '#'])).then_some((word, rest.trim()))
}
