//! The state file: which sessions this installation has had, so that a successor knows its predecessor's nodes, and
//! which services an operator has taken out.
//!
//! Several nerves may share one file: every change reads, merges and replaces it under a lock of its own file. Nothing
//! here is fatal; without the file a predecessor's nodes stay until their session expires, and no service can be drained.
//!
//! A copy of it stands beside it, for when it is lost or damaged. When both are, it is not known what operators had taken
//! out: that is noted in the new file, and each nerve that starts on it doubts all of its services ([`Hold::Unknown`]).

use std::collections::BTreeSet;
use std::fs::File;
use std::path::{Path, PathBuf};

use nix::fcntl::{Flock, FlockArg};
use serde::{Deserialize, Serialize};
use smartstack_common::atomic::{self, Durability, Mode, ReplaceError, replace, sweep};
use smartstack_common::clock::Moment;
use smartstack_common::process::ProcessId;
use smartstack_common::report::Chain;

use crate::wanted::{Held, Hold, Holds};

/// Sessions kept at most. Of too many the oldest of dead processes go first: their nodes expired long ago.
const MAX_SESSIONS: usize = 64;

/// The content.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
struct State {
    format: u32,
    sessions: Vec<Session>,
    /// By service.
    #[serde(default, skip_serializing_if = "Holds::is_empty")]
    holds: Holds,
    /// Holds that were here are lost.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    lost: Option<Lost>,
}

/// That holds are lost.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct Lost {
    /// Since when, in seconds since 1970.
    since: f64,
    /// The nerves, by instance id, that have made theirs of it.
    known_to: BTreeSet<String>,
}

/// A nerve, and what it knows of holds whatever the file says.
#[derive(Debug)]
pub(crate) struct Own<'a> {
    pub(crate) instance_id: &'a str,
    pub(crate) holds: &'a Holds,
}

/// A session and who had it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Session {
    /// The ensemble's connect string, without chroot.
    hosts: String,
    session: i64,
    process: ProcessId,
}

/// Why the state is not kept.
#[derive(Debug, thiserror::Error)]
pub(crate) enum StateError {
    #[error("cannot lock `{path}`")]
    Lock {
        path: PathBuf,
        source: std::io::Error,
    },
    #[error("cannot read `{path}`")]
    Read {
        path: PathBuf,
        source: std::io::Error,
    },
    #[error("`{path}` is damaged")]
    Damaged {
        path: PathBuf,
        source: serde_json::Error,
    },
    #[error(transparent)]
    Write(#[from] ReplaceError),
}

/// Notes that this process has `session`, and returns the former ones of the same ensemble: those of dead processes and
/// the earlier ones of this process. Blocking. Call before the first node of the session is created.
pub(crate) fn remember(
    path: &Path,
    hosts: &str,
    session: i64,
    own: &ProcessId,
) -> Result<BTreeSet<i64>, StateError> {
    let mut former = BTreeSet::new();
    change(path, |state| {
        former = note(state, hosts, session, own, &ProcessId::is_alive);
    })?;
    Ok(former)
}

/// What is held out. When that is lost, every one of `services` is doubted, and that is kept. Blocking.
///
/// # Errors
/// When the file cannot be read: it may be readable later.
pub(crate) fn recall(
    path: &Path,
    instance_id: &str,
    services: &[String],
) -> Result<Holds, StateError> {
    let mut state = {
        // Another nerve may be writing it in place. Without a lock it is read all the same.
        let _lock = lock(path).ok();
        read(path)?
    };
    if !state.is_lost_to(instance_id) {
        return Ok(state.holds);
    }
    let now = Moment::now().seconds();
    let doubts: Holds = services
        .iter()
        .map(|service| {
            let (by, since) = (Hold::Unknown, now);
            (service.clone(), Held { by, since })
        })
        .collect();
    let own = Own {
        instance_id,
        holds: &doubts,
    };
    let kept = change(path, |state| state.take_in(&own)).map(|state| state.holds);
    Ok(kept.unwrap_or_else(|error| {
        let error = Chain(&error).to_string();
        tracing::error!(error, "the state file cannot be written: at the next start it is not known again which services were drained or disabled");
        state.take_in(&own);
        state.holds
    }))
}

/// Holds `services` out (or, with `None`, no longer) and returns all holds. Blocking. A service that is held so already
/// keeps its time. `own` is what this process knows, for when the file has lost it.
pub(crate) fn hold(
    path: &Path,
    own: &Own<'_>,
    services: &[String],
    held: Option<&Held>,
) -> Result<Holds, StateError> {
    let state = change(path, |state| {
        state.take_in(own);
        for service in services {
            match held {
                Some(held) if state.holds.get(service).is_none_or(|old| old.by != held.by) => {
                    state.holds.insert(service.clone(), held.clone());
                }
                Some(_) => {}
                None => drop(state.holds.remove(service)),
            }
        }
    })?;
    Ok(state.holds)
}

impl State {
    /// Whether this nerve has not made its own of a loss.
    fn is_lost_to(&self, instance_id: &str) -> bool {
        let lost = self.lost.as_ref();
        lost.is_some_and(|lost| !lost.known_to.contains(instance_id))
    }

    /// Takes in what a nerve knows of holds that the file has lost.
    fn take_in(&mut self, own: &Own<'_>) {
        if self.is_lost_to(own.instance_id)
            && let Some(lost) = &mut self.lost
        {
            lost.known_to.insert(own.instance_id.to_owned());
            for (service, held) in own.holds {
                let entry = self.holds.entry(service.clone());
                entry.or_insert_with(|| held.clone());
            }
        }
    }
}

/// Reads, changes and replaces the file and its copy under the lock. Returns what is in them then.
fn change(path: &Path, change: impl FnOnce(&mut State)) -> Result<State, StateError> {
    if let Some(folder) = path.parent() {
        // Failing this, the lock fails and says why.
        let _made = std::fs::create_dir_all(folder).is_ok();
    }
    let _lock = lock(path)?;
    let copy = copy_of(path);
    // With the lock nobody else replaces the files: what looks half written was left by a nerve that was killed.
    sweep(path);
    sweep(&copy);
    let mut state = read(path)?;
    state.format = 1;
    change(&mut state);
    let mut text =
        serde_json::to_vec_pretty(&state).expect("a struct of numbers and text always serialises");
    text.push(b'\n');
    replace(path, [&text], Mode::Private(0o600), Durability::Synced)?;
    if let Err(error) = replace(&copy, [&text], Mode::Private(0o600), Durability::Synced) {
        let error = Chain(&error).to_string();
        tracing::warn!(error, "state file kept without its copy");
    }
    Ok(state)
}

/// Where the copy of the file that `path` leads to is: beside it.
pub(crate) fn copy_of(path: &Path) -> PathBuf {
    let file = atomic::resolve(path).unwrap_or_else(|_| path.to_owned());
    file.with_extension("copy")
}

/// The lock of the file that `path` leads to, whatever its spelling: beside it, since it is replaced; where its folder
/// refuses that, on the file itself, which is then written in place.
fn lock(path: &Path) -> Result<Flock<File>, StateError> {
    let take = |path: &Path| {
        let file = File::options()
            .create(true)
            .truncate(false)
            .write(true)
            .open(path)?;
        Flock::lock(file, FlockArg::LockExclusive).map_err(|(_, error)| error.into())
    };
    let locked = atomic::resolve(path).and_then(|target| {
        take(&target.with_extension("lock")).or_else(|error| {
            match atomic::is_refusal(&error) && target.is_file() {
                true => take(&target),
                false => Err(error),
            }
        })
    });
    locked.map_err(|source| StateError::Lock {
        path: path.with_extension("lock"),
        source,
    })
}

/// What is kept: by the file, or where that is lost or damaged by its copy.
fn read(path: &Path) -> Result<State, StateError> {
    let copy = copy_of(path);
    let trouble = match (read_one(path), read_one(&copy)) {
        (Ok(Some(state)), _) => return Ok(state),
        (Ok(None), Ok(None)) => return Ok(State::default()),
        (file, Ok(Some(state))) => {
            let error = file.err().map(|error| Chain(&error).to_string());
            let error = error.unwrap_or_else(|| format!("`{}` is lost", path.display()));
            tracing::warn!(error, copy = %copy.display(), "state file cannot be used: its copy is");
            return Ok(state);
        }
        (Err(error), _) | (Ok(None), Err(error)) => error,
    };
    match trouble {
        damaged @ StateError::Damaged { .. } => {
            let error = Chain(&damaged).to_string();
            tracing::error!(
                error,
                "state file and its copy are damaged: it is not known which services were drained or disabled"
            );
            let lost = Lost {
                since: Moment::now().seconds(),
                known_to: BTreeSet::new(),
            };
            Ok(State {
                lost: Some(lost),
                ..State::default()
            })
        }
        unreadable => Err(unreadable),
    }
}

/// `None` where there is no such file.
fn read_one(path: &Path) -> Result<Option<State>, StateError> {
    let path = path.to_owned();
    match std::fs::read(&path) {
        Ok(bytes) => match serde_json::from_slice(&bytes) {
            Ok(state) => Ok(Some(state)),
            Err(source) => Err(StateError::Damaged { path, source }),
        },
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(source) => Err(StateError::Read { path, source }),
    }
}

fn note(
    state: &mut State,
    hosts: &str,
    session: i64,
    own: &ProcessId,
    is_alive: &dyn Fn(&ProcessId) -> bool,
) -> BTreeSet<i64> {
    state
        .sessions
        .retain(|s| s.session != session || !same_ensemble(&s.hosts, hosts));
    let is_former = |s: &Session| s.process == *own || !is_alive(&s.process);
    let former = state
        .sessions
        .iter()
        .filter(|s| same_ensemble(&s.hosts, hosts) && is_former(s));
    let former = former.map(|s| s.session).collect();
    while state.sessions.len() >= MAX_SESSIONS {
        let victim = state.sessions.iter().position(is_former).unwrap_or(0);
        state.sessions.remove(victim);
    }
    state.sessions.push(Session {
        hosts: hosts.to_owned(),
        session,
        process: own.clone(),
    });
    former
}

/// A list that gained or lost a server still means the same ensemble.
fn same_ensemble(a: &str, b: &str) -> bool {
    a.split(',')
        .any(|host| b.split(',').any(|other| other == host))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    fn process(pid: u32) -> ProcessId {
        ProcessId {
            pid,
            start: 1,
            boot: "b".to_owned(),
        }
    }

    #[test]
    fn former_are_the_dead_ones_and_our_own_earlier_ones() {
        let mut state = State::default();
        let alive = |p: &ProcessId| p.pid != 1;
        assert!(note(&mut state, "a:1,b:1", 10, &process(1), &alive).is_empty());
        note(&mut state, "other:1", 11, &process(1), &alive);
        note(&mut state, "a:1,b:1", 12, &process(2), &alive);
        assert_eq!(
            note(&mut state, "b:1,c:1", 13, &process(3), &alive),
            BTreeSet::from([10])
        );
        assert_eq!(
            note(&mut state, "b:1,c:1", 14, &process(3), &alive),
            BTreeSet::from([10, 13])
        );
        assert_eq!(
            note(&mut state, "b:1,c:1", 14, &process(3), &alive),
            BTreeSet::from([10, 13]),
            "a resumed session"
        );
    }

    #[test]
    fn bounded_and_the_living_stay_longest() {
        let mut state = State::default();
        let alive = |p: &ProcessId| p.pid == 7;
        note(&mut state, "a:1", 1, &process(7), &alive);
        for session in 2..500 {
            note(&mut state, "a:1", session, &process(8), &alive);
        }
        assert_eq!(state.sessions.len(), MAX_SESSIONS);
        assert_eq!(
            (
                state.sessions[0].session,
                state.sessions[MAX_SESSIONS - 1].session
            ),
            (1, 499)
        );
    }

    #[test]
    fn two_processes_do_not_clobber_each_other() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("deep/state.json");
        std::thread::scope(|scope| {
            for pid in 0..8 {
                let path = &path;
                scope.spawn(move || remember(path, "a:1", i64::from(pid), &process(pid)).unwrap());
            }
        });
        assert_eq!(read(&path).unwrap().sessions.len(), 8);
        assert_eq!(
            std::fs::metadata(&path).unwrap().permissions().mode() & 0o777,
            0o600
        );
    }

    #[test]
    fn what_a_killed_nerve_left_half_written_goes_with_the_next_change() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("state.json");
        for name in [".state.json.tmp-x7Yz01", ".other.json.tmp-x7Yz01"] {
            std::fs::File::create(folder.path().join(name)).unwrap();
        }
        recall(&path, "i", &[]).unwrap();
        assert!(
            folder.path().join(".state.json.tmp-x7Yz01").exists(),
            "reading takes no lock, so it may be another's work"
        );
        remember(&path, "a:1", 1, &process(1)).unwrap();
        let mut names: Vec<_> = std::fs::read_dir(folder.path())
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        assert_eq!(
            names,
            [
                ".other.json.tmp-x7Yz01",
                "state.copy",
                "state.json",
                "state.lock"
            ]
        );
    }

    #[test]
    fn holds_and_sessions_live_side_by_side() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("state.json");
        let kept = || recall(&path, "i", &["a".to_owned()]).unwrap();
        assert_eq!(kept(), Holds::new());
        let drained = |since| Held {
            by: Hold::Drain,
            since,
        };
        let names = ["a".to_owned(), "b".to_owned()];
        let own = Own {
            instance_id: "i",
            holds: &Holds::new(),
        };
        hold(&path, &own, &names, Some(&drained(1.0))).unwrap();
        remember(&path, "z:1", 7, &process(1)).unwrap();
        let again = hold(&path, &own, &names, Some(&drained(2.0))).unwrap();
        assert_eq!(again["a"].since, 1.0, "held so already");
        let disabled = Held {
            by: Hold::Disable,
            since: 3.0,
        };
        hold(&path, &own, &names[..1], Some(&disabled)).unwrap();
        hold(&path, &own, &names[1..], None).unwrap();
        assert_eq!(kept(), Holds::from([("a".to_owned(), disabled)]));
        assert_eq!(read(&path).unwrap().sessions.len(), 1);
        let nowhere = Path::new("/proc/nowhere/state.json");
        assert!(hold(nowhere, &own, &names, None).is_err());
    }

    fn spoil(path: &Path, content: &[u8]) {
        let file = std::fs::File::create(path);
        file.and_then(|mut f| std::io::Write::write_all(&mut f, content))
            .unwrap();
    }

    #[test]
    fn one_of_the_two_is_enough_whatever_happens_to_the_other() {
        let (a, b) = ("a".to_owned(), "b".to_owned());
        let held = Held {
            by: Hold::Disable,
            since: 3.0,
        };
        let own = Own {
            instance_id: "i",
            holds: &Holds::new(),
        };
        type Harm = fn(&Path);
        let harms: [Harm; 5] = [
            |path| std::fs::remove_file(path).unwrap(),
            |path| spoil(path, b""),
            |path| {
                spoil(
                    path,
                    b"{\"format\": 1, \"sessions\": [], \"holds\": {\"a\": {\"by\": \"dr",
                )
            },
            |path| spoil(path, &[0; 4096]),
            |path| {
                std::fs::remove_file(path).unwrap();
                std::fs::create_dir(path).unwrap();
            },
        ];
        for harm in harms {
            let folder = tempfile::tempdir().unwrap();
            let path = folder.path().join("state.json");
            hold(&path, &own, std::slice::from_ref(&a), Some(&held)).unwrap();
            harm(&path);
            let all = [a.clone(), b.clone()];
            let kept = Holds::from([(a.clone(), held.clone())]);
            assert_eq!(recall(&path, "i", &all).unwrap(), kept);
            if path.is_dir() {
                continue;
            }
            // The next change mends it.
            remember(&path, "z:1", 7, &process(1)).unwrap();
            harm(&copy_of(&path));
            assert_eq!(recall(&path, "i", &all).unwrap(), kept);
        }
    }

    #[test]
    fn what_is_lost_is_doubted_until_somebody_says() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("state.json");
        let names = ["a".to_owned(), "b".to_owned()];
        let lose = || {
            spoil(&path, b"[garbage");
            spoil(&copy_of(&path), b"");
        };
        let doubted = |holds: &Holds| {
            let doubted = holds.iter().filter(|(_, held)| held.by == Hold::Unknown);
            doubted.map(|(name, _)| name.clone()).collect::<Vec<_>>()
        };
        lose();
        // A session is noted before a nerve starts that asks.
        remember(&path, "z:1", 7, &process(1)).unwrap();
        for _ in 0..2 {
            assert_eq!(doubted(&recall(&path, "i", &names).unwrap()), names);
        }
        let drain = Held {
            by: Hold::Drain,
            since: 1.0,
        };
        let none = Holds::new();
        let own = Own {
            instance_id: "i",
            holds: &none,
        };
        hold(&path, &own, &names[..1], None).unwrap();
        hold(&path, &own, &names[1..], Some(&drain)).unwrap();
        let said = Holds::from([("b".to_owned(), drain)]);
        assert_eq!(recall(&path, "i", &names).unwrap(), said);
        // Another nerve on the same file has its own doubts.
        let other = ["c".to_owned()];
        assert_eq!(doubted(&recall(&path, "j", &other).unwrap()), other);
        assert_eq!(doubted(&recall(&path, "i", &names).unwrap()), other);

        // A nerve that runs knows what it has held.
        lose();
        let own = Own {
            instance_id: "i",
            holds: &said,
        };
        hold(&path, &own, &names[..1], Some(&said["b"])).unwrap();
        let both = recall(&path, "i", &names).unwrap();
        assert_eq!(both.keys().collect::<Vec<_>>(), ["a", "b"]);
        assert_eq!(doubted(&both), Vec::<String>::new());
    }

    #[test]
    fn garbage_is_replaced_and_a_refusal_names_the_path() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("state.json");
        std::fs::File::create(&path)
            .and_then(|mut f| std::io::Write::write_all(&mut f, b"[garbage"))
            .unwrap();
        assert!(remember(&path, "a:1", 1, &process(1)).unwrap().is_empty());
        assert_eq!(read(&path).unwrap().sessions.len(), 1);
        let error =
            remember(Path::new("/proc/nowhere/state.json"), "a:1", 1, &process(1)).unwrap_err();
        assert!(error.to_string().contains("/proc/nowhere"), "{error}");
    }
}
