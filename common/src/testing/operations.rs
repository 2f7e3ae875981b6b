//! Counts ZooKeeper requests in a byte stream from a client to a server, by operation: how a test knows what a change
//! costs the ensemble. (The servers count packets, not operations.)

/// The name of a request's operation code (`ZooDefs.OpCode` of ZooKeeper 3.8); `other` for those we never send.
fn name(code: i32) -> &'static str {
    match code {
        1 | 15 | 19 | 21 => "create",
        2 | 20 => "delete",
        3 => "exists",
        4 => "getData",
        5 => "setData",
        8 | 12 => "getChildren",
        9 => "sync",
        11 => "ping",
        14 => "multi",
        18 => "removeWatches",
        22 => "multiRead",
        100 => "auth",
        101 | 105 => "setWatches",
        103 => "getEphemerals",
        106 => "addWatch",
        -11 => "closeSession",
        _ => "other",
    }
}

/// Follows one connection. Frames are a length of 4 bytes and a body; the first is the connect request (without a code),
/// each later one begins with 4 bytes of xid and 4 of operation code (`ConnectRequest`, `RequestHeader`).
#[derive(Debug, Default)]
pub(super) struct Operations {
    /// The head of the present frame as far as it came.
    head: Vec<u8>,
    /// Bytes of the present frame's body still to pass.
    rest: usize,
    connected: bool,
}

impl Operations {
    /// Takes in the next bytes and tells each operation that they complete the head of.
    pub(super) fn read(&mut self, mut bytes: &[u8], mut found: impl FnMut(&'static str)) {
        while !bytes.is_empty() {
            let skipped = self.rest.min(bytes.len());
            self.rest -= skipped;
            bytes = &bytes[skipped..];
            let wanted = if self.connected { 12 } else { 4 };
            let (more, left) = bytes.split_at(bytes.len().min(wanted - self.head.len()));
            self.head.extend_from_slice(more);
            bytes = left;
            if self.head.len() < wanted {
                return;
            }
            let number = |at: usize| {
                self.head[at..at + 4]
                    .iter()
                    .fold(0i32, |n, byte| (n << 8) | i32::from(*byte))
            };
            self.rest = usize::try_from(number(0))
                .unwrap_or(0)
                .saturating_sub(wanted - 4);
            found(if self.connected {
                name(number(8))
            } else {
                "connect"
            });
            self.connected = true;
            self.head.clear();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn operations_are_found_however_the_bytes_are_cut() {
        let frame = |body: &[u8]| [&(body.len() as i32).to_be_bytes(), body].concat();
        let request = |code: i32, rest: &[u8]| {
            frame(&[&7i32.to_be_bytes(), &code.to_be_bytes(), rest].concat())
        };
        let stream = [
            frame(&[0; 45]),
            request(9, b"\0\0\0\x01/"),
            request(11, b""),
            request(22, &[9; 300]),
            request(-11, b""),
        ]
        .concat();
        for size in [1, 3, 7, 64, stream.len()] {
            let (mut operations, mut found) = (Operations::default(), Vec::new());
            for piece in stream.chunks(size) {
                operations.read(piece, |name| found.push(name));
            }
            assert_eq!(
                found,
                ["connect", "sync", "ping", "multiRead", "closeSession"],
                "pieces of {size}"
            );
        }
    }
}
