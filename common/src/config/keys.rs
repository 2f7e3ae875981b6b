//! A program's table of keys: one row per key it knows, from which come the classes of key, the README's tables and the
//! JSON Schema. What is read is up to the readers; that table and readers agree is tested by the programs.

use std::fmt;
use std::time::Duration;

use serde_json::{Value, json};

use super::source::SECTIONS;

/// What kind of value a key takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Text; numbers are taken as text.
    Text,
    /// A whole number within bounds, or the same as text.
    Integer(i64, i64),
    /// A number, or the same as text.
    Number,
    /// `true`/`false`, `yes`/`no`, `on`/`off`.
    Boolean,
    /// Seconds, or text with a unit.
    Duration,
    /// A list of texts, or one text.
    Lines,
    /// A list of texts, or one text.
    Texts,
    /// The path of a file or socket: text, never a number.
    Path,
    /// One of these texts.
    OneOf(&'static [&'static str]),
    /// A list of maps or values whose rows follow.
    List,
    /// The same, or one of them.
    ListOrOne,
    /// A map whose rows follow, or of free keys.
    Map,
    /// One of several kinds.
    Either(&'static [Kind]),
    /// Anything.
    Any,
}

impl Kind {
    fn words(self) -> String {
        match self {
            Kind::Text | Kind::Path => "text".to_owned(),
            Kind::Integer(min, max) if max >= i64::from(u32::MAX) => format!("integer ≥ {min}"),
            Kind::Integer(min, max) => format!("integer {min}..{max}"),
            Kind::Number => "number".to_owned(),
            Kind::Boolean => "boolean".to_owned(),
            Kind::Duration => "duration".to_owned(),
            Kind::Lines => "list of lines, or text".to_owned(),
            Kind::Texts => "list of texts, or text".to_owned(),
            Kind::OneOf(names) => names
                .iter()
                .map(|n| format!("`{n}`"))
                .collect::<Vec<_>>()
                .join(", "),
            Kind::List => "list".to_owned(),
            Kind::ListOrOne => "list, or map".to_owned(),
            Kind::Either(kinds) => {
                let words: Vec<String> = kinds.iter().map(|kind| kind.words()).collect();
                words.join(", or ")
            }
            Kind::Map => "map".to_owned(),
            Kind::Any => "any".to_owned(),
        }
    }

    /// JSON Schema of the value, as lenient as the readers.
    fn schema(self) -> Value {
        match self {
            Kind::Text => json!({"type": ["string", "number", "null"]}),
            Kind::Path => json!({"type": ["string", "null"]}),
            Kind::Integer(min, max) => {
                let mut schema = json!({
                    "type": ["integer", "string", "null"],
                    "minimum": min,
                    "pattern": "^\\s*[+-]?[0-9][0-9_]*\\s*$",
                });
                if max != i64::MAX {
                    schema["maximum"] = json!(max);
                }
                schema
            }
            Kind::Number => {
                json!({"type": ["number", "string", "null"], "pattern": "^\\s*[+-]?[0-9._]+([eE][+-]?[0-9]+)?\\s*$"})
            }
            Kind::Boolean => any_case(&["yes", "no", "on", "off", "true", "false"], true),
            Kind::Duration => {
                json!({
                    "type": ["number", "string", "null"],
                    "minimum": 0,
                    "pattern": "^\\s*[0-9._]+([eE][+-]?[0-9]+)?\\s*(ms|s|m|h|d)?\\s*$",
                })
            }
            Kind::Lines | Kind::Texts => {
                json!({"type": ["array", "string", "number", "null"], "items": {"type": ["string", "number"]}})
            }
            Kind::OneOf(names) => any_case(names, false),
            Kind::List => json!({"type": ["array", "null"]}),
            Kind::ListOrOne => json!({"type": ["array", "object", "null"], OR_ONE: true}),
            Kind::Map => json!({"type": ["object", "null"]}),
            Kind::Either(kinds) => {
                let kinds: Vec<Value> = kinds.iter().map(|kind| kind.schema()).collect();
                json!({"anyOf": kinds})
            }
            Kind::Any => json!({}),
        }
    }
}

/// Marks a list whose one entry may stand for it; replaced when the schema is complete.
const OR_ONE: &str = "x-or-one";

/// These words however they are spelt, with or without the booleans.
fn any_case(words: &[&str], booleans: bool) -> Value {
    let either = |c: char| match c.is_ascii_alphabetic() {
        true => format!("[{}{}]", c.to_ascii_lowercase(), c.to_ascii_uppercase()),
        false => c.to_string(),
    };
    let patterns: Vec<String> = words
        .iter()
        .map(|word| word.chars().map(either).collect())
        .collect();
    let mut names: Vec<Value> = words.iter().map(|word| json!(word)).collect();
    names.push(Value::Null);
    if booleans {
        names.extend([json!(true), json!(false)]);
    }
    json!({"anyOf": [
        {"enum": names},
        {"type": "string", "pattern": format!("^({})$", patterns.join("|"))},
    ]})
}

/// What happens to a key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Class {
    /// It is read and acted on.
    Honoured,
    /// It is known but not built; the text says what happens instead.
    Later(&'static str),
}

/// What holds when a key is not given.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Preset {
    /// No value of its own, in words; `required` when it must be given.
    Words(&'static str),
    /// This.
    Boolean(bool),
    /// This.
    Integer(i64),
    /// This.
    Number(f64),
    /// This.
    Duration(Duration),
    /// This text.
    Text(&'static str),
}

impl fmt::Display for Preset {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Preset::Words(words) => f.write_str(words),
            Preset::Boolean(value) => write!(f, "{value}"),
            Preset::Integer(value) => write!(f, "{value}"),
            Preset::Number(value) => write!(f, "{value}"),
            Preset::Duration(value) => match (value.as_secs(), value.subsec_millis()) {
                (0, millis @ 1..) => write!(f, "{millis}ms"),
                (secs @ 60.., 0) if secs % 60 == 0 => write!(f, "{}m", secs / 60),
                (secs, _) => write!(f, "{secs}s"),
            },
            Preset::Text(text) => write!(f, "`{text}`"),
        }
    }
}

/// A type that a default may have.
pub trait Presettable: Sized {
    /// The value of a default of this type.
    fn of(preset: Preset) -> Option<Self>;
}

/// A type that a default may have: by which form, and how.
macro_rules! presettable {
    ($($type:ty: $form:path, $value:ident => $of:expr;)*) => {$(
        impl Presettable for $type {
            fn of(preset: Preset) -> Option<Self> {
                match preset {
                    $form($value) => $of,
                    _ => None,
                }
            }
        }
    )*};
}

presettable! {
    bool: Preset::Boolean, value => Some(value);
    u32: Preset::Integer, value => u32::try_from(value).ok();
    usize: Preset::Integer, value => usize::try_from(value).ok();
    f64: Preset::Number, value => Some(value);
    Duration: Preset::Duration, value => Some(value);
    &'static str: Preset::Text, value => Some(value);
}

/// The default of the key at `path`: the only place where it is written is its row.
///
/// # Panics
/// When the row has no default of this type: a defect of the table.
#[must_use]
pub fn preset<T: Presettable>(keys: &[Key], path: &str) -> T {
    let row = keys.iter().find(|key| key.path == path);
    let value = row.and_then(|key| T::of(key.preset));
    value.unwrap_or_else(|| panic!("`{path}` has no default of this type in the table of keys"))
}

/// The same of a key that is one of a closed set.
///
/// # Panics
/// When the default is none of them.
#[must_use]
pub fn preset_of<T: Copy>(keys: &[Key], path: &str, words: &[(&str, T)]) -> T {
    let preset: &str = preset(keys, path);
    let known = words.iter().find(|(word, _)| *word == preset);
    known.expect("a default that is one of the words").1
}

/// One row of the table.
#[derive(Debug, Clone, Copy)]
pub struct Key {
    /// Like `services.*.checks[].port`: `*` is a free name, `[]` each entry of a list.
    pub path: &'static str,
    /// What it takes.
    pub kind: Kind,
    /// What holds when it is not given.
    pub preset: Preset,
    /// What it does.
    pub effect: &'static str,
    /// What happens to it.
    pub class: Class,
}

/// How many keys tables have together.
#[must_use]
pub const fn count(tables: &[&[Key]]) -> usize {
    let (mut all, mut table) = (0, 0);
    while table < tables.len() {
        all += tables[table].len();
        table += 1;
    }
    all
}

/// One table of several, of which `N` is the [`count`].
///
/// # Panics
/// When it is not.
#[must_use]
pub const fn joined<const N: usize>(tables: &[&[Key]]) -> [Key; N] {
    let mut keys = [later("", Kind::Any, ""); N];
    let (mut at, mut table) = (0, 0);
    while table < tables.len() {
        let mut key = 0;
        while key < tables[table].len() {
            keys[at] = tables[table][key];
            at += 1;
            key += 1;
        }
        table += 1;
    }
    assert!(at == N);
    keys
}

/// A key that is acted on; without a default of its own, which `words` say.
#[must_use]
pub const fn honoured(
    path: &'static str,
    kind: Kind,
    words: &'static str,
    effect: &'static str,
) -> Key {
    defaulted(path, kind, Preset::Words(words), effect)
}

/// A key that is acted on, and its default.
#[must_use]
pub const fn defaulted(
    path: &'static str,
    kind: Kind,
    preset: Preset,
    effect: &'static str,
) -> Key {
    Key {
        path,
        kind,
        preset,
        effect,
        class: Class::Honoured,
    }
}

/// A key that is known, but not built: `instead` says what happens.
#[must_use]
pub const fn later(path: &'static str, kind: Kind, instead: &'static str) -> Key {
    Key {
        path,
        kind,
        preset: Preset::Words(""),
        effect: "",
        class: Class::Later(instead),
    }
}

/// The rows that are not built.
pub fn known_only(keys: &[Key]) -> impl Iterator<Item = &Key> {
    keys.iter().filter(|key| key.class != Class::Honoured)
}

/// Parent pattern and last name of a row, e.g. (`services.*`, `port`).
pub(super) fn split(path: &str) -> (&str, &str) {
    path.rsplit_once('.').unwrap_or(("", path))
}

/// The row of `name` in the map at `parent`.
pub(super) fn find(keys: &'static [Key], parent: &str, name: &str) -> Option<&'static Key> {
    keys.iter().find(|key| split(key.path) == (parent, name))
}

/// The known name nearest to `name` in the map at `parent`, when it is near enough to be meant. One that is `given`, under
/// its own name, is not meant.
pub(super) fn nearest(
    keys: &'static [Key],
    parent: &str,
    name: &str,
    given: impl Fn(&str) -> bool,
) -> Option<&'static str> {
    keys.iter()
        .map(|key| split(key.path))
        .filter(|(above, known)| *above == parent && *known != "*" && !given(known))
        .map(|(_, known)| {
            (
                strsim::osa_distance(&known.to_lowercase(), &name.to_lowercase()),
                known,
            )
        })
        .filter(|(distance, known)| *distance <= 1.max(known.len() / 3))
        .min()
        .map(|(_, known)| known)
}

/// The README's tables.
#[must_use]
pub fn tables(keys: &[Key]) -> String {
    let cell = |text: &str| text.replace('|', "\\|");
    let mut out = String::from("| Key | Type | Default | Effect |\n|---|---|---|---|\n");
    for key in keys.iter().filter(|key| key.class == Class::Honoured) {
        let row = [
            key.kind.words(),
            key.preset.to_string(),
            key.effect.to_owned(),
        ]
        .map(|text| cell(&text));
        out.push_str(&format!("| `{}` | {} |\n", key.path, row.join(" | ")));
    }
    out.push_str(
        "\nKnown, not built yet: such a key gives one warning.\n\n| Key | What happens instead |\n|---|---|\n",
    );
    for key in keys {
        if let Class::Later(instead) = key.class {
            out.push_str(&format!("| `{}` | {} |\n", key.path, cell(instead)));
        }
    }
    out
}

/// A JSON Schema of a whole file: the program's keys at the top, or in its section.
#[must_use]
pub fn schema(section: &str, keys: &[Key]) -> Value {
    let mut root = json!({"type": "object"});
    for key in keys {
        let at = place(&mut root, key.path);
        if at.is_null() {
            *at = json!({});
        }
        if let (Some(at), Value::Object(kind)) = (at.as_object_mut(), key.kind.schema()) {
            at.extend(kind);
            let text = match key.class {
                Class::Honoured => key.effect.to_owned(),
                Class::Later(instead) => format!("known, not built yet: {instead}"),
            };
            at.insert("description".to_owned(), Value::String(text));
            if !matches!(key.preset, Preset::Words("" | "required")) {
                let comment = format!("default: {}", key.preset);
                at.insert("$comment".to_owned(), Value::String(comment));
            }
        }
        if key.preset == Preset::Words("required") {
            let (parent, name) = split(key.path);
            match &mut place(&mut root, parent)["required"] {
                Value::Array(names) => names.push(json!(name)),
                absent => *absent = json!([name]),
            }
        }
    }
    close(&mut root);
    let sections: serde_json::Map<String, Value> = SECTIONS
        .iter()
        .map(|name| ((*name).to_owned(), json!({})))
        .chain([(section.to_owned(), json!({"$ref": "#/$defs/config"}))])
        .collect();
    let one_of_them: Vec<Value> = SECTIONS
        .iter()
        .map(|name| json!({"required": [name]}))
        .collect();
    json!({
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": section,
        "if": {"anyOf": one_of_them},
        "then": {
            "type": "object",
            "required": [section],
            "properties": sections,
            "patternProperties": {"^(x-|\\.)": {}},
            "additionalProperties": false,
        },
        "else": {"$ref": "#/$defs/config"},
        "$defs": {"config": root},
    })
}

/// Below a map with rows no other key is known; what is required is not null; one entry may stand for its list.
fn close(at: &mut Value) {
    let Some(map) = at.as_object_mut() else {
        return;
    };
    if map.contains_key("properties") && !map.contains_key("additionalProperties") {
        map.insert("additionalProperties".to_owned(), Value::Bool(false));
    }
    let required = map.get("required").cloned().unwrap_or_default();
    for (name, child) in map
        .get_mut("properties")
        .and_then(Value::as_object_mut)
        .into_iter()
        .flatten()
    {
        close(child);
        let is_required = required
            .as_array()
            .is_some_and(|names| names.contains(&json!(name)));
        if is_required && child.as_object().is_some_and(|child| !child.is_empty()) {
            *child = json!({"allOf": [child.take(), {"not": {"type": "null"}}]});
        }
    }
    for name in ["additionalProperties", "items"] {
        map.get_mut(name).into_iter().for_each(close);
    }
    if map.remove(OR_ONE).is_some() {
        let mut one = map.get("items").cloned().unwrap_or_default();
        if let (Some(properties), None) = (one.get("properties"), one.get("type"))
            && properties.is_object()
        {
            one["type"] = json!(["object", "null"]);
        }
        map.insert("type".to_owned(), json!(["array", "null"]));
        let list = Value::Object(std::mem::take(map));
        *at = json!({"anyOf": [list, one]});
    }
}

/// The schema of the key at `path`, made when absent.
fn place<'a>(root: &'a mut Value, path: &str) -> &'a mut Value {
    path.split('.')
        .filter(|part| !part.is_empty())
        .fold(root, |at, part| {
            let at = match part.trim_end_matches("[]") {
                "*" => &mut at["additionalProperties"],
                name => &mut at["properties"][name],
            };
            if part.ends_with("[]") {
                &mut at["items"]
            } else {
                at
            }
        })
}
