//! Asks haproxy whether it would accept a file, and reads its complaints: which line, section or server is meant.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::time::Duration;

use smartstack_common::descriptors;
use tokio::process::Command;

use super::binary::{self, NotFound};
use super::child::{self, ChildError, Left, shell};
use crate::outputs::haproxy::cfg::{FragmentMap, Model};

/// Alerts that say nothing of their own. After 50 errors haproxy 2.6 stops reading, at a line that may be good.
const SUMMARIES: [&str; 4] = [
    "Error(s) found in configuration file",
    "Fatal errors found in configuration",
    "Failed to initialize server(s) addr",
    "too many fatal errors",
];

/// How candidates are checked.
#[derive(Debug, Clone)]
pub enum Checker {
    /// `<binary> -c -f <candidate>`.
    Binary(String),
    /// Ruby's `check_command`, a shell line that names the candidate itself.
    Command(String),
}

/// What haproxy thinks of a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// It would start with it.
    Valid,
    /// Correct, but without a listener haproxy refuses to start (exit status 2).
    NoListener,
    /// It would not.
    Refused(Complaints),
    /// Nobody knows: we may not read what these complaints are about.
    Unknown(Complaints),
}

/// Alerts of one run, in haproxy's order.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Complaints {
    /// Those that say what is wrong (summaries left out).
    pub alerts: Vec<Complaint>,
    /// The end of the output.
    pub output: String,
}

/// One alert.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Complaint {
    /// Line of the file.
    pub line: Option<usize>,
    /// Proxy section that is named.
    pub section: Option<String>,
    /// Server that is named: backend and name.
    pub server: Option<(String, String)>,
    /// haproxy's words.
    pub words: String,
}

/// Why there is no verdict. Says nothing about the file.
#[derive(Debug, thiserror::Error)]
pub enum CheckError {
    /// No haproxy.
    #[error(transparent)]
    NotFound(#[from] NotFound),
    /// It could not be run to its end.
    #[error(transparent)]
    Child(#[from] ChildError),
    /// It ended without saying anything about the file.
    #[error("the check of `{path}` ended with {status}: {output}")]
    Ended {
        /// The candidate.
        path: PathBuf,
        /// How.
        status: std::process::ExitStatus,
        /// What it said.
        output: String,
    },
}

impl Checker {
    /// Checks a file.
    ///
    /// # Errors
    /// No program, a time-out (the program is killed), a death by signal.
    pub async fn check(&self, candidate: &Path, limit: Duration) -> Result<Verdict, CheckError> {
        Ok(self.ask(candidate, limit).await?.0)
    }

    /// The same with haproxy's warnings, which refuse nothing.
    ///
    /// # Errors
    /// As [`Checker::check`].
    pub async fn ask(
        &self,
        candidate: &Path,
        limit: Duration,
    ) -> Result<(Verdict, Vec<Complaint>), CheckError> {
        let done = match self {
            Self::Binary(binary) => {
                let program = binary::find(binary)?;
                let mut command = Command::from(descriptors::command(&program));
                command.arg("-c").arg("-f").arg(candidate);
                child::run(
                    command,
                    &format!("{} -c", program.display()),
                    limit,
                    Left::Killed,
                )
                .await?
            }
            Self::Command(line) => child::run(shell(line), line, limit, Left::Killed).await?,
        };
        let verdict = match (done.status.code(), self) {
            (Some(0), _) => Verdict::Valid,
            (Some(2), Self::Binary(_)) => Verdict::NoListener,
            (Some(126 | 127), _) | (None, _) => {
                return Err(CheckError::Ended {
                    path: candidate.to_owned(),
                    status: done.status,
                    output: done.output,
                });
            }
            (Some(_), _) => Verdict::Refused(Complaints::parse(&done.output)),
        };
        let warnings = done.output.lines();
        let warnings = warnings.filter_map(|line| Complaint::parse(line, "[WARNING]"));
        Ok((verdict, warnings.collect()))
    }
}

impl Verdict {
    /// What a check with our rights says about a haproxy that may have others: nothing about files that we may not read.
    #[must_use]
    pub fn of_another_user(self) -> Self {
        let Self::Refused(mut complaints) = self else {
            return self;
        };
        let (blind, seen): (Vec<_>, Vec<_>) = std::mem::take(&mut complaints.alerts)
            .into_iter()
            .partition(Complaint::is_blind);
        match seen.is_empty() && !blind.is_empty() {
            true => Self::Unknown(Complaints {
                alerts: blind,
                ..complaints
            }),
            false => Self::Refused(Complaints {
                alerts: seen,
                ..complaints
            }),
        }
    }
}

impl Complaints {
    /// Reads the output of `haproxy -c`, or of a start that failed.
    #[must_use]
    pub fn parse(output: &str) -> Self {
        let alerts = output.lines();
        let alerts = alerts.filter_map(|line| Complaint::parse(line, "[ALERT]"));
        let alerts = alerts.collect();
        Self {
            alerts,
            output: output.trim_end().to_owned(),
        }
    }

    /// In one line: the first alerts, or the last line of the output.
    #[must_use]
    pub fn summary(&self) -> String {
        let more = self.alerts.len().saturating_sub(3);
        let first: Vec<&str> = self
            .alerts
            .iter()
            .take(3)
            .map(|a| a.words.as_str())
            .collect();
        match more {
            0 if first.is_empty() => self
                .output
                .lines()
                .last()
                .unwrap_or("no reason given")
                .to_owned(),
            0 => first.join("; "),
            _ => format!("{}; and {more} more", first.join("; ")),
        }
    }

    /// Fragments that are complained about, each with the words. `models` are the fragments' in the order of the file.
    #[must_use]
    pub fn blamed(&self, map: &FragmentMap, models: &[&Model]) -> BTreeMap<usize, String> {
        let mut blamed = BTreeMap::new();
        for alert in &self.alerts {
            let by_line = alert
                .line
                .and_then(|line| map.locate(line))
                .map(|(fragment, _)| fragment);
            let by_name = || {
                models.iter().position(|m| {
                    alert
                        .section
                        .as_ref()
                        .is_some_and(|s| m.sections.iter().any(|x| x.name == *s))
                })
            };
            if let Some(fragment) = by_line.or_else(by_name) {
                blamed
                    .entry(fragment)
                    .or_insert_with(|| alert.words.clone());
            }
        }
        blamed
    }

    /// Servers of ours that are complained about: backend and name, with the words. Only when *every* alert is about
    /// such a server does leaving out their options (or them) cure the file.
    #[must_use]
    pub fn servers(
        &self,
        map: &FragmentMap,
        models: &[&Model],
    ) -> BTreeMap<(String, String), String> {
        let ours = |backend: &str, name: &str| {
            models
                .iter()
                .any(|m| m.servers.get(backend).is_some_and(|s| s.contains_key(name)))
        };
        let by_line = |line: usize| {
            let (fragment, line) = map.locate(line)?;
            let servers = models.get(fragment)?.servers.iter();
            servers
                .flat_map(|(b, s)| s.iter().map(move |(n, l)| (b, n, l)))
                .find(|(_, _, l)| l.number == line)
                .map(|(b, n, _)| (b.clone(), n.clone()))
        };
        let mut found = BTreeMap::new();
        for alert in &self.alerts {
            let named = alert
                .server
                .clone()
                .filter(|(backend, name)| ours(backend, name));
            if let Some(server) = alert.line.and_then(by_line).or(named) {
                found.entry(server).or_insert_with(|| alert.words.clone());
            }
        }
        found
    }
}

impl Complaint {
    /// Whether it is about a file that we, and so the `haproxy -c` that we run, may not read.
    fn is_blind(&self) -> bool {
        // haproxy quotes the path, one way or another, and does not always say why it could not open it.
        let words = self
            .words
            .split(['\'', '`', '"', ' ', ',', '(', ')', '<', '>']);
        let paths = words.filter(|word| word.starts_with('/'));
        paths
            .map(|path| path.trim_end_matches(['.', ':']))
            .any(|path| {
                File::open(path).is_err_and(|error| error.kind() == ErrorKind::PermissionDenied)
            })
    }

    /// `[ALERT]    (PID) : config : [FILE:LINE] : words` and its relatives; summaries are none.
    fn parse(line: &str, level: &str) -> Option<Self> {
        let (_, words) = line.strip_prefix(level)?.split_once(" : ")?;
        let words = words.strip_prefix("config : ").unwrap_or(words).trim();
        if SUMMARIES.iter().any(|summary| words.contains(summary)) {
            return None;
        }
        let place = words.find('[').and_then(|open| {
            words[open..]
                .find(']')
                .map(|close| &words[open + 1..open + close])
        });
        let line = place
            .and_then(|p| p.rsplit_once(':'))
            .and_then(|(_, n)| n.parse().ok());
        let server = after(words, &["'server "])
            .and_then(|s| s.split_once('/'))
            .or_else(|| after(words, &["backend '"]).zip(after(words, &["', server '"])))
            .map(|(b, s)| (b.to_owned(), s.to_owned()));
        let proxy = after(
            words,
            &[
                "Proxy '",
                "proxy '",
                "proxy [",
                "frontend '",
                "backend '",
                "listen '",
            ],
        )
        .map(str::to_owned);
        let section = server
            .as_ref()
            .map(|(backend, _)| backend.clone())
            .or(proxy);
        Some(Self {
            line,
            section,
            server,
            words: words.to_owned(),
        })
    }
}

/// The text between the opening that occurs first and the next quote or bracket.
fn after<'a>(words: &'a str, openings: &[&str]) -> Option<&'a str> {
    let ends = openings
        .iter()
        .filter_map(|o| words.find(o).map(|at| at + o.len()));
    let rest = &words[ends.min()?..];
    Some(&rest[..rest.find(['\'', ']'])?])
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::outputs::haproxy::cfg::Ours;

    const OUTPUT: &str = "[NOTICE]   (1) : haproxy version is 2.6.12-1+deb12u4
[WARNING]  (1) : config : missing timeouts for backend 'b'.
   | While not properly invalid
[ALERT]    (1) : config : [c.cfg:3] : 'server b/x' : unknown keyword 'foo'; did you mean 'tfo' maybe ?
[ALERT]    (1) : config : parsing [c.cfg:5] : unknown option 'nope'.
[ALERT]    (1) : config : Proxy 'f': unable to find required default_backend: 'zz'.
[ALERT]    (1) : config : Parsing [c.cfg:9]: backend 'b' has the same name as backend 'b' declared at c.cfg:5.
[ALERT]    (1) : config : backend 'b', server 'x': unable to find required resolvers 'r'
[ALERT]    (1) : config : [c.cfg:3] : 'server b/x' : unable to find required proxy 'nosuch' for tracking.
[ALERT]    (1) : Starting frontend f: cannot bind socket (Address already in use) [127.0.0.1:80]
[ALERT]    (1) : config : Error(s) found in configuration file : c.cfg
[ALERT]    (1) : config : Fatal errors found in configuration.
";

    #[test]
    fn complaints_name_lines_sections_and_servers() {
        let complaints = Complaints::parse(OUTPUT);
        let places: Vec<_> = complaints
            .alerts
            .iter()
            .map(|a| (a.line, a.section.as_deref(), a.server.is_some()))
            .collect();
        assert_eq!(
            places[..6],
            [
                (Some(3), Some("b"), true),
                (Some(5), None, false),
                (None, Some("f"), false),
                (Some(9), Some("b"), false),
                (None, Some("b"), true),
                (Some(3), Some("b"), true),
            ]
        );
        assert!(complaints.summary().ends_with("and 4 more"));
        assert_eq!(Complaints::parse("sh: broken\n").summary(), "sh: broken");
    }

    #[test]
    fn complaints_find_their_fragments_and_servers() {
        let first = Model::parse(
            "frontend f\nbackend b\n server x 127.0.0.1:1 foo\n",
            Ours::All,
        );
        let second = Model::parse("backend c\n option nope\n\n\n\n\n", Ours::All);
        let (map, models) = (
            FragmentMap::new([first.lines, second.lines]),
            [&first, &second],
        );
        let complaints = Complaints::parse(OUTPUT);
        let blamed = complaints.blamed(&map, &models);
        assert!(
            blamed[&0].contains("foo") && blamed[&1].contains("nope"),
            "{blamed:?}"
        );
        let servers = complaints.servers(&map, &models);
        assert_eq!(
            servers.keys().collect::<Vec<_>>(),
            [&("b".to_owned(), "x".to_owned())]
        );
    }
}
