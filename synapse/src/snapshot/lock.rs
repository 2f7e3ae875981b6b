//! One synapse per haproxy and per snapshot: advisory locks (flock) that stand for the *file*, whatever path leads to it.
//!
//! Two of them, since either alone can be passed by. One on `<file>.lock` beside the file (where a link leads to, not
//! beside the link): it outlives every replacement, also by others. And one on the file itself, which is the same over
//! hard links and bind mounts; it follows when the file is replaced ([`Lock::follow`]), and the file it began with stays
//! locked, too, since a bind mount keeps showing that one. Where the folder is another user's the second one has to do.
//! The kernel releases them whenever the process ends; `<file>.lock` stays and holds the pid of its last holder.

use std::fs::{File, OpenOptions, TryLockError};
use std::io::{self, ErrorKind, Read as _, Write as _};
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use smartstack_common::atomic::{is_refusal, resolve};

/// A file that is replaced while it is being locked is looked at again so often.
const TRIES: usize = 10;

/// Held as long as it lives.
#[derive(Debug)]
pub struct Lock {
    path: PathBuf,
    _beside: Option<File>,
    /// The file as it was found, and as it is now.
    first: Option<File>,
    current: Option<File>,
}

/// Why the lock was not got.
#[derive(Debug, thiserror::Error)]
pub enum LockError {
    /// Somebody else has it.
    #[error(
        "`{path}` belongs to another synapse{}; stop that one, or give this one its own `snapshot_path` and `config_file_path`",
        holder.map(|pid| format!(" (pid {pid})")).unwrap_or_default()
    )]
    Held {
        /// The protected file.
        path: PathBuf,
        /// The holder's pid, if it could be read.
        holder: Option<u32>,
    },
    /// There is no lock to be had here (folder missing or read-only).
    #[error(
        "cannot {step} the lock `{path}` (synapse needs a folder that it may write in, or a file that is there and that it may write)"
    )]
    Io {
        /// What failed.
        step: &'static str,
        /// The lock file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
}

impl Lock {
    /// Takes the lock of the file that `path` leads to, which need not exist, without waiting. Blocking only as files are.
    ///
    /// # Errors
    /// [`LockError::Held`] with the holder's pid, or the step that failed.
    pub fn acquire(path: &Path) -> Result<Self, LockError> {
        let target = resolve(path).map_err(|source| LockError::Io {
            step: "find the file of",
            path: path.to_owned(),
            source,
        })?;
        let beside = beside(path, &target)?;
        let own = match itself(&target) {
            Ok(own) => own,
            Err(TryLockError::WouldBlock) => {
                return Err(LockError::Held {
                    path: path.to_owned(),
                    holder: holder(&target),
                });
            }
            // The other one does.
            Err(TryLockError::Error(_)) if beside.is_some() => None,
            Err(TryLockError::Error(source)) => {
                return Err(LockError::Io {
                    step: "take",
                    path: target,
                    source,
                });
            }
        };
        Ok(Self {
            path: path.to_owned(),
            _beside: beside,
            first: own,
            current: None,
        })
    }

    /// Whether it is the lock of the file that `path` leads to.
    #[must_use]
    pub fn is_of(&self, path: &Path) -> bool {
        self.path == path || same(self.current.as_ref().or(self.first.as_ref()), path)
    }

    /// Locks what the file is now, if it was replaced since. To be called now and then. Where that fails, the lock beside
    /// it stands as before.
    ///
    /// # Errors
    /// [`LockError::Held`]: somebody else has locked the file that the path leads to by now.
    pub fn follow(&mut self) -> Result<(), LockError> {
        let known = self.current.as_ref().or(self.first.as_ref());
        if same(known, &self.path) {
            return Ok(());
        }
        match itself(&self.path) {
            Ok(Some(now)) if self.first.is_none() => self.first = Some(now),
            Ok(Some(now)) => self.current = Some(now),
            Err(TryLockError::WouldBlock) if !same(self.first.as_ref(), &self.path) => {
                return Err(LockError::Held {
                    path: self.path.clone(),
                    holder: holder(&self.path),
                });
            }
            Ok(None) | Err(_) => {}
        }
        Ok(())
    }
}

/// Locks `<target>.lock`. `None` = the folder refuses it, and the file is there to be locked itself.
fn beside(path: &Path, target: &Path) -> Result<Option<File>, LockError> {
    let mut name = target.as_os_str().to_owned();
    name.push(".lock");
    let lock_path = PathBuf::from(name);
    let fail = |step| {
        let path = lock_path.clone();
        move |source| LockError::Io { step, path, source }
    };
    let mut options = OpenOptions::new();
    options
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600);
    let opened = options
        .open(&lock_path)
        .or_else(|error| match error.kind() {
            // The file of the last holder does: a read-only disk must not keep synapse from starting.
            ErrorKind::ReadOnlyFilesystem => File::open(&lock_path).map_err(|_| error),
            _ => Err(error),
        });
    let mut file = match opened {
        Ok(file) => file,
        Err(error) if is_refusal(&error) && target.is_file() => return Ok(None),
        Err(error) => return Err(fail("open")(error)),
    };
    match file.try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => {
            let mut text = String::new();
            let holder = file
                .read_to_string(&mut text)
                .ok()
                .and_then(|_| text.trim().parse().ok());
            return Err(LockError::Held {
                path: path.to_owned(),
                holder,
            });
        }
        Err(TryLockError::Error(source)) => return Err(fail("take")(source)),
    }
    // Err = the disk is full or read-only. The lock is ours all the same; only a second synapse would name no pid, or an
    // old one.
    let _untold = file
        .set_len(0)
        .and_then(|()| writeln!(file, "{}", std::process::id()))
        .is_err();
    Ok(Some(file))
}

/// Locks the file itself; `None` = there is none.
fn itself(target: &Path) -> Result<Option<File>, TryLockError> {
    for _ in 0..TRIES {
        let opened = File::open(target).or_else(|_| OpenOptions::new().append(true).open(target));
        let file = match opened {
            Ok(file) => file,
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(TryLockError::Error(error)),
        };
        file.try_lock()?;
        if same(Some(&file), target) {
            return Ok(Some(file));
        }
    }
    let error = io::Error::new(ErrorKind::ResourceBusy, "it is replaced again and again");
    Err(TryLockError::Error(error))
}

/// Whether a path leads to this open file.
fn same(file: Option<&File>, path: &Path) -> bool {
    let open = file.and_then(|file| file.metadata().ok());
    let there = std::fs::metadata(path).ok();
    open.zip(there)
        .is_some_and(|(a, b)| (a.dev(), a.ino()) == (b.dev(), b.ino()))
}

/// Who has locked a file, as the kernel lists it.
fn holder(target: &Path) -> Option<u32> {
    let inode = std::fs::metadata(target).ok()?.ino();
    find_holder(&std::fs::read_to_string("/proc/locks").ok()?, inode)
}

/// `1: FLOCK  ADVISORY  WRITE 15366 fe:00:5349412 0 EOF`. The device is not compared: some file systems show another one
/// than their files have.
fn find_holder(locks: &str, inode: u64) -> Option<u32> {
    locks.lines().find_map(|line| {
        let words: Vec<&str> = line.split_whitespace().collect();
        let [_, "FLOCK", _, "WRITE", pid, place, ..] = words[..] else {
            return None;
        };
        let found = place.rsplit(':').next()?.parse() == Ok(inode);
        // 0 = a process of another pid namespace.
        pid.parse().ok().filter(|pid| found && *pid != 0)
    })
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    /// Held, and by this process.
    fn refused(path: &Path) {
        let error = Lock::acquire(path).unwrap_err();
        assert!(
            matches!(error, LockError::Held { holder: Some(pid), .. } if pid == std::process::id()),
            "{}: {error}",
            path.display()
        );
        let told = format!("(pid {})", std::process::id());
        assert!(error.to_string().contains(&told), "{error}");
    }

    fn write(path: &Path) {
        smartstack_common::atomic::replace(
            path,
            ["text"],
            smartstack_common::atomic::Mode::Kept(0o640),
            smartstack_common::atomic::Durability::Rename,
        )
        .unwrap();
    }

    #[test]
    fn the_second_is_told_the_pid_of_the_first() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("snapshot.json");
        let first = Lock::acquire(&path).unwrap();
        refused(&path);
        drop(first);
        Lock::acquire(&path).unwrap();
    }

    #[test]
    fn links_of_either_kind_are_the_same_file_before_and_after_it_is_replaced() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        std::fs::create_dir(at("other")).unwrap();
        symlink("../haproxy.cfg", at("other/link")).unwrap();
        let mut first = Lock::acquire(&at("other/link")).unwrap();
        refused(&at("haproxy.cfg"));
        for round in ["made", "replaced", "replaced again"] {
            write(&at("haproxy.cfg"));
            first.follow().unwrap();
            assert!(first.is_of(&at("haproxy.cfg")) && first.is_of(&at("other/link")));
            std::fs::hard_link(at("haproxy.cfg"), at("other").join(round)).unwrap();
            for path in ["haproxy.cfg", "other/link"] {
                refused(&at(path));
            }
            refused(&at("other").join(round));
            // With one name again it is replaced by renaming.
            std::fs::remove_file(at("other").join(round)).unwrap();
        }
        assert!(!first.is_of(&at("other/another")));
        drop(first);
        Lock::acquire(&at("haproxy.cfg")).unwrap();
    }

    #[test]
    fn a_file_that_another_has_locked_is_told() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        for name in ["a", "b"] {
            write(&at(name));
        }
        symlink("a", at("link")).unwrap();
        let (mut ours, _theirs) = (
            Lock::acquire(&at("link")).unwrap(),
            Lock::acquire(&at("b")).unwrap(),
        );
        std::fs::remove_file(at("link")).unwrap();
        symlink("b", at("link")).unwrap();
        assert!(matches!(ours.follow(), Err(LockError::Held { .. })));
    }

    #[test]
    fn without_a_folder_there_is_no_lock() {
        let error = Lock::acquire(Path::new("/nonexistent/x")).unwrap_err();
        assert!(
            matches!(error, LockError::Io { step: "open", .. }),
            "{error}"
        );
    }

    #[test]
    fn the_kernels_list_is_read() {
        let locks = "1: POSIX  ADVISORY  WRITE 1 fe:00:77 0 EOF\n\
                     2: FLOCK  ADVISORY  WRITE 0 fe:00:77 0 EOF\n\
                     3: FLOCK  ADVISORY  WRITE 5 fe:00:7 0 EOF\n\
                     3: -> FLOCK  ADVISORY  WRITE 6 fe:00:77 0 EOF\n\
                     4: FLOCK  ADVISORY  WRITE 15366 00:2d:77 0 EOF\n\
                     5: garbage\n";
        assert_eq!(find_holder(locks, 77), Some(15366));
        assert_eq!(find_holder(locks, 78), None);
    }
}
