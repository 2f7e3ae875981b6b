//! Clients in threads of their own, for loads and times that must not wait for a test's own tasks. They send at a given
//! rate, never retry, and keep when and how each failed request failed.

#![expect(
    clippy::disallowed_methods,
    reason = "threads of their own, beside any runtime and in real time"
)]

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// Time limit of one request: whatever takes longer has failed.
const LIMIT: Duration = Duration::from_secs(10);

/// How a client uses its connections.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Style {
    /// One connection for all requests. One that the server has closed between two requests is replaced before the next
    /// is sent: that is no retry.
    KeepAlive,
    /// A connection for each request.
    PerRequest,
}

/// A request without a 200.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failure {
    /// Of which kind of client.
    pub style: Style,
    /// When it began (to connect, or to send on a kept connection).
    pub began: Instant,
    /// When its connection was established; `None` = it was not.
    pub connected: Option<Instant>,
    /// When it had failed.
    pub ended: Instant,
    /// `status 503`, `refused`, `reset`, `closed`, `timeout`, or another error's text.
    pub kind: String,
}

/// Running clients; they stop when this is dropped.
#[derive(Debug)]
pub struct Traffic {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
}

#[derive(Debug, Default)]
struct Shared {
    stop: AtomicBool,
    answered: AtomicU64,
    failures: Mutex<Vec<Failure>>,
}

impl Traffic {
    /// Starts `clients` threads that send `rate` requests per second together.
    ///
    /// # Panics
    /// When no thread can be had.
    #[must_use]
    pub fn start(target: SocketAddr, style: Style, clients: u32, rate: f64) -> Self {
        let shared = Arc::new(Shared::default());
        let pause = Duration::from_secs_f64(f64::from(clients) / rate);
        let threads = (0..clients)
            .map(|number| {
                let shared = Arc::clone(&shared);
                let offset = pause * number / clients;
                std::thread::Builder::new()
                    .name(format!("client{number}"))
                    .spawn(move || send(target, style, pause, offset, &shared))
                    .expect("a thread can be made")
            })
            .collect();
        Self { shared, threads }
    }

    /// Requests answered with 200 so far.
    #[must_use]
    pub fn answered(&self) -> u64 {
        self.shared.answered.load(Ordering::Acquire)
    }

    /// All that failed so far.
    ///
    /// # Panics
    /// When a client has panicked.
    #[must_use]
    pub fn failures(&self) -> Vec<Failure> {
        self.shared
            .failures
            .lock()
            .expect("nothing panics under it")
            .clone()
    }

    /// Stops all clients, each after the request it has in flight, and returns the same two.
    ///
    /// # Panics
    /// When a client has panicked.
    #[must_use]
    pub fn stop(mut self) -> (u64, Vec<Failure>) {
        self.shared.stop.store(true, Ordering::Release);
        for thread in self.threads.drain(..) {
            thread.join().expect("a client does not panic");
        }
        (self.answered(), self.failures())
    }
}

impl Drop for Traffic {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Release);
    }
}

fn send(target: SocketAddr, style: Style, pause: Duration, offset: Duration, shared: &Shared) {
    let mut kept = None;
    let mut next = Instant::now() + offset;
    while !shared.stop.load(Ordering::Acquire) {
        let now = Instant::now();
        if now < next {
            std::thread::sleep(next - now);
        }
        // After a stall the rate goes on: it does not catch up.
        next = next.max(now) + pause;
        let began = Instant::now();
        match exchange(target, style, &mut kept) {
            Ok(_) => {
                shared.answered.fetch_add(1, Ordering::AcqRel);
            }
            Err(Broken { connected, kind }) => {
                kept = None;
                let ended = Instant::now();
                let failure = Failure {
                    style,
                    began,
                    connected,
                    ended,
                    kind,
                };
                shared
                    .failures
                    .lock()
                    .expect("nothing panics under it")
                    .push(failure);
            }
        }
    }
}

/// One GET of `/` on a connection of its own: the body of a 200, or how it failed.
///
/// # Errors
/// As [`Failure::kind`].
pub fn ask_once(target: SocketAddr) -> Result<String, String> {
    exchange(target, Style::PerRequest, &mut None).map_err(|broken| broken.kind)
}

/// A connection and when it was established.
type Kept = (TcpStream, Instant);

/// How an exchange failed.
struct Broken {
    connected: Option<Instant>,
    kind: String,
}

fn exchange(target: SocketAddr, style: Style, kept: &mut Option<Kept>) -> Result<String, Broken> {
    let reused = kept.take().filter(|(stream, _)| is_open(stream));
    let (stream, connected) = match reused {
        Some(reused) => reused,
        None => match connect(target) {
            Ok(stream) => (stream, Instant::now()),
            Err(error) => {
                return Err(Broken {
                    connected: None,
                    kind: kind(&error),
                });
            }
        },
    };
    let (body, stream) = request(target, style, stream).map_err(|kind| Broken {
        connected: Some(connected),
        kind,
    })?;
    *kept = stream.map(|stream| (stream, connected));
    Ok(body)
}

/// The body, and the connection if it can be used again.
fn request(
    target: SocketAddr,
    style: Style,
    mut stream: TcpStream,
) -> Result<(String, Option<TcpStream>), String> {
    let close = match style {
        Style::KeepAlive => "",
        Style::PerRequest => "Connection: close\r\n",
    };
    let request = format!("GET / HTTP/1.1\r\nHost: {target}\r\n{close}\r\n");
    stream.write_all(request.as_bytes()).map_err(|e| kind(&e))?;
    let mut reply = Vec::with_capacity(512);
    let (status, body, last) = read_reply(&mut stream, &mut reply)?;
    if style == Style::PerRequest {
        // The server closes first: its side keeps the closed connection in mind, and no local port is used up here.
        drain(&mut stream);
    }
    if status == 200 {
        Ok((body, (style == Style::KeepAlive && !last).then_some(stream)))
    } else {
        Err(format!("status {status}"))
    }
}

fn connect(target: SocketAddr) -> io::Result<TcpStream> {
    let stream = TcpStream::connect_timeout(&target, LIMIT)?;
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(LIMIT))?;
    stream.set_write_timeout(Some(LIMIT))?;
    Ok(stream)
}

/// Whether the server has not closed it. Nothing can be readable between two requests.
fn is_open(stream: &TcpStream) -> bool {
    let peeked = stream
        .set_nonblocking(true)
        .and_then(|()| stream.peek(&mut [0]));
    let open = matches!(peeked, Err(error) if error.kind() == io::ErrorKind::WouldBlock);
    open && stream.set_nonblocking(false).is_ok()
}

fn drain(stream: &mut TcpStream) {
    let mut rest = [0; 64];
    while matches!(stream.read(&mut rest), Ok(n) if n > 0) {}
}

/// Status, body, and whether the server will close the connection.
fn read_reply(stream: &mut TcpStream, reply: &mut Vec<u8>) -> Result<(u16, String, bool), String> {
    let mut chunk = [0; 2048];
    loop {
        if let Some(end) = reply.windows(4).position(|w| w == b"\r\n\r\n") {
            let head = String::from_utf8_lossy(&reply[..end]).to_ascii_lowercase();
            let status = head.get(9..12).and_then(|digits| digits.parse().ok());
            let status = status.ok_or_else(|| format!("not HTTP: {head:.40}"))?;
            let header = |name: &str| {
                head.lines()
                    .find_map(|line| line.strip_prefix(name))
                    .map(str::trim)
            };
            let last = header("connection:") == Some("close");
            let length: Option<usize> = header("content-length:").and_then(|n| n.parse().ok());
            let body = &reply[end + 4..];
            // Without a length (haproxy's own answers) the end of the connection is the end of the body: the status says
            // all that matters.
            if length.is_none_or(|length| body.len() >= length) {
                let last = last || length.is_none();
                return Ok((status, String::from_utf8_lossy(body).into_owned(), last));
            }
        }
        match stream.read(&mut chunk) {
            Ok(0) => return Err("closed".to_owned()),
            Ok(n) => reply.extend_from_slice(&chunk[..n]),
            Err(error) => return Err(kind(&error)),
        }
    }
}

/// A short name for what went wrong.
fn kind(error: &io::Error) -> String {
    match error.kind() {
        io::ErrorKind::ConnectionRefused => "refused".to_owned(),
        io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe => "reset".to_owned(),
        io::ErrorKind::UnexpectedEof => "closed".to_owned(),
        io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => "timeout".to_owned(),
        _ => error.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{App, Behaviour, Stub, eventually};

    async fn failing(behaviour: Behaviour) -> Vec<Failure> {
        let app = App::start("a").await;
        app.set(behaviour);
        let traffic = Traffic::start(app.address, Style::KeepAlive, 2, 200.0);
        eventually("two have failed", LIMIT, async || {
            match traffic.failures() {
                failures if failures.len() >= 2 => Ok(failures),
                failures => Err(format!("{failures:?}")),
            }
        })
        .await
    }

    #[tokio::test]
    async fn both_styles_are_answered_and_only_one_keeps_its_connection() {
        let app = App::start("a").await;
        for (style, connections) in [(Style::KeepAlive, 2..=2), (Style::PerRequest, 100..=1000)] {
            let before = app.state.connections();
            let traffic = Traffic::start(app.address, style, 2, 1000.0);
            eventually("100 are answered", LIMIT, async || {
                match traffic.answered() {
                    100.. => Ok(()),
                    n => Err(n),
                }
            })
            .await;
            let (answered, failures) = tokio::task::spawn_blocking(|| traffic.stop())
                .await
                .expect("it stops");
            assert!(answered >= 100 && failures.is_empty(), "{failures:?}");
            let made = app.state.connections() - before;
            assert!(connections.contains(&made), "{style:?}: {made} connections");
        }
    }

    #[tokio::test]
    async fn each_failure_is_kept_with_its_kind_and_times() {
        let failures = failing(Behaviour::Close).await;
        assert!(
            failures.iter().all(|f| f.kind == "closed"
                && f.connected.is_some_and(|at| f.began <= at && at <= f.ended)),
            "{failures:?}"
        );
        let stub = Stub::start();
        let target = stub.address(5);
        assert_eq!(ask_once(target), Ok("127.1.1.6".to_owned()));
        drop(stub);
        assert_eq!(ask_once(target), Err("refused".to_owned()));
        let traffic = Traffic::start(target, Style::PerRequest, 1, 200.0);
        let refused = eventually("one is refused", LIMIT, async || {
            traffic.failures().pop().ok_or("none")
        })
        .await;
        assert_eq!(
            (refused.kind.as_str(), refused.connected),
            ("refused", None)
        );
    }
}
