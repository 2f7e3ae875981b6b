//! A stderr that nobody reads.

use std::fs::{File, OpenOptions};
use std::io::{ErrorKind, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;

use nix::fcntl::OFlag;
use nix::sys::stat::Mode;
use nix::unistd::mkfifo;

use super::Dir;

/// A full pipe in a [`Dir`]. Dropped, it has no reader any more.
#[derive(Debug)]
pub struct Unread(#[expect(dead_code, reason = "kept open")] File);

impl Unread {
    /// What makes a program's stderr this pipe, for [`super::Program::start_by`].
    pub const BY: [&str; 5] = [
        "env",
        "RUST_LOG=trace",
        "sh",
        "-c",
        "exec \"$0\" \"$@\" 2> unread",
    ];

    /// The pipe that [`Self::BY`] means.
    ///
    /// # Panics
    /// When it cannot be made.
    #[must_use]
    pub fn new(dir: &Dir) -> Self {
        let path = dir.join("unread");
        mkfifo(&path, Mode::S_IRWXU).expect("a folder of ours takes a pipe");
        let mut options = OpenOptions::new();
        options.read(true).write(true);
        let pipe = options
            .custom_flags(OFlag::O_NONBLOCK.bits())
            .open(&path)
            .expect("a pipe that is read and written opens");
        for piece in [4096, 1] {
            while (&pipe)
                .write(&[b'.'; 4096][..piece])
                .map_err(|error| assert_eq!(error.kind(), ErrorKind::WouldBlock))
                .is_ok()
            {}
        }
        Self(pipe)
    }
}
