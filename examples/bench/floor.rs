//! The least that could be done: a bare recursive watcher, one get, raw commands on the stats socket of a second haproxy
//! that runs a copy of synapse's file. It keeps no state, renders nothing, verifies nothing.

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::SocketAddr;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use smartstack_common::instance::Instance;
use smartstack_common::testing::{Dir, Haproxy, ZooKeeper};
use tokio::sync::{mpsc, oneshot};
use zookeeper_client::{AddWatchMode, Client, EventType, SessionId};

use crate::site::{LIMIT, WEIGHT, create, frontend, service_name};

/// Server indexes of the floor: far from those of the site.
const FIRST: u32 = 1_000_000;
/// haproxy cuts an idle session after 60 s.
const IDLE: Duration = Duration::from_secs(20);

/// A server of the floor.
#[derive(Debug, Clone)]
pub(crate) struct Added {
    pub(crate) node: String,
    pub(crate) address: SocketAddr,
}

/// The watcher's thread, its haproxy, and the client that makes changes for it.
pub(crate) struct Floor {
    _haproxy: Haproxy,
    client: Client,
    /// Of its client and its watcher.
    pub(crate) sessions: [SessionId; 2],
    replies: mpsc::UnboundedReceiver<Instant>,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
    next: u32,
    stub_port: u16,
    port: u16,
    /// One stands for all: the cost of a change depends on the size of its backend.
    service: u32,
}

impl Floor {
    /// What it watches, and nothing else does.
    pub(crate) const PARENT: &'static str = "/floor/services";

    /// Starts a haproxy on a copy of synapse's file, and the watcher.
    pub(crate) async fn start(dir: &Dir, zookeeper: &ZooKeeper, port: u16, stub_port: u16) -> Self {
        let text = std::fs::read_to_string(dir.join("main/haproxy.cfg")).expect("synapse wrote it");
        let own = |name: &str| dir.join(name).display().to_string();
        let text = text
            .replace(&own("main"), &own("floor"))
            .replace("bind 127.200.", "bind 127.201.")
            .lines()
            .filter(|line| !line.trim_start().starts_with("maxconn "))
            .collect::<Vec<_>>()
            .join("\n")
            // All servers are in this file from the start: room enough with fewer descriptors.
            .replacen("global\n", "global\n\tmaxconn 4096\n", 1)
            + "\n";
        let config = dir.write("floor/haproxy.cfg", text);
        let stats = dir.join("floor/stats.sock");
        let haproxy = Haproxy::start(&config, &stats).await;
        let client = Client::connector()
            .with_session_timeout(Duration::from_secs(60))
            .connect(&zookeeper.hosts())
            .await
            .expect("ZooKeeper serves");
        let (replied, replies) = mpsc::unbounded_channel();
        let (stop, stopped) = oneshot::channel();
        let (watching, ready) = oneshot::channel();
        let hosts = zookeeper.hosts();
        let follow = async move {
            let client = Client::connect(&hosts).await.expect("ZooKeeper serves");
            let actor = Actor::new(&stats, client, replied);
            // Cancel-safe: all of it is dropped.
            tokio::select! {
                _ = stopped => {}
                () = actor.follow(watching) => {}
            }
        };
        let thread = std::thread::Builder::new()
            .name("floor".to_owned())
            .spawn(move || {
                tokio::runtime::Builder::new_current_thread()
                    .enable_all()
                    .build()
                    .expect("sockets can be made")
                    .block_on(follow);
            })
            .expect("a thread can be made");
        let watcher = ready.await.expect("the floor watches");
        Self {
            _haproxy: haproxy,
            sessions: [client.session_id(), watcher],
            client,
            replies,
            stop: Some(stop),
            thread: Some(thread),
            next: FIRST,
            stub_port,
            port,
            service: 0,
        }
    }

    /// Where its haproxy answers.
    pub(crate) fn frontend(&self) -> SocketAddr {
        frontend(201, self.service, self.port)
    }

    /// The address of the server that [`Floor::add`] registers next.
    pub(crate) fn upcoming(&self) -> SocketAddr {
        (
            smartstack_common::testing::Stub::ip(self.next),
            self.stub_port,
        )
            .into()
    }

    /// Registers another server; when the create was sent.
    pub(crate) async fn add(&mut self) -> (Instant, Added) {
        let (index, address) = (self.next, self.upcoming());
        self.next += 1;
        let path = format!("{}/i-{index:08x}_", Self::PARENT);
        let began = Instant::now();
        let node = create(&self.client, &path, index, address, Some(WEIGHT)).await;
        (began, Added { node, address })
    }

    /// Deletes it; when that was sent.
    pub(crate) async fn remove(&mut self, added: &Added) -> Instant {
        let began = Instant::now();
        let deleted = self.client.delete(&added.node, None).await;
        deleted.unwrap_or_else(|e| panic!("delete {}: {e}", added.node));
        began
    }

    /// When haproxy had replied to the commands of the last change.
    pub(crate) async fn replied(&mut self) -> Instant {
        let reply = tokio::time::timeout(LIMIT, self.replies.recv()).await;
        reply.expect("the floor is quick").expect("the floor runs")
    }
}

impl Drop for Floor {
    fn drop(&mut self) {
        // Err = it has ended already.
        let _ended = self.stop.take().map(|stop| stop.send(())).is_none();
        if let Some(thread) = self.thread.take() {
            let _panicked = thread.join().is_err();
        }
    }
}

/// What follows the events.
struct Actor {
    session: Session,
    client: Client,
    replied: mpsc::UnboundedSender<Instant>,
    names: BTreeMap<String, String>,
    retired: Vec<String>,
    id: u32,
}

impl Actor {
    fn new(stats: &Path, client: Client, replied: mpsc::UnboundedSender<Instant>) -> Self {
        Self {
            session: Session::new(stats),
            client,
            replied,
            names: BTreeMap::new(),
            retired: Vec::new(),
            id: 1_000_000,
        }
    }

    async fn follow(mut self, watching: oneshot::Sender<SessionId>) {
        let watch = self
            .client
            .watch(Floor::PARENT, AddWatchMode::PersistentRecursive)
            .await;
        let mut watch = watch.expect("the path is there");
        watching
            .send(self.client.session_id())
            .expect("the starter waits");
        let backend = service_name(0);
        loop {
            let event = watch.changed().await;
            match event.event_type {
                EventType::NodeCreated if event.path != Floor::PARENT => {
                    // Err = deleted meanwhile.
                    let Ok((data, _)) = self.client.get_data(&event.path).await else {
                        continue;
                    };
                    let instance = Instance::parse(&data).expect("ours");
                    self.id += 1;
                    let (host, port, id) = (&instance.host, instance.port, self.id);
                    let name = format!("{backend}/f{id}");
                    self.session.command(&format!(
                        "add server {name} {host}:{port} id {id} weight {WEIGHT}; set server {name} state ready"
                    ), "New server registered.");
                    self.tell();
                    self.names.insert(event.path, name);
                }
                EventType::NodeDeleted => {
                    let Some(name) = self.names.remove(&event.path) else {
                        continue;
                    };
                    self.session
                        .command(&format!("set server {name} state maint"), "");
                    self.tell();
                    self.retired.push(name);
                }
                _ => {}
            }
            // Behind the answer, and a change later: nobody uses them any more.
            let keep = self.retired.len().saturating_sub(1);
            for name in self.retired.drain(..keep).collect::<Vec<_>>() {
                self.session
                    .command(&format!("del server {name}"), "Server deleted.");
            }
        }
    }

    fn tell(&self) {
        self.replied
            .send(Instant::now())
            .expect("the bench listens");
    }
}

/// A session on the stats socket, kept open by `prompt`. Blocking: whoever measures has a thread for it.
pub(crate) struct Session {
    path: PathBuf,
    stream: UnixStream,
    used: Instant,
    text: Vec<u8>,
}

impl Session {
    pub(crate) fn new(path: &Path) -> Self {
        let mut session = Self {
            path: path.to_owned(),
            stream: connect(path),
            used: Instant::now(),
            text: Vec::new(),
        };
        session.exchange("prompt", 1);
        session
    }

    /// The reply to the commands of one line. It contains `wanted`.
    pub(crate) fn command(&mut self, line: &str, wanted: &str) -> String {
        if self.used.elapsed() > IDLE {
            *self = Self::new(&self.path);
        }
        let reply = self.exchange(line, line.split(';').count());
        assert!(reply.contains(wanted), "haproxy, {line:?}: {reply}");
        reply
    }

    fn exchange(&mut self, line: &str, replies: usize) -> String {
        let sent = self.stream.write_all(format!("{line}\n").as_bytes());
        sent.unwrap_or_else(|e| panic!("haproxy, {line:?}: {e}"));
        self.text.clear();
        let mut chunk = [0; 16 << 10];
        // Each command's reply ends in a prompt.
        while self.text.windows(3).filter(|w| w == b"\n> ").count() < replies {
            let read = self.stream.read(&mut chunk);
            let read = read.unwrap_or_else(|e| panic!("haproxy, {line:?}: {e}"));
            assert!(
                read > 0,
                "haproxy, {line:?}: closed after {:?}",
                String::from_utf8_lossy(&self.text)
            );
            self.text.extend_from_slice(&chunk[..read]);
        }
        self.used = Instant::now();
        String::from_utf8_lossy(&self.text).into_owned()
    }
}

fn connect(path: &Path) -> UnixStream {
    let stream = UnixStream::connect(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    let limited = stream.set_read_timeout(Some(LIMIT));
    limited.expect("a time limit can be set");
    stream
}
