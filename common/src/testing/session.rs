//! A session ended by the servers, as an administrator would: somebody else presents its id and password and closes it.
//!
//! The wire format is ZooKeeper's jute (`ConnectRequest`, `ConnectResponse`, `RequestHeader` of 3.8): a frame is a length
//! of 4 bytes and a body, integers are big-endian.

use std::io;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

/// Bytes of a connect answer up to the end of the password: length, protocol version, time-out, session id, length of
/// the password, password.
const ANSWER: usize = 4 + 4 + 4 + 8 + 4 + 16;
/// `ZooDefs.OpCode.closeSession`.
const CLOSE: i32 = -11;

/// What a client must know to take a session over.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SessionKey {
    /// The session's id, as in `Stat::ephemeral_owner`.
    pub id: i64,
    password: [u8; 16],
}

/// Reads the answer to a connect request off the stream from a server to its client.
#[derive(Debug, Default)]
pub(super) struct Reading(Vec<u8>);

impl Reading {
    /// Takes in the next bytes; gives the session once, when it is known. An id of 0 is a refusal.
    pub(super) fn read(&mut self, bytes: &[u8]) -> Option<SessionKey> {
        let missing = ANSWER - self.0.len();
        if missing == 0 {
            return None;
        }
        self.0.extend_from_slice(&bytes[..bytes.len().min(missing)]);
        let password = self.0.get(24..ANSWER)?.try_into().ok()?;
        let id = i64::from_be_bytes(self.0[12..20].try_into().ok()?);
        (id != 0).then_some(SessionKey { id, password })
    }
}

/// Takes the session over on one server (`address:port`) and closes it: its ephemeral nodes go, and its client learns of
/// it when it next connects.
///
/// # Errors
/// The server cannot be reached, or does not know the session.
pub async fn close_session(server: &str, key: &SessionKey) -> io::Result<()> {
    let mut stream = TcpStream::connect(server).await?;
    let connect = [
        &0i32.to_be_bytes()[..],
        &0i64.to_be_bytes(),
        &10_000i32.to_be_bytes(),
        &key.id.to_be_bytes(),
        &16i32.to_be_bytes(),
        &key.password,
        &[0],
    ]
    .concat();
    stream.write_all(&frame(&connect)).await?;
    let mut answer = [0; ANSWER + 1];
    stream.read_exact(&mut answer).await?;
    if Reading::default().read(&answer).map(|found| found.id) != Some(key.id) {
        return Err(io::Error::other("the server does not know the session"));
    }
    let close = [1i32.to_be_bytes(), CLOSE.to_be_bytes()].concat();
    stream.write_all(&frame(&close)).await?;
    // The answer, or the end of the connection.
    let _size = stream.read(&mut answer).await?;
    Ok(())
}

fn frame(body: &[u8]) -> Vec<u8> {
    let length = i32::try_from(body.len()).expect("a few bytes");
    [&length.to_be_bytes()[..], body].concat()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answer(id: i64) -> Vec<u8> {
        let body = [
            &0i32.to_be_bytes()[..],
            &4000i32.to_be_bytes(),
            &id.to_be_bytes(),
            &16i32.to_be_bytes(),
            &[7; 16],
            &[0],
        ]
        .concat();
        [frame(&body), vec![9; 100]].concat()
    }

    #[test]
    fn a_session_is_found_once_however_the_bytes_are_cut() {
        for size in [1, 3, 39, 40, 41, 1000] {
            let mut reading = Reading::default();
            let bytes = answer(0x1234_5678_9abc);
            let found: Vec<i64> = bytes
                .chunks(size)
                .filter_map(|piece| reading.read(piece))
                .map(|key| key.id)
                .collect();
            assert_eq!(found, [0x1234_5678_9abc], "pieces of {size}");
            assert_eq!(Reading::default().read(&answer(0)), None, "a refusal");
        }
    }
}
