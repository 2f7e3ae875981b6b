//! Replaces a file so that a crash at any moment leaves the old content or the new one, never a mixture.

use std::ffi::OsString;
use std::io::{BufWriter, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

/// Why a file could not be replaced.
#[derive(Debug, thiserror::Error)]
#[error("cannot {step} `{path}`")]
pub struct ReplaceError {
    step: &'static str,
    path: PathBuf,
    source: std::io::Error,
}

/// When the data must be on the disk itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Durability {
    /// After a power cut either version may be there (a crash of the program is covered all the same).
    Rename,
    /// File and folder are synchronised before the call returns.
    Synced,
}

/// Bytes given to the system at a time.
const BUFFER: usize = 64 * 1024;

/// Writes `parts` one after the other beside `path` (same folder, mode `mode`) and renames it into place. Blocking.
///
/// # Errors
/// The step that failed, with the path. The old file is then untouched and nothing is left beside it.
pub fn replace(
    path: &Path,
    parts: impl IntoIterator<Item = impl AsRef<[u8]>>,
    mode: u32,
    durability: Durability,
) -> Result<(), ReplaceError> {
    let fail = |step| {
        move |source| ReplaceError {
            step,
            path: path.to_owned(),
            source,
        }
    };
    let folder = folder_of(path);
    let mut file = tempfile::Builder::new()
        .prefix(&temporary(path))
        .permissions(std::fs::Permissions::from_mode(mode))
        .tempfile_in(folder)
        .map_err(fail("create a temporary file beside"))?;
    let mut writer = BufWriter::with_capacity(BUFFER, file.as_file_mut());
    parts
        .into_iter()
        .try_for_each(|part| writer.write_all(part.as_ref()))
        .and_then(|()| writer.flush())
        .map_err(fail("write"))?;
    drop(writer);
    // The creation mode went through the umask.
    file.as_file()
        .set_permissions(std::fs::Permissions::from_mode(mode))
        .map_err(fail("set the mode of"))?;
    if durability == Durability::Synced {
        file.as_file().sync_all().map_err(fail("sync"))?;
    }
    file.persist(path)
        .map_err(|e| fail("rename into")(e.error))?;
    if durability == Durability::Synced {
        std::fs::File::open(folder)
            .and_then(|f| f.sync_all())
            .map_err(fail("sync the folder of"))?;
    }
    Ok(())
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
    let start = temporary(path);
    let entries = std::fs::read_dir(folder_of(path)).into_iter().flatten();
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
        move |source| ReplaceError {
            step,
            path: path.to_owned(),
            source,
        }
    };
    let folder = folder_of(path);
    let synced = |path: &Path| std::fs::File::open(path).and_then(|file| file.sync_all());
    synced(path).map_err(fail("sync"))?;
    synced(folder).map_err(fail("sync the folder of"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn replaces_with_the_mode_and_leaves_nothing_beside() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("x");
        replace(&path, ["o", "ne"], 0o600, Durability::Synced).unwrap();
        replace(&path, ["two"], 0o644, Durability::Rename).unwrap();
        sync(&path).unwrap();
        assert!(sync(&folder.path().join("missing")).is_err());
        assert_eq!(std::fs::read(&path).unwrap(), b"two");
        assert_eq!(
            std::fs::metadata(&path).unwrap().permissions().mode() & 0o777,
            0o644
        );
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1);
    }

    #[test]
    fn only_what_an_earlier_replacement_left_is_swept_away() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("x");
        let others = ["x", "y", ".x", ".xx.tmp-1", ".y.tmp-1", "x.tmp-1"];
        for name in others.iter().chain(&[".x.tmp-", ".x.tmp-Ab1"]) {
            replace(&folder.path().join(name), [""], 0o600, Durability::Rename).unwrap();
        }
        sweep(&path);
        for name in others {
            assert!(folder.path().join(name).exists(), "{name}");
        }
        assert_eq!(
            std::fs::read_dir(folder.path()).unwrap().count(),
            others.len()
        );
        sweep(&folder.path().join("no/such"));
    }

    #[test]
    fn failure_names_the_path() {
        let folder = tempfile::tempdir().unwrap();
        let error = replace(
            &folder.path().join("no/such"),
            [""],
            0o600,
            Durability::Rename,
        )
        .unwrap_err();
        assert!(error.to_string().contains("no/such"), "{error}");
    }
}
