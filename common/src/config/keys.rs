//! A program's table of keys: one row per key it knows, from which come the classes of key, the README's tables and the
//! JSON Schema. What is read is up to the readers; that table and readers agree is tested by the programs.

use serde_json::{Value, json};

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
    /// A list of texts.
    Texts,
    /// One of these texts.
    OneOf(&'static [&'static str]),
    /// A list of maps or values whose rows follow.
    List,
    /// A map whose rows follow, or of free keys.
    Map,
    /// Anything.
    Any,
}

impl Kind {
    fn words(self) -> String {
        match self {
            Kind::Text => "text".to_owned(),
            Kind::Integer(min, max) if max >= i64::from(u32::MAX) => format!("integer ≥ {min}"),
            Kind::Integer(min, max) => format!("integer {min}..{max}"),
            Kind::Number => "number".to_owned(),
            Kind::Boolean => "boolean".to_owned(),
            Kind::Duration => "duration".to_owned(),
            Kind::Lines => "list of lines, or text".to_owned(),
            Kind::Texts => "list of texts".to_owned(),
            Kind::OneOf(names) => names
                .iter()
                .map(|n| format!("`{n}`"))
                .collect::<Vec<_>>()
                .join(", "),
            Kind::List => "list".to_owned(),
            Kind::Map => "map".to_owned(),
            Kind::Any => "any".to_owned(),
        }
    }

    /// JSON Schema of the value, as lenient as the readers.
    fn schema(self) -> Value {
        match self {
            Kind::Text => json!({"type": ["string", "number", "null"]}),
            Kind::Integer(min, max) => {
                let mut schema = json!({"type": ["integer", "string", "null"], "minimum": min});
                if max != i64::MAX {
                    schema["maximum"] = json!(max);
                }
                schema
            }
            Kind::Number => json!({"type": ["number", "string", "null"]}),
            Kind::Boolean => {
                json!({"enum": [true, false, "yes", "no", "on", "off", "true", "false", null]})
            }
            Kind::Duration => json!({"type": ["number", "string", "null"]}),
            Kind::Lines => {
                json!({"type": ["array", "string", "null"], "items": {"type": ["string", "number"]}})
            }
            Kind::Texts => json!({"type": ["array", "null"], "items": {"type": "string"}}),
            Kind::OneOf(names) => json!({"enum": names}),
            Kind::List => json!({"type": ["array", "null"]}),
            Kind::Map => json!({"type": ["object", "null"]}),
            Kind::Any => json!({}),
        }
    }
}

/// What happens to a key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Class {
    /// It is read and acted on.
    Honoured,
    /// It is known but not built; the text says what happens instead.
    Later(&'static str),
}

/// One row of the table.
#[derive(Debug, Clone, Copy)]
pub struct Key {
    /// Like `services.*.checks[].port`: `*` is a free name, `[]` each entry of a list.
    pub path: &'static str,
    /// What it takes.
    pub kind: Kind,
    /// The default in words; `required` when there is none.
    pub default: &'static str,
    /// What it does.
    pub effect: &'static str,
    /// What happens to it.
    pub class: Class,
}

/// A key that is acted on.
#[must_use]
pub const fn honoured(
    path: &'static str,
    kind: Kind,
    default: &'static str,
    effect: &'static str,
) -> Key {
    Key {
        path,
        kind,
        default,
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
        default: "",
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
            key.default.to_owned(),
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
            if !matches!(key.default, "" | "required") {
                at.insert(
                    "$comment".to_owned(),
                    Value::String(format!("default: {}", key.default)),
                );
            }
        }
        if key.default == "required" {
            let (parent, name) = split(key.path);
            match &mut place(&mut root, parent)["required"] {
                Value::Array(names) => names.push(json!(name)),
                absent => *absent = json!([name]),
            }
        }
    }
    json!({
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": section,
        "anyOf": [
            {"type": "object", "required": [section], "properties": {section: {"$ref": "#/$defs/config"}}},
            {"$ref": "#/$defs/config"},
        ],
        "$defs": {"config": root},
    })
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
