//! A TCP proxy that can do to a connection what networks do: pass, hold, refuse, cut, delay.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::{JoinHandle, JoinSet};

use super::{eventually, free_port};

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
}

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
    let (client_in, client_out) = client.into_split();
    let (server_in, server_out) = server.into_split();
    let reset = {
        let mut up = std::pin::pin!(pump(
            &client_in,
            &server_out,
            orders.clone(),
            &counts.to_server,
            None
        ));
        let mut down = std::pin::pin!(pump(
            &server_in,
            &client_out,
            orders.clone(),
            &counts.to_client,
            Some(born)
        ));
        let mut watched = orders.clone();
        let cut = watched.wait_for(|o| o.cuts > born && !matches!(o.cut, Cut::After(_)));
        // Nothing is awaited again after this: the connection ends with the first of them.
        tokio::select! {
            order = cut => order.is_ok_and(|order| order.cut == Cut::Reset),
            reset = &mut up => reset,
            reset = &mut down => reset,
        }
    };
    let halves = [client_in.reunite(client_out), server_in.reunite(server_out)];
    for socket in halves.into_iter().flatten() {
        if reset {
            let _closed = socket.set_zero_linger().is_err();
        }
    }
}

/// Copies one direction until either side ends. Tells whether the connection is to be reset.
///
/// `born` is given for the direction to the client: the cuts this connection has outlived.
async fn pump(
    from: &OwnedReadHalf,
    to: &OwnedWriteHalf,
    mut orders: watch::Receiver<Order>,
    count: &AtomicU64,
    born: Option<u64>,
) -> bool {
    let mut buffer = vec![0; 64 * 1024];
    let (mut allowed, mut seen) = (u64::MAX, born);
    loop {
        if from.readable().await.is_err() {
            return true;
        }
        let size = match from.try_read(&mut buffer) {
            Ok(0) => return false,
            Ok(size) => size,
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => continue,
            Err(_) => return true,
        };
        let mut written = 0;
        while written < size {
            let Ok(order) = orders
                .wait_for(|o| o.mode != Mode::Blackhole)
                .await
                .map(|order| *order)
            else {
                return false;
            };
            if let (Cut::After(bytes), Some(cuts)) = (order.cut, seen)
                && order.cuts > cuts
            {
                (allowed, seen) = (bytes, Some(order.cuts));
            }
            if let Mode::Delay(delay) = order.mode {
                tokio::time::sleep(delay).await;
            }
            let end = size.min(written + usize::try_from(allowed).unwrap_or(usize::MAX).min(size));
            if write(to, &buffer[written..end]).await.is_err() {
                return true;
            }
            let handed = (end - written) as u64;
            count.fetch_add(handed, Ordering::AcqRel);
            allowed = allowed.saturating_sub(if allowed == u64::MAX { 0 } else { handed });
            written = end;
            if allowed == 0 {
                return true;
            }
        }
    }
}

async fn write(to: &OwnedWriteHalf, mut bytes: &[u8]) -> std::io::Result<()> {
    while !bytes.is_empty() {
        to.writable().await?;
        match to.try_write(bytes) {
            Ok(size) => bytes = &bytes[size..],
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {}
            Err(error) => return Err(error),
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
