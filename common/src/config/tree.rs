//! Text to values: `serde_yaml` for YAML and JSON, `serde_json` where JSON is not YAML (surrogate pairs).

use std::cell::Cell;
use std::fmt;

use serde::de::{
    DeserializeSeed, Deserializer, EnumAccess, Error as _, MapAccess, SeqAccess, Visitor,
};
use serde_yaml::Value;
use serde_yaml::mapping::{Entry, Mapping};

use super::places::Position;

/// Why a text has no value.
#[derive(Debug)]
pub(super) struct Invalid {
    pub(super) at: Option<Position>,
    pub(super) message: String,
}

/// What a text says.
#[derive(Debug)]
pub(super) struct Parsed {
    /// The first document with its merges applied; null for an empty text.
    pub(super) value: Value,
    /// Some key stands twice; the first one counts.
    pub(super) repeats: bool,
}

/// Reads the first document.
pub(super) fn parse(text: &str) -> Result<Parsed, Invalid> {
    let repeats = Cell::new(false);
    let mut value = match read_yaml(text, Any(&repeats)) {
        Ok(value) => value,
        Err(invalid) if text.trim_start().starts_with('{') => Any(&repeats)
            .deserialize(&mut serde_json::Deserializer::from_str(text))
            .map_err(|_| invalid)?,
        Err(invalid) => return Err(invalid),
    };
    value.apply_merge().map_err(|error| Invalid {
        at: None,
        message: error.to_string(),
    })?;
    Ok(Parsed {
        value,
        repeats: repeats.get(),
    })
}

fn read_yaml(text: &str, any: Any<'_>) -> Result<Value, Invalid> {
    let Some(document) = serde_yaml::Deserializer::from_str(text).next() else {
        return Ok(Value::Null);
    };
    any.deserialize(document).map_err(|error| {
        let at = error.location().map(|l| Position {
            line: l.line(),
            column: l.column(),
        });
        Invalid {
            at,
            message: shorten(&error.to_string()),
        }
    })
}

/// The parser's message without its own place (that is printed in front), a second one as `begun at 1:14`.
fn shorten(message: &str) -> String {
    let mut parts = message.split(" at line ");
    let mut out = parts.next().unwrap_or_default().to_owned();
    for (index, part) in parts.enumerate() {
        let digits = |text: &str| {
            text.find(|c: char| !c.is_ascii_digit())
                .unwrap_or(text.len())
        };
        let (line, rest) = part.split_at(digits(part));
        let rest = rest.strip_prefix(" column ").unwrap_or(rest);
        let (column, rest) = rest.split_at(digits(rest));
        if index > 0 {
            out.push_str(&format!(" begun at {line}:{column}"));
        }
        out.push_str(rest);
    }
    out
}

/// Any value. Unlike `Value` itself it takes integers of 128 bits (as text: the shuffle's seed of some
/// installations), and the first of two equal keys, noting in the cell that there are two.
#[derive(Clone, Copy)]
struct Any<'c>(&'c Cell<bool>);

impl<'de> DeserializeSeed<'de> for Any<'_> {
    type Value = Value;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Any<'_> {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("plain data")
    }

    fn visit_none<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_bool<E>(self, value: bool) -> Result<Value, E> {
        Ok(Value::Bool(value))
    }

    fn visit_i64<E>(self, value: i64) -> Result<Value, E> {
        Ok(Value::from(value))
    }

    fn visit_u64<E>(self, value: u64) -> Result<Value, E> {
        Ok(Value::from(value))
    }

    fn visit_i128<E>(self, value: i128) -> Result<Value, E> {
        Ok(Value::String(value.to_string()))
    }

    fn visit_u128<E>(self, value: u128) -> Result<Value, E> {
        Ok(Value::String(value.to_string()))
    }

    fn visit_f64<E>(self, value: f64) -> Result<Value, E> {
        Ok(Value::from(value))
    }

    fn visit_str<E>(self, value: &str) -> Result<Value, E> {
        Ok(Value::String(value.to_owned()))
    }

    fn visit_enum<A: EnumAccess<'de>>(self, _: A) -> Result<Value, A::Error> {
        Err(A::Error::custom(
            "type tags (`!…`) are not supported: plain data only",
        ))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Value, A::Error> {
        let mut list = Vec::new();
        while let Some(value) = seq.next_element_seed(self)? {
            list.push(value);
        }
        Ok(Value::Sequence(list))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Value, A::Error> {
        let mut mapping = Mapping::new();
        while let Some((key, value)) = map.next_entry_seed(self, self)? {
            match mapping.entry(key) {
                Entry::Occupied(_) => self.0.set(true),
                Entry::Vacant(free) => _ = free.insert(value),
            }
        }
        Ok(Value::Mapping(mapping))
    }
}
