//! Typed readers over a file's values. A reader never fails: it notes what is wrong at its place and returns `None`.
//!
//! Absent and null are the same to every reader unless it asks. Scalars follow YAML 1.1 as Ruby reads it where that can
//! be told from the text (`yes`, `010` without quotes).

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::ops::RangeInclusive;
use std::time::Duration;

use serde_yaml::{Mapping, Value};

use super::keys::{self, Class, Key};
use super::report::{Finding, Severity};
use super::source::Document;
use crate::units::parse_duration;

/// One step from a map or list to what it holds.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Step {
    /// A key of the table.
    Key(String),
    /// A free name, `*` in the table.
    Name(String),
    /// An entry of a list.
    Index(usize),
}

/// A value, or the lack of one, and where it stands.
#[derive(Debug, Clone)]
pub struct Cursor<'a> {
    pub(super) document: &'a Document,
    pub(super) findings: &'a RefCell<Vec<Finding>>,
    pub(super) keys: &'static [Key],
    steps: Vec<Step>,
    value: Option<&'a Value>,
}

impl<'a> Cursor<'a> {
    pub(super) fn root(
        document: &'a Document,
        findings: &'a RefCell<Vec<Finding>>,
        keys: &'static [Key],
        value: Option<&'a Value>,
    ) -> Self {
        Self { document, findings, keys, steps: Vec::new(), value }
    }

    /// The cursor of a whole conf dir file, which is the service of that name.
    pub(super) fn service(mut self, name: &str) -> Self {
        self.steps = vec![Step::Key("services".to_owned()), Step::Name(name.to_owned())];
        self
    }

    fn below(&self, step: Step, value: Option<&'a Value>) -> Self {
        let mut steps = self.steps.clone();
        steps.push(step);
        Self { steps, value, ..self.clone() }
    }

    /// Like `services.web.checks[0].port`.
    #[must_use]
    pub fn key_path(&self) -> String {
        self.spell(|name| name.to_owned(), |index| format!("[{index}]"))
    }

    /// Like `services.*.checks[].port`.
    fn pattern(&self) -> String {
        self.spell(|_| "*".to_owned(), |_| "[]".to_owned())
    }

    fn spell(&self, name: impl Fn(&str) -> String, index: impl Fn(usize) -> String) -> String {
        let mut out = String::new();
        for step in &self.steps {
            let word = match step {
                Step::Index(at) => {
                    out.push_str(&index(*at));
                    continue;
                }
                Step::Key(key) => key.clone(),
                Step::Name(text) => name(text),
            };
            if !out.is_empty() {
                out.push('.');
            }
            out.push_str(&word);
        }
        out
    }

    /// The parts of the path inside this file.
    fn parts(&self) -> Vec<String> {
        self.steps
            .iter()
            .map(|step| match step {
                Step::Key(text) | Step::Name(text) => text.clone(),
                Step::Index(at) => at.to_string(),
            })
            .collect()
    }

    /// Whether there is anything, null included.
    #[must_use]
    pub fn is_present(&self) -> bool {
        self.value.is_some()
    }

    /// Whether there is anything but null.
    #[must_use]
    pub fn has_value(&self) -> bool {
        self.value().is_some()
    }

    /// Whether it is a map.
    #[must_use]
    pub fn is_map(&self) -> bool {
        matches!(self.value(), Some(Value::Mapping(_)))
    }

    fn value(&self) -> Option<&'a Value> {
        self.value.filter(|value| !value.is_null())
    }

    fn note(&self, severity: Severity, message: String, hint: Option<&str>) {
        let place = self.document.place(&self.parts());
        let at = if self.value().is_some() { place.value } else { place.key };
        let value = self.value().filter(|v| !matches!(v, Value::Mapping(_) | Value::Sequence(_))).map(|v| self.shown(v));
        self.findings.borrow_mut().push(Finding {
            severity,
            file: self.document.shown.clone(),
            line: at.line,
            column: at.column,
            key_path: self.key_path(),
            value,
            message,
            hint: hint.map(str::to_owned),
        });
    }

    /// The value for a message: one short line, nothing of what may be secret.
    fn shown(&self, value: &Value) -> String {
        let last = self.steps.last();
        let secret = |name: &str| ["password", "secret", "token"].iter().any(|word| name.contains(word));
        if matches!(last, Some(Step::Key(name) | Step::Name(name)) if secret(&name.to_lowercase())) {
            return "…".to_owned();
        }
        let text = scalar_text(value).unwrap_or_default();
        let mut shown: String = text.escape_debug().take(60).collect();
        if text.escape_debug().count() > 60 {
            shown.push('…');
        }
        shown
    }

    /// Notes an error here.
    pub fn error(&self, message: impl Into<String>) {
        self.note(Severity::Error, message.into(), None);
    }

    /// Notes an error here, and what to do.
    pub fn error_hint(&self, message: impl Into<String>, hint: &str) {
        self.note(Severity::Error, message.into(), Some(hint));
    }

    /// Notes a warning here.
    pub fn warn(&self, message: impl Into<String>) {
        self.note(Severity::Warning, message.into(), None);
    }

    /// Notes a warning here, and what to do.
    pub fn warn_hint(&self, message: impl Into<String>, hint: &str) {
        self.note(Severity::Warning, message.into(), Some(hint));
    }

    fn wrong<T>(&self, allowed: &str) -> Option<T> {
        let found = match self.value() {
            Some(Value::Mapping(_)) => ", not a map",
            Some(Value::Sequence(_)) => ", not a list",
            _ => "",
        };
        self.error(format!("must be {allowed}{found}"));
        None
    }

    /// This value, noted as missing when there is none.
    #[must_use]
    pub fn required(self) -> Self {
        if !self.has_value() {
            self.error(if self.is_present() { "required, but null" } else { "required, but missing" });
        }
        self
    }

    /// Reads a map: `read` asks for its keys; afterwards every key it did not ask for is noted. No value reads as an empty
    /// map; anything else is an error and `None`.
    pub fn object<T>(&self, read: impl FnOnce(&Map<'a>) -> T) -> Option<T> {
        let mapping = match self.value() {
            None => None,
            Some(Value::Mapping(mapping)) => Some(mapping),
            Some(_) => return self.wrong("a map"),
        };
        let map = Map { cursor: self.clone(), mapping, asked: RefCell::default() };
        let out = read(&map);
        map.classify_rest();
        Some(out)
    }

    /// The entries of a map with free names, in the order of the file.
    #[must_use]
    pub fn entries(&self) -> Vec<(String, Cursor<'a>)> {
        match self.value() {
            None => Vec::new(),
            Some(Value::Mapping(mapping)) => mapping
                .iter()
                .filter_map(|(key, value)| {
                    let name = scalar_text(key);
                    if name.is_none() {
                        self.error("a key must be text");
                    }
                    name.map(|name| (name.clone(), self.below(Step::Name(name), Some(value))))
                })
                .collect(),
            Some(_) => self.wrong("a map").unwrap_or_default(),
        }
    }

    /// The entries of a list.
    #[must_use]
    pub fn list(&self) -> Vec<Cursor<'a>> {
        match self.value() {
            None => Vec::new(),
            Some(Value::Sequence(list)) => {
                list.iter().enumerate().map(|(at, value)| self.below(Step::Index(at), Some(value))).collect()
            }
            Some(_) => self.wrong("a list").unwrap_or_default(),
        }
    }

    /// The entries of a list, or the one value that stands for a list of one.
    #[must_use]
    pub fn list_or_one(&self) -> Vec<Cursor<'a>> {
        match self.value() {
            None | Some(Value::Sequence(_)) => self.list(),
            Some(_) => vec![self.clone()],
        }
    }

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
                text.trim_end_matches('\n').split('\n').map(|line| (cursor.clone(), line.to_owned())).collect::<Vec<_>>()
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
            Value::String(text) if ["yes", "no", "on", "off", "true", "false"].contains(&text.to_lowercase().as_str()) => {
                self.boolean()
            }
            _ => None,
        }
    }

    /// A whole number within bounds, as a number or as text.
    #[must_use]
    pub fn integer<T: TryFrom<i128>>(&self, bounds: RangeInclusive<i128>) -> Option<T> {
        let allowed = match *bounds.end() {
            end if end >= i128::from(i64::MAX) => format!("a whole number of at least {}", bounds.start()),
            end => format!("a whole number of {}..{end}", bounds.start()),
        };
        let number = match self.value()? {
            Value::Number(number) => number
                .as_i64()
                .map(i128::from)
                .or_else(|| number.as_u64().map(i128::from))
                .or_else(|| number.as_f64().filter(|f| f.fract() == 0.0 && f.abs() < 1e15).map(|f| f as i128)),
            Value::String(text) => self.whole_number(text),
            _ => None,
        };
        let number = number.filter(|number| bounds.contains(number)).and_then(|number| T::try_from(number).ok());
        if number.is_some() { number } else { self.wrong(&allowed) }
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
        number.filter(|number| bounds.contains(number)).or_else(|| self.wrong(&allowed))
    }

    /// A duration: seconds, or text with a unit.
    #[must_use]
    pub fn duration(&self) -> Option<Duration> {
        self.parsed(|text| {
            parse_duration(&text.replace('_', ""))
                .map_err(|_| "must be a duration: seconds (`0.5`), or `20ms`, `10s`, `5m`, `1h`".to_owned())
        })
    }

    /// A duration of at least `least`.
    #[must_use]
    pub fn duration_at_least(&self, least: Duration) -> Option<Duration> {
        let duration = self.duration()?;
        if duration >= least { Some(duration) } else { self.wrong(&format!("at least {least:?}")) }
    }

    /// A text one of a closed set, matched without case.
    #[must_use]
    pub fn one_of<T: Copy>(&self, words: &[(&str, T)]) -> Option<T> {
        let text = self.text()?;
        let found = words.iter().find(|(word, _)| word.eq_ignore_ascii_case(&text)).map(|(_, value)| *value);
        found.or_else(|| {
            let names: Vec<String> = words.iter().map(|(word, _)| format!("`{word}`")).collect();
            self.wrong(&format!("one of {}", names.join(", ")))
        })
    }

    /// A text made into something by `parse`, whose error is the message.
    #[must_use]
    pub fn parsed<T>(&self, parse: impl FnOnce(&str) -> Result<T, String>) -> Option<T> {
        parse(&self.text()?).map_err(|message| self.error(message)).ok()
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
            Value::Sequence(_) => self.list().iter().filter_map(Cursor::json).collect::<Vec<_>>().into(),
            Value::Mapping(_) => {
                let entries = self.entries();
                let pairs = entries.iter().filter_map(|(name, value)| Some((name.clone(), value.json()?)));
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

/// Text of a scalar; `None` of anything else.
fn scalar_text(value: &Value) -> Option<String> {
    match value {
        Value::String(text) => Some(text.clone()),
        Value::Number(number) => Some(number.to_string()),
        Value::Bool(value) => Some(value.to_string()),
        _ => None,
    }
}

/// A map being read: it remembers which keys were asked for.
#[derive(Debug)]
pub struct Map<'a> {
    /// The map itself.
    pub cursor: Cursor<'a>,
    mapping: Option<&'a Mapping>,
    asked: RefCell<BTreeSet<&'static str>>,
}

impl<'a> Map<'a> {
    /// The key's value, or the lack of one.
    pub fn key(&self, name: &'static str) -> Cursor<'a> {
        self.asked.borrow_mut().insert(name);
        self.cursor.below(Step::Key(name.to_owned()), self.mapping.and_then(|mapping| mapping.get(name)))
    }

    /// The other keys are somebody else's: none is noted.
    pub fn ignore_rest(&self) {
        self.asked.borrow_mut().insert("*");
    }

    fn classify_rest(&self) {
        let asked = self.asked.borrow();
        if asked.contains("*") {
            return;
        }
        let pattern = self.cursor.pattern();
        for (key, value) in self.mapping.into_iter().flatten() {
            let Some(name) = scalar_text(key).filter(|name| !asked.contains(name.as_str())) else { continue };
            let at = Cursor { value: None, ..self.cursor.below(Step::Key(name.clone()), Some(value)) };
            match keys::find(self.cursor.keys, &pattern, &name).map(|key| key.class) {
                Some(Class::Later(instead)) => at.warn(format!("not built yet: {instead}")),
                Some(Class::Honoured) => at.warn("has no effect here"),
                None => {
                    let hint = keys::nearest(self.cursor.keys, &pattern, &name).map(|near| format!("did you mean `{near}`?"));
                    at.note(Severity::Warning, "unknown key, ignored".to_owned(), hint.as_deref());
                }
            }
        }
    }
}
