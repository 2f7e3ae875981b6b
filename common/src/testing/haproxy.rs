//! A real haproxy on a given configuration file: master and worker, its stats socket, its state.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;

use super::server::find_program;
use super::{Process, eventually};

const HINT: &str = "`apt-get install haproxy`, or `make deps`";
const START_LIMIT: Duration = Duration::from_secs(30);

/// A running haproxy; every process on this configuration file is killed when this is dropped.
#[derive(Debug)]
pub struct Haproxy {
    config: PathBuf,
    stats: PathBuf,
    master: PathBuf,
    process: Option<Process>,
}

impl Haproxy {
    /// The program, from `PATH` or `/usr/sbin`.
    ///
    /// # Panics
    /// When it is not installed, with a hint.
    #[must_use]
    pub fn binary() -> PathBuf {
        find_program("haproxy", HINT)
    }

    /// Starts `haproxy -W -S master.sock -p haproxy.pid -f config` (sockets and files beside the configuration) and waits
    /// until it answers on `stats`, the socket that the configuration opens.
    ///
    /// # Panics
    /// When it refuses the configuration or does not come up.
    pub async fn start(config: &Path, stats: &Path) -> Self {
        Self::start_program(&Self::binary(), config, stats).await
    }

    /// The same with another program.
    ///
    /// # Panics
    /// As [`Haproxy::start`].
    pub async fn start_program(program: &Path, config: &Path, stats: &Path) -> Self {
        let mut haproxy = Self::attach(config, stats);
        let mut command = Command::new(program);
        command
            .arg("-W")
            .arg("-S")
            .arg(format!("{},level,admin", haproxy.master.display()));
        command
            .arg("-p")
            .arg(config.with_file_name("haproxy.pid"))
            .arg("-f")
            .arg(config);
        let log = config.with_file_name("haproxy.log");
        haproxy.process = Some(Process::spawn("haproxy", &mut command, &log, HINT));
        haproxy.ready().await;
        haproxy
    }

    /// One that something else starts (a reload command, `supervise`): to talk to it, and to end it.
    #[must_use]
    pub fn attach(config: &Path, stats: &Path) -> Self {
        let master = config.with_file_name("master.sock");
        Self {
            config: config.to_owned(),
            stats: stats.to_owned(),
            master,
            process: None,
        }
    }

    /// A `reload_command` in the style of Airbnb's: starts it as a daemon, or hands over from the running one with its
    /// listeners (`-sf`, `-x`).
    #[must_use]
    pub fn reload_command(config: &Path, stats: &Path) -> String {
        let pid = config.with_file_name("haproxy.pid").display().to_string();
        let (haproxy, config, stats) = (Self::binary(), config.display(), stats.display());
        let haproxy = haproxy.display();
        format!(
            "if [ -s {pid} ] && kill -0 $(cat {pid}) 2>/dev/null; \
             then exec {haproxy} -D -f {config} -p {pid} -x {stats} -sf $(cat {pid}); \
             else exec {haproxy} -D -f {config} -p {pid}; fi"
        )
    }

    /// Waits until the stats socket answers, and the master socket if there is one.
    ///
    /// # Panics
    /// When it does not within 30 s, or haproxy ended.
    pub async fn ready(&mut self) {
        let Self {
            config,
            stats,
            master,
            process,
        } = self;
        eventually(
            "haproxy answers on its stats socket",
            START_LIMIT,
            async || {
                if let Some(status) = process.as_mut().and_then(Process::ended) {
                    panic!(
                        "haproxy ended with {status}\nhint: `haproxy -c -f {}`",
                        config.display()
                    );
                }
                ask(stats, "show info")
                    .await
                    .map_err(|e| format!("stats socket: {e}"))?;
                // The master listens a moment after its first worker.
                if process.is_some() {
                    let answer =
                        tokio::time::timeout(Duration::from_secs(1), ask(master, "show proc"))
                            .await;
                    answer
                        .map_err(|_| "master socket: silent")?
                        .map_err(|e| format!("master socket: {e}"))?;
                }
                Ok::<(), String>(())
            },
        )
        .await;
    }

    /// The answer to a command on the stats socket, as text.
    ///
    /// # Panics
    /// When nobody answers.
    pub async fn command(&self, command: &str) -> String {
        ask(&self.stats, command)
            .await
            .unwrap_or_else(|e| panic!("haproxy, {command:?} on {:?}: {e}", self.stats))
    }

    /// The same on the master socket: `show proc`, `reload`, ...
    ///
    /// # Panics
    /// When nobody answers.
    pub async fn master(&self, command: &str) -> String {
        ask(&self.master, command)
            .await
            .unwrap_or_else(|e| panic!("haproxy, {command:?} on {:?}: {e}", self.master))
    }

    /// `show info`.
    pub async fn info(&self) -> BTreeMap<String, String> {
        let text = self.command("show info").await;
        text.lines()
            .filter_map(|line| line.split_once(": "))
            .map(|(k, v)| (k.to_owned(), v.to_owned()))
            .collect()
    }

    /// The worker's pid: it changes with each reload that succeeds.
    ///
    /// # Panics
    /// When `show info` does not tell.
    pub async fn worker_pid(&self) -> u32 {
        self.info()
            .await
            .get("Pid")
            .and_then(|pid| pid.parse().ok())
            .expect("`show info` has a `Pid`")
    }

    /// The pid of its master, the parent of its worker.
    ///
    /// # Errors
    /// The worker ended meanwhile.
    pub async fn master_pid(&self) -> Result<u32, String> {
        let worker = self.worker_pid().await;
        let status = std::fs::read_to_string(format!("/proc/{worker}/status"));
        let status = status.map_err(|e| format!("worker {worker}: {e}"))?;
        let parent = status.lines().find_map(|line| line.strip_prefix("PPid:"));
        let parent = parent.unwrap_or_default().trim().parse();
        parent.map_err(|e| format!("worker {worker}: {e}: {status}"))
    }

    /// The generation synapse wrote into `description`, if it did.
    pub async fn generation(&self) -> Option<String> {
        let info = self.info().await;
        Some(
            info.get("description")?
                .rsplit_once("synapse=")?
                .1
                .to_owned(),
        )
    }

    /// `show servers state`: one map of column name to value per server. Without the bit of both check states that says whether a
    /// check is under way just now (`CHK_ST_INPROGRESS`, 1).
    pub async fn servers_state(&self) -> Vec<BTreeMap<String, String>> {
        let text = self.command("show servers state").await;
        let mut lines = text.lines().skip(1);
        let columns: Vec<&str> = lines
            .next()
            .unwrap_or_default()
            .trim_start_matches("# ")
            .split(' ')
            .collect();
        let at_rest = |column: &str, value: &str| match (column, value.parse::<u32>()) {
            ("srv_check_state" | "srv_agent_state", Ok(state)) => (state & !1).to_string(),
            _ => value.to_owned(),
        };
        let row = |line: &str| {
            columns
                .iter()
                .zip(line.split(' '))
                .map(|(c, v)| ((*c).to_owned(), at_rest(c, v)))
                .collect()
        };
        lines.filter(|line| !line.is_empty()).map(row).collect()
    }

    /// All processes that run on this configuration file: master, worker, lingering old workers.
    #[must_use]
    pub fn pids(&self) -> Vec<u32> {
        pids_with_argument(&self.config)
    }

    /// Kills them all (SIGKILL).
    pub fn kill(&mut self) {
        // First the one that is our child: it is also waited for, or its pid would look alive.
        self.process = None;
        for pid in self.pids() {
            let pid = Pid::from_raw(i32::try_from(pid).expect("a pid is an i32"));
            // Err = it ended by itself.
            let _gone = kill(pid, Signal::SIGKILL).is_err();
        }
    }
}

impl Drop for Haproxy {
    fn drop(&mut self) {
        self.kill();
    }
}

/// The processes with `path` as one of their arguments. The path lies in a folder of one test, so it is theirs.
fn pids_with_argument(path: &Path) -> Vec<u32> {
    use std::os::unix::ffi::OsStrExt;
    let wanted = path.as_os_str().as_bytes();
    let Ok(entries) = std::fs::read_dir("/proc") else {
        return Vec::new();
    };
    entries
        .flatten()
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
        .filter(|pid: &u32| {
            let arguments = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            arguments
                .split(|byte| *byte == 0)
                .any(|argument| argument == wanted)
        })
        .collect()
}

async fn ask(socket: &Path, command: &str) -> io::Result<String> {
    let exchange = async {
        let mut stream = UnixStream::connect(socket).await?;
        stream.write_all(format!("{command}\n").as_bytes()).await?;
        // The master keeps a connection open until its client has closed its half.
        stream.shutdown().await?;
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).await?;
        Ok(String::from_utf8_lossy(&answer).into_owned())
    };
    tokio::time::timeout(Duration::from_secs(10), exchange).await?
}
