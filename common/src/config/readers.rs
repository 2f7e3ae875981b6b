//! Typed readers of a value. A reader never fails: it notes what is wrong at its place and returns `None`.
//!
//! Scalars follow YAML 1.1 as Ruby reads it where that can be told from the text (`yes`, `010` without quotes).

use std::ops::RangeInclusive;
use std::time::Duration;

use serde_yaml::Value;

use super::cursor::{Cursor, scalar_text};
use super::keys::preset_of;
use super::scalars;
use super::text::unfilled;
use crate::units::parse_duration;

impl<'a> Cursor<'a> {
    /// Text; a number is taken as it is written.
    #[must_use]
    pub fn text(&self) -> Option<String> {
        match self.value()? {
            Value::String(text) => Some(text.clone()),
            value @ Value::Number(_) => match self.written() {
                Some(text) => Some(text.to_owned()),
                None => scalar_text(value),
            },
            Value::Bool(_) => self.wrong("text: put it in quotes"),
            _ => self.wrong("text"),
        }
    }

    /// Lines: a list of texts, or one text of one or more lines. Each with its cursor.
    #[must_use]
    pub fn lines(&self) -> Vec<(Cursor<'a>, String)> {
        let entries = match self.has_value() {
            true => self.list_or_one(),
            false => Vec::new(),
        };
        entries
            .into_iter()
            .inspect(|entry| {
                if !entry.has_value() {
                    entry.warn("an empty entry, left out");
                }
            })
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
        let octal = digits.len() > 1 && digits.starts_with('0') && self.written().is_some();
        i128::from_str_radix(&clean, if octal { 8 } else { 10 }).ok()
    }

    /// A scalar as it is written, when that is without quotes.
    pub(super) fn written(&self) -> Option<&'a str> {
        self.document.written(&self.parts())
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
        let text = match self.value()? {
            value @ Value::Number(_) => scalar_text(value)?,
            _ => self.text()?,
        };
        let duration = parse_duration(&text.replace('_', "")).ok();
        duration.or_else(|| {
            self.error("must be a duration: seconds (`0.5`), or `20ms`, `10s`, `5m`, `1h`");
            None
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

    /// The same; not given, or not one of them, it is the default.
    ///
    /// # Panics
    /// When the default is none of them: a defect of the table of keys.
    #[must_use]
    pub fn one_of_or_preset<T: Copy>(&self, words: &[(&str, T)]) -> T {
        let preset = || preset_of(self.keys, &self.pattern(), words);
        self.one_of(words).unwrap_or_else(preset)
    }

    /// A text made into something by `parse`, whose error is the message.
    #[must_use]
    pub fn parsed<T>(&self, parse: impl FnOnce(&str) -> Result<T, String>) -> Option<T> {
        parse(&self.text()?)
            .map_err(|message| self.error(message))
            .ok()
    }

    /// Text in which no variable is left unfilled: `$HOST`, `${HOST}`, `{{ host }}`.
    #[must_use]
    pub fn filled_text(&self) -> Option<String> {
        let text = self.text()?;
        let Some(variable) = unfilled(&text) else {
            return Some(text);
        };
        self.error_hint(
            format!("`{variable}` has not been filled in"),
            "whatever makes this file must replace it; of the environment only `<%= ENV['NAME'] %>` is read",
        );
        None
    }

    /// As [`Cursor::parsed`], of a [`Cursor::filled_text`].
    #[must_use]
    pub fn filled<T>(&self, parse: impl FnOnce(&str) -> Result<T, String>) -> Option<T> {
        parse(&self.filled_text()?)
            .map_err(|message| self.error(message))
            .ok()
    }

    /// The value as JSON, scalars without quotes as YAML 1.1 means them, with a warning where that is another value than
    /// it seems. Null is `Some(Null)` here.
    #[must_use]
    pub fn json(&self) -> Option<serde_json::Value> {
        Some(match self.value? {
            Value::Number(number) if number.as_f64().is_some_and(|n| !n.is_finite()) => {
                return self.wrong("a finite number");
            }
            Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {
                self.json_scalar()
            }
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

    /// Text that is published: a number is what YAML 1.1 makes of it.
    #[must_use]
    pub fn published_text(&self) -> Option<String> {
        match self.value()? {
            Value::String(text) if unfilled(text).is_some() => self.filled_text(),
            Value::Number(_) | Value::String(_) => match self.json_scalar() {
                serde_json::Value::Bool(_) => self.wrong("text: put it in quotes"),
                serde_json::Value::String(text) => Some(text),
                other => Some(other.to_string()),
            },
            _ => self.text(),
        }
    }

    fn json_scalar(&self) -> serde_json::Value {
        if let Some(variable) = self.value.and_then(Value::as_str).and_then(unfilled) {
            self.warn(format!(
                "`{variable}` has not been filled in: taken as it is"
            ));
        }
        let Some(text) = self.written() else {
            return match self.value {
                Some(Value::Bool(value)) => (*value).into(),
                Some(Value::Number(number)) => {
                    serde_json::to_value(number).unwrap_or(serde_json::Value::Null)
                }
                Some(Value::String(text)) => text.as_str().into(),
                _ => serde_json::Value::Null,
            };
        };
        let Some(meant) = scalars::meaning(text) else {
            let large = text.len() > 18 && text.bytes().all(|b| b.is_ascii_digit());
            if large {
                self.warn("too large for a number: taken as text");
            }
            return text.into();
        };
        let shown = meant.to_string();
        if !meant.is_null() && !shown.eq_ignore_ascii_case(text) {
            self.warn_hint(
                format!("without quotes it means `{shown}`, as in Ruby"),
                &format!("write `{shown}`, or `\"{text}\"` if the text is meant"),
            );
        }
        meant
    }
}
