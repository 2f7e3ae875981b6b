//! A name server of every temper, and programs that ask it: on another `resolv.conf`, in a mount namespace of their own. Needs root.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, AtomicU32, Ordering};

use tokio::net::UdpSocket;
use tokio::task::JoinSet;

use super::Dir;

/// What a name server does: a response code of DNS, or nothing.
#[derive(Debug, Clone, Copy)]
pub enum Temper {
    /// Every name has its address.
    Answers = 0,
    /// It cannot tell (SERVFAIL).
    CannotTell = 2,
    /// There is no such name (NXDOMAIN).
    NoSuchName = 3,
    /// It says nothing.
    Silent = 255,
}

/// Answers with one address for every name, 127.0.0.1 at first.
#[derive(Debug)]
pub struct NameServer {
    address: Ipv4Addr,
    temper: Arc<AtomicU8>,
    answer: Arc<AtomicU32>,
    _task: JoinSet<()>,
}

impl NameServer {
    /// Starts one on port 53 of a loopback address of its own: `resolv.conf` knows no other port.
    ///
    /// # Panics
    /// When the port cannot be had: it needs root.
    pub async fn start() -> Self {
        let address = Ipv4Addr::new(127, 53, fastrand::u8(..), fastrand::u8(1..255));
        let socket = UdpSocket::bind(SocketAddr::from((address, 53))).await;
        let socket = socket.expect("port 53 needs root");
        let temper = Arc::new(AtomicU8::new(Temper::Answers as u8));
        let answer = Arc::new(AtomicU32::new(Ipv4Addr::LOCALHOST.to_bits()));
        let (mut task, now, of) = (JoinSet::new(), Arc::clone(&temper), Arc::clone(&answer));
        task.spawn(async move {
            let mut query = [0; 512];
            while let Ok((length, from)) = socket.recv_from(&mut query).await {
                let temper = now.load(Ordering::Acquire);
                if temper != Temper::Silent as u8 {
                    let address = of.load(Ordering::Acquire).to_be_bytes();
                    let reply = reply(&query[..length], temper, address);
                    // Whoever asked may have gone.
                    let _gone = socket.send_to(&reply, from).await;
                }
            }
        });
        Self {
            address,
            temper,
            answer,
            _task: task,
        }
    }

    /// From now on it behaves so.
    pub fn set(&self, temper: Temper) {
        self.temper.store(temper as u8, Ordering::Release);
    }

    /// From now on every name has this address.
    pub fn answers(&self, address: Ipv4Addr) {
        self.answer.store(address.to_bits(), Ordering::Release);
    }

    /// The program and its arguments by which another one is started that asks this server and no other, for
    /// [`super::Program::start_by`]. Its `resolv.conf` goes into `dir`.
    #[must_use]
    pub fn used_by(&self, dir: &Dir) -> Vec<String> {
        let text = format!(
            "nameserver {}\noptions timeout:1 attempts:2\n",
            self.address
        );
        let resolver = dir.write("resolv.conf", text).display().to_string();
        let script = r#"mount --bind "$0" /etc/resolv.conf && exec "$@""#;
        let words = ["unshare", "-m", "sh", "-c", script, &resolver];
        words.map(str::to_owned).to_vec()
    }
}

/// RFC 1035: the header with `code`, the question, and one address if it is asked for and to be had.
fn reply(query: &[u8], code: u8, address: [u8; 4]) -> Vec<u8> {
    let name = query[12..].iter().position(|byte| *byte == 0);
    let question = &query[12..12 + name.expect("a name ends") + 5];
    let is_address = question.ends_with(&[0, 1, 0, 1]);
    let answers = u8::from(code == 0 && is_address);
    let (id, counts) = ([query[0], query[1]], [0, 1, 0, answers, 0, 0, 0, 0]);
    let mut reply = [&id[..], &[0x81, 0x80 | code], &counts, question].concat();
    if answers == 1 {
        // Name as in the question, A, IN, kept for no time.
        reply.extend_from_slice(&[0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 0, 0, 4]);
        reply.extend_from_slice(&address);
    }
    reply
}
