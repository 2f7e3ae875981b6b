//! Against a local server with every bad manner.

use std::io;
use std::time::Duration;

use nix::errno::Errno;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tokio::time::Instant;

use super::outcome::{Step, refused};
use super::*;

/// What the server does after it has read the request's head.
enum Manner {
    Say(&'static str),
    Hang,
    Drip,
    Endless,
    /// Answers with this head and 3 MB, the `needle` of them in the middle.
    Long(&'static str),
    SayAndHang(&'static str),
}

struct Server {
    port: u16,
    _tasks: JoinSet<()>,
    heads: tokio::sync::mpsc::Receiver<String>,
}

async fn serve(address: &str, manner: Manner) -> Server {
    let listener = TcpListener::bind((address, 0)).await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let (sender, heads) = tokio::sync::mpsc::channel(8);
    let mut tasks = JoinSet::new();
    tasks.spawn(async move {
        loop {
            let (mut stream, _) = listener.accept().await.unwrap();
            let Some(head) = read_head(&mut stream).await else {
                continue;
            };
            sender.send(head).await.unwrap();
            // The client may have gone: a failed write is part of the play.
            let _gone = misbehave(&mut stream, &manner).await;
        }
    });
    Server {
        port,
        _tasks: tasks,
        heads,
    }
}

async fn read_head(stream: &mut TcpStream) -> Option<String> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(stream.read_u8().await.ok()?);
    }
    String::from_utf8(head).ok()
}

async fn misbehave(stream: &mut TcpStream, manner: &Manner) -> std::io::Result<()> {
    match manner {
        Manner::Say(text) => stream.write_all(text.as_bytes()).await,
        Manner::Hang => std::future::pending().await,
        Manner::SayAndHang(text) => {
            stream.write_all(text.as_bytes()).await?;
            std::future::pending().await
        }
        Manner::Drip => {
            stream
                .write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n")
                .await?;
            loop {
                stream.write_all(b"x").await?;
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        }
        Manner::Long(head) => {
            let half = vec![b'x'; 1_500_000];
            for part in [head.as_bytes(), &half[..], b"needle", &half[6..]] {
                stream.write_all(part).await?;
            }
            stream.shutdown().await
        }
        Manner::Endless => {
            stream.write_all(b"HTTP/1.1 200 OK\r\n\r\n").await?;
            loop {
                stream.write_all(&[b'x'; 4096]).await?;
            }
        }
    }
}

fn settings(host: &str, port: u16) -> HttpCheck {
    HttpCheck {
        host: host.to_owned(),
        port,
        uri: "/health".to_owned(),
        ssl: false,
        open_timeout: Duration::from_secs(5),
        read_timeout: Duration::from_secs(5),
        expect: None,
        headers: Vec::new(),
    }
}

async fn answer(text: &'static str, expect: Option<&str>) -> Outcome {
    let server = serve("127.0.0.1", Manner::Say(text)).await;
    http::run(
        &HttpCheck {
            expect: expect.map(str::to_owned),
            ..settings("127.0.0.1", server.port)
        },
        &Names::default(),
    )
    .await
}

#[tokio::test]
async fn good_answers_pass() {
    for (text, expect) in [
        ("HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello", None),
        (
            "HTTP/1.1 200 OK\r\nContent-Length: 5\r\nConnection: close\r\n\r\nhello",
            Some("ell"),
        ),
        (
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nhel\r\n2\r\nlo\r\n0\r\n\r\n",
            Some("hello"),
        ),
        ("HTTP/1.0 200 OK\r\n\r\nuntil the end", Some("end")),
        (
            "HTTP/1.1 200 OK\r\nContent-Length: 50\r\n\r\nshorter than it says",
            Some("shorter"),
        ),
        ("HTTP/1.1 204 No Content\r\n\r\n", None),
        (
            "HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok",
            Some("ok"),
        ),
        (
            "HTTP/1.1 302 Found\r\nLocation: http://127.0.0.1:1/\r\nContent-Length: 0\r\n\r\n",
            None,
        ),
        ("HTTP/1.1 399 Odd\r\nContent-Length: 0\r\n\r\n", None),
    ] {
        assert_eq!(answer(text, expect).await, Outcome::Pass, "{text:?}");
    }
}

#[tokio::test]
async fn bad_answers_fail_with_their_reason() {
    for (text, expect, reason) in [
        (
            "HTTP/1.1 503 Service Unavailable\r\nContent-Length: 6\r\n\r\nsecret",
            None,
            "status 503",
        ),
        (
            "HTTP/1.1 400 Bad\r\nContent-Length: 0\r\n\r\n",
            None,
            "status 400",
        ),
        (
            "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello",
            Some("world"),
            "expect",
        ),
        ("HTTP/1.1 204 No Content\r\n\r\n", Some("x"), "expect"),
        ("SSH-2.0-OpenSSH_9.2\r\n", None, "invalid HTTP version"),
        ("", None, "before"),
        ("HTTP/1.1 200 OK\r\nContent-", None, "before"),
    ] {
        let outcome = answer(text, expect).await;
        let error = outcome.error().unwrap_or_default();
        assert!(
            matches!(outcome, Outcome::Fail(_)) && error.contains(reason),
            "{text:?}: {outcome:?}"
        );
        assert!(!error.contains("secret"));
    }
}

#[tokio::test]
async fn nothing_outlives_the_deadline() {
    for (manner, step) in [
        (Manner::Hang, Step::Head),
        (Manner::Drip, Step::Body),
        (
            Manner::SayAndHang("HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n"),
            Step::Body,
        ),
        (Manner::SayAndHang("HTTP/1.1 200"), Step::Head),
    ] {
        let server = serve("127.0.0.1", manner).await;
        let limit = Duration::from_millis(150);
        let begin = Instant::now();
        let outcome = http::run(
            &HttpCheck {
                open_timeout: limit / 2,
                read_timeout: limit / 2,
                ..settings("127.0.0.1", server.port)
            },
            &Names::default(),
        )
        .await;
        assert_eq!(outcome, Outcome::Timeout { step, after: limit });
        assert!(begin.elapsed() < limit * 10);
    }
}

#[tokio::test]
async fn a_body_may_have_any_length_and_the_text_may_stand_anywhere_in_it() {
    for head in [
        "HTTP/1.1 200 OK\r\nContent-Length: 3000000\r\n\r\n",
        // To the end of the connection, and more promised than comes.
        "HTTP/1.0 200 OK\r\n\r\n",
        "HTTP/1.1 200 OK\r\nContent-Length: 4000000\r\n\r\n",
    ] {
        for (expect, found) in [
            (None, true),
            (Some(""), true),
            (Some("xxxx"), true),
            (Some("xneedlex"), true),
            (Some("needles"), false),
        ] {
            let server = serve("127.0.0.1", Manner::Long(head)).await;
            let outcome = http::run(
                &HttpCheck {
                    expect: expect.map(str::to_owned),
                    ..settings("127.0.0.1", server.port)
                },
                &Names::default(),
            )
            .await;
            assert_eq!(
                outcome == Outcome::Pass,
                found,
                "{head:?} {expect:?}: {outcome:?}"
            );
        }
    }
}

#[tokio::test]
async fn an_endless_body_ends_with_the_deadline() {
    let server = serve("127.0.0.1", Manner::Endless).await;
    let limit = Duration::from_millis(150);
    let outcome = http::run(
        &HttpCheck {
            open_timeout: limit / 2,
            read_timeout: limit / 2,
            ..settings("127.0.0.1", server.port)
        },
        &Names::default(),
    )
    .await;
    let step = Step::Body;
    assert_eq!(outcome, Outcome::Timeout { step, after: limit });
}

#[tokio::test]
async fn the_request_is_rubys_and_headers_replace() {
    let mut server = serve(
        "127.0.0.1",
        Manner::Say("HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"),
    )
    .await;
    let mut check = settings("127.0.0.1", server.port);
    assert_eq!(http::run(&check, &Names::default()).await, Outcome::Pass);
    let head = server.heads.recv().await.unwrap().to_ascii_lowercase();
    assert!(head.starts_with("get /health http/1.1\r\n"), "{head}");
    for line in [
        "accept: */*",
        "user-agent: ruby",
        "connection: close",
        &format!("host: 127.0.0.1:{}", server.port),
    ] {
        assert!(head.contains(&format!("{line}\r\n")), "{line} in {head}");
    }
    check.headers = vec![
        ("Host".to_owned(), "app.example".to_owned()),
        ("X-Check".to_owned(), "1".to_owned()),
    ];
    assert_eq!(http::run(&check, &Names::default()).await, Outcome::Pass);
    let head = server.heads.recv().await.unwrap().to_ascii_lowercase();
    assert!(
        head.contains("host: app.example\r\n") && head.contains("x-check: 1\r\n"),
        "{head}"
    );
    assert_eq!(head.matches("host:").count(), 1);
}

#[tokio::test]
async fn both_families_names_and_brackets() {
    for (address, hosts) in [
        ("127.0.0.1", ["127.0.0.1", "localhost"]),
        ("::1", ["::1", "[::1]"]),
    ] {
        for host in hosts {
            let server = serve(
                address,
                Manner::Say("HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"),
            )
            .await;
            assert_eq!(
                http::run(&settings(host, server.port), &Names::default()).await,
                Outcome::Pass,
                "http {host}"
            );
            let check = TcpCheck {
                host: host.to_owned(),
                port: server.port,
                timeout: Duration::from_secs(5),
            };
            assert_eq!(
                tcp::run(&check, &Names::default()).await,
                Outcome::Pass,
                "tcp {host}"
            );
        }
    }
}

#[tokio::test]
async fn a_closed_port_and_a_dead_name_fail_with_their_reason() {
    let port = {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        listener.local_addr().unwrap().port()
    };
    let check = |host: &str| TcpCheck {
        host: host.to_owned(),
        port,
        timeout: Duration::from_secs(5),
    };
    let refused = tcp::run(&check("127.0.0.1"), &Names::default())
        .await
        .error()
        .unwrap();
    assert!(refused.contains("connection refused"), "{refused}");
    let unresolved = tcp::run(&check("no-such-name.invalid"), &Names::default())
        .await
        .error()
        .unwrap();
    // "No such name", or, where there is no network, that nobody could be asked.
    assert!(unresolved.contains("no-such-name.invalid"), "{unresolved}");
}

#[test]
fn what_only_this_host_is_to_blame_for_is_no_failure() {
    for errno in [
        Errno::EMFILE,
        Errno::ENFILE,
        Errno::EADDRNOTAVAIL,
        Errno::ENOBUFS,
        Errno::ENOMEM,
        Errno::EAGAIN,
    ] {
        let outcome = refused("x", &io::Error::from_raw_os_error(errno as i32));
        assert_eq!(outcome.finding(), Finding::NotRun, "{errno}: {outcome:?}");
        let error = outcome.error().unwrap();
        assert!(error.starts_with("could not run: x: "), "{error}");
    }
    for errno in [
        Errno::ECONNREFUSED,
        Errno::ECONNRESET,
        Errno::ETIMEDOUT,
        Errno::EHOSTUNREACH,
        Errno::ENETUNREACH,
    ] {
        let outcome = refused("x", &io::Error::from_raw_os_error(errno as i32));
        assert_eq!(outcome.finding(), Finding::Failed, "{errno}: {outcome:?}");
    }
}
