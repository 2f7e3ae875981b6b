//! A value and where it stands: going down from it, and noting what is wrong there.
//!
//! Absent and null are the same unless asked. Used by the typed readers (`readers`) and by the programs' `config::read`.

use std::borrow::Cow;
use std::cell::RefCell;
use std::collections::BTreeSet;
use std::rc::Rc;

use serde_yaml::{Mapping, Value};

use super::keys::{self, Class, Key, Presettable};
use super::report::{Finding, Severity};
use super::source::Document;

/// One step from a map or list to what it holds.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Step {
    /// A key of the table.
    Key(Cow<'static, str>),
    /// A free name, `*` in the table.
    Name(String),
    /// An entry of a list.
    Index(usize),
}

/// The steps from the top to a value, last one first: siblings share what is above them.
#[derive(Debug)]
struct Trail {
    above: Option<Rc<Trail>>,
    step: Step,
}

/// A value, or the lack of one, and where it stands.
#[derive(Debug, Clone)]
pub struct Cursor<'a> {
    pub(super) document: &'a Document,
    pub(super) findings: &'a RefCell<Vec<Finding>>,
    pub(super) keys: &'static [Key],
    trail: Option<Rc<Trail>>,
    /// As it is in the file: null is a value here.
    pub(super) value: Option<&'a Value>,
}

impl<'a> Cursor<'a> {
    pub(super) fn root(
        document: &'a Document,
        findings: &'a RefCell<Vec<Finding>>,
        keys: &'static [Key],
        value: Option<&'a Value>,
    ) -> Self {
        Self {
            document,
            findings,
            keys,
            trail: None,
            value,
        }
    }

    /// The cursor of a whole conf dir file, which is the service of that name.
    pub(super) fn service(self, name: &str) -> Self {
        let value = self.value;
        self.below(Step::Key("services".into()), value)
            .below(Step::Name(name.to_owned()), value)
    }

    fn below(&self, step: Step, value: Option<&'a Value>) -> Self {
        let trail = Some(Rc::new(Trail {
            above: self.trail.clone(),
            step,
        }));
        Self {
            document: self.document,
            findings: self.findings,
            keys: self.keys,
            trail,
            value,
        }
    }

    /// The steps from the top.
    fn steps(&self) -> Vec<&Step> {
        let mut steps: Vec<&Step> =
            std::iter::successors(self.trail.as_deref(), |trail| trail.above.as_deref())
                .map(|trail| &trail.step)
                .collect();
        steps.reverse();
        steps
    }

    /// Like `services.web.checks[0].port`.
    #[must_use]
    pub fn key_path(&self) -> String {
        self.spell(|name| name.to_owned(), |index| format!("[{index}]"))
    }

    /// Like `services.*.checks[].port`.
    pub(super) fn pattern(&self) -> String {
        self.spell(|_| "*".to_owned(), |_| "[]".to_owned())
    }

    fn spell(&self, name: impl Fn(&str) -> String, index: impl Fn(usize) -> String) -> String {
        let mut out = String::new();
        for step in self.steps() {
            let word = match step {
                Step::Index(at) => {
                    out.push_str(&index(*at));
                    continue;
                }
                Step::Key(key) => key.to_string(),
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
    pub(super) fn parts(&self) -> Vec<String> {
        let steps = self.steps().into_iter();
        steps
            .map(|step| match step {
                Step::Key(text) => text.to_string(),
                Step::Name(text) => text.clone(),
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

    /// The text of a scalar as it is, without judging it.
    #[must_use]
    pub fn value_text(&self) -> Option<String> {
        self.value().and_then(scalar_text)
    }

    /// Whether it is a map.
    #[must_use]
    pub fn is_map(&self) -> bool {
        matches!(self.value(), Some(Value::Mapping(_)))
    }

    pub(super) fn value(&self) -> Option<&'a Value> {
        self.value.filter(|value| !value.is_null())
    }

    /// Where it stands: `FILE:LINE:COLUMN`.
    #[must_use]
    pub fn place(&self) -> String {
        let (line, column) = self.line_and_column();
        format!("{}:{line}:{column}", self.document.shown)
    }

    fn line_and_column(&self) -> (usize, usize) {
        let place = self.document.place(&self.parts());
        let at = if self.value().is_some() {
            place.value
        } else {
            place.key
        };
        (at.line, at.column)
    }

    fn note(&self, severity: Severity, message: String, hint: Option<&str>) {
        let (line, column) = self.line_and_column();
        let value = self
            .value()
            .filter(|v| !matches!(v, Value::Mapping(_) | Value::Sequence(_)))
            .map(|v| self.shown(v));
        self.findings.borrow_mut().push(Finding {
            severity,
            file: self.document.shown.clone(),
            line,
            column,
            key_path: self.key_path(),
            value,
            message,
            hint: hint.map(str::to_owned),
        });
    }

    /// The value for a message: one short line, nothing of what may be secret.
    fn shown(&self, value: &Value) -> String {
        let text = match self.written() {
            Some(text) => text.to_owned(),
            None => scalar_text(value).unwrap_or_default(),
        };
        let key = self.parts().pop().unwrap_or_default();
        if may_be_secret(&key) || may_be_secret(&text) {
            return "…".to_owned();
        }
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

    /// What holds when this key is not given, by its row.
    ///
    /// # Panics
    /// When the row has none of this type; that the readers ask for no other is tested with every key.
    #[must_use]
    pub fn preset<T: Presettable>(&self) -> T {
        keys::preset(self.keys, &self.pattern())
    }

    /// The value as `read`, or the default.
    pub fn or_preset<T: Presettable>(&self, read: impl FnOnce(&Self) -> Option<T>) -> T {
        read(self).unwrap_or_else(|| self.preset())
    }

    pub(super) fn wrong<T>(&self, allowed: &str) -> Option<T> {
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
            self.error(if self.is_present() {
                "required, but null"
            } else {
                "required, but missing"
            });
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
        let map = Map {
            cursor: self.clone(),
            mapping,
            asked: RefCell::default(),
        };
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
            Some(Value::Sequence(list)) => list
                .iter()
                .enumerate()
                .map(|(at, value)| self.below(Step::Index(at), Some(value)))
                .collect(),
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
}

/// Whether a key or a line speaks of something that messages must not show.
#[must_use]
pub fn may_be_secret(text: &str) -> bool {
    let text = text.to_lowercase();
    ["password", "secret", "token", "auth "]
        .iter()
        .any(|word| text.contains(word))
}

/// Text of a scalar; `None` of anything else.
pub(super) fn scalar_text(value: &Value) -> Option<String> {
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
        self.cursor.below(
            Step::Key(name.into()),
            self.mapping.and_then(|mapping| mapping.get(name)),
        )
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
            let Some(name) = scalar_text(key).filter(|name| !asked.contains(name.as_str())) else {
                continue;
            };
            // May hold anchors.
            if pattern.is_empty() && (name.starts_with("x-") || name.starts_with('.')) {
                continue;
            }
            let at = Cursor {
                value: None,
                ..self
                    .cursor
                    .below(Step::Key(name.clone().into()), Some(value))
            };
            match keys::find(self.cursor.keys, &pattern, &name).map(|key| key.class) {
                Some(Class::Later(instead)) => at.warn(format!("not built yet: {instead}")),
                Some(Class::Honoured) => at.warn("has no effect here"),
                None => {
                    let given = |key: &str| self.mapping.is_some_and(|map| map.get(key).is_some());
                    let near = keys::nearest(self.cursor.keys, &pattern, &name, given);
                    let hint = near.map(|near| format!("did you mean `{near}`?"));
                    let none = !given("services") && !given("service_conf_dir");
                    // Taken as a warning, one letter would take every service out.
                    let (severity, message) = match near {
                        Some("services") if pattern.is_empty() && none => (
                            Severity::Error,
                            "unknown key, and there is no `services`: every service would go",
                        ),
                        _ => (Severity::Warning, "unknown key, ignored"),
                    };
                    at.note(severity, message.to_owned(), hint.as_deref());
                }
            }
        }
    }
}
