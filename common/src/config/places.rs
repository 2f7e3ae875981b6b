//! Where each key stands in a file, from YAML events. Serves messages only: values come from `tree`.
//!
//! Best effort: where the event parser stops (JSON that is not YAML, say), what lies behind has its ancestor's place.

use std::collections::HashMap;

use saphyr_parser::{Event, Marker, Parser, ScalarStyle};

/// Aliases of aliases, merges in merges and maps merged at once that are followed: more are nobody's file.
const MERGES: usize = 16;

/// A place, both numbers from 1, the column in characters.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Position {
    pub(super) line: usize,
    pub(super) column: usize,
}

impl From<&Marker> for Position {
    fn from(marker: &Marker) -> Self {
        Self {
            line: marker.line(),
            column: marker.col() + 1,
        }
    }
}

/// One key or list entry.
#[derive(Debug, Clone, Copy)]
pub(super) struct Place {
    /// Where the key begins; of a list entry its value.
    pub(super) key: Position,
    /// Where the value begins.
    pub(super) value: Position,
}

/// A key that stands twice in one map.
#[derive(Debug)]
pub(super) struct Duplicate {
    pub(super) key_path: String,
    pub(super) first: Position,
    pub(super) second: Position,
}

/// The places of one file.
#[derive(Debug, Default)]
pub(super) struct Places {
    of: HashMap<String, Place>,
    /// Scalars without quotes, to which YAML 1.1's rules apply, as they are written.
    plain: HashMap<String, String>,
    /// Places that hold an alias, and what it stands for.
    aliases: HashMap<String, String>,
    pub(super) duplicates: Vec<Duplicate>,
}

/// The address of a key: its parts joined by a byte no key holds.
fn join(parent: &str, part: &str) -> String {
    format!("{parent}\u{1}{part}")
}

impl Places {
    /// The place of exactly this path.
    pub(super) fn get(&self, parts: &[String]) -> Option<Place> {
        self.of
            .get(
                &parts
                    .iter()
                    .fold(String::new(), |path, part| join(&path, part)),
            )
            .copied()
    }

    /// The text of this path's scalar when it is written without quotes, also behind aliases and merges.
    pub(super) fn written(&self, parts: &[String]) -> Option<&str> {
        let path = parts.iter().try_fold(String::new(), |path, part| {
            self.below(&self.meant(&path), part, MERGES)
        })?;
        self.plain.get(&self.meant(&path)).map(String::as_str)
    }

    /// The path that this one stands for.
    fn meant(&self, path: &str) -> String {
        let mut path = path;
        for _ in 0..MERGES {
            match self.aliases.get(path) {
                Some(other) => path = other,
                None => break,
            }
        }
        path.to_owned()
    }

    /// The path of an entry of a map or list, its own or merged.
    fn below(&self, path: &str, part: &str, limit: usize) -> Option<String> {
        let own = join(path, part);
        if self.of.contains_key(&own) {
            return Some(own);
        }
        let merged = join(path, "<<");
        if limit == 0 || !self.of.contains_key(&merged) {
            return None;
        }
        let several = (0..MERGES).map(|index| join(&merged, &index.to_string()));
        let several = several.take_while(|path| self.of.contains_key(path));
        std::iter::once(merged.clone())
            .chain(several)
            .find_map(|from| self.below(&self.meant(&from), part, limit - 1))
    }

    /// The place of this path or of its nearest ancestor (merged and aliased values have none of their own).
    pub(super) fn nearest(&self, parts: &[String]) -> Option<Place> {
        (0..=parts.len())
            .rev()
            .find_map(|length| self.get(&parts[..length]))
    }

    pub(super) fn of(text: &str) -> Self {
        let mut reader = Reader {
            places: Self::default(),
            open: Vec::new(),
            anchors: HashMap::new(),
        };
        let mut parser = Parser::new_from_str(text);
        while let Some(Ok((event, span))) = parser.next_event() {
            let at = Position::from(&span.start);
            match event {
                Event::DocumentEnd => break,
                Event::Scalar(text, style, anchor, _) => {
                    if let Some(path) = reader.scalar(&text, at) {
                        if style == ScalarStyle::Plain {
                            reader.places.plain.insert(path.clone(), text.into_owned());
                        }
                        reader.anchors.insert(anchor, path);
                    }
                }
                Event::Alias(anchor) => {
                    let target = reader.anchors.get(&anchor).cloned();
                    if let Some((path, target)) = reader.scalar("*", at).zip(target) {
                        reader.places.aliases.insert(path, target);
                    }
                }
                Event::MappingStart(anchor, _) => {
                    let path = reader.begin(at);
                    reader.anchors.insert(anchor, path.clone());
                    reader.open.push(Open::Map {
                        path,
                        key: None,
                        seen: HashMap::new(),
                    });
                }
                Event::SequenceStart(anchor, _) => {
                    let path = reader.begin(at);
                    reader.anchors.insert(anchor, path.clone());
                    reader.open.push(Open::List { path, next: 0 });
                }
                Event::MappingEnd | Event::SequenceEnd => {
                    reader.open.pop();
                }
                _ => {}
            }
        }
        reader.places
    }
}

enum Open {
    Map {
        path: String,
        key: Option<(String, Position)>,
        seen: HashMap<String, Position>,
    },
    List {
        path: String,
        next: usize,
    },
}

struct Reader {
    places: Places,
    open: Vec<Open>,
    /// The paths of anchors, by the parser's numbers (0: of what has none).
    anchors: HashMap<usize, String>,
}

impl Reader {
    /// A scalar: the path of a value, nothing for a key.
    fn scalar(&mut self, text: &str, at: Position) -> Option<String> {
        if let Some(Open::Map {
            path,
            key: key @ None,
            seen,
        }) = self.open.last_mut()
        {
            if let Some(first) = seen.insert(text.to_owned(), at) {
                let key_path = join(path, text)
                    .trim_start_matches('\u{1}')
                    .replace('\u{1}', ".");
                self.places.duplicates.push(Duplicate {
                    key_path,
                    first,
                    second: at,
                });
            }
            *key = Some((text.to_owned(), at));
            None
        } else {
            Some(self.value(at))
        }
    }

    /// A map or list begins; as a map's key it is given a name no real key has.
    fn begin(&mut self, at: Position) -> String {
        if let Some(Open::Map {
            path,
            key: key @ None,
            ..
        }) = self.open.last_mut()
        {
            *key = Some(("\u{2}".to_owned(), at));
            return join(path, "\u{2}");
        }
        self.value(at)
    }

    fn value(&mut self, at: Position) -> String {
        let (path, key) = match self.open.last_mut() {
            None => (String::new(), at),
            Some(Open::List { path, next }) => {
                *next += 1;
                (join(path, &(*next - 1).to_string()), at)
            }
            Some(Open::Map { path, key, .. }) => {
                let (name, key_at) = key.take().unwrap_or_else(|| (String::new(), at));
                (join(path, &name), key_at)
            }
        };
        self.places
            .of
            .entry(path.clone())
            .or_insert(Place { key, value: at });
        path
    }
}
