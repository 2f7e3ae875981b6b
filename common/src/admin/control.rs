//! The control socket of a program: commands that change something, as HTTP POSTs over a unix socket of mode 0660.
//!
//! Separate from the read-only listener, so that who may read the status may not change anything by that alone: the
//! socket's file mode decides who may. `POST /<command>` with a JSON body, text as the answer; also for curl:
//! `curl --unix-socket /run/nerve/nerve.sock -d '{"services":["web"]}' http://localhost/drain`.

use std::io;
use std::path::Path;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use http_body_util::{BodyExt, Limited};
use serde_json::Value;

use super::{Answer, Bind};
use crate::http::{self, BindError, Listener, Method, Request, StatusCode};
use crate::shutdown::Shutdown;

/// Largest body of a request, bytes.
const BODY_BYTES: usize = 64 << 10;
/// How long a client may take to send it.
const BODY_LIMIT: Duration = Duration::from_secs(10);
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

/// Listens at `path`, mode 0660. The socket file of a process that is gone is replaced.
///
/// # Errors
/// See [`Listener::bind`].
pub async fn bind(path: &Path) -> Result<Listener, BindError> {
    Listener::bind(&Bind::Unix(path.to_owned()), "commands").await
}

/// Serves until `shutdown`; commands under way are then dropped without an answer.
pub async fn serve(listener: Listener, commands: Commands, shutdown: Shutdown) {
    let answer = move |request| carry_out(request, Arc::clone(&commands));
    listener
        .serve("control socket", CONNECTIONS, answer, shutdown)
        .await;
}

async fn carry_out(request: Request, commands: Commands) -> Answer {
    if *request.method() != Method::POST {
        return Answer::refusal(StatusCode::METHOD_NOT_ALLOWED, "commands are sent by POST");
    }
    let name = request.uri().path().trim_start_matches('/').to_owned();
    let body = Limited::new(request.into_body(), BODY_BYTES).collect();
    let body = match tokio::time::timeout(BODY_LIMIT, body).await {
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
    let bind = Bind::Unix(socket.to_owned());
    let reply = http::post(&bind, &format!("/{command}"), body, limit).await?;
    Ok(Reply {
        done: (200..300).contains(&reply.status),
        text: reply.body,
    })
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use serde_json::json;
    use tokio::net::UnixStream;
    use tokio::task::JoinSet;

    use super::*;
    use crate::report::Chain;

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
        let control = bind(&path).await.unwrap();
        let mode = std::fs::metadata(&path).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o660);
        let (_stop, shutdown) = Shutdown::channel();
        let mut server = JoinSet::new();
        server.spawn(serve(control, echo(), shutdown));

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
        let first = bind(&path).await.unwrap();
        let error = bind(&path).await.unwrap_err();
        assert!(
            Chain(&error).to_string().contains("another process"),
            "{error}"
        );
        drop(first);
        assert!(path.exists());
        let nobody = send(&path, "echo", &Value::Null, LIMIT).await;
        assert!(nobody.is_err(), "{nobody:?}");
        bind(&path).await.unwrap();
    }
}
