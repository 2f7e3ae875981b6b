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

use super::report::{Loaded, Report};
use super::source::Environment;

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
