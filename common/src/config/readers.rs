//! Typed readers of a value. A reader never fails: it notes what is wrong at its place and returns `None`.
//!
//! Scalars follow YAML 1.1 as Ruby reads it where that can be told from the text (`yes`, `010` without quotes).

use std::ops::RangeInclusive;
use std::time::Duration;

use serde_yaml::Value;

use super::cursor::{Cursor, scalar_text};
use crate::units::parse_duration;

impl<'a> Cursor<'a> {
    /// Text; a number is taken as its text.
    #[must_use]
    pub fn text(&self) -> Option<String> {
        match self.value()? {
            value @ (Value::String(_) | Value::Number(_)) => scalar_text(value),
            Value::Bool(_) => self.wrong("text: put it in quotes"),
            _ => self.wrong("text"),
        }
    }

    /// Lines: a list of texts, or one text of one or more lines. Each with its cursor.
    #[must_use]
    pub fn lines(&self) -> Vec<(Cursor<'a>, String)> {
        self.list_or_one()
            .into_iter()
            .filter_map(|cursor| cursor.text().map(|text| (cursor, text)))
            .flat_map(|(cursor, text)| {
                text.trim_end_matches('\n')
                    .split('\n')
                    .map(|line| (cursor.clone(), line.to_owned()))
                    .collect::<Vec<_>>()
            })
            .collect()
    }

    /// A boolean.
    #[must_use]
    pub fn boolean(&self) -> Option<bool> {
        match self.value()? {
            Value::Bool(value) => Some(*value),
            Value::String(text) => match text.to_lowercase().as_str() {
                "yes" | "on" | "true" => Some(true),
                "no" | "off" | "false" => Some(false),
                _ => self.wrong("true or false"),
            },
            _ => self.wrong("true or false"),
        }
    }

    /// The boolean of a key that may also be something else.
    #[must_use]
    pub fn is_boolean(&self) -> Option<bool> {
        match self.value()? {
            Value::Bool(_) => self.boolean(),
            Value::String(text)
                if ["yes", "no", "on", "off", "true", "false"]
                    .contains(&text.to_lowercase().as_str()) =>
            {
                self.boolean()
            }
            _ => None,
        }
    }

    /// A whole number within bounds, as a number or as text.
    #[must_use]
    pub fn integer<T: TryFrom<i128>>(&self, bounds: RangeInclusive<i128>) -> Option<T> {
        let allowed = match *bounds.end() {
            end if end >= i128::from(u32::MAX) => {
                format!("a whole number of at least {}", bounds.start())
            }
            end => format!("a whole number of {}..{end}", bounds.start()),
        };
        let number = match self.value()? {
            Value::Number(number) => number
                .as_i64()
                .map(i128::from)
                .or_else(|| number.as_u64().map(i128::from))
                .or_else(|| {
                    number
                        .as_f64()
                        .filter(|f| f.fract() == 0.0 && f.abs() < 1e15)
                        .map(|f| f as i128)
                }),
            Value::String(text) => self.whole_number(text),
            _ => None,
        };
        let number = number
            .filter(|number| bounds.contains(number))
            .and_then(|number| T::try_from(number).ok());
        if number.is_some() {
            number
        } else {
            self.wrong(&allowed)
        }
    }

    /// A whole number in text: decimal digits, underscores between them; without quotes a leading zero means octal.
    fn whole_number(&self, text: &str) -> Option<i128> {
        let text = text.trim();
        let digits = text.strip_prefix(['+', '-']).unwrap_or(text);
        if !digits.starts_with(|c: char| c.is_ascii_digit()) || digits.ends_with('_') {
            return None;
        }
        let clean = text.replace('_', "");
        let octal = digits.len() > 1 && digits.starts_with('0') && self.is_plain();
        i128::from_str_radix(&clean, if octal { 8 } else { 10 }).ok()
    }

    fn is_plain(&self) -> bool {
        self.document.is_plain(&self.parts())
    }

    /// A number within bounds, as a number or as text.
    #[must_use]
    pub fn number(&self, bounds: RangeInclusive<f64>) -> Option<f64> {
        let number = match self.value()? {
            Value::Number(number) => number.as_f64(),
            Value::String(text) => text.trim().replace('_', "").parse().ok(),
            _ => None,
        };
        let allowed = match *bounds.end() {
            f64::MAX => format!("a number of at least {}", bounds.start()),
            end => format!("a number of {}..{end}", bounds.start()),
        };
        number
            .filter(|number| bounds.contains(number))
            .or_else(|| self.wrong(&allowed))
    }

    /// A duration: seconds, or text with a unit.
    #[must_use]
    pub fn duration(&self) -> Option<Duration> {
        self.parsed(|text| {
            parse_duration(&text.replace('_', "")).map_err(|_| {
                "must be a duration: seconds (`0.5`), or `20ms`, `10s`, `5m`, `1h`".to_owned()
            })
        })
    }

    /// A duration of at least `least`.
    #[must_use]
    pub fn duration_at_least(&self, least: Duration) -> Option<Duration> {
        let duration = self.duration()?;
        if duration >= least {
            Some(duration)
        } else {
            self.wrong(&format!("at least {least:?}"))
        }
    }

    /// A text one of a closed set, matched without case.
    #[must_use]
    pub fn one_of<T: Copy>(&self, words: &[(&str, T)]) -> Option<T> {
        let text = self.text()?;
        let found = words
            .iter()
            .find(|(word, _)| word.eq_ignore_ascii_case(&text))
            .map(|(_, value)| *value);
        found.or_else(|| {
            let names: Vec<String> = words.iter().map(|(word, _)| format!("`{word}`")).collect();
            self.wrong(&format!("one of {}", names.join(", ")))
        })
    }

    /// A text made into something by `parse`, whose error is the message.
    #[must_use]
    pub fn parsed<T>(&self, parse: impl FnOnce(&str) -> Result<T, String>) -> Option<T> {
        parse(&self.text()?)
            .map_err(|message| self.error(message))
            .ok()
    }

    /// The value as JSON, scalars without quotes as YAML 1.1 means them. Null is `Some(Null)` here.
    #[must_use]
    pub fn json(&self) -> Option<serde_json::Value> {
        Some(match self.value? {
            Value::Null => serde_json::Value::Null,
            Value::Bool(value) => serde_json::Value::Bool(*value),
            Value::Number(number) => match (number.as_i64(), number.as_u64(), number.as_f64()) {
                (Some(value), ..) => value.into(),
                (_, Some(value), _) => value.into(),
                (_, _, Some(value)) if value.is_finite() => value.into(),
                _ => return self.wrong("a finite number"),
            },
            Value::String(text) => self.json_text(text),
            Value::Sequence(_) => self
                .list()
                .iter()
                .filter_map(Cursor::json)
                .collect::<Vec<_>>()
                .into(),
            Value::Mapping(_) => {
                let entries = self.entries();
                let pairs = entries
                    .iter()
                    .filter_map(|(name, value)| Some((name.clone(), value.json()?)));
                serde_json::Value::Object(pairs.collect())
            }
            Value::Tagged(_) => return self.wrong("plain data"),
        })
    }

    fn json_text(&self, text: &str) -> serde_json::Value {
        if !self.is_plain() {
            return text.into();
        }
        match text.to_ascii_lowercase().as_str() {
            "yes" | "on" | "true" => true.into(),
            "no" | "off" | "false" => false.into(),
            _ => match self.whole_number(text).map(i64::try_from) {
                Some(Ok(number)) => number.into(),
                _ => text.into(),
            },
        }
    }
}
