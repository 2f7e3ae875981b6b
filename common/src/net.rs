//! TCP connections that lead to somebody else, and those that could not even be tried.
//!
//! A connect to a port of this host that nobody listens on, but that is one of those the kernel gives to connections
//! (`ip_local_port_range`), may get that very port as its own: TCP then connects the socket with itself (RFC 9293,
//! simultaneous open). Whoever asks whether somebody is there would be told yes by himself. It is closed with a reset,
//! so that the port is free again at once; an ordinary close would keep it for a minute (`TIME_WAIT`), and the app that
//! is meant to listen there from starting.

use std::io;
use std::net::SocketAddr;

use nix::errno::Errno;
use tokio::net::TcpStream;

/// A connection to somebody else at `address`.
///
/// # Errors
/// The system's; `ConnectionRefused` with its own words when the connection met itself: nobody listens there.
pub async fn connect(address: SocketAddr) -> io::Result<TcpStream> {
    somebody_else(TcpStream::connect(address).await?)
}

fn somebody_else(stream: TcpStream) -> io::Result<TcpStream> {
    let (own, peer) = (stream.local_addr()?, stream.peer_addr()?);
    if !is_same(own, peer) {
        return Ok(stream);
    }
    stream.set_zero_linger()?;
    let port = own.port();
    Err(io::Error::new(
        io::ErrorKind::ConnectionRefused,
        format!(
            "nobody listens: the connection met itself, as {port} is one of the ports that the kernel gives to connections \
             (keep it from that: `sysctl net.ipv4.ip_local_reserved_ports={port}`)"
        ),
    ))
}

/// What this host or this process is short of, when that is all that an error says: nothing about who was to be reached.
#[must_use]
pub fn shortage(error: &io::Error) -> Option<&'static str> {
    Some(match Errno::from_raw(error.raw_os_error()?) {
        Errno::EMFILE => "this program has no free file descriptor (its limit of open files)",
        Errno::ENFILE => "this host has no free file descriptor (fs.file-max)",
        Errno::EADDRNOTAVAIL => "this host has no free port or no such address of its own",
        Errno::ENOBUFS | Errno::ENOMEM => "this host has no free memory for it",
        _ => return None,
    })
}

/// One end of a connection, whatever scope or flow an IPv6 address carries beside it.
fn is_same(own: SocketAddr, peer: SocketAddr) -> bool {
    (own.ip(), own.port()) == (peer.ip(), peer.port())
}

#[cfg(test)]
mod tests {
    use tokio::net::{TcpListener, TcpSocket};

    use super::*;

    fn socket(address: SocketAddr) -> TcpSocket {
        let socket = match address {
            SocketAddr::V4(_) => TcpSocket::new_v4(),
            SocketAddr::V6(_) => TcpSocket::new_v6(),
        };
        socket.unwrap()
    }

    /// Whether an app without any socket option could listen there.
    fn is_free(address: SocketAddr) -> bool {
        let socket = socket(address);
        socket.set_reuseaddr(false).unwrap();
        socket.bind(address).is_ok()
    }

    /// A socket that is connected with itself: its own port is the one that it connects to.
    async fn met_itself(host: &str) -> TcpStream {
        let socket = socket(SocketAddr::new(host.parse().unwrap(), 0));
        socket
            .bind(SocketAddr::new(host.parse().unwrap(), 0))
            .unwrap();
        let own = socket.local_addr().unwrap();
        socket.connect(own).await.unwrap()
    }

    #[tokio::test]
    async fn who_meets_itself_has_met_nobody_and_leaves_the_port_free() {
        for host in ["127.0.0.1", "127.0.0.7", "::1"] {
            for _ in 0..20 {
                let stream = met_itself(host).await;
                let address = stream.local_addr().unwrap();
                let error = somebody_else(stream).unwrap_err();
                assert_eq!(error.kind(), io::ErrorKind::ConnectionRefused);
                assert!(error.to_string().contains("met itself"), "{error}");
                assert!(is_free(address), "{address} is kept");
            }
        }
    }

    /// What the reset is for.
    #[tokio::test]
    async fn an_ordinary_close_keeps_the_port() {
        let stream = met_itself("127.0.0.1").await;
        let address = stream.local_addr().unwrap();
        drop(stream);
        assert!(!is_free(address));
    }

    #[tokio::test]
    async fn who_meets_another_is_connected() {
        for host in ["127.0.0.1:0", "[::1]:0"] {
            let listener = TcpListener::bind(host).await.unwrap();
            let address = listener.local_addr().unwrap();
            let stream = connect(address).await.unwrap();
            assert_eq!(stream.peer_addr().unwrap(), address);
        }
    }
}
