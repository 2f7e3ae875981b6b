//! The harness of configuration tests: one text file per case, with the files of the case and what is to be printed.
//!
//! ```text
//! == env                 (optional) NAME=VALUE lines
//! == file nerve.yaml     a file; the first one is loaded, unless
//! == load other.yaml     (optional) names another
//! == folder empty.d      (optional) an empty directory
//! == expect              `loaded` or `refused`, then the findings as they are printed
//! ```
//! `UPDATE_GOLDEN=1 cargo test` rewrites what is expected. Panics are the failures of the tests that call this.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde_json::Value as Json;

use super::environment::Environment;
use super::keys::{Key, Kind, Preset};
use super::report::{Loaded, Report};

/// Begin of the generated part of a README.
const TABLE_START: &str = "<!-- keys: made from the table in the code; do not edit -->";
/// End of the generated part of a README.
const TABLE_END: &str = "<!-- end of keys -->";

/// Switch that rewrites the expected text instead of comparing.
fn update() -> bool {
    std::env::var_os("UPDATE_GOLDEN").is_some()
}

/// Runs every case (`*.txt`) of a directory through `load`; returns how many there were.
///
/// # Panics
/// When a case prints something else than expected, naming all such cases.
pub fn run_cases<T>(
    directory: &Path,
    load: impl Fn(PathBuf, Environment) -> Result<Loaded<T>, Report>,
) -> usize {
    let mut files: Vec<PathBuf> = std::fs::read_dir(directory)
        .expect("the directory of cases")
        .map(|entry| entry.expect("an entry").path())
        .filter(|path| path.extension().is_some_and(|extension| extension == "txt"))
        .collect();
    files.sort();
    let mut wrong = Vec::new();
    for file in &files {
        let text = std::fs::read_to_string(file).expect("a case");
        let case = Case::parse(&text);
        let printed = case.run(&load);
        if update() {
            let before = text.split("== expect\n").next().unwrap_or_default();
            write(file, &format!("{before}== expect\n{printed}"));
        } else if case.expected != printed {
            let name = file.file_name().unwrap_or_default().to_string_lossy();
            wrong.push(format!(
                "--- {name}\nexpected:\n{}printed:\n{printed}",
                case.expected
            ));
        }
    }
    assert!(
        wrong.is_empty(),
        "{}\n(UPDATE_GOLDEN=1 accepts what is printed)",
        wrong.join("\n")
    );
    files.len()
}

#[derive(Default)]
struct Case<'a> {
    load: &'a str,
    files: Vec<(&'a str, String)>,
    folders: Vec<&'a str>,
    variables: BTreeMap<String, String>,
    expected: String,
}

impl<'a> Case<'a> {
    fn parse(text: &'a str) -> Self {
        let mut case = Self::default();
        let mut part = "";
        for line in text.lines() {
            if let Some(header) = line.strip_prefix("== ") {
                part = header;
                match header.split_once(' ') {
                    Some(("file", name)) => {
                        case.files.push((name, String::new()));
                        case.load = case.files[0].0;
                    }
                    Some(("load", _)) | None => {}
                    Some(("folder", name)) => case.folders.push(name),
                    Some(_) => panic!("unknown part `{header}`"),
                }
            } else if part == "expect" {
                case.expected.push_str(&format!("{line}\n"));
            } else if part == "env" {
                let (name, value) = line.split_once('=').expect("NAME=VALUE");
                case.variables.insert(name.to_owned(), value.to_owned());
            } else if let Some((_, content)) = case.files.last_mut() {
                content.push_str(&format!("{line}\n"));
            }
        }
        case.load = text
            .lines()
            .find_map(|line| line.strip_prefix("== load "))
            .unwrap_or(case.load);
        case
    }

    fn run<T>(&self, load: impl Fn(PathBuf, Environment) -> Result<Loaded<T>, Report>) -> String {
        let directory = tempfile::tempdir().expect("a temporary directory");
        for folder in &self.folders {
            std::fs::create_dir_all(directory.path().join(folder)).expect("a folder");
        }
        for (name, content) in &self.files {
            let path = directory.path().join(name);
            std::fs::create_dir_all(path.parent().expect("below the directory")).expect("a folder");
            write(&path, content);
        }
        let environment = Environment {
            variables: self.variables.clone(),
            directory: directory.path().to_owned(),
            ..Environment::default()
        };
        let (outcome, report) = match load(PathBuf::from(self.load), environment) {
            Ok(loaded) => ("loaded", loaded.warnings),
            Err(report) => ("refused", report),
        };
        let findings = report.to_string();
        let end = if findings.is_empty() { "" } else { "\n" };
        format!("{outcome}\n{findings}{end}")
    }
}

/// What a validator says of a JSON document.
pub type Validator<'a> = &'a dyn Fn(&Json) -> Result<(), String>;

/// YAML or JSON text as the loader reads it, aliases and merges resolved.
///
/// # Panics
/// When it is neither.
#[must_use]
pub fn json_of(text: &str) -> Json {
    let mut value: serde_yaml::Value = serde_yaml::from_str(text).expect("a file that loads");
    value.apply_merge().expect("merges that can be resolved");
    serde_json::to_value(value).expect("keys that are text")
}

/// Every case of a directory that loads without a finding passes the validator, too; returns how many there were.
///
/// # Panics
/// When one does not.
pub fn check_cases(directory: &Path, valid: Validator<'_>) -> usize {
    let mut count = 0;
    for entry in std::fs::read_dir(directory).expect("the directory of cases") {
        let path = entry.expect("an entry").path();
        if path.extension().is_none_or(|extension| extension != "txt") {
            continue;
        }
        let text = std::fs::read_to_string(&path).expect("a case");
        let case = Case::parse(&text);
        let main = case.files.iter().find(|(name, _)| *name == case.load);
        // What is filled in from the environment is not yet what a validator sees.
        let is_plain = |text: &str| case.expected == "loaded\n" && !text.contains("<%");
        let Some((_, content)) = main.filter(|(_, content)| is_plain(content)) else {
            continue;
        };
        if let Err(problem) = valid(&json_of(content)) {
            panic!("{}: {problem}", path.display());
        }
        count += 1;
    }
    count
}

/// `file` holds every key of `keys` and passes; with the name of any key misspelt, or with a value that is none of its
/// kind, it does not: at the top of a file as well as in the section of the program. Returns how many such files there were.
///
/// # Panics
/// When the validator says otherwise.
pub fn check_mistakes(section: &str, keys: &[Key], file: &Json, valid: Validator<'_>) -> usize {
    let in_section = |file: &Json| serde_json::json!({section: file, "x-anchors": [1]});
    let mut count = 0;
    for wrap in [&Json::clone as &dyn Fn(&Json) -> Json, &in_section] {
        if let Err(problem) = valid(&wrap(file)) {
            panic!("every key: {problem}");
        }
        for key in keys {
            let mut mistakes = Vec::new();
            let name = key.path.rsplit('.').next().unwrap_or_default();
            if name.trim_end_matches("[]") != "*" {
                let mut misspelt = file.clone();
                let parts: Vec<&str> = key.path.split('.').collect();
                assert!(
                    misspell(&mut misspelt, &parts),
                    "no `{}` in the file",
                    key.path
                );
                mistakes.push(("misspelt", misspelt));
            }
            for wrong in wrong_values(key.kind) {
                let mut file = file.clone();
                let parts: Vec<&str> = key.path.split('.').collect();
                assert!(
                    put(&mut file, &parts, &wrong),
                    "no `{}` in the file",
                    key.path
                );
                mistakes.push(("a wrong value", file));
            }
            for (what, mistake) in mistakes {
                let passes = valid(&wrap(&mistake)).is_ok();
                assert!(!passes, "`{}` {what} passes: {mistake:#}", key.path);
                count += 1;
            }
        }
    }
    count
}

/// A default is what its row says: to write it is the same as to leave its key out, in `file`, which has every key. Returns how
/// many defaults there are.
///
/// # Panics
/// When it is not the same.
pub fn check_defaults<T: std::fmt::Debug>(
    keys: &[Key],
    file: &Json,
    load: impl Fn(PathBuf) -> Result<Loaded<T>, Report>,
) -> usize {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let path = directory.path().join("f.yaml");
    let name = path.display().to_string();
    let meaning = |file: &Json| {
        write(&path, &file.to_string());
        let loaded = load(path.clone()).unwrap_or_else(|report| panic!("{report}"));
        // Where something is in the file, and whether it is, is no part of it.
        let text = format!("{:?}", loaded.config).replace("configured: true", "configured: false");
        let place = |c: char| c.is_ascii_digit() || c == ':';
        let rest = text.split(&name).map(|rest| rest.trim_start_matches(place));
        rest.collect::<String>()
    };
    let mut count = 0;
    for key in keys {
        let value = match key.preset {
            Preset::Words(_) => continue,
            Preset::Boolean(value) => value.into(),
            Preset::Integer(value) => value.into(),
            Preset::Number(value) => value.into(),
            Preset::Duration(_) => key.preset.to_string().into(),
            Preset::Text(text) => text.into(),
        };
        let parts: Vec<&str> = key.path.split('.').collect();
        let (mut with, mut without) = (file.clone(), file.clone());
        let found = edit(&mut with, &parts, Some(&value)) && edit(&mut without, &parts, None);
        assert!(found, "no `{}` in the file", key.path);
        assert_eq!(meaning(&with), meaning(&without), "`{}`", key.path);
        count += 1;
    }
    count
}

/// Sets or removes a key at every place of a pattern; whether there was one.
fn edit(at: &mut Json, parts: &[&str], value: Option<&Json>) -> bool {
    match (parts, at) {
        ([name], Json::Object(map)) => {
            match value {
                Some(value) => map.insert((*name).to_owned(), value.clone()),
                None => map.remove(*name),
            };
            true
        }
        ([first, rest @ ..], at) => {
            let places = below(at, first).into_iter();
            let edited = places.map(|at| edit(at, rest, value));
            edited.fold(false, |any, edited| any | edited)
        }
        _ => false,
    }
}

/// No reader and no description in the sources below `folder` has a default of its own beside the rows. Returns how many
/// files it has read.
///
/// # Panics
/// When one has, naming its lines.
pub fn check_no_other_defaults(folder: &Path) -> usize {
    let mut files = vec![folder.to_owned()];
    let (mut found, mut count) = (Vec::new(), 0);
    while let Some(path) = files.pop() {
        if path.is_dir() {
            let entries = std::fs::read_dir(&path).expect("a folder of sources");
            files.extend(entries.map(|entry| entry.expect("an entry").path()));
            continue;
        }
        if path.extension().is_none_or(|extension| extension != "rs") || path.ends_with("tests.rs")
        {
            continue;
        }
        count += 1;
        let text = std::fs::read_to_string(&path).expect("a source");
        for (number, line) in text.lines().enumerate() {
            let begins = |rest: &str| {
                let words = ["true", "false", "Duration::"];
                rest.starts_with(|c: char| c.is_ascii_digit())
                    || words.iter().any(|word| rest.starts_with(word))
            };
            let own = [".unwrap_or(", "default "].iter().any(|before| {
                let rests = line.split(before).skip(1);
                rests.into_iter().any(begins)
            });
            let hidden = ["boolean()", "duration()"].iter().any(|read| {
                let read = format!(".{read}.unwrap_or");
                line.contains(&read)
            });
            if own || hidden {
                found.push(format!(
                    "{}:{}: {}",
                    path.display(),
                    number + 1,
                    line.trim()
                ));
            }
        }
    }
    assert!(
        found.is_empty(),
        "a default stands in its row in the table of keys alone:\n{}",
        found.join("\n")
    );
    count
}

/// Values that hold nothing, or entries that hold nothing, as YAML. `@` = the entries that the file has.
const EMPTY: [&str; 18] = [
    "",
    "~",
    "null",
    "''",
    "[]",
    "{}",
    "[~]",
    "[null, null]",
    "['']",
    "[[]]",
    "[{}]",
    "{x: }",
    "{'': ''}",
    "[~, @]",
    "[@, null]",
    "[@, '']",
    "[@, {}]",
    "[@, ' ']",
];

/// `file` holds every key of `keys`. With a value or an entry that holds nothing in the place of any of them, at each place
/// where the file has it, the file is refused, or every service that is written in it is read; and an entry that is null
/// is never passed over without a word. `load` gives the names of the services and the warnings. Returns how many such
/// files there were, and how many of them were refused.
///
/// # Panics
/// When a service vanishes, or an entry.
pub fn check_empties(
    keys: &[Key],
    file: &Json,
    load: impl Fn(&str) -> Result<(Vec<String>, String), Report>,
) -> (usize, usize) {
    const MARK: &str = "put something empty here";
    let (mut files, mut refused, mut wrong) = (0, 0, Vec::new());
    for key in keys {
        let parts: Vec<&str> = key.path.split('.').collect();
        let mut places = 0;
        visit(&mut file.clone(), &parts, &mut |_| places += 1);
        assert!(places > 0, "no `{}` in the file", key.path);
        for (place, empty) in (0..places).flat_map(|place| EMPTY.map(|empty| (place, empty))) {
            let (mut changed, mut at, mut entries) = (file.clone(), 0, Vec::new());
            visit(&mut changed, &parts, &mut |value| {
                if at == place {
                    entries = value.as_array().cloned().unwrap_or_default();
                    *value = Json::from(MARK);
                }
                at += 1;
            });
            if empty.contains('@') && entries.is_empty() {
                continue;
            }
            let entries: Vec<String> = entries.iter().map(Json::to_string).collect();
            let empty = empty.replace('@', &entries.join(", "));
            let text = changed
                .to_string()
                .replace(&format!("\"{MARK}\""), &format!(" {empty}"));
            files += 1;
            match load(&text) {
                Err(report) => {
                    refused += 1;
                    assert!(report.has_errors(), "`{}`: {empty}: {report}", key.path);
                }
                Ok((services, warnings)) => {
                    let written = changed["services"].as_object();
                    let written: Vec<&String> =
                        written.map(|w| w.keys().collect()).unwrap_or_default();
                    // A free name is its map's.
                    let name = key.path.trim_end_matches(".*");
                    let name = name.rsplit('.').next().unwrap_or_default();
                    let is_null = empty.contains('~') || empty.contains("null");
                    // Anything is handed on as it is.
                    let passed_over = key.kind != Kind::Any
                        && is_null
                        && empty.starts_with('[')
                        && !warnings.contains(name.trim_end_matches("[]"));
                    if passed_over || written.iter().any(|name| !services.contains(name)) {
                        wrong.push(format!(
                            "`{}: {empty}` is loaded with {services:?}",
                            key.path
                        ));
                    }
                }
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    (files, refused)
}

/// Calls `on` with the value at each place of a pattern.
fn visit(at: &mut Json, parts: &[&str], on: &mut impl FnMut(&mut Json)) {
    let Some((first, rest)) = parts.split_first() else {
        return on(at);
    };
    for at in below(at, first) {
        visit(at, rest, on);
    }
}

/// Values that no key of this kind takes.
fn wrong_values(kind: Kind) -> Vec<Json> {
    use serde_json::json;
    match kind {
        Kind::Text => vec![json!({"a": 1}), json!([1])],
        Kind::Path => vec![json!({"a": 1}), json!(7)],
        Kind::Integer(min, _) if min > i64::MIN => vec![json!("many"), json!([1]), json!(min - 1)],
        Kind::Integer(..) | Kind::Number => vec![json!("many"), json!([1])],
        Kind::Boolean => vec![json!("perhaps"), json!(7)],
        Kind::Duration => vec![json!("soon"), json!("1 week"), json!(-1)],
        Kind::Lines | Kind::Texts => vec![json!({"a": 1}), json!([[1]])],
        Kind::OneOf(_) => vec![json!("nonsense"), json!([1])],
        Kind::List | Kind::ListOrOne | Kind::Map => vec![json!("text"), json!(7)],
        Kind::Either(_) => vec![json!([[1]])],
        Kind::Any => Vec::new(),
    }
}

/// The values below a map or list that one part of a pattern means.
fn below<'a>(at: &'a mut Json, part: &str) -> Vec<&'a mut Json> {
    let name = part.trim_end_matches("[]");
    let map = at.as_object_mut().into_iter().flatten();
    let found: Vec<&mut Json> = map
        .filter(|(key, _)| name == "*" || *key == name)
        .map(|(_, value)| value)
        .collect();
    if !part.ends_with("[]") {
        return found;
    }
    let lists = found.into_iter().filter_map(Json::as_array_mut);
    lists.flatten().collect()
}

/// Puts a value at the first place of a pattern; whether there was one.
fn put(at: &mut Json, parts: &[&str], value: &Json) -> bool {
    let Some((first, rest)) = parts.split_first() else {
        *at = value.clone();
        return true;
    };
    below(at, first).into_iter().any(|at| put(at, rest, value))
}

/// Misspells the key at the first place of a pattern; whether there was one.
fn misspell(at: &mut Json, parts: &[&str]) -> bool {
    match (parts, at) {
        ([name], Json::Object(map)) => {
            let name = name.trim_end_matches("[]");
            match map.remove(name) {
                Some(value) => {
                    map.insert(format!("{name}x"), value);
                    true
                }
                None => false,
            }
        }
        ([first, rest @ ..], at) => below(at, first).into_iter().any(|at| misspell(at, rest)),
        _ => false,
    }
}

/// Writes a file of a test.
///
/// # Panics
/// When it cannot be written.
pub fn write(path: &Path, text: &str) {
    use std::io::Write;
    let mut file = std::fs::File::create(path).expect("a file");
    file.write_all(text.as_bytes()).expect("room on the disk");
}

/// Compares the generated part of a README with `tables`, or rewrites it.
///
/// # Panics
/// When the README has no such part, or another text in it.
pub fn check_readme(readme: &Path, tables: &str) {
    let text = std::fs::read_to_string(readme).expect("the README");
    let (before, rest) = text
        .split_once(TABLE_START)
        .expect("the mark before the tables");
    let (present, after) = rest
        .split_once(TABLE_END)
        .expect("the mark behind the tables");
    let wanted = format!("\n\n{tables}\n");
    if update() {
        write(
            readme,
            &format!("{before}{TABLE_START}{wanted}{TABLE_END}{after}"),
        );
    } else {
        assert!(
            present == wanted,
            "{} differs from the table of keys (UPDATE_GOLDEN=1 rewrites it)",
            readme.display()
        );
    }
}
