//! The generation: 16 hexadecimal digits that name a structure, written into haproxy's `description` and read back from
//! `show info`, so that anybody can see which file a worker has loaded.
//!
//! Pure. Server lines are not part of it: they change at runtime without a reload. What every server of a service is
//! given by the configuration is, because servers already running keep the old options until a reload.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::model::text::hex;
use crate::outputs::haproxy::cfg::Section;
use crate::outputs::haproxy::cfg::effective::Options;

/// What stands before the digits in `description`.
const MARK: &str = "synapse=";
const DIGITS: usize = 16;

/// 16 lower-case hexadecimal digits.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Generation(String);

impl Generation {
    /// Of a structure and, by backend, the options the configuration gives to each of its servers.
    #[must_use]
    pub fn of<'a>(
        sections: impl IntoIterator<Item = &'a Section>,
        configured: &BTreeMap<String, Arc<Options>>,
    ) -> Self {
        let mut hash = Sha256::new();
        for section in sections {
            hash.update(section.digest);
        }
        for (backend, options) in configured {
            hash.update(format!("{backend} {options}\n"));
        }
        Self(hex(&hash.finalize()[..DIGITS / 2]))
    }

    /// The generation of an already parsed mark; `None` unless it is 16 lower-case hexadecimal digits.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let valid =
            text.len() == DIGITS && text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
        valid.then(|| Self(text.to_owned()))
    }

    /// The mark in a file's text; `None` = the file is not ours.
    #[must_use]
    pub fn of_text(text: &str) -> Option<Self> {
        let lines = text.lines().map(str::trim_start);
        let mut descriptions = lines.filter(|line| line.starts_with("description "));
        descriptions.find_map(|line| parse_description(line).and_then(Self::parse))
    }

    /// The last line of `global`: `description [<the user's text> ]synapse=<generation>`.
    #[must_use]
    pub fn description(&self, user: Option<&str>) -> String {
        match user.map(str::trim).filter(|u| !u.is_empty()) {
            Some(user) => format!("description {user} {MARK}{self}"),
            None => format!("description {MARK}{self}"),
        }
    }

    /// The digits.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Generation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// The digits in a description's text, as `show info` or the file gives it: the last word when it carries the mark.
#[must_use]
pub fn parse_description(text: &str) -> Option<&str> {
    let digits = text.split_ascii_whitespace().last()?.strip_prefix(MARK)?;
    Generation::parse(digits).map(|_| digits)
}

/// A structure line as the generation sees it: a `description` without its mark; `None` when nothing else is in it.
pub(crate) fn without_mark(line: &str) -> Option<&str> {
    let marked = line.split_ascii_whitespace().next() == Some("description")
        && parse_description(line).is_some();
    if !marked {
        return Some(line);
    }
    let user = line
        .rsplit_once(MARK)
        .map_or(line, |(before, _)| before.trim_end());
    (user != "description").then_some(user)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::outputs::haproxy::cfg::{Model, Ours};

    fn generation(text: &str) -> Generation {
        let model = Model::parse(text, Ours::All);
        Generation::of(model.sections.iter().map(AsRef::as_ref), &BTreeMap::new())
    }

    #[test]
    fn own_line_comments_and_servers_do_not_count_but_the_structure_does() {
        let plain = generation("global\n\tmaxconn 10\nbackend b\n\tmode http\n");
        let text = format!(
            "# made by x\nglobal\n maxconn 10\n {}\nbackend b\n mode http\n server s 127.0.0.1:1\n",
            plain.description(None)
        );
        assert_eq!(generation(&text), plain);
        assert_eq!(
            Model::parse(&text, Ours::All).generation(),
            Some(plain.as_str())
        );
        assert_ne!(
            generation("global\n maxconn 11\nbackend b\n mode http\n"),
            plain
        );
        // A section may not slide into its neighbour.
        assert_ne!(
            generation("global\nbackend b\n mode http\n maxconn 10\n"),
            plain
        );
        let users = generation("global\n maxconn 10\n description web 1\nbackend b\n mode http\n");
        assert_ne!(users, plain);
        let marked = format!(
            "global\n maxconn 10\n {}\nbackend b\n mode http\n",
            users.description(Some("web 1"))
        );
        assert_eq!(generation(&marked), users);
    }

    #[test]
    fn configured_options_count_in_their_effective_form() {
        let with = |text: &str| {
            let configured = BTreeMap::from([("b".to_owned(), Arc::new(Options::of(text)))]);
            Generation::of([], &configured)
        };
        assert_eq!(with("check inter 2s"), with("inter 2000 check check"));
        assert_ne!(with("check inter 2s"), with("check inter 3s"));
    }

    #[test]
    fn only_a_well_formed_mark_is_read() {
        assert_eq!(
            parse_description("hello synapse=0123456789abcdef"),
            Some("0123456789abcdef")
        );
        for text in [
            "",
            "synapse=",
            "synapse=0123",
            "synapse=0123456789ABCDEF",
            "synapse=0123456789abcdef later",
            "x=0123456789abcdef",
        ] {
            assert_eq!(parse_description(text), None, "{text}");
        }
    }
}
