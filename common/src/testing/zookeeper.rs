//! A real ZooKeeper ensemble of one or more servers on loopback, each with its own data folder and ports.

use std::net::Ipv4Addr;
use std::path::PathBuf;
use std::time::Duration;

use nix::sys::signal::Signal;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use zookeeper_client::{Acls, Client, CreateMode, CreateOptions, Error};

use super::server::{find_program, inside, write};
use super::{Dir, Host, Process, eventually, free_port};
use crate::units::Ensemble;

/// Time a server may take until it serves (a JVM on a busy machine).
const START_LIMIT: Duration = Duration::from_secs(60);
/// A server that has just opened its port may never answer on the first connections (seen on 3.8): then another is made.
const STARTING: Duration = Duration::from_secs(1);
/// Debian's jar; its manifest names the others.
const JAR: &str = "/usr/share/java/zookeeper.jar";
const HINT: &str = "`apt-get install libzookeeper-java default-jre-headless`, or `make deps`";
/// Persistent, open to all.
const PERSISTENT: CreateOptions<'static> = CreateMode::Persistent.with_acls(Acls::anyone_all());
/// Ephemeral, open to all.
const EPHEMERAL: CreateOptions<'static> = CreateMode::Ephemeral.with_acls(Acls::anyone_all());

/// How the servers are to be run.
#[derive(Debug, Clone)]
pub struct Options {
    /// Number of servers: 1 (standalone), 3, 5.
    pub servers: usize,
    /// `tickTime`: sessions are checked in its steps, and the shortest session time-out is twice this.
    pub tick: Duration,
    /// `syncLimit`, in ticks: members that hear nothing from each other for so long elect another leader.
    pub sync_limit: u32,
    /// Where the servers run, one each. Empty: all of them on loopback.
    pub hosts: Vec<Host>,
    /// `zookeeper.jar` of another version, with its libraries beside it; `None` = the one that is installed.
    pub jar: Option<PathBuf>,
    /// Further lines of the servers' configuration, `localSessionsEnabled=true` say.
    pub settings: Vec<String>,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            servers: 1,
            tick: Duration::from_millis(200),
            sync_limit: 50,
            hosts: Vec::new(),
            jar: None,
            settings: Vec::new(),
        }
    }
}

/// A running ensemble. Everything ends, and all data goes, when this is dropped.
#[derive(Debug)]
pub struct ZooKeeper {
    // Before `dir`: processes end before their folder goes.
    servers: Vec<Server>,
    classpath: String,
    dir: Dir,
}

#[derive(Debug)]
struct Server {
    port: u16,
    host: Option<Host>,
    config: std::path::PathBuf,
    process: Option<Process>,
}

impl ZooKeeper {
    /// A standalone server that serves.
    pub async fn start() -> Self {
        Self::start_with(Options::default()).await
    }

    /// A three-node ensemble that serves.
    pub async fn start_ensemble() -> Self {
        Self::start_with(Options {
            servers: 3,
            ..Options::default()
        })
        .await
    }

    /// An ensemble that serves.
    ///
    /// # Panics
    /// When java or the jar is missing (with an install hint), or a server does not come up.
    pub async fn start_with(options: Options) -> Self {
        let jar = options.jar.clone().unwrap_or_else(|| JAR.into());
        assert!(jar.exists(), "no `{}`\nhint: {HINT}", jar.display());
        let mut classpath = jar.display().to_string();
        if options.jar.is_some() {
            // The jar of 3.4 names no others in its manifest, that of 3.9 those below /usr/share/java. First come those
            // that have to be of the same version.
            for library in ["zookeeper-jute", "slf4j-api", "slf4j-simple", "log4j-1.2"] {
                let library = jar.with_file_name(format!("{library}.jar"));
                classpath = format!("{}:{classpath}", library.display());
            }
        }
        let dir = Dir::new();
        let peers: Vec<(u16, u16)> = (0..options.servers)
            .map(|_| (free_port(), free_port()))
            .collect();
        let servers = (0..options.servers)
            .map(|index| {
                let port = free_port();
                let config = configure(&dir, index, port, &peers, &options);
                Server {
                    port,
                    host: options.hosts.get(index).cloned(),
                    config,
                    process: None,
                }
            })
            .collect();
        let mut zookeeper = Self {
            servers,
            classpath,
            dir,
        };
        for index in 0..options.servers {
            zookeeper.launch(index);
        }
        zookeeper.ready().await;
        zookeeper
    }

    /// The connect string of all servers.
    #[must_use]
    pub fn hosts(&self) -> String {
        (0..self.servers.len())
            .map(|index| self.host(index))
            .collect::<Vec<_>>()
            .join(",")
    }

    /// `address:port` of one server.
    #[must_use]
    pub fn host(&self, index: usize) -> String {
        let server = &self.servers[index];
        format!("{}:{}", address(server.host.as_ref()), server.port)
    }

    /// The ensemble as the programs' configuration names it.
    #[must_use]
    pub fn ensemble(&self) -> Ensemble {
        let hosts: Vec<String> = (0..self.servers.len())
            .map(|index| self.host(index))
            .collect();
        Ensemble::new(&hosts).expect("address:port")
    }

    /// Kills one server (SIGKILL), as a crash would. Its data stays.
    pub fn stop(&mut self, index: usize) {
        self.servers[index].process = None;
    }

    /// Kills all servers.
    pub fn stop_all(&mut self) {
        (0..self.servers.len()).for_each(|index| self.stop(index));
    }

    /// Deletes all data of a stopped server: it starts empty.
    ///
    /// # Panics
    /// When it runs.
    pub fn erase(&self, index: usize) {
        assert!(
            self.servers[index].process.is_none(),
            "a server that runs keeps its data"
        );
        let data = self.dir.join(&format!("server{index}/version-2"));
        std::fs::remove_dir_all(&data).unwrap_or_else(|e| panic!("{}: {e}", data.display()));
    }

    /// Sets the counter that names sequential children of a path, on all servers, which are restarted for it.
    ///
    /// # Panics
    /// When there is no such path.
    pub async fn set_counter(&mut self, path: &str, value: i32) {
        // A server that starts makes a snapshot of all that it has.
        self.stop_all();
        self.start_all().await;
        self.stop_all();
        for index in 0..self.servers.len() {
            let folder = self.dir.join(&format!("server{index}/version-2"));
            super::counter::set_counter(&folder, path, value);
        }
        self.start_all().await;
    }

    /// Keeps a copy of all data of a stopped server, for [`Self::restore`].
    ///
    /// # Panics
    /// When it runs.
    pub fn backup(&self, index: usize) {
        self.copy_data(index, "version-2", "backup");
    }

    /// Replaces all data of a stopped server by what was kept.
    ///
    /// # Panics
    /// When it runs, or nothing was kept.
    pub fn restore(&self, index: usize) {
        self.erase(index);
        self.copy_data(index, "backup", "version-2");
    }

    fn copy_data(&self, index: usize, from: &str, to: &str) {
        assert!(
            self.servers[index].process.is_none(),
            "a server that runs writes its data"
        );
        let folder = |name: &str| self.dir.join(&format!("server{index}/{name}"));
        let (from, to) = (folder(from), folder(to));
        let files = std::fs::read_dir(&from).unwrap_or_else(|e| panic!("{}: {e}", from.display()));
        for file in files {
            let file = file.unwrap_or_else(|e| panic!("{}: {e}", from.display()));
            let data = std::fs::read(file.path()).unwrap_or_else(|e| panic!("{file:?}: {e}"));
            write(&to.join(file.file_name()), &data);
        }
    }

    /// The server that leads. (The others follow.)
    ///
    /// # Panics
    /// When none does within 60 s.
    pub async fn leader(&self) -> usize {
        eventually("a server leads", START_LIMIT, async || {
            for index in 0..self.servers.len() {
                let answer = four_letters(&self.host(index), "srvr", STARTING).await;
                if answer.is_ok_and(|text| text.contains("Mode: leader")) {
                    return Ok(index);
                }
            }
            Err("none")
        })
        .await
    }

    /// Starts one stopped server on its old data and ports; does not wait for it.
    pub fn launch(&mut self, index: usize) {
        let log = self.dir.join(&format!("server{index}.log"));
        let server = &mut self.servers[index];
        let mut command = inside(server.host.as_ref(), &find_program("java", HINT));
        command
            .args([
                "-Xmx128m",
                "-XX:+UseSerialGC",
                "-XX:TieredStopAtLevel=1",
                "-Xshare:auto",
            ])
            .args([
                "-Djava.net.preferIPv4Stack=true",
                "-Dzookeeper.forceSync=no",
            ])
            .args([
                "-cp",
                &self.classpath,
                "org.apache.zookeeper.server.quorum.QuorumPeerMain",
            ])
            .arg(&server.config);
        server.process = Some(Process::spawn("zookeeper", &mut command, &log, HINT));
    }

    /// Starts all stopped servers on their old data and ports, and waits until they serve.
    pub async fn start_all(&mut self) {
        for index in 0..self.servers.len() {
            if self.servers[index].process.is_none() {
                self.launch(index);
            }
        }
        self.ready().await;
    }

    /// Stops one server's clock (SIGSTOP): it keeps its connections and answers nothing.
    pub fn pause(&self, index: usize) {
        self.process(index).signal(Signal::SIGSTOP);
    }

    /// Lets it go on (SIGCONT).
    pub fn resume(&self, index: usize) {
        self.process(index).signal(Signal::SIGCONT);
    }

    /// Waits until every running server serves (has a mode, i.e. is standalone or in the quorum).
    pub async fn ready(&mut self) {
        for index in 0..self.servers.len() {
            let host = self.host(index);
            let Some(process) = &mut self.servers[index].process else {
                continue;
            };
            eventually(
                &format!("zookeeper {host} serves"),
                START_LIMIT,
                async || {
                    if let Some(status) = process.ended() {
                        panic!(
                            "zookeeper {host} ended with {status}\n{}\nhint: {HINT}",
                            process.log_tail()
                        );
                    }
                    let answer = four_letters(&host, "srvr", STARTING)
                        .await
                        .map_err(|e| e.to_string())?;
                    if answer.contains("Mode: ") {
                        Ok(())
                    } else {
                        Err(format!("srvr: {answer}"))
                    }
                },
            )
            .await;
        }
    }

    /// The answer of one server to a four-letter word: `mntr`, `wchs`, `wchc`, `wchp`, `cons`, `dump`, `srvr`, ...
    ///
    /// # Panics
    /// When it does not answer within 10 s.
    pub async fn four_letters(&self, index: usize, word: &str) -> String {
        let host = self.host(index);
        eventually(
            &format!("zookeeper {host} answers {word}"),
            Duration::from_secs(10),
            async || four_letters(&host, word, Duration::from_secs(5)).await,
        )
        .await
    }

    /// One number of `mntr`, e.g. `zk_packets_received`, `zk_ephemerals_count`. (Watches are counted by
    /// `wchs`: `zk_watch_count` counts a recursive one twice, seen on 3.8.)
    ///
    /// # Panics
    /// When the server has no such line.
    pub async fn mntr(&self, index: usize, key: &str) -> f64 {
        let text = self.four_letters(index, "mntr").await;
        let value = text
            .lines()
            .find_map(|line| line.split_once('\t').filter(|(k, _)| *k == key));
        value
            .and_then(|(_, v)| v.trim().parse().ok())
            .unwrap_or_else(|| panic!("no number `{key}` in mntr:\n{text}"))
    }

    /// The process of one server.
    ///
    /// # Panics
    /// When it is stopped.
    #[must_use]
    pub fn process(&self, index: usize) -> &Process {
        self.servers[index]
            .process
            .as_ref()
            .expect("the server is not stopped")
    }

    /// A plain client of all servers, with a session of its own (6 s).
    pub async fn connect(&self) -> Client {
        let hosts = self.hosts();
        eventually(
            "a plain zookeeper client connects",
            START_LIMIT,
            async || Client::connect(&hosts).await,
        )
        .await
    }

    /// Creates a persistent path and its parents; existing ones are fine.
    pub async fn make_path(client: &Client, path: &str) {
        client
            .mkdir(path, &PERSISTENT)
            .await
            .unwrap_or_else(|e| panic!("mkdir {path}: {e}"));
    }

    async fn make_parents(client: &Client, path: &str) {
        if let Some((parent, _)) = path
            .rsplit_once('/')
            .filter(|(parent, _)| !parent.is_empty())
        {
            Self::make_path(client, parent).await;
        }
    }

    /// Creates an ephemeral node of the client's session, and its parents.
    pub async fn make_ephemeral(client: &Client, path: &str, data: &[u8]) {
        Self::make_parents(client, path).await;
        client
            .create(path, data, &EPHEMERAL)
            .await
            .unwrap_or_else(|e| panic!("create {path}: {e}"));
    }

    /// The bare call that creates an empty ephemeral node: it was sent when this returns.
    pub fn create_ephemeral<'a>(
        client: &'a Client,
        path: &'a str,
    ) -> impl Future<Output = Result<(), Error>> + 'a {
        let created = client.create(path, b"", &EPHEMERAL);
        async { created.await.map(drop) }
    }

    /// Sets the data of a persistent node, creating it and its parents if need be. Nobody sees a new one without its data:
    /// an empty node is a rejected one, which those who watch would tell.
    pub async fn put(client: &Client, path: &str, data: &[u8]) {
        Self::make_parents(client, path).await;
        let put = match client.create(path, data, &PERSISTENT).await {
            Err(Error::NodeExists) => client.set_data(path, data, None).await.map(drop),
            created => created.map(drop),
        };
        put.unwrap_or_else(|e| panic!("put {path}: {e}"));
    }

    /// The sorted children; empty for an absent path.
    pub async fn list(client: &Client, path: &str) -> Vec<String> {
        match client.list_children(path).await {
            Ok(mut names) => {
                names.sort_unstable();
                names
            }
            Err(Error::NoNode) => Vec::new(),
            Err(error) => panic!("list {path}: {error}"),
        }
    }

    /// Removes a path with all below it; an absent one is fine.
    pub async fn wipe(client: &Client, path: &str) {
        for child in Self::list(client, path).await {
            Box::pin(Self::wipe(
                client,
                &format!("{}/{child}", path.trim_end_matches('/')),
            ))
            .await;
        }
        match client.delete(path, None).await {
            Ok(()) | Err(Error::NoNode) => {}
            Err(error) => panic!("delete {path}: {error}"),
        }
    }
}

fn configure(
    dir: &Dir,
    index: usize,
    port: u16,
    peers: &[(u16, u16)],
    options: &Options,
) -> std::path::PathBuf {
    let data = dir.join(&format!("server{index}"));
    write(&data.join("myid"), format!("{}\n", index + 1).as_bytes());
    let mut text = format!(
        "tickTime={}\ninitLimit=100\nsyncLimit={}\ndataDir={}\nclientPort={port}\nclientPortAddress={}\n\
         admin.enableServer=false\n4lw.commands.whitelist=*\nmaxClientCnxns=0\nmaxSessionTimeout=60000\n",
        options.tick.as_millis(),
        options.sync_limit,
        data.display(),
        address(options.hosts.get(index)),
    );
    for setting in &options.settings {
        text.push_str(&format!("{setting}\n"));
    }
    if peers.len() > 1 {
        for (peer, (quorum, election)) in peers.iter().enumerate() {
            text.push_str(&format!(
                "server.{}={}:{quorum}:{election}\n",
                peer + 1,
                address(options.hosts.get(peer)),
            ));
        }
    }
    dir.write(&format!("server{index}.cfg"), text)
}

fn address(host: Option<&Host>) -> Ipv4Addr {
    host.map_or(Ipv4Addr::LOCALHOST, |host| host.address)
}

async fn four_letters(host: &str, word: &str, limit: Duration) -> std::io::Result<String> {
    let exchange = async {
        let mut stream = TcpStream::connect(host).await?;
        stream.write_all(word.as_bytes()).await?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await?;
        Ok(answer)
    };
    tokio::time::timeout(limit, exchange).await?
}
