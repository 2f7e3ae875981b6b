//! A TCP proxy that can do to a connection what networks do: pass, hold, refuse, cut, delay, drip.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::os::fd::AsRawFd;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use nix::sys::socket::{Shutdown, shutdown};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::{JoinHandle, JoinSet};

use super::operations::Operations;
use super::session::Reading;
use super::{SessionKey, eventually, free_port};

/// What the proxy does with connections, old and new.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// Hands everything on.
    Pass,
    /// Accepts and keeps connections, and holds their bytes, which go on when the mode changes.
    Blackhole,
    /// Nobody listens; open connections are reset.
    Refuse,
    /// Hands everything on, each chunk of either direction this much later.
    Delay(Duration),
    /// Hands everything on in pieces of [`DROP`] bytes, each this much later.
    Drip(Duration),
}

/// Bytes of one piece in [`Mode::Drip`]: fewer than any frame of ZooKeeper has.
const DROP: usize = 8;

/// How open connections end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cut {
    /// RST on both sides.
    Reset,
    /// FIN on both sides.
    Close,
    /// RST as soon as this many more bytes went from the server to the client: in the middle of a frame, if chosen so.
    After(u64),
}

/// What every connection obeys: the mode, and how often and how connections were cut.
#[derive(Debug, Clone, Copy)]
struct Order {
    mode: Mode,
    cuts: u64,
    cut: Cut,
}

/// A running proxy; ends, with all its connections, when dropped.
#[derive(Debug)]
pub struct TcpProxy {
    address: SocketAddr,
    order: watch::Sender<Order>,
    counts: Arc<Counts>,
    task: JoinHandle<()>,
}

#[derive(Debug, Default)]
struct Counts {
    accepted: AtomicU64,
    open: AtomicU64,
    to_server: AtomicU64,
    to_client: AtomicU64,
    operations: Mutex<BTreeMap<&'static str, u64>>,
    sessions: Mutex<Vec<SessionKey>>,
}

impl TcpProxy {
    /// A passing proxy on a free loopback port in front of `target` (`host:port`).
    pub async fn start(target: &str) -> Self {
        let address = SocketAddr::from(([127, 0, 0, 1], free_port()));
        let listener = TcpListener::bind(address)
            .await
            .expect("the port was just found free");
        let (order, orders) = watch::channel(Order {
            mode: Mode::Pass,
            cuts: 0,
            cut: Cut::Reset,
        });
        let counts = Arc::new(Counts::default());
        let task = tokio::spawn(serve(
            listener,
            address,
            target.to_owned(),
            orders,
            Arc::clone(&counts),
        ));
        Self {
            address,
            order,
            counts,
            task,
        }
    }

    /// Where it listens, `127.0.0.1:port`.
    #[must_use]
    pub fn host(&self) -> String {
        self.address.to_string()
    }

    /// Changes the mode; on return a listener is there, or gone, as the mode says.
    pub async fn set(&self, mode: Mode) {
        self.order.send_modify(|order| {
            order.mode = mode;
            if mode == Mode::Refuse {
                order.cuts += 1;
                order.cut = Cut::Reset;
            }
        });
        let wanted = mode != Mode::Refuse;
        // Asked of the kernel's table, not by connecting: a connection would count, and reach the server.
        eventually(
            "the proxy's listener follows its mode",
            Duration::from_secs(10),
            async || {
                if is_listening(self.address.port()) == wanted {
                    Ok(())
                } else {
                    Err("not yet")
                }
            },
        )
        .await;
    }

    /// Ends all open connections; new ones are accepted as the mode says. Returns when all are gone, except with
    /// [`Cut::After`].
    pub async fn cut(&self, cut: Cut) {
        let before = self.accepted() - self.open();
        let open = self.open();
        self.order.send_modify(|order| {
            order.cuts += 1;
            order.cut = cut;
        });
        if !matches!(cut, Cut::After(_)) {
            eventually(
                "the proxy's connections end",
                Duration::from_secs(10),
                async || {
                    if self.accepted() - self.open() >= before + open {
                        Ok(())
                    } else {
                        Err("some open")
                    }
                },
            )
            .await;
        }
    }

    /// Connections accepted so far.
    #[must_use]
    pub fn accepted(&self) -> u64 {
        self.counts.accepted.load(Ordering::Acquire)
    }

    /// Connections open now.
    #[must_use]
    pub fn open(&self) -> u64 {
        self.counts.open.load(Ordering::Acquire)
    }

    /// Bytes handed to the server so far.
    #[must_use]
    pub fn bytes_to_server(&self) -> u64 {
        self.counts.to_server.load(Ordering::Acquire)
    }

    /// Bytes handed to clients so far.
    #[must_use]
    pub fn bytes_to_client(&self) -> u64 {
        self.counts.to_client.load(Ordering::Acquire)
    }

    /// Requests handed to the server so far, by operation: `connect`, `sync`, `getData`, `multiRead`, `ping`, ... Only
    /// for a proxy in front of ZooKeeper.
    #[must_use]
    pub fn operations(&self) -> BTreeMap<&'static str, u64> {
        self.counts
            .operations
            .lock()
            .expect("nothing panics under it")
            .clone()
    }

    /// The sessions that servers gave to clients through this proxy, the last one last. Only for a proxy in front of
    /// ZooKeeper.
    #[must_use]
    pub fn sessions(&self) -> Vec<SessionKey> {
        self.counts
            .sessions
            .lock()
            .expect("nothing panics under it")
            .clone()
    }
}

impl Drop for TcpProxy {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn serve(
    listener: TcpListener,
    address: SocketAddr,
    target: String,
    mut orders: watch::Receiver<Order>,
    counts: Arc<Counts>,
) {
    let mut listener = Some(listener);
    let mut connections = JoinSet::new();
    loop {
        let refuse = orders.borrow_and_update().mode == Mode::Refuse;
        match (&listener, refuse) {
            (Some(_), true) => listener = None,
            (None, false) => {
                listener = Some(
                    TcpListener::bind(address)
                        .await
                        .expect("the port is held by a lock"),
                )
            }
            _ => {}
        }
        let accept = async {
            match &listener {
                Some(listener) => listener.accept().await,
                None => std::future::pending().await,
            }
        };
        // A watch receive, an accept and a join: all cancel-safe.
        tokio::select! {
            changed = orders.changed() => if changed.is_err() { return },
            Some(_) = connections.join_next() => {}
            accepted = accept => if let Ok((client, _)) = accepted {
                counts.accepted.fetch_add(1, Ordering::AcqRel);
                counts.open.fetch_add(1, Ordering::AcqRel);
                connections.spawn(connection(client, target.clone(), orders.clone(), Arc::clone(&counts)));
            },
        }
    }
}

/// One connection from accept to end; `counts.open` falls when both sockets are closed.
async fn connection(
    client: TcpStream,
    target: String,
    orders: watch::Receiver<Order>,
    counts: Arc<Counts>,
) {
    let born = orders.borrow().cuts;
    if let Ok(server) = TcpStream::connect(&target).await {
        relay(client, server, born, &orders, &counts).await;
    }
    counts.open.fetch_sub(1, Ordering::AcqRel);
}

async fn relay(
    client: TcpStream,
    server: TcpStream,
    born: u64,
    orders: &watch::Receiver<Order>,
    counts: &Counts,
) {
    for socket in [&client, &server] {
        // Best effort: a socket that is already closed has no options.
        let _delayed = socket.set_nodelay(true).is_err();
    }
    let mut operations = Operations::default();
    let up = pump(&client, &server, orders.clone(), None, |bytes| {
        counts
            .to_server
            .fetch_add(bytes.len() as u64, Ordering::AcqRel);
        let mut known = counts.operations.lock().expect("nothing panics under it");
        operations.read(bytes, |name| *known.entry(name).or_default() += 1);
    });
    let mut answer = Reading::default();
    let down = pump(&server, &client, orders.clone(), Some(born), |bytes| {
        counts
            .to_client
            .fetch_add(bytes.len() as u64, Ordering::AcqRel);
        if let Some(session) = answer.read(bytes) {
            let mut known = counts.sessions.lock().expect("nothing panics under it");
            known.push(session);
        }
    });
    let mut watched = orders.clone();
    let cut = watched.wait_for(|order| order.cuts > born && !matches!(order.cut, Cut::After(_)));
    // Nothing is awaited again after this: the connection ends with the first of them.
    let reset = tokio::select! {
        order = cut => order.is_ok_and(|order| order.cut == Cut::Reset),
        ended = async { tokio::try_join!(up, down) } => ended.is_err(),
    };
    if reset {
        for socket in [&client, &server] {
            let _closed = socket.set_zero_linger().is_err();
        }
    }
}

/// The connection broke, or is to break.
struct Broken;

/// Copies one direction until its end, which it hands on. `born` is given for the direction to the client: the cuts
/// that this connection is younger than.
async fn pump(
    from: &TcpStream,
    to: &TcpStream,
    mut orders: watch::Receiver<Order>,
    born: Option<u64>,
    mut tell: impl FnMut(&[u8]),
) -> Result<(), Broken> {
    let mut buffer = vec![0; 64 * 1024];
    let mut allowed = None;
    let mut seen = born;
    loop {
        let size = read(from, &mut buffer).await?;
        let mut bytes = &buffer[..size];
        let order = *orders
            .wait_for(|order| order.mode != Mode::Blackhole)
            .await
            .map_err(|_| Broken)?;
        if let Mode::Delay(delay) = order.mode {
            tokio::time::sleep(delay).await;
        }
        if let (Cut::After(limit), Some(cuts)) = (order.cut, seen)
            && order.cuts > cuts
        {
            (allowed, seen) = (Some(limit), Some(order.cuts));
        }
        if let Some(allowed) = &mut allowed {
            bytes = &bytes[..size.min(usize::try_from(*allowed).unwrap_or(usize::MAX))];
            *allowed -= bytes.len() as u64;
        }
        if size == 0 {
            return shutdown(to.as_raw_fd(), Shutdown::Write).map_err(|_| Broken);
        }
        tell(bytes);
        if let Mode::Drip(pause) = order.mode {
            for piece in bytes.chunks(DROP) {
                tokio::time::sleep(pause).await;
                write(to, piece).await?;
            }
        } else {
            write(to, bytes).await?;
        }
        if allowed == Some(0) {
            return Err(Broken);
        }
    }
}

async fn read(from: &TcpStream, buffer: &mut [u8]) -> Result<usize, Broken> {
    loop {
        from.readable().await.map_err(|_| Broken)?;
        match from.try_read(buffer) {
            Ok(size) => return Ok(size),
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {}
            Err(_) => return Err(Broken),
        }
    }
}

async fn write(to: &TcpStream, mut bytes: &[u8]) -> Result<(), Broken> {
    while !bytes.is_empty() {
        to.writable().await.map_err(|_| Broken)?;
        match to.try_write(bytes) {
            Ok(size) => bytes = &bytes[size..],
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {}
            Err(_) => return Err(Broken),
        }
    }
    Ok(())
}

/// Whether a socket listens on the port (`/proc/net/tcp`: state `0A`).
fn is_listening(port: u16) -> bool {
    let table = std::fs::read_to_string("/proc/net/tcp").unwrap_or_default();
    let end = format!(":{port:04X}");
    table.lines().skip(1).any(|line| {
        let mut fields = line.split_ascii_whitespace().skip(1);
        fields.next().is_some_and(|local| local.ends_with(&end)) && fields.nth(1) == Some("0A")
    })
}
