//! One synapse per haproxy and per snapshot: an advisory lock (flock) on `<path>.lock`, beside the file it protects
//! (the file itself is replaced by renaming, and a lock would go with the old one). The kernel releases it whenever the
//! process ends; the file stays and holds the pid of its last holder.

use std::fs::{File, OpenOptions, TryLockError};
use std::io::{ErrorKind, Read as _, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

/// Held as long as it lives.
#[derive(Debug)]
pub struct Lock {
    _file: File,
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
        "cannot {step} the lock `{path}` (synapse writes beside its files: their folder has to be its own)"
    )]
    Io {
        /// What failed.
        step: &'static str,
        /// The lock file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
}

impl Lock {
    /// Takes the lock of `path` without waiting. Blocking only as files are.
    ///
    /// # Errors
    /// [`LockError::Held`] with the holder's pid, or the step that failed.
    pub fn acquire(path: &Path) -> Result<Self, LockError> {
        let mut name = path.as_os_str().to_owned();
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
        let mut file = options
            .open(&lock_path)
            .or_else(|error| match error.kind() {
                // The file of the last holder does: a read-only disk must not keep synapse from starting.
                ErrorKind::ReadOnlyFilesystem => File::open(&lock_path).map_err(|_| error),
                _ => Err(error),
            })
            .map_err(fail("open"))?;
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
        Ok(Self { _file: file })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_second_is_told_the_pid_of_the_first() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("snapshot.json");
        let first = Lock::acquire(&path).unwrap();
        let error = Lock::acquire(&path).unwrap_err();
        assert!(
            matches!(error, LockError::Held { holder: Some(pid), .. } if pid == std::process::id()),
            "{error}"
        );
        assert!(
            error
                .to_string()
                .contains(&format!("(pid {})", std::process::id())),
            "{error}"
        );
        drop(first);
        Lock::acquire(&path).unwrap();
    }

    #[test]
    fn without_a_folder_there_is_no_lock() {
        let error = Lock::acquire(Path::new("/nonexistent/x")).unwrap_err();
        assert!(
            matches!(error, LockError::Io { step: "open", .. }),
            "{error}"
        );
    }
}
