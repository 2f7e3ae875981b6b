//! The control socket of a program: commands that change something, as HTTP POSTs over a unix socket of mode 0660.
//!
//! Separate from the read-only listener, so that who may read the status may not change anything by that alone: the
//! socket's file mode decides who may. `POST /<command>` with a JSON body, text as the answer; also for curl:
//! `curl --unix-socket /run/nerve/nerve.sock -d '{"services":["web"]}' http://localhost/drain`.

use std::convert::Infallible;
use std::io;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, Full, Limited};
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use serde_json::Value;
use tokio::net::{UnixListener, UnixStream};
use tokio::task::JoinSet;

use super::{Answer, bind_unix, respond};
use crate::report::Chain;
use crate::shutdown::Shutdown;

/// Largest body of a request, bytes.
const BODY_BYTES: usize = 64 << 10;
/// Largest answer that a client reads, bytes.
const ANSWER_BYTES: usize = 1 << 20;
/// How long a client may take to send its request.
const REQUEST_LIMIT: Duration = Duration::from_secs(10);
/// Connections at a time.
const CONNECTIONS: usize = 16;

/// What somebody asks for.
#[derive(Debug, Clone, PartialEq)]
pub struct Command {
    /// The path without its slash: `drain`.
    pub name: String,
    /// The body; null when it is empty.
    pub body: Value,
}

/// Carries a command out, and answers when it is done.
pub type Commands =
    Arc<dyn Fn(Command) -> Pin<Box<dyn Future<Output = Answer> + Send>> + Send + Sync>;

impl Command {
    /// The services that the body names, `{"services": ["web"]}` or `{"all": true}`; `known` are all there are.
    ///
    /// # Errors
    /// A refusal that says what is allowed.
    pub fn services(&self, known: Vec<String>) -> Result<Vec<String>, Answer> {
        if self.body["all"] == true {
            return Ok(known);
        }
        let named: Option<Vec<String>> = self.body["services"].as_array().and_then(|list| {
            let names = list.iter().map(|name| name.as_str().map(str::to_owned));
            names.collect()
        });
        let Some(named) = named.filter(|named| !named.is_empty()) else {
            let why = r#"the body must be {"services": ["NAME"]} or {"all": true}"#;
            return Err(Answer::refusal(StatusCode::BAD_REQUEST, why));
        };
        match named.iter().find(|name| !known.contains(name)) {
            None => Ok(named),
            Some(unknown) => {
                let why = format!("no service `{unknown}`; there are: {}", known.join(", "));
                Err(Answer::refusal(StatusCode::NOT_FOUND, why))
            }
        }
    }
}

/// Why there is no control socket.
#[derive(Debug, thiserror::Error)]
#[error("cannot listen on `{}` for commands", path.display())]
pub struct ControlError {
    path: PathBuf,
    source: std::io::Error,
}

/// A bound control socket.
#[derive(Debug)]
pub struct Control {
    listener: UnixListener,
}

impl Control {
    /// Listens at `path`, mode 0660. The socket file of a process that is gone is replaced.
    ///
    /// # Errors
    /// When the path cannot be bound, or a living process answers there.
    pub fn bind(path: &Path) -> Result<Self, ControlError> {
        match bind_unix(path, 0o660) {
            Ok(listener) => Ok(Self { listener }),
            Err(source) => Err(ControlError {
                path: path.to_owned(),
                source,
            }),
        }
    }

    /// Serves until `shutdown`; commands under way are then dropped without an answer.
    pub async fn serve(self, commands: Commands, mut shutdown: Shutdown) {
        let mut connections = JoinSet::new();
        loop {
            // An accept and a join are cancel-safe; the wait is a watch receive.
            tokio::select! {
                () = shutdown.wait() => return,
                Some(_) = connections.join_next() => {}
                accepted = self.listener.accept(), if connections.len() < CONNECTIONS => match accepted {
                    Ok((stream, _)) => {
                        connections.spawn(attend(stream, Arc::clone(&commands)));
                    }
                    Err(error) => {
                        tracing::warn!(%error, "control socket");
                        tokio::time::sleep(Duration::from_millis(100)).await;
                    }
                },
            }
        }
    }
}

async fn attend(stream: UnixStream, commands: Commands) {
    let service = service_fn(move |request: Request<hyper::body::Incoming>| {
        let commands = Arc::clone(&commands);
        async move { Ok::<_, Infallible>(respond(carry_out(request, &commands).await)) }
    });
    let connection = hyper::server::conn::http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(REQUEST_LIMIT)
        .serve_connection(TokioIo::new(stream), service);
    if let Err(error) = connection.await {
        tracing::debug!(%error, "control connection");
    }
}

async fn carry_out(request: Request<hyper::body::Incoming>, commands: &Commands) -> Answer {
    if *request.method() != Method::POST {
        return Answer::refusal(StatusCode::METHOD_NOT_ALLOWED, "commands are sent by POST");
    }
    let name = request.uri().path().trim_start_matches('/').to_owned();
    let body = Limited::new(request.into_body(), BODY_BYTES).collect();
    let body = match tokio::time::timeout(REQUEST_LIMIT, body).await {
        Ok(Ok(body)) => body.to_bytes(),
        Ok(Err(error)) => return Answer::refusal(StatusCode::BAD_REQUEST, error.to_string()),
        Err(_) => return Answer::refusal(StatusCode::REQUEST_TIMEOUT, "the body does not come"),
    };
    let body = match &body[..] {
        [] => Value::Null,
        bytes => match serde_json::from_slice(bytes) {
            Ok(body) => body,
            Err(error) => {
                let why = format!("the body is not JSON: {error}");
                return Answer::refusal(StatusCode::BAD_REQUEST, why);
            }
        },
    };
    commands(Command { name, body }).await
}

/// What a running program answered to a command.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reply {
    /// Whether it was done (any 2xx).
    pub done: bool,
    /// The text.
    pub text: String,
}

/// Sends a command to the program that listens at `socket`.
///
/// # Errors
/// Nobody listens there, or may not be asked by us, or no answer within `limit`.
pub async fn send(
    socket: &Path,
    command: &str,
    body: &Value,
    limit: Duration,
) -> io::Result<Reply> {
    tokio::time::timeout(limit, exchange(socket, command, body))
        .await
        .unwrap_or_else(|_| Err(io::Error::other(format!("no answer within {limit:?}"))))
}

async fn exchange(socket: &Path, command: &str, body: &Value) -> io::Result<Reply> {
    let fail = |error: hyper::Error| io::Error::other(Chain(&error).to_string());
    let stream = UnixStream::connect(socket).await?;
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
        .await
        .map_err(fail)?;
    let request = Request::post(format!("/{command}"))
        .header("host", "localhost")
        .header("connection", "close")
        .header("content-type", "application/json");
    let request = request
        .body(Full::new(Bytes::from(body.to_string())))
        .map_err(io::Error::other)?;
    let answer = async {
        let response: Response<_> = sender.send_request(request).await.map_err(fail)?;
        let done = response.status().is_success();
        let text = Limited::new(response.into_body(), ANSWER_BYTES)
            .collect()
            .await
            .map_err(io::Error::other)?;
        let text = String::from_utf8_lossy(&text.to_bytes()).into_owned();
        Ok(Reply { done, text })
    };
    // The connection's own end says nothing that the answer does not say as well.
    let (answer, _ended) = tokio::join!(answer, connection);
    answer
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use serde_json::json;

    use super::*;

    const LIMIT: Duration = Duration::from_secs(10);

    fn echo() -> Commands {
        Arc::new(|command| {
            Box::pin(async move {
                match command.name.as_str() {
                    "echo" => Answer::text(command.body.to_string()),
                    _ => Answer::refusal(StatusCode::NOT_FOUND, "no such command"),
                }
            })
        })
    }

    #[tokio::test]
    async fn commands_are_answered_and_everything_else_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("control.sock");
        let control = Control::bind(&path).unwrap();
        let mode = std::fs::metadata(&path).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o660);
        let (_stop, shutdown) = Shutdown::channel();
        let mut server = JoinSet::new();
        server.spawn(control.serve(echo(), shutdown));

        let body = json!({"services": ["a b", "ü\n"]});
        let reply = send(&path, "echo", &body, LIMIT).await.unwrap();
        assert_eq!((reply.done, reply.text), (true, body.to_string()));
        let reply = send(&path, "nonsense", &body, LIMIT).await.unwrap();
        assert_eq!(
            (reply.done, reply.text.as_str()),
            (false, "no such command\n")
        );
        for (request, status) in [
            ("GET /echo HTTP/1.1\r\nhost: x\r\n\r\n", "405"),
            (
                "POST /echo HTTP/1.1\r\nhost: x\r\ncontent-length: 1\r\n\r\n{",
                "400",
            ),
        ] {
            use tokio::io::{AsyncReadExt, AsyncWriteExt};
            let mut stream = UnixStream::connect(&path).await.unwrap();
            stream.write_all(request.as_bytes()).await.unwrap();
            let mut answer = [0; 12];
            stream.read_exact(&mut answer).await.unwrap();
            assert_eq!(&answer[9..], status.as_bytes(), "{request}");
        }
    }

    #[tokio::test]
    async fn a_dead_socket_is_replaced_and_a_live_one_is_not() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("control.sock");
        let first = Control::bind(&path).unwrap();
        let error = Control::bind(&path).unwrap_err();
        assert!(
            Chain(&error).to_string().contains("another process"),
            "{error}"
        );
        drop(first);
        assert!(path.exists());
        let nobody = send(&path, "echo", &Value::Null, LIMIT).await;
        assert!(nobody.is_err(), "{nobody:?}");
        Control::bind(&path).unwrap();
    }
}
