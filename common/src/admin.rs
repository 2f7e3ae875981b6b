//! The read-only HTTP listener of both programs: `/live /ready /metrics /status /` and what a program adds; and, in
//! [`control`], the socket for commands.

pub mod control;

use std::sync::Arc;

pub use crate::http::{Answer, Bind};
use crate::http::{BindError, Listener, Method, StatusCode};
use crate::shutdown::Shutdown;

/// Connections at a time.
const CONNECTIONS: usize = 64;

/// What a program answers for a path (`/live` is answered here). `None` is 404.
pub type Routes = Arc<dyn Fn(&str) -> Option<Answer> + Send + Sync>;

/// Listens there; loopback by default, as the pages name every server of the host.
///
/// # Errors
/// See [`Listener::bind`].
pub async fn bind(bind: &Bind) -> Result<Listener, BindError> {
    Listener::bind(bind, "/status and /metrics").await
}

/// Serves until `shutdown`.
pub async fn serve(listener: Listener, routes: Routes, shutdown: Shutdown) {
    let answer = move |request: crate::http::Request| {
        std::future::ready(choose(request.method(), request.uri().path(), &routes))
    };
    listener
        .serve("admin listener", CONNECTIONS, answer, shutdown)
        .await;
}

fn choose(method: &Method, path: &str, routes: &Routes) -> Answer {
    if !matches!(*method, Method::GET | Method::HEAD) {
        Answer::refusal(StatusCode::METHOD_NOT_ALLOWED, "read only: GET")
    } else if path == "/live" {
        Answer::text("ok\n")
    } else {
        routes(path).unwrap_or_else(|| Answer::refusal(StatusCode::NOT_FOUND, "no such page"))
    }
}
