//! A relay between clients and a ZooKeeper server that answers some requests itself, as other servers do: older ones, members
//! that have forgotten a session, some that grant another time-out than was asked for.

use std::sync::Arc;

use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;
use tokio::sync::Mutex;
use tokio::task::JoinSet;

use super::relay::{read_frame, relay, reply, request_header};

/// A request of a client, but for the first of each connection.
#[derive(Debug, Clone, Copy)]
pub struct Request<'a> {
    /// The number of its connection, from 1.
    pub connection: u64,
    /// Its number on the connection.
    pub xid: i32,
    /// `ZooDefs.OpCode`.
    pub operation: i32,
    /// All of it, with its length.
    pub frame: &'a [u8],
}

impl Request<'_> {
    /// The answer that it failed.
    #[must_use]
    pub fn fails(&self, error: i32) -> Fate {
        Fate::Answer(reply(self.xid, error, &[]))
    }

    /// The same, and the end of the connection.
    #[must_use]
    pub fn ends(&self, error: i32) -> Fate {
        Fate::End(reply(self.xid, error, &[]))
    }
}

/// What becomes of a request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Fate {
    /// The server has it.
    Pass,
    /// The client has this answer, and the server knows nothing.
    Answer(Vec<u8>),
    /// The same, and the connection ends.
    End(Vec<u8>),
    /// Nobody has anything.
    Lost,
}

/// Starts a relay to `target` (`host:port`): `decide` says what becomes of each request, and `granted` the session time-out
/// in milliseconds that clients are told, given the one that the server grants. Returns its own `host:port`; ends, with all
/// connections, when the set is dropped.
pub async fn rewriting(
    target: &str,
    decide: impl Fn(&Request<'_>) -> Fate + Send + Sync + 'static,
    granted: impl Fn(i32) -> i32 + Send + Sync + 'static,
) -> (String, JoinSet<()>) {
    let (decide, granted, mut count) = (Arc::new(decide), Arc::new(granted), 0);
    relay(target, move |client, server| {
        count += 1;
        let (decide, granted, connection) = (Arc::clone(&decide), Arc::clone(&granted), count);
        async move { hand_on(client, server, connection, &*decide, &*granted).await }
    })
    .await
}

async fn hand_on(
    client: TcpStream,
    server: TcpStream,
    connection: u64,
    decide: &(impl Fn(&Request<'_>) -> Fate + Sync),
    granted: &(impl Fn(i32) -> i32 + Sync),
) {
    let (mut from_client, to_client) = client.into_split();
    let (mut from_server, mut to_server) = server.into_split();
    let to_client = Mutex::new(to_client);
    let up = async {
        let mut first = true;
        while let Ok(frame) = read_frame(&mut from_client).await {
            let header = request_header(&frame).filter(|_| !std::mem::take(&mut first));
            let fate = header.map_or(Fate::Pass, |(xid, operation)| {
                decide(&Request {
                    connection,
                    xid,
                    operation,
                    frame: &frame,
                })
            });
            let ends = matches!(fate, Fate::End(_));
            let sent = match fate {
                Fate::Pass => to_server.write_all(&frame).await,
                Fate::Answer(answer) | Fate::End(answer) => {
                    to_client.lock().await.write_all(&answer).await
                }
                Fate::Lost => Ok(()),
            };
            if sent.is_err() || ends {
                return;
            }
        }
    };
    let down = async {
        let mut first = true;
        while let Ok(mut frame) = read_frame(&mut from_server).await {
            // `ConnectResponse`: length, protocol version, time-out.
            if std::mem::take(&mut first)
                && let Some(timeout) = frame.get_mut(8..12)
                && let Ok(asked) = <[u8; 4]>::try_from(&*timeout)
            {
                timeout.copy_from_slice(&granted(i32::from_be_bytes(asked)).to_be_bytes());
            }
            if to_client.lock().await.write_all(&frame).await.is_err() {
                return;
            }
        }
    };
    // The first of them ends the connection.
    tokio::select! {
        () = up => {}
        () = down => {}
    }
}
