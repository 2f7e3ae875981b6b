//! Thousands of HTTP servers for the price of one: a listener on one port of all addresses. Linux answers on all of
//! 127.0.0.0/8, so each address of it is a server, and each answer's body is the address that was asked.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread::JoinHandle;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::sync::oneshot;
use tokio::task::JoinSet;

use super::free_port;

/// Longest head of a request that is read.
const HEAD: usize = 8 << 10;

/// The servers, in a thread of their own; they end when this is dropped.
#[derive(Debug)]
pub struct Stub {
    port: u16,
    checks: Arc<AtomicU64>,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Stub {
    /// Starts them, on a free port.
    ///
    /// # Panics
    /// When no thread or socket can be had.
    #[must_use]
    pub fn start() -> Self {
        let port = free_port();
        let checks = Arc::new(AtomicU64::new(0));
        let counter = Arc::clone(&checks);
        let (stop, stopped) = oneshot::channel();
        let (listening, ready) = std::sync::mpsc::channel();
        let serve = async move {
            let listener = listen(port).expect("the port is ours");
            listening.send(()).expect("the starter waits");
            let mut connections = JoinSet::new();
            let mut stopped = stopped;
            loop {
                // Cancel-safe: a receive that is only borrowed, a join of a set that keeps its tasks, an accept.
                tokio::select! {
                    _ = &mut stopped => return,
                    Some(_) = connections.join_next() => {}
                    accepted = listener.accept() => {
                        let Ok((stream, _)) = accepted else { continue };
                        connections.spawn(answer(stream, Arc::clone(&counter)));
                    }
                }
            }
        };
        let thread = std::thread::Builder::new()
            .name("stub".to_owned())
            .spawn(move || {
                tokio::runtime::Builder::new_current_thread()
                    .enable_io()
                    .build()
                    .expect("sockets can be made")
                    .block_on(serve);
            })
            .expect("a thread can be made");
        ready.recv().expect("the servers listen");
        Self {
            port,
            checks,
            stop: Some(stop),
            thread: Some(thread),
        }
    }

    /// The port of all of them.
    #[must_use]
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Where server number `index` is: 127.1.1.1 and up.
    ///
    /// # Panics
    /// Above 16 million.
    #[must_use]
    pub fn address(&self, index: u32) -> SocketAddr {
        SocketAddr::from((Self::ip(index), self.port))
    }

    /// The address alone: no `0` or `255` in the last two places, which some tools take for something else.
    ///
    /// # Panics
    /// As [`Stub::address`].
    #[must_use]
    pub fn ip(index: u32) -> Ipv4Addr {
        let [place, row] = [index % 254, index / 254 % 254].map(|n| n as u8 + 1);
        let block = u8::try_from(1 + index / (254 * 254)).expect("127.0.0.0/8 is not larger");
        Ipv4Addr::new(127, block, row, place)
    }

    /// Health checks (requests to `/health`) so far, of all servers.
    #[must_use]
    pub fn checks(&self) -> u64 {
        self.checks.load(Ordering::Relaxed)
    }
}

impl Drop for Stub {
    fn drop(&mut self) {
        // Err = it has ended already.
        let _ended = self.stop.take().map(|stop| stop.send(())).is_none();
        if let Some(thread) = self.thread.take() {
            let _panicked = thread.join().is_err();
        }
    }
}

/// A listener that takes the first checks of some thousand servers at once.
fn listen(port: u16) -> std::io::Result<TcpListener> {
    let socket = TcpSocket::new_v4()?;
    socket.set_reuseaddr(true)?;
    socket.bind(SocketAddr::from((Ipv4Addr::UNSPECIFIED, port)))?;
    socket.listen(4096)
}

/// Serves one connection until its client closes it; errors are the client's affair.
async fn answer(mut stream: TcpStream, checks: Arc<AtomicU64>) {
    let Ok(SocketAddr::V4(own)) = stream.local_addr() else {
        return;
    };
    let _delayed = stream.set_nodelay(true).is_err();
    let body = own.ip().to_string();
    let reply = format!(
        "HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    );
    let mut head = Vec::with_capacity(512);
    while head.len() < HEAD {
        match stream.read_buf(&mut head).await {
            Ok(0) | Err(_) => return,
            Ok(_) => {}
        }
        // Requests without a body only: the next one begins behind the blank line.
        while let Some(end) = head.windows(4).position(|w| w == b"\r\n\r\n") {
            let request: Vec<u8> = head.drain(..end + 4).collect();
            let line = request.split(|b| *b == b'\r').next().unwrap_or_default();
            if line.windows(8).any(|w| w == b" /health") {
                checks.fetch_add(1, Ordering::Relaxed);
            }
            let text = String::from_utf8_lossy(&request).to_ascii_lowercase();
            let last = line.ends_with(b"HTTP/1.0") || text.contains("\r\nconnection: close\r\n");
            if stream.write_all(reply.as_bytes()).await.is_err() || last {
                return;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::admin::Bind;
    use crate::testing::get;

    #[tokio::test]
    async fn each_address_answers_with_itself_and_checks_are_counted() {
        let stub = Stub::start();
        for index in [0, 1, 253, 254, 64_515, 64_516, 200_000] {
            let address = stub.address(index);
            let bind = Bind::Tcp(address.to_string());
            let reply = get(&bind, "/").await.expect("it answers");
            assert_eq!((reply.status, reply.body), (200, address.ip().to_string()));
        }
        assert_eq!(stub.checks(), 0);
        let reply = get(&Bind::Tcp(stub.address(7).to_string()), "/health").await;
        assert_eq!(reply.expect("it answers").status, 200);
        assert_eq!(stub.checks(), 1);
        let some: std::collections::BTreeSet<_> = (0..70_000).map(Stub::ip).collect();
        assert_eq!(some.len(), 70_000);
    }
}
