//! Replaces a file so that a crash at any moment leaves the old content or the new one, never a mixture that anybody
//! could load.
//!
//! Everything either program writes again and again goes through here: haproxy.cfg, the snapshot, nerve's state, the
//! heartbeat. The rules:
//! - a symbolic link is followed: its target is replaced, the link stays;
//! - owner, group and mode of the former file stay (what must be private has its own mode, see [`Mode`]);
//! - a new file is made beside it and renamed over it. Where that cannot be (a bind mount, a folder that is another
//!   user's, other hard links, an owner that cannot be given), it is written in place, which is told once.
//!
//! In place, the first byte is overwritten by [`MARK`] before anything else and set right after everything else, with the
//! data on the disk in between. So whatever happens to the program or the machine, the file is the old one, the new one,
//! or one that begins with `!`, which neither haproxy nor a JSON reader accepts and [`read`] takes for missing. Two things
//! only a rename can give: a program that reads while it is written may see a mixture, and after a crash in that moment
//! the file is of no use until it is written again.

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::fs::{File, Metadata, Permissions};
use std::io::{self, BufWriter, Read, Write};
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt, fchown};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use nix::errno::Errno;
use nix::fcntl::{FallocateFlags, fallocate};
use nix::sys::stat::futimens;
use nix::sys::time::TimeSpec;
use tempfile::{NamedTempFile, PathPersistError};

/// Why a file could not be replaced. It is as it was.
#[derive(Debug, thiserror::Error)]
pub enum ReplaceError {
    /// A step failed.
    #[error("cannot {step} `{path}`")]
    Step {
        /// Which.
        step: &'static str,
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// There is something else of that name: a folder, a device, a socket.
    #[error("cannot replace `{path}`: it is not a regular file")]
    Irregular {
        /// The file.
        path: PathBuf,
    },
    /// It can neither be replaced nor written.
    #[error("cannot replace `{path}` ({why}), nor write it in place")]
    Neither {
        /// The file.
        path: PathBuf,
        /// Why it cannot be replaced.
        why: String,
        /// Why it cannot be written.
        source: io::Error,
    },
}

/// When the data must be on the disk itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Durability {
    /// After a power cut either version may be there (a crash of the program is covered all the same).
    Rename,
    /// File and folder are synchronised before the call returns.
    Synced,
}

/// The permission bits of the file afterwards.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// These, whatever the former file had: for what nobody else may read.
    Private(u32),
    /// Those of the former file; these when there is none.
    Kept(u32),
}

/// Bytes given to the system at a time.
const BUFFER: usize = 64 * 1024;
/// First byte of a file that is being written in place. No haproxy.cfg and no JSON begins with it.
pub const MARK: u8 = b'!';
/// Links that are followed at most, as the kernel does.
const MAX_LINKS: usize = 40;

/// Writes `parts` one after the other into the file that `path` leads to. Blocking.
///
/// # Errors
/// What failed, with the path. The old file is then untouched and nothing is left beside it.
pub fn replace(
    path: &Path,
    parts: impl IntoIterator<Item = impl AsRef<[u8]>>,
    mode: Mode,
    durability: Durability,
) -> Result<(), ReplaceError> {
    let target = resolve(path).map_err(|source| ReplaceError::Step {
        step: "find the file of",
        path: path.to_owned(),
        source,
    })?;
    let parts: Vec<_> = parts.into_iter().collect();
    let former = target.metadata().ok();
    if former.as_ref().is_some_and(|former| !former.is_file()) {
        return Err(ReplaceError::Irregular { path: target });
    }
    let why = match rename(&target, &parts, mode, durability, former.as_ref()) {
        Ok(()) => return Ok(()),
        Err(Setback::Failed(error)) => return Err(error),
        Err(Setback::NoRename(why)) => why,
    };
    match (write_in_place(&target, &parts, mode), why) {
        (Ok(()), why) => {
            tell_once(
                &target,
                &format!("{why}; it is written in place"),
                "a program that reads it in that moment may see a mixture: give it a folder in which this user may rename",
            );
            Ok(())
        }
        (Err(error), NoRename::Owner(temporary, owner)) if is_refusal(&error) => {
            persist(temporary, &target, durability).map_err(|(step, source)| {
                ReplaceError::Step {
                    step,
                    path: target.clone(),
                    source,
                }
            })?;
            tell_once(
                &target,
                &format!("{owner}, nor can it be written in place; it has this user's now"),
                "give the file to this user",
            );
            Ok(())
        }
        (Err(source), why) => Err(ReplaceError::Neither {
            path: target,
            why: why.to_string(),
            source,
        }),
    }
}

/// Why a file is not replaced by renaming.
enum Setback {
    /// In place it would not go better.
    Failed(ReplaceError),
    NoRename(NoRename),
}

enum NoRename {
    /// In words.
    Refused(String),
    /// The new file is there, but cannot be given the former one's owner: in words.
    Owner(NamedTempFile, String),
}

impl std::fmt::Display for NoRename {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Refused(why) | Self::Owner(_, why) => f.write_str(why),
        }
    }
}

/// Makes the new file beside the former one and renames it.
fn rename(
    target: &Path,
    parts: &[impl AsRef<[u8]>],
    mode: Mode,
    durability: Durability,
    former: Option<&Metadata>,
) -> Result<(), Setback> {
    // Renaming would leave the other names with the old content.
    if former.is_some_and(|former| former.nlink() > 1) {
        let why = "it has other hard links".to_owned();
        return Err(Setback::NoRename(NoRename::Refused(why)));
    }
    let fail = |step| {
        move |source| {
            Setback::Failed(ReplaceError::Step {
                step,
                path: target.to_owned(),
                source,
            })
        }
    };
    let or_in_place = |step, error: io::Error| match former {
        Some(_) if is_refusal(&error) => {
            Setback::NoRename(NoRename::Refused(format!("cannot {step} it: {error}")))
        }
        _ => fail(step)(error),
    };
    let mut file = tempfile::Builder::new()
        .prefix(&temporary(target))
        .permissions(Permissions::from_mode(0o600))
        .tempfile_in(folder_of(target))
        .map_err(|error| or_in_place("create a temporary file beside", error))?;
    let mut writer = BufWriter::with_capacity(BUFFER, file.as_file_mut());
    parts
        .iter()
        .try_for_each(|part| writer.write_all(part.as_ref()))
        .and_then(|()| writer.flush())
        .map_err(fail("write"))?;
    drop(writer);
    let owned = former.map_or(Ok(()), |former| own(file.as_file(), former));
    let bits = match (mode, former) {
        (Mode::Private(bits), _) | (Mode::Kept(bits), None) => bits,
        (Mode::Kept(_), Some(former)) => former.mode() & 0o777,
    };
    file.as_file()
        .set_permissions(Permissions::from_mode(bits))
        .map_err(fail("set the mode of"))?;
    if durability == Durability::Synced {
        file.as_file().sync_all().map_err(fail("sync"))?;
    }
    if let Err(error) = owned {
        let why = format!("a new file cannot have its owner and group: {error}");
        return Err(Setback::NoRename(NoRename::Owner(file, why)));
    }
    persist(file, target, durability).map_err(|(step, error)| or_in_place(step, error))
}

/// Gives a new file the owner and group of the former one.
fn own(file: &File, former: &Metadata) -> io::Result<()> {
    let new = file.metadata()?;
    let changed = |old: u32, new: u32| (old != new).then_some(old);
    let (owner, group) = (
        changed(former.uid(), new.uid()),
        changed(former.gid(), new.gid()),
    );
    if owner.is_none() && group.is_none() {
        return Ok(());
    }
    fchown(file, owner, group)
}

fn persist(
    file: NamedTempFile,
    target: &Path,
    durability: Durability,
) -> Result<(), (&'static str, io::Error)> {
    // Its handle is closed: nothing is written any more.
    file.into_temp_path()
        .persist(target)
        .map_err(|PathPersistError { error, .. }| ("rename a new file over", error))?;
    if durability == Durability::Synced {
        File::open(folder_of(target))
            .and_then(|folder| folder.sync_all())
            .map_err(|error| ("sync the folder of", error))?;
    }
    Ok(())
}

/// Whether the system refuses the way, not the content: another way may be open. A full disk is none of these.
#[must_use]
pub fn is_refusal(error: &io::Error) -> bool {
    use io::ErrorKind as Kind;
    matches!(
        error.kind(),
        Kind::PermissionDenied
            | Kind::ReadOnlyFilesystem
            | Kind::ResourceBusy
            | Kind::CrossesDevices
            | Kind::InvalidFilename
    )
}

/// Overwrites an existing file in the safe order of this module's header; puts the old content back when it cannot.
fn write_in_place(target: &Path, parts: &[impl AsRef<[u8]>], mode: Mode) -> io::Result<()> {
    let mut file = File::options().read(true).write(true).open(target)?;
    let mut old = Vec::new();
    file.read_to_end(&mut old)?;
    if let Mode::Private(bits) = mode
        && file.metadata()?.mode() & 0o777 != bits
    {
        file.set_permissions(Permissions::from_mode(bits))?;
    }
    let new = parts.iter().fold(Vec::new(), |mut all, part| {
        all.extend_from_slice(part.as_ref());
        all
    });
    if new == old {
        return Ok(());
    }
    // With the room that it needs, a full disk is seen before anything is overwritten.
    let length = |bytes: &[u8]| i64::try_from(bytes.len()).unwrap_or(i64::MAX);
    if new.len() > old.len()
        && let Err(code @ (Errno::ENOSPC | Errno::EDQUOT | Errno::EFBIG)) =
            fallocate(&file, FallocateFlags::FALLOC_FL_KEEP_SIZE, 0, length(&new))
    {
        return Err(code.into());
    }
    overwrite(&file, &new).inspect_err(|_| {
        // What fails here as well is refused by every reader: it begins with the mark.
        let _restored = overwrite(&file, &old).is_ok();
    })
}

fn overwrite(file: &File, content: &[u8]) -> io::Result<()> {
    let Some((first, rest)) = content.split_first() else {
        file.set_len(0)?;
        return file.sync_all();
    };
    file.write_all_at(&[MARK], 0)?;
    file.sync_data()?;
    file.write_all_at(rest, 1)?;
    file.set_len(u64::try_from(content.len()).unwrap_or(u64::MAX))?;
    file.sync_all()?;
    file.write_all_at(&[*first], 0)?;
    file.sync_data()
}

/// Once for each file: it is so each time.
fn tell_once(target: &Path, what: &str, hint: &str) {
    static TOLD: Mutex<BTreeSet<PathBuf>> = Mutex::new(BTreeSet::new());
    let mut told = TOLD.lock().unwrap_or_else(PoisonError::into_inner);
    if told.insert(target.to_owned()) {
        tracing::warn!(path = %target.display(), "a file cannot be replaced as usual: {what}\nhint: {hint}");
    }
}

/// What a file that [`replace`] writes holds; `None` = there is none, or it was cut off while it was written in place.
/// Blocking.
///
/// # Errors
/// It is there and cannot be read.
pub fn read(path: &Path) -> io::Result<Option<Vec<u8>>> {
    // Opening a pipe would wait for its other end.
    if path.metadata().is_ok_and(|found| !found.is_file()) {
        let kind = io::ErrorKind::InvalidInput;
        return Err(io::Error::new(kind, "it is not a regular file"));
    }
    match std::fs::read(path) {
        Ok(bytes) if bytes.first() == Some(&MARK) => Ok(None),
        Ok(bytes) => Ok(Some(bytes)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

/// Sets the time of a file to now, and makes it when there is none. Whoever may write it may do so: it need not be his.
/// Blocking.
///
/// # Errors
/// It cannot be opened or made.
pub fn touch(path: &Path) -> io::Result<()> {
    let file = File::options()
        .create(true)
        .truncate(false)
        .write(true)
        .open(path)?;
    // Both "now": any other time is for the owner alone.
    futimens(&file, &TimeSpec::UTIME_NOW, &TimeSpec::UTIME_NOW).map_err(Into::into)
}

/// The file that a path leads to: where its last part is a symbolic link, the link's target, which need not exist.
///
/// # Errors
/// Too many links, or one that cannot be read.
pub fn resolve(path: &Path) -> io::Result<PathBuf> {
    let mut target = path.to_owned();
    for _ in 0..MAX_LINKS {
        match std::fs::read_link(&target) {
            Ok(link) => target = folder_of(&target).join(link),
            // No link, or nothing there.
            Err(error)
                if matches!(
                    error.kind(),
                    io::ErrorKind::InvalidInput | io::ErrorKind::NotFound
                ) =>
            {
                return Ok(target);
            }
            Err(error) => return Err(error),
        }
    }
    Err(Errno::ELOOP.into())
}

/// How the names of temporary files beside a file begin.
fn temporary(path: &Path) -> OsString {
    let mut name = OsString::from(".");
    name.push(path.file_name().unwrap_or_default());
    name.push(".tmp-");
    name
}

/// Removes what processes that were killed while they replaced `path` have left beside it. To be called by the only one
/// who replaces it, before its first [`replace`]. Blocking; a file that cannot be removed stays.
pub fn sweep(path: &Path) {
    let Ok(target) = resolve(path) else { return };
    let start = temporary(&target);
    let entries = std::fs::read_dir(folder_of(&target)).into_iter().flatten();
    for entry in entries.flatten() {
        let name = entry.file_name();
        if name
            .as_encoded_bytes()
            .starts_with(start.as_encoded_bytes())
        {
            let _stays = std::fs::remove_file(entry.path()).is_err();
        }
    }
}

fn folder_of(path: &Path) -> &Path {
    path.parent()
        .filter(|p| !p.as_os_str().is_empty())
        .unwrap_or_else(|| Path::new("."))
}

/// Synchronises a file that was replaced with [`Durability::Rename`], and its folder. Blocking.
///
/// # Errors
/// The step that failed, with the path.
pub fn sync(path: &Path) -> Result<(), ReplaceError> {
    let fail = |step| {
        move |source| ReplaceError::Step {
            step,
            path: path.to_owned(),
            source,
        }
    };
    let target = resolve(path).map_err(fail("find the file of"))?;
    let synced = |path: &Path| File::open(path).and_then(|file| file.sync_all());
    synced(&target).map_err(fail("sync"))?;
    synced(folder_of(&target)).map_err(fail("sync the folder of"))
}

#[cfg(test)]
mod tests;
