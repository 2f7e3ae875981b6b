//! Where the haproxy program is, and which version it is of.

use std::path::{Path, PathBuf};
use std::time::Duration;

use smartstack_common::descriptors;
use tokio::process::Command;

use super::child::{self, Left};
use crate::outputs::haproxy::version::Version;

/// How long `haproxy -v` may take.
const LIMIT: Duration = Duration::from_secs(5);

/// The program cannot be found.
#[derive(Debug, thiserror::Error)]
#[error(
    "cannot find the program `{binary}` in PATH, /usr/sbin, /usr/local/sbin or /sbin (install haproxy, or set `haproxy.binary`)"
)]
pub struct NotFound {
    binary: String,
}

/// A path as it stands; a name in `PATH` and where distributions put haproxy, which the `PATH` of services may lack.
///
/// # Errors
/// Nowhere there.
pub fn find(binary: &str) -> Result<PathBuf, NotFound> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let folders = std::env::split_paths(&path)
        .chain(["/usr/sbin", "/usr/local/sbin", "/sbin"].map(PathBuf::from));
    let found = if binary.contains('/') {
        Some(PathBuf::from(binary)).filter(|p| is_program(p))
    } else {
        folders.map(|f| f.join(binary)).find(|p| is_program(p))
    };
    found.ok_or_else(|| NotFound {
        binary: binary.to_owned(),
    })
}

fn is_program(path: &Path) -> bool {
    use std::os::unix::fs::PermissionsExt;
    path.metadata()
        .is_ok_and(|m| m.is_file() && m.permissions().mode() & 0o111 != 0)
}

/// Of the program that will load the file, as it says itself; `None` = it cannot be asked.
pub async fn installed(binary: &str) -> Option<Version> {
    #[cfg(test)]
    if super::simulated::Simulated::current().is_some() {
        return None;
    }
    let mut command = Command::from(descriptors::command(find(binary).ok()?));
    command.arg("-v");
    let done = child::run(command, "haproxy -v", LIMIT, Left::Killed).await;
    Version::of_program(&done.ok()?.output)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_paths() {
        assert!(find("sh").is_ok());
        assert_eq!(find("/bin/sh").unwrap(), Path::new("/bin/sh"));
        for missing in ["/bin", "no-such-program", "/no/such", ""] {
            assert!(find(missing).is_err(), "{missing}");
        }
    }

    #[tokio::test]
    async fn the_program_of_this_machine_tells() {
        assert!(installed("haproxy").await.is_some());
        assert_eq!(installed("/bin/true").await, None);
        assert_eq!(installed("/no/such").await, None);
    }
}
