//! The little of ZooKeeper's protocol that every version since 3.3 speaks: create, set, delete, each over a connection of
//! its own. The client library of the programs creates nodes in a way that 3.4 does not know.

use smartstack_common::testing::read_frame;
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;

const CREATE: i32 = 1;
const DELETE: i32 = 2;
const SET_DATA: i32 = 5;
const NODE_EXISTS: i32 = -110;

/// One server.
pub(crate) struct Plain(pub(crate) String);

fn text(words: &str) -> Vec<u8> {
    bytes(words.as_bytes())
}

fn bytes(data: &[u8]) -> Vec<u8> {
    let length = i32::try_from(data.len()).unwrap();
    [&length.to_be_bytes(), data].concat()
}

fn number(value: i32) -> Vec<u8> {
    value.to_be_bytes().to_vec()
}

impl Plain {
    /// A persistent node, open to all; one that is there stays as it is.
    pub(crate) async fn create(&self, path: &str, data: &str) {
        let everybody = [number(1), number(31), text("world"), text("anyone")].concat();
        let body = [text(path), text(data), everybody, number(0)].concat();
        let error = self.call(CREATE, body).await;
        assert!([0, NODE_EXISTS].contains(&error), "create {path}: {error}");
    }

    pub(crate) async fn set(&self, path: &str, data: &str) {
        let body = [text(path), text(data), number(-1)].concat();
        assert_eq!(self.call(SET_DATA, body).await, 0, "set {path}");
    }

    pub(crate) async fn delete(&self, path: &str) {
        let body = [text(path), number(-1)].concat();
        assert_eq!(self.call(DELETE, body).await, 0, "delete {path}");
    }

    /// The error code of the answer.
    async fn call(&self, operation: i32, body: Vec<u8>) -> i32 {
        let mut stream = TcpStream::connect(&self.0).await.unwrap();
        // Protocol 0, nothing seen, 10 s, no session yet, no password.
        let connect = [
            number(0),
            vec![0; 8],
            number(10_000),
            vec![0; 8],
            bytes(&[0; 16]),
        ];
        stream.write_all(&bytes(&connect.concat())).await.unwrap();
        let _session = read_frame(&mut stream).await.unwrap();
        let request = [number(1), number(operation), body].concat();
        stream.write_all(&bytes(&request)).await.unwrap();
        // Length, xid, zxid, error.
        let answer = read_frame(&mut stream).await.unwrap();
        i32::from_be_bytes(answer[16..20].try_into().unwrap())
    }
}
