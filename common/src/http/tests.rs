//! Client and server against each other, and against whoever breaks off.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use http_body_util::Empty;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinSet;

use super::*;
use crate::shutdown::Shutdown;

const LIMIT: Duration = Duration::from_secs(20);

/// Serves the path of each request, `most` connections at a time; dropped, it ends.
async fn server(bind: &Bind, most: usize) -> (Bind, watch::Sender<bool>, JoinSet<()>) {
    let listener = Listener::bind(bind, "tests").await.unwrap();
    let (stop, shutdown) = Shutdown::channel();
    let address = listener.address.clone();
    let echo = |request: Request| {
        let path = request.uri().path().to_owned();
        std::future::ready(Answer::text(path))
    };
    let mut tasks = JoinSet::new();
    tasks.spawn(listener.serve("test server", most, echo, shutdown));
    (address, stop, tasks)
}

fn question(path: &str) -> hyper::Request<Empty<Bytes>> {
    let request = hyper::Request::get(path).header("host", "x");
    request.body(Empty::new()).unwrap()
}

#[tokio::test]
async fn both_kinds_of_address_are_asked_and_served_alike() {
    let folder = tempfile::tempdir().unwrap();
    let unix = Bind::Unix(folder.path().join("s"));
    for bind in [Bind::Tcp("127.0.0.1:0".to_owned()), unix.clone()] {
        let (address, stop, mut tasks) = server(&bind, 4).await;
        let reply = get(&address, "/a", LIMIT).await.unwrap();
        assert_eq!((reply.status, reply.body.as_str()), (200, "/a"), "{bind}");
        let reply = post(&address, "/b", &serde_json::json!({}), LIMIT).await;
        assert_eq!(reply.unwrap().body, "/b");
        stop.send_replace(true);
        tasks.join_next().await.unwrap().unwrap();
        assert!(get(&address, "/a", LIMIT).await.is_err(), "{bind}");
    }
    let error = Listener::bind(&Bind::Unix(folder.path().join("no/s")), "tests").await;
    let error = crate::report::Chain(&error.unwrap_err()).to_string();
    assert!(error.contains("no/s` for tests: No such file"), "{error}");
}

#[tokio::test]
async fn beyond_their_number_connections_wait() {
    let (address, _stop, _tasks) = server(&Bind::Tcp("127.0.0.1:0".to_owned()), 1).await;
    let Bind::Tcp(at) = &address else {
        unreachable!("it was asked for")
    };
    let mut first = Connection::open(TcpStream::connect(at).await.unwrap())
        .await
        .unwrap();
    let read = first.exchange(question("/1"), Reply::read).await;
    assert_eq!(read.unwrap().unwrap().body, "/1");
    let waits = get(&address, "/2", Duration::from_millis(50)).await;
    assert_eq!(waits.unwrap_err().kind(), std::io::ErrorKind::TimedOut);
    drop(first);
    assert_eq!(get(&address, "/3", LIMIT).await.unwrap().body, "/3");
}

#[tokio::test]
async fn a_kept_connection_is_used_again_until_the_other_side_closes_it() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let at = listener.local_addr().unwrap();
    let served = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&served);
    let mut tasks = JoinSet::new();
    tasks.spawn(async move {
        let (mut stream, _) = listener.accept().await.unwrap();
        let mut heads = [0; 1024];
        for _ in 0..2 {
            let _read = stream.read(&mut heads).await.unwrap();
            let answer = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok";
            stream.write_all(answer).await.unwrap();
            count.fetch_add(1, Ordering::AcqRel);
        }
    });
    let mut connection = Connection::open(TcpStream::connect(at).await.unwrap())
        .await
        .unwrap();
    for path in ["/1", "/2"] {
        assert!(connection.is_usable().await);
        let read = connection.exchange(question(path), Reply::read).await;
        assert_eq!(read.unwrap().unwrap().body, "ok");
    }
    tasks.join_next().await.unwrap().unwrap();
    while connection.is_usable().await {
        tokio::task::yield_now().await;
    }
    assert_eq!(served.load(Ordering::Acquire), 2);
    let read = connection.exchange(question("/3"), Reply::read).await;
    assert!(read.is_err(), "{read:?}");
}

/// Whatever is sent instead of a whole answer: an error, never an endless wait and never half an answer.
#[tokio::test]
async fn half_an_answer_is_an_error() {
    for (answer, why) in [
        ("", "closed before message completed"),
        ("HTTP/1.1 200 OK\r\n", "closed before message completed"),
        ("HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\nhalf", "body"),
        (
            "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n4\r\nha",
            "body",
        ),
        ("SSH-2.0-x\r\n\r\n", "invalid HTTP version"),
    ] {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let bind = Bind::Tcp(listener.local_addr().unwrap().to_string());
        let mut tasks = JoinSet::new();
        tasks.spawn(async move {
            let (mut stream, _) = listener.accept().await.unwrap();
            let _head = stream.read(&mut [0; 1024]).await.unwrap();
            stream.write_all(answer.as_bytes()).await.unwrap();
        });
        let error = get(&bind, "/", LIMIT).await.unwrap_err();
        assert!(error.to_string().contains(why), "{answer:?}: {error}");
    }
}
