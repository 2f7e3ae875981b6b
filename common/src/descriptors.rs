//! File descriptors: as many for this process as the system grants, and for the programs that it starts what it began with.
//!
//! The soft limit protects programs that use `select`, which fails above 1024. These two do not; without it what keeps
//! them from opening a connection is the hard limit alone. Programs that they start have the former limit back: they may use
//! `select`, close every number below it, or take their own size from it, as haproxy does.

use std::ffi::OsStr;
use std::process::Command;
use std::sync::OnceLock;

use nix::sys::resource::{Resource, getrlimit, rlim_t, setrlimit};

/// What a program has open beside what it is there for: log, listeners, sockets of those who ask it, files being written.
pub const SPARE: usize = 64;

/// The soft limit that this process began with, once it has been raised.
static FORMER: OnceLock<rlim_t> = OnceLock::new();

/// Raises the soft limit to the hard one. That it cannot is told and changes nothing.
pub fn raise() {
    let raised = getrlimit(Resource::RLIMIT_NOFILE).and_then(|(soft, hard)| {
        if soft < hard {
            setrlimit(Resource::RLIMIT_NOFILE, hard, hard)?;
            // Set already: it was raised already.
            let _again = FORMER.set(soft).is_err();
        }
        Ok(())
    });
    if let Err(error) = raised {
        tracing::warn!(%error, "cannot raise the limit of open files");
    }
}

/// Tells when this process may not open as many files as it may need at once, `SPARE` apart. `what` for, in words.
pub fn must_suffice(needed: usize, what: &str) {
    let (limit, _) = getrlimit(Resource::RLIMIT_NOFILE).unwrap_or((rlim_t::MAX, rlim_t::MAX));
    if let Some(short) = short(limit, needed) {
        tracing::warn!(
            limit,
            needed = short,
            "the limit of open files is too low for {what}\nhint: raise the hard limit (`LimitNOFILE=` of the unit, `ulimit -Hn`)"
        );
    }
}

/// How many are needed in all, when the limit is lower.
fn short(limit: rlim_t, needed: usize) -> Option<usize> {
    let all = needed.saturating_add(SPARE);
    rlim_t::try_from(all)
        .is_ok_and(|all| limit < all)
        .then_some(all)
}

/// A command that starts `program` with the limit that this process began with.
#[must_use]
pub fn command(program: impl AsRef<OsStr>) -> Command {
    let Some(former) = FORMER.get() else {
        return Command::new(program);
    };
    // The shell becomes the program, so pid and group are its own. (To set it between fork and exec needs unsafe code; to set
    // it from here afterwards comes too late for whoever reads it first of all.)
    let mut command = Command::new("/bin/sh");
    let line = format!("ulimit -S -n {former} && exec \"$0\" \"$@\"");
    command.arg("-c").arg(line).arg(program);
    command
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_needed_is_all_that_may_be_open_at_once() {
        for (limit, needed, all) in [
            (rlim_t::MAX, 1_000_000, None),
            (1024, 960, None),
            (1024, 961, Some(1025)),
            (40, 60, Some(124)),
            (63, 0, Some(64)),
        ] {
            assert_eq!(short(limit, needed), all, "{limit} {needed}");
        }
    }

    /// Raised in a process of its own kind would hit the other tests: what the line does is shown by what it starts.
    #[test]
    fn who_is_started_has_the_former_limit_and_all_its_arguments() {
        let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
        assert!(hard > 77, "this test needs more than 77 descriptors");
        FORMER.set(77).unwrap();
        let output = command("/bin/sh")
            .args([
                "-c",
                "ulimit -Sn; ulimit -Hn; printf '%s|' \"$0\" \"$@\"",
                "a b",
                "",
                "$c",
            ])
            .output()
            .unwrap();
        let said = String::from_utf8(output.stdout).unwrap();
        let lines: Vec<&str> = said.lines().collect();
        assert_eq!((lines[0], lines[2]), ("77", "a b||$c|"), "{said}");
        assert_ne!(lines[1], "77", "the hard limit is as it was");
    }
}
