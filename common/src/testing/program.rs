//! The real `nerve` and `synapse`, as built beside the running test, and never those of another build.

use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus};
use std::time::Duration;

use nix::sys::signal::Signal;

use super::server::{find_program, inside};
use super::{Dir, Host, Process, eventually};
use crate::http::{self, Bind, Reply};

/// How long an answer may take.
const ANSWER_LIMIT: Duration = Duration::from_secs(10);

/// GET `path` from an admin listener (or any other), on a connection of its own, within 10 s.
///
/// # Errors
/// Nobody listens, no answer in time, or not HTTP.
pub async fn get(bind: &Bind, path: &str) -> std::io::Result<Reply> {
    http::get(bind, path, ANSWER_LIMIT).await
}

/// A running program; killed when dropped, with the end of its log printed if the test fails.
#[derive(Debug)]
pub struct Program {
    process: Process,
    admin: Bind,
}

impl Program {
    /// Starts `name` (`nerve` or `synapse`) with `args`. Its stderr goes to `NAME.log` in `dir`; `admin` is what its
    /// configuration gives as `admin.bind`. `RUST_LOG` is `debug` unless `env` says otherwise.
    ///
    /// # Panics
    /// When it was not built, or from other sources than this test, with the command to build it.
    #[must_use]
    pub fn start(name: &str, dir: &Dir, args: &[&str], env: &[(&str, &str)], admin: Bind) -> Self {
        Self::start_on(None, name, dir, args, env, admin)
    }

    /// The same on a host of a [`super::Network`]; `admin` must be a unix socket to be reached from here.
    ///
    /// # Panics
    /// As [`Program::start`].
    #[must_use]
    pub fn start_on(
        host: Option<&Host>,
        name: &str,
        dir: &Dir,
        args: &[&str],
        env: &[(&str, &str)],
        admin: Bind,
    ) -> Self {
        let command = inside(host, &Self::path(name));
        Self::spawn(command, name, dir, args, env, admin)
    }

    /// The same as another user, which takes root: `copy` is where the program is copied to, for a user who may not go to
    /// where it lies.
    ///
    /// # Panics
    /// As [`Program::start`], or when it cannot be copied.
    #[must_use]
    pub fn start_as(
        user: u32,
        copy: &Path,
        name: &str,
        dir: &Dir,
        args: &[&str],
        admin: Bind,
    ) -> Self {
        std::fs::copy(Self::path(name), copy).expect("the program can be copied");
        let mut command = Command::new(copy);
        command.uid(user).gid(user);
        Self::spawn(command, name, dir, args, &[], admin)
    }

    /// The same by another program that becomes it: `by` is that one and its arguments, e.g. `["prlimit", "--nofile=40"]`.
    ///
    /// # Panics
    /// As [`Program::start`].
    #[must_use]
    pub fn start_by(by: &[&str], name: &str, dir: &Dir, args: &[&str], admin: Bind) -> Self {
        let hint = "`apt-get install util-linux`";
        let mut command = Command::new(find_program(by[0], hint));
        command.args(&by[1..]).arg(Self::path(name));
        Self::spawn(command, name, dir, args, &[], admin)
    }

    fn spawn(
        mut command: Command,
        name: &str,
        dir: &Dir,
        args: &[&str],
        env: &[(&str, &str)],
        admin: Bind,
    ) -> Self {
        command
            .args(args)
            .env("RUST_LOG", "debug")
            .envs(env.iter().copied())
            .current_dir(dir.path());
        let process = Process::spawn(
            name,
            &mut command,
            &dir.join(&format!("{name}.log")),
            "is it executable?",
        );
        Self { process, admin }
    }

    /// Where the program of this build lies, e.g. to run it with `check`.
    ///
    /// # Panics
    /// As [`Program::start`].
    #[must_use]
    pub fn path(name: &str) -> PathBuf {
        let own = std::env::current_exe().expect("the kernel knows the running program");
        let path = own
            .ancestors()
            .skip(1)
            .take(3)
            .map(|folder| folder.join(name))
            .find(|path| path.is_file());
        let release = if own.components().any(|part| part.as_os_str() == "release") {
            " --release"
        } else {
            ""
        };
        let hint = format!("hint: `cargo build --workspace{release}`, or `make test`");
        let path =
            path.unwrap_or_else(|| panic!("no program `{name}` above {}\n{hint}", own.display()));
        verify(&path, crate::BUILD).unwrap_or_else(|problem| panic!("{problem}\n{hint}"));
        path
    }

    /// Its process: pid, log, whether it has ended.
    pub fn process(&mut self) -> &mut Process {
        &mut self.process
    }

    /// TERM, KILL, HUP, STOP, CONT, ...
    pub fn signal(&self, signal: Signal) {
        self.process.signal(signal);
    }

    /// Waits for its end.
    ///
    /// # Panics
    /// When it still runs at the deadline, with the end of its log.
    pub async fn wait(&mut self, deadline: Duration) -> ExitStatus {
        self.process.wait(deadline).await
    }

    /// GET from its admin listener.
    ///
    /// # Errors
    /// It does not listen, or does not answer.
    pub async fn get(&self, path: &str) -> std::io::Result<Reply> {
        get(&self.admin, path).await
    }

    /// `/status`.
    ///
    /// # Panics
    /// When it does not answer with JSON.
    pub async fn status(&self) -> serde_json::Value {
        let reply = self
            .get("/status")
            .await
            .unwrap_or_else(|e| panic!("/status: {e}\n{}", self.process.log_tail()));
        serde_json::from_str(&reply.body)
            .unwrap_or_else(|e| panic!("/status is not JSON: {e}: {reply:?}"))
    }

    /// The value of one line of `/metrics`, named with its labels, e.g. `nerve_checks_total{service="a"}`.
    ///
    /// # Panics
    /// When it does not answer.
    pub async fn metric(&self, name: &str) -> Option<f64> {
        let reply = self
            .get("/metrics")
            .await
            .unwrap_or_else(|e| panic!("/metrics: {e}\n{}", self.process.log_tail()));
        reply.body.lines().find_map(|line| {
            line.strip_prefix(name)?
                .strip_prefix(' ')?
                .trim()
                .parse()
                .ok()
        })
    }

    /// Waits until `/ready` is 200.
    ///
    /// # Panics
    /// When it is not by the deadline, or the program ended.
    pub async fn ready(&mut self, deadline: Duration) {
        let (process, admin) = (&mut self.process, &self.admin);
        eventually("the program is ready", deadline, async || {
            if let Some(status) = process.ended() {
                panic!("ended with {status}\n{}", process.log_tail());
            }
            match get(admin, "/ready").await {
                Ok(Reply { status: 200, .. }) => Ok(()),
                Ok(reply) => Err(format!("{reply:?}")),
                Err(error) => Err(error.to_string()),
            }
        })
        .await;
    }
}

/// Whether the program says that it is `build`.
fn verify(path: &Path, build: &str) -> Result<(), String> {
    let output = Command::new(path).arg("--version").output();
    let output = output.map_err(|error| format!("`{} --version`: {error}", path.display()))?;
    let version = String::from_utf8_lossy(&output.stdout).trim().to_owned();
    if version.split_whitespace().any(|word| word == build) {
        return Ok(());
    }
    Err(format!(
        "`{} --version` says {version:?}; this test is of build {build}",
        path.display()
    ))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn a_program_of_another_build_is_refused() {
        let dir = Dir::new();
        let script = dir.write("nerve", "#!/bin/sh\necho nerve 0.1.0+0123abcd\n");
        std::fs::set_permissions(&script, std::fs::Permissions::from_mode(0o755))
            .expect("our file");
        assert_eq!(verify(&script, "0.1.0+0123abcd"), Ok(()));
        for other in ["0.1.0+0123abce", "0.1.0+0123abc", "0.1.0"] {
            let problem = verify(&script, other).expect_err("another build");
            assert!(
                problem.contains("0.1.0+0123abcd") && problem.contains(other),
                "{problem}"
            );
        }
        assert!(verify(&dir.join("absent"), "0.1.0").is_err());
    }

    #[test]
    #[should_panic(expected = "hint: `cargo build --workspace")]
    fn a_program_that_was_not_built_is_refused_with_the_command() {
        let path = Program::path("no-such-program");
        unreachable!("{}", path.display());
    }
}
