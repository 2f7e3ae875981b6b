//! The files of one program: main file, its section, the files of `service_conf_dir`.
//!
//! Owns file names, sections and precedence. A file that cannot be read or parsed is a finding, and the others are read
//! all the same.

use std::cell::{OnceCell, RefCell};
use std::collections::HashMap;
use std::path::Path;

use serde_yaml::{Mapping, Value};

use super::cursor::{Cursor, Map};
use super::environment::Environment;
use super::keys::Key;
use super::places::{Place, Places, Position};
use super::report::{Finding, Loaded, Report, Severity};
use super::text::{Remark, blank, expand, first_blank, unfilled};
use super::tree;

/// Which program's section and keys.
#[derive(Debug, Clone, Copy)]
pub struct Program {
    /// `nerve` or `synapse`: its section in a host file.
    pub name: &'static str,
    /// Its table of keys.
    pub keys: &'static [Key],
    /// Which of two files of one service wins.
    pub winner: Winner,
}

/// The names of all sections of a host file.
pub(super) const SECTIONS: [&str; 2] = ["nerve", "synapse"];

/// Which file of `service_conf_dir` wins when `web.json` and `web.yaml` both exist.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Winner {
    /// nerve.
    Json,
    /// synapse.
    Yaml,
}

/// One file as read.
#[derive(Debug)]
pub(super) struct Document {
    pub(super) shown: String,
    /// For the index of places, which is made when the first message needs it.
    text: String,
    places: OnceCell<Places>,
    /// Keys in front of what the program sees: its section.
    above: Vec<String>,
    /// Steps of the program's key paths that are not in this file: `services.<name>` for a conf dir file.
    skipped: usize,
    value: Value,
}

impl Document {
    fn places(&self) -> &Places {
        self.places.get_or_init(|| Places::of(&self.text))
    }

    /// The place of a key path of the program, or of what is nearest above it.
    pub(super) fn place(&self, parts: &[String]) -> Place {
        let start = Position { line: 1, column: 1 };
        self.places().nearest(&self.here(parts)).unwrap_or(Place {
            key: start,
            value: start,
        })
    }

    /// The text of a scalar that is written without quotes.
    pub(super) fn written(&self, parts: &[String]) -> Option<&str> {
        self.places().written(&self.here(parts))
    }

    fn here(&self, parts: &[String]) -> Vec<String> {
        self.above
            .iter()
            .chain(parts.iter().skip(self.skipped))
            .cloned()
            .collect()
    }

    fn root(&self) -> Option<&Value> {
        self.above
            .iter()
            .try_fold(&self.value, |value, name| value.get(name.as_str()))
    }
}

/// The files of one load and what was found in them.
#[derive(Debug)]
pub struct Source {
    program: Program,
    environment: Environment,
    main: Document,
    services: Vec<(String, Document)>,
    findings: RefCell<Vec<Finding>>,
}

impl Source {
    /// Reads the main file and the files of its `service_conf_dir`.
    #[must_use]
    pub fn open(path: &Path, program: Program, environment: &Environment) -> Self {
        let mut files = Files {
            environment,
            findings: Vec::new(),
        };
        let main = files.main(path, program);
        let directory = main.root().and_then(|root| root.get("service_conf_dir"));
        let services = match directory {
            None => Vec::new(),
            Some(Value::String(directory)) if directory.trim().is_empty() => {
                let message = "empty: no directory is read".to_owned();
                let hint = Some("write `.` for the working directory, which Ruby reads then");
                files.at_key(&main, Severity::Warning, "service_conf_dir", message, hint);
                Vec::new()
            }
            Some(Value::String(directory)) if let Some(variable) = unfilled(directory) => {
                let message = format!("`{variable}` has not been filled in");
                files.at_key(&main, Severity::Error, "service_conf_dir", message, None);
                Vec::new()
            }
            Some(Value::String(directory)) => files.directory(directory, &main, program.winner),
            Some(_) => {
                files.at_key(
                    &main,
                    Severity::Error,
                    "service_conf_dir",
                    "must be the path of a directory".to_owned(),
                    None,
                );
                Vec::new()
            }
        };
        let findings = RefCell::new(files.findings);
        Self {
            program,
            environment: environment.clone(),
            main,
            services,
            findings,
        }
    }

    /// The environment the files were read in.
    #[must_use]
    pub fn environment(&self) -> &Environment {
        &self.environment
    }

    /// The program's top level. `None` when the main file could not be read: that is noted already.
    #[must_use]
    pub fn root(&self) -> Option<Cursor<'_>> {
        self.main
            .root()
            .filter(|root| root.is_mapping())
            .map(|root| Cursor::root(&self.main, &self.findings, self.program.keys, Some(root)))
    }

    /// The services in the order of the main file, each from the file that has the last word, then those that have a file
    /// only. `top` is the program's top level: its `services` and `service_conf_dir` are read here.
    #[must_use]
    pub fn services<'a>(&'a self, top: &Map<'a>) -> Vec<(String, Cursor<'a>)> {
        top.key("service_conf_dir");
        let services = top.key("services");
        let mut from_files: HashMap<&str, Cursor<'a>> = HashMap::new();
        let mut order: Vec<(String, Option<Cursor<'a>>)> = services
            .entries()
            .into_iter()
            .map(|(name, cursor)| (name, Some(cursor)))
            .collect();
        for (name, document) in &self.services {
            let cursor = Cursor::root(
                document,
                &self.findings,
                self.program.keys,
                Some(&document.value),
            );
            from_files.insert(name, cursor.service(name));
            if !order.iter().any(|(known, _)| known == name) {
                order.push((name.clone(), None));
            }
        }
        order
            .into_iter()
            .filter_map(|(name, own)| {
                from_files
                    .remove(name.as_str())
                    .or(own)
                    .map(|cursor| (name, cursor))
            })
            .collect()
    }

    /// How many errors have been noted so far.
    #[must_use]
    pub fn errors(&self) -> usize {
        let findings = self.findings.borrow();
        let errors = findings.iter().filter(|f| f.severity == Severity::Error);
        errors.count()
    }

    /// The outcome: the configuration with the warnings, or everything that was found.
    ///
    /// # Errors
    /// When any finding is an error.
    pub fn finish<T>(self, config: Option<T>) -> Result<Loaded<T>, Report> {
        let mut findings = self.findings.into_inner();
        let key = |f: &Finding| (f.file != self.main.shown, f.file.clone(), f.line, f.column);
        findings.sort_by_cached_key(key);
        let report = Report { findings };
        match config {
            Some(config) if !report.has_errors() => Ok(Loaded {
                config,
                warnings: report,
                files: self.services.len(),
            }),
            _ => Err(report),
        }
    }
}

/// Reading of files.
struct Files<'e> {
    environment: &'e Environment,
    findings: Vec<Finding>,
}

impl Files<'_> {
    fn note(
        &mut self,
        severity: Severity,
        file: &str,
        at: Option<Position>,
        key_path: &str,
        message: String,
        hint: Option<&str>,
    ) {
        let (line, column) = at.map_or((0, 0), |at| (at.line, at.column));
        let (file, key_path, hint) = (
            file.to_owned(),
            key_path.to_owned(),
            hint.map(str::to_owned),
        );
        self.findings.push(Finding {
            severity,
            file,
            line,
            column,
            key_path,
            value: None,
            message,
            hint,
        });
    }

    fn at_key(
        &mut self,
        document: &Document,
        severity: Severity,
        key: &str,
        message: String,
        hint: Option<&str>,
    ) {
        let at = document.place(&[key.to_owned()]).value;
        self.note(severity, &document.shown, Some(at), key, message, hint);
    }

    fn main(&mut self, path: &Path, program: Program) -> Document {
        let mut document = self.read(
            &path.display().to_string(),
            &self.environment.directory.join(path),
        );
        if let Value::Mapping(top) = &document.value
            && SECTIONS.iter().any(|section| top.contains_key(section))
        {
            if top.contains_key(program.name) {
                document.above = vec![program.name.to_owned()];
                self.strangers(&document, top);
                if !document.root().is_some_and(Value::is_mapping) {
                    self.at_key_of_file(&document, program.name, "the section must be a map");
                }
            } else {
                let found: Vec<_> = SECTIONS
                    .iter()
                    .filter(|s| top.contains_key(*s))
                    .map(|s| format!("`{s}:`"))
                    .collect();
                let message = format!(
                    "no `{}:` section beside {}",
                    program.name,
                    found.join(" and ")
                );
                let hint = "a host file has one section for each program; a file without sections is one program's alone";
                self.note(
                    Severity::Error,
                    &document.shown,
                    None,
                    "",
                    message,
                    Some(hint),
                );
                document.value = Value::Null;
            }
        }
        document
    }

    fn at_key_of_file(&mut self, document: &Document, key: &str, message: &str) {
        let at = document
            .places()
            .nearest(&[key.to_owned()])
            .map(|place| place.key);
        self.note(
            Severity::Error,
            &document.shown,
            at,
            key,
            message.to_owned(),
            None,
        );
    }

    /// Keys beside the sections, other than holders of anchors (`x-…`, `.…`).
    fn strangers(&mut self, document: &Document, top: &Mapping) {
        for name in top.keys().filter_map(Value::as_str) {
            if !SECTIONS.contains(&name) && !name.starts_with("x-") && !name.starts_with('.') {
                let at = document
                    .places()
                    .nearest(&[name.to_owned()])
                    .map(|place| place.key);
                let hint = "in a host file everything stands in `nerve:` or `synapse:`; `x-…` may hold anchors";
                let message = "beside the sections, ignored".to_owned();
                self.note(
                    Severity::Warning,
                    &document.shown,
                    at,
                    name,
                    message,
                    Some(hint),
                );
            }
        }
    }

    /// Reads one file; its value is null when that failed, which is noted.
    fn read(&mut self, shown: &str, path: &Path) -> Document {
        let mut document = Document {
            shown: shown.to_owned(),
            text: String::new(),
            places: OnceCell::new(),
            above: Vec::new(),
            skipped: 0,
            value: Value::Null,
        };
        let text = match std::fs::read(path).map(String::from_utf8) {
            Ok(Ok(text)) => text,
            Ok(Err(error)) => {
                let valid = error.utf8_error().valid_up_to();
                self.note(
                    Severity::Error,
                    shown,
                    None,
                    "",
                    format!("not UTF-8 text: byte {valid} is not"),
                    None,
                );
                return document;
            }
            Err(error) => {
                self.note(
                    Severity::Error,
                    shown,
                    None,
                    "",
                    format!("cannot be read: {error}"),
                    None,
                );
                return document;
            }
        };
        let Some(text) = self.expanded(shown, text.trim_start_matches('\u{feff}')) else {
            return document;
        };
        let parsed = match tree::parse(&text) {
            Ok(parsed) => parsed,
            Err(invalid) => {
                let line = invalid
                    .at
                    .and_then(|at| text.lines().nth(at.line.saturating_sub(1)))
                    .unwrap_or_default();
                let tab = line
                    .chars()
                    .take_while(|c| c.is_whitespace())
                    .any(|c| c == '\t');
                let hint = tab.then_some("the line is indented with a tab: indent with blanks");
                let message = format!("not valid YAML: {}", invalid.message);
                match first_blank(&text) {
                    // The parser takes it for a letter, and fails somewhere behind it.
                    Some((at, c)) => {
                        let stop = invalid.at.map_or(String::new(), |at| {
                            format!(" (the parser stops at {}:{})", at.line, at.column)
                        });
                        let message = format!("{} is no blank to YAML; {message}{stop}", blank(c));
                        let hint = Some("write an ordinary blank");
                        self.note(Severity::Error, shown, Some(at), "", message, hint);
                    }
                    None => self.note(Severity::Error, shown, invalid.at, "", message, hint),
                }
                return document;
            }
        };
        if let Some((at, c)) = first_blank(&text) {
            let message = format!(
                "{} is no blank to YAML: it is part of the word beside it",
                blank(c)
            );
            let hint = Some("write an ordinary blank");
            self.note(Severity::Warning, shown, Some(at), "", message, hint);
        }
        document.text = text;
        if parsed.repeats {
            self.duplicates(&document);
        }
        match parsed.value {
            value @ Value::Mapping(_) => document.value = value,
            Value::Null => self.note(
                Severity::Error,
                shown,
                None,
                "",
                "the file is empty".to_owned(),
                None,
            ),
            _ => {
                let at = document.places().nearest(&[]).map(|place| place.value);
                self.note(
                    Severity::Error,
                    shown,
                    at,
                    "",
                    "the file must hold a map of keys".to_owned(),
                    None,
                );
            }
        }
        document
    }

    /// Keys that stand twice, each with both places.
    fn duplicates(&mut self, document: &Document) {
        for duplicate in &document.places().duplicates {
            let message = format!(
                "duplicate key, first at {}:{}",
                duplicate.first.line, duplicate.first.column
            );
            let (at, hint) = (Some(duplicate.second), Some("keep one of the two"));
            self.note(
                Severity::Error,
                &document.shown,
                at,
                &duplicate.key_path,
                message,
                hint,
            );
        }
        if document.places().duplicates.is_empty() {
            self.note(
                Severity::Error,
                &document.shown,
                None,
                "",
                "a key stands twice".to_owned(),
                None,
            );
        }
    }

    /// The text with its variables; `None` when it holds what cannot be replaced.
    fn expanded(&mut self, shown: &str, text: &str) -> Option<String> {
        let environment = self.environment;
        let (text, remarks) = expand(text, |name| environment.variable(name).map(str::to_owned));
        let mut usable = true;
        for (at, remark) in remarks {
            let hint = Some(
                "only `<%= ENV['NAME'] %>` and `<%= ENV.fetch('NAME', 'default') %>` are replaced",
            );
            let (severity, message, hint) = match remark {
                Remark::Refused { tag } => (
                    Severity::Error,
                    format!(
                        "ERB that is not supported: `{}`",
                        tag.replace(char::is_control, "")
                    ),
                    hint,
                ),
                Remark::Missing { name } => (
                    Severity::Error,
                    format!("the environment variable `{name}` is not set"),
                    None,
                ),
                Remark::Unset { name } => {
                    let message =
                        format!("the environment variable `{name}` is not set: read as empty");
                    (Severity::Warning, message, None)
                }
            };
            usable &= severity == Severity::Warning;
            self.note(severity, shown, Some(at), "", message, hint);
        }
        usable.then_some(text)
    }

    /// The files of `service_conf_dir`: `*.yaml` and `*.json` not beginning with a dot, each a service of the file's name
    /// without its last extension; the winner's kind replaces the other.
    fn directory(
        &mut self,
        written: &str,
        main: &Document,
        winner: Winner,
    ) -> Vec<(String, Document)> {
        let directory = self.environment.path(written);
        let mut names: Vec<String> = match std::fs::read_dir(&directory) {
            Ok(entries) => entries
                .flatten()
                .filter_map(|entry| entry.file_name().into_string().ok())
                .collect(),
            Err(error) => {
                let relative = !written.starts_with(['/', '~']);
                self.at_key(
                    main,
                    Severity::Error,
                    "service_conf_dir",
                    format!("the directory `{written}` cannot be read: {error}"),
                    relative.then_some(
                        "a relative path begins at the working directory, not at this file",
                    ),
                );
                return Vec::new();
            }
        };
        names.retain(|name| !name.starts_with('.'));
        let winning = if winner == Winner::Json {
            "json"
        } else {
            "yaml"
        };
        let mut files: Vec<(bool, String, String)> = names
            .into_iter()
            .filter_map(|file| {
                let (service, extension) = file.rsplit_once('.')?;
                let wanted = matches!(extension, "json" | "yaml");
                wanted.then(|| (extension == winning, service.to_owned(), file.clone()))
            })
            .collect();
        files.sort();
        let mut services: Vec<(String, Document)> = Vec::new();
        for (_, service, file) in files {
            let shown = format!("{}/{file}", written.trim_end_matches('/'));
            let document = Document {
                skipped: 2,
                ..self.read(&shown, &directory.join(&file))
            };
            if document.value.is_null() {
                continue;
            }
            match services.iter_mut().find(|(known, _)| *known == service) {
                Some((_, loser)) => *loser = document,
                None => services.push((service, document)),
            }
        }
        services
    }
}
