//! What every server of the harness needs: a folder, a port nobody else takes, a process that ends with its owner.

use std::fs::File;
use std::net::TcpListener;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::Mutex;
use std::time::Duration;

use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;

use super::{Host, eventually};

/// A folder of one test, removed with it. With `KEEP=1` in the environment, or in a test that panics, it stays and its
/// path is printed.
#[derive(Debug)]
pub struct Dir(Option<tempfile::TempDir>);

impl Dir {
    /// A fresh folder.
    #[must_use]
    #[expect(clippy::new_without_default, reason = "it touches the disk")]
    pub fn new() -> Self {
        Self(Some(
            tempfile::Builder::new()
                .prefix("smartstack-")
                .tempdir()
                .expect("the temporary folder is writable"),
        ))
    }

    /// The folder.
    #[must_use]
    pub fn path(&self) -> &Path {
        self.0.as_ref().expect("taken on drop only").path()
    }

    /// The path of `name` in it.
    #[must_use]
    pub fn join(&self, name: &str) -> PathBuf {
        self.path().join(name)
    }

    /// Writes a file (and its folders) and returns its path.
    #[must_use]
    pub fn write(&self, name: &str, content: impl AsRef<[u8]>) -> PathBuf {
        let path = self.join(name);
        write(&path, content.as_ref());
        path
    }
}

/// Writes a file and the folders above it.
pub(super) fn write(path: &Path, content: &[u8]) {
    std::fs::create_dir_all(path.parent().expect("a file is in a folder"))
        .expect("a folder of ours is writable");
    use crate::atomic::{Durability, Mode, replace};
    replace(path, [content], Mode::Kept(0o644), Durability::Rename)
        .expect("a folder of ours is writable");
}

impl Drop for Dir {
    fn drop(&mut self) {
        if std::thread::panicking() || std::env::var_os("KEEP").is_some() {
            let kept = self.0.take().map(tempfile::TempDir::keep);
            eprintln!("kept: {}", kept.unwrap_or_default().display());
        }
    }
}

/// A TCP port that is free on all addresses and stays this process's until it ends.
///
/// The range lies below the kernel's ephemeral ports, so no outgoing connection takes it; parallel test processes are
/// told apart by a locked file per port (in a folder per user: another user's files cannot be locked).
#[must_use]
pub fn free_port() -> u16 {
    static HELD: Mutex<Vec<File>> = Mutex::new(Vec::new());
    let folder = format!("smartstack-ports-{}", nix::unistd::Uid::current());
    let folder = std::env::temp_dir().join(folder);
    std::fs::create_dir_all(&folder).expect("the temporary folder is writable");
    for _ in 0..1000 {
        let port = fastrand::u16(10_000..32_000);
        let lock = File::options()
            .create(true)
            .truncate(false)
            .write(true)
            .open(folder.join(port.to_string()));
        let Ok(lock) = lock else { continue };
        if lock.try_lock().is_ok() && TcpListener::bind(("0.0.0.0", port)).is_ok() {
            HELD.lock().expect("nothing panics under it").push(lock);
            return port;
        }
    }
    panic!("no free TCP port in 10000..32000 after 1000 tries");
}

/// Where a program is: in `PATH`, or where Debian puts servers, which is not in every user's.
///
/// # Panics
/// When it is nowhere, with `hint`.
#[must_use]
pub fn find_program(name: &str, hint: &str) -> PathBuf {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .chain([PathBuf::from("/usr/sbin"), PathBuf::from("/usr/local/sbin")])
        .map(|folder| folder.join(name))
        .find(|path| path.is_file())
        .unwrap_or_else(|| {
            panic!("no program `{name}` in PATH, /usr/sbin or /usr/local/sbin\nhint: {hint}")
        })
}

/// The command that runs `program` on a host of a [`super::Network`], or here.
pub(super) fn inside(host: Option<&Host>, program: &Path) -> Command {
    match host {
        None => Command::new(program),
        // It becomes the program: pid and process group are the same.
        Some(host) => {
            let hint = "`apt-get install util-linux`";
            let mut command = Command::new(find_program("nsenter", hint));
            command
                .arg(format!("--net={}", host.namespace().display()))
                .arg(program);
            command
        }
    }
}

/// A child process in a process group of its own; the whole group is killed when this is dropped.
#[derive(Debug)]
pub struct Process {
    name: String,
    child: Child,
    log: PathBuf,
}

impl Process {
    /// Starts `command` with stdout and stderr appended to `log`.
    ///
    /// # Panics
    /// When it cannot be started, with `hint`.
    #[must_use]
    pub fn spawn(name: &str, command: &mut Command, log: &Path, hint: &str) -> Self {
        let output = File::options()
            .create(true)
            .append(true)
            .open(log)
            .expect("a folder of ours is writable");
        let errors = output.try_clone().expect("a file can be opened twice");
        let child = command
            .process_group(0)
            .stdin(Stdio::null())
            .stdout(output)
            .stderr(errors)
            .spawn()
            .unwrap_or_else(|e| {
                panic!(
                    "cannot start {name}: {e}: {:?}\nhint: {hint}",
                    command.get_program()
                )
            });
        Self {
            name: name.to_owned(),
            child,
            log: log.to_owned(),
        }
    }

    /// The pid, also the id of its process group.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Sends `signal` to the process alone.
    pub fn signal(&self, signal: Signal) {
        let sent = nix::sys::signal::kill(self.group(), signal);
        assert!(
            sent.is_ok(),
            "cannot send {signal} to {}: {sent:?}\n{}",
            self.name,
            self.log_tail()
        );
    }

    /// The exit status, if it has ended.
    #[must_use]
    pub fn ended(&mut self) -> Option<ExitStatus> {
        self.child
            .try_wait()
            .expect("a child of ours can be waited for")
    }

    /// Waits for its end.
    ///
    /// # Panics
    /// When it still runs at the deadline, with the end of its log.
    pub async fn wait(&mut self, deadline: Duration) -> ExitStatus {
        let what = format!("{} (pid {}) ends", self.name, self.pid());
        eventually(&what, deadline, async || {
            self.ended()
                .ok_or_else(|| format!("running\n{}", self.log_tail()))
        })
        .await
    }

    /// Kills the whole group and waits until the process is gone.
    pub fn kill(&mut self) {
        // Err = nobody left in the group, which is what we want.
        let _gone = killpg(self.group(), Signal::SIGKILL).is_err();
        let status = self
            .child
            .wait()
            .expect("a child of ours can be waited for");
        debug_assert!(status.signal().is_some() || status.code().is_some());
    }

    /// The last 40 lines it wrote.
    #[must_use]
    pub fn log_tail(&self) -> String {
        let text = std::fs::read(&self.log)
            .map(|t| String::from_utf8_lossy(&t).into_owned())
            .unwrap_or_default();
        let lines: Vec<&str> = text.lines().collect();
        format!(
            "--- {}\n{}\n---",
            self.log.display(),
            lines[lines.len().saturating_sub(40)..].join("\n")
        )
    }

    fn group(&self) -> Pid {
        Pid::from_raw(i32::try_from(self.child.id()).expect("a pid is an i32"))
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("{} (pid {}): {}", self.name, self.pid(), self.log_tail());
        }
        self.kill();
    }
}
