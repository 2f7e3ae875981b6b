//! The state file: which sessions this installation has had, so that a successor knows its predecessor's nodes, and
//! which services an operator has taken out.
//!
//! Several nerves may share one file: every change reads, merges and replaces it under a lock of its own file. Nothing
//! here is fatal; without the file a predecessor's nodes stay until their session expires, and no service can be drained.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::path::{Path, PathBuf};

use nix::fcntl::{Flock, FlockArg};
use serde::{Deserialize, Serialize};
use smartstack_common::atomic::{self, Durability, Mode, ReplaceError, replace, sweep};
use smartstack_common::process::ProcessId;

use crate::service::Hold;

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
}

/// Which services are held out, by name.
pub(crate) type Holds = BTreeMap<String, Held>;

/// That a service is held out.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Held {
    /// By which command.
    pub(crate) by: Hold,
    /// Seconds since 1970.
    pub(crate) since: f64,
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
    change(path, |state| {
        note(state, hosts, session, own, &ProcessId::is_alive)
    })
}

/// What is held out. Blocking.
pub(crate) fn holds(path: &Path) -> Result<Holds, StateError> {
    // Another nerve may be writing it in place. Without a lock it is read all the same.
    let _lock = lock(path).ok();
    read(path).map(|state| state.holds)
}

/// Holds `services` out (or, with `None`, no longer) and returns all holds. Blocking. A service that is held so already
/// keeps its time.
pub(crate) fn hold(
    path: &Path,
    services: &[String],
    held: Option<&Held>,
) -> Result<Holds, StateError> {
    change(path, |state| {
        for service in services {
            match held {
                Some(held) if state.holds.get(service).is_none_or(|old| old.by != held.by) => {
                    state.holds.insert(service.clone(), held.clone());
                }
                Some(_) => {}
                None => drop(state.holds.remove(service)),
            }
        }
        state.holds.clone()
    })
}

/// Reads, changes and replaces the file under its lock.
fn change<T>(path: &Path, change: impl FnOnce(&mut State) -> T) -> Result<T, StateError> {
    if let Some(folder) = path.parent() {
        // Failing this, the lock fails and says why.
        let _made = std::fs::create_dir_all(folder).is_ok();
    }
    let _lock = lock(path)?;
    // With the lock nobody else replaces the file: what looks half written was left by a nerve that was killed.
    sweep(path);
    let mut state = read(path)?;
    state.format = 1;
    let out = change(&mut state);
    let mut text =
        serde_json::to_vec_pretty(&state).expect("a struct of numbers and text always serialises");
    text.push(b'\n');
    replace(path, [&text], Mode::Private(0o600), Durability::Synced)?;
    Ok(out)
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

/// A file that is not ours to understand counts as empty: it is replaced.
fn read(path: &Path) -> Result<State, StateError> {
    let bytes = match std::fs::read(path) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(State::default()),
        Err(source) => {
            return Err(StateError::Read {
                path: path.to_owned(),
                source,
            });
        }
    };
    Ok(serde_json::from_slice(&bytes).unwrap_or_else(|error| {
        tracing::warn!(path = %path.display(), %error, "state file not understood: begun anew");
        State::default()
    }))
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
        holds(&path).unwrap();
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
            [".other.json.tmp-x7Yz01", "state.json", "state.lock"]
        );
    }

    #[test]
    fn holds_and_sessions_live_side_by_side() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("state.json");
        assert_eq!(holds(&path).unwrap(), Holds::new());
        let drained = |since| Held {
            by: Hold::Drain,
            since,
        };
        let names = ["a".to_owned(), "b".to_owned()];
        hold(&path, &names, Some(&drained(1.0))).unwrap();
        remember(&path, "z:1", 7, &process(1)).unwrap();
        let again = hold(&path, &names, Some(&drained(2.0))).unwrap();
        assert_eq!(again["a"].since, 1.0, "held so already");
        let disabled = Held {
            by: Hold::Disable,
            since: 3.0,
        };
        hold(&path, &names[..1], Some(&disabled)).unwrap();
        hold(&path, &names[1..], None).unwrap();
        assert_eq!(
            holds(&path).unwrap(),
            Holds::from([("a".to_owned(), disabled)])
        );
        assert_eq!(read(&path).unwrap().sessions.len(), 1);
        assert!(hold(Path::new("/proc/nowhere/state.json"), &names, None).is_err());
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
