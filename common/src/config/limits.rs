//! How long paths may be, also those that are made from a configured one: judged when the configuration is read, not when
//! the file or socket is made.

use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use super::cursor::Cursor;

/// What a path is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Use {
    /// A unix socket that is connected to, or bound by us: 107 bytes, `sun_path` without its final zero.
    Socket,
    /// A unix socket that haproxy binds: 97 bytes, since it binds `<path>.<pid>.tmp` first (2.6, 3.0 and 3.2: "too long
    /// (max 97)").
    HaproxySocket,
    /// A file: 255 bytes of name (`NAME_MAX`), 4095 of path (`PATH_MAX`).
    File,
    /// A file that is replaced: `.<name>.tmp-XXXXXX` is made beside it first.
    ReplacedFile,
}

impl Use {
    /// Bytes that a path is too long by, and how many are possible: of the name alone for `true`.
    fn excess(self, path: &Path) -> Option<(usize, usize, bool)> {
        let whole = path.as_os_str().len();
        let name = path.file_name().map_or(0, |name| name.as_bytes().len());
        let over = |length: usize, most: usize, of_name| {
            (length > most).then_some((length, most, of_name))
        };
        match self {
            Self::Socket => over(whole, 107, false),
            Self::HaproxySocket => over(whole, 97, false),
            Self::File => over(name, 255, true).or_else(|| over(whole, 4095, false)),
            Self::ReplacedFile => {
                over(name, 255 - 12, true).or_else(|| over(whole, 4095 - 12, false))
            }
        }
    }
}

/// Whether `path` can be used so; in words why not.
///
/// # Errors
/// How long it is, and how long it may be.
pub fn fits(path: &Path, what: &str, used_as: Use) -> Result<(), String> {
    let Some((length, most, of_name)) = used_as.excess(path) else {
        return Ok(());
    };
    let of_name = if of_name { "its name has" } else { "it has" };
    let why = match used_as {
        Use::Socket => "the most for a unix socket",
        Use::HaproxySocket => "the most for a unix socket that haproxy opens",
        Use::File => "the most for a file",
        Use::ReplacedFile => "the most for a file with a temporary one beside it",
    };
    Err(format!(
        "too long: {what} would be `{}`; {of_name} {length} bytes, {why} is {most}",
        path.display()
    ))
}

/// Notes an error where `path`, which comes from the value at `at`, is too long for what it is used as.
pub fn must_fit(at: &Cursor<'_>, path: &Path, what: &str, used_as: Use) {
    if let Err(problem) = fits(path, what, used_as) {
        at.error_hint(problem, "choose a shorter path");
    }
}

/// The path with `suffix` at the end of its name.
#[must_use]
pub fn beside(path: &Path, suffix: &str) -> std::path::PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    name.into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_byte_that_fits_fits() {
        let path = |length: usize| format!("/{}", "a".repeat(length - 1));
        for (used_as, most) in [
            (Use::Socket, 107),
            (Use::HaproxySocket, 97),
            (Use::File, 256),
            (Use::ReplacedFile, 244),
        ] {
            let judge = |length| fits(Path::new(&path(length)), "x", used_as);
            assert_eq!(judge(most), Ok(()), "{used_as:?}");
            let words = judge(most + 1).unwrap_err();
            assert!(words.contains("too long: x would be"), "{words}");
        }
        let deep = format!("/{}", "abc/".repeat(1100));
        assert!(fits(Path::new(&deep), "x", Use::File).is_err());
        // What the kernel and the temporary file say of it.
        let folder = tempfile::tempdir().unwrap();
        let name = |length: usize| folder.path().join("n".repeat(length));
        for (length, good) in [(243, true), (244, false)] {
            let written = crate::atomic::replace(
                &name(length),
                ["x"],
                crate::atomic::Mode::Kept(0o600),
                crate::atomic::Durability::Rename,
            );
            assert_eq!(written.is_ok(), good, "{length}");
        }
        let socket = |length: usize| {
            let start = folder.path().join("s").display().to_string();
            let path = format!("{start}{}", "s".repeat(length - start.len()));
            std::os::unix::net::UnixListener::bind(path)
        };
        assert!(socket(107).is_ok() && socket(108).is_err());
    }
}
