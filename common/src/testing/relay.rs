//! A relay that its test writes: for what stands between client and server and knows the protocol's frames (an old server,
//! a device that closes connections on some requests, a server that has forgotten a session). [`super::TcpProxy`] knows
//! bytes only.

use std::io;

use tokio::io::{AsyncRead, AsyncReadExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;

/// Listens on a free loopback port and hands each connection, with one of its own to `target` (`host:port`), to `handle`.
/// Returns its own `host:port`; ends, with all connections, when the set is dropped.
pub async fn relay<F>(
    target: &str,
    mut handle: impl FnMut(TcpStream, TcpStream) -> F + Send + 'static,
) -> (String, JoinSet<()>)
where
    F: Future<Output = ()> + Send + 'static,
{
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let host = listener.local_addr().expect("bound").to_string();
    let target = target.to_owned();
    let mut task = JoinSet::new();
    task.spawn(async move {
        let mut connections = JoinSet::new();
        while let Ok((client, _)) = listener.accept().await {
            // A server that does not run: the client sees its connection end, as without a relay.
            if let Ok(server) = TcpStream::connect(&target).await {
                connections.spawn(handle(client, server));
            }
        }
    });
    (host, task)
}

/// The next frame of ZooKeeper's protocol, whole: 4 bytes of length and the body. Not cancel-safe.
///
/// # Errors
/// The end of the connection.
pub async fn read_frame(from: &mut (impl AsyncRead + Unpin)) -> io::Result<Vec<u8>> {
    let mut frame = from.read_u32().await?.to_be_bytes().to_vec();
    let length = u32::from_be_bytes([frame[0], frame[1], frame[2], frame[3]]);
    frame.resize(4 + usize::try_from(length).expect("32 bits"), 0);
    from.read_exact(&mut frame[4..]).await?;
    Ok(frame)
}

/// Transaction id and operation of a request (not of the connect request, which has neither), as in `RequestHeader`.
#[must_use]
pub fn request_header(frame: &[u8]) -> Option<(i32, i32)> {
    let number = |at: usize| Some(i32::from_be_bytes(frame.get(at..at + 4)?.try_into().ok()?));
    Some((number(4)?, number(8)?))
}

/// An answer as a frame: `ReplyHeader` with that error (0 = none), and what follows it.
#[must_use]
pub fn reply(xid: i32, error: i32, body: &[u8]) -> Vec<u8> {
    let header = [
        &xid.to_be_bytes()[..],
        &0i64.to_be_bytes(),
        &error.to_be_bytes(),
    ]
    .concat();
    let length = i32::try_from(header.len() + body.len()).expect("a few bytes");
    [&length.to_be_bytes()[..], &header, body].concat()
}
