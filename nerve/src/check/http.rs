//! The http check: one GET on a raw connection, answered by 200..399, the body holding `expect`.
//!
//! As Ruby (`lib/nerve/service_watcher/http.rb`): 3xx passes and is not followed, interim answers are skipped, the
//! headers are Net::HTTP's and `headers` replaces them. Unlike it: one deadline from the connect to the last byte of
//! the body, no repeated GET, no proxy from the environment, no compression asked for (nothing needs unpacking).
//! A body may have any length, and `expect` may stand anywhere in it: it is read to its end within the deadline, and
//! none of it is kept.

use std::io;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, Empty};
use hyper::body::Incoming;
use hyper::header::{
    ACCEPT, CONNECTION, CONTENT_LENGTH, HOST, HeaderName, HeaderValue, USER_AGENT,
};
use hyper::{Request, Response, Uri};
use smartstack_common::config::{Cursor, Key, Kind, Preset, defaulted, honoured, later};
use smartstack_common::http::Connection;
use smartstack_common::report::Chain;
use tokio::time::{Instant, timeout_at};

use super::connect::connect;
use super::names::Names;
use super::outcome::{Outcome, Step};
use super::target::{Given, MILLISECOND};

/// Settings of an http check.
#[derive(Debug, Clone, PartialEq)]
pub struct HttpCheck {
    /// Where to connect: a literal of either family or a name.
    pub host: String,
    /// Where to connect.
    pub port: u16,
    /// Request target, sent verbatim.
    pub uri: String,
    /// Whether TLS is spoken there, which is not built: a connection is enough.
    pub ssl: bool,
    /// Cap of the connect. The check's deadline is `open_timeout + read_timeout`.
    pub open_timeout: Duration,
    /// Default: the check's `timeout`.
    pub read_timeout: Duration,
    /// Text the body must hold.
    pub expect: Option<String>,
    /// Sent after, and instead of, the default ones of the same name.
    pub headers: Vec<(String, String)>,
}

/// What it has beyond the others.
pub(super) const KEYS: &[Key] = &[
    honoured(
        "services.*.checks[].uri",
        Kind::Text,
        "required for http",
        "http: request target, sent verbatim",
    ),
    defaulted(
        "services.*.checks[].open_timeout",
        Kind::Duration,
        Preset::Duration(Duration::from_millis(200)),
        "http: cap of the connect; the deadline is `open_timeout` + `read_timeout`",
    ),
    honoured(
        "services.*.checks[].read_timeout",
        Kind::Duration,
        "`timeout`",
        "http: time for the answer",
    ),
    honoured(
        "services.*.checks[].headers",
        Kind::Map,
        "none",
        "http: request headers, also instead of the default ones",
    ),
    honoured(
        "services.*.checks[].expect",
        Kind::Text,
        "none",
        "http: text the body must hold",
    ),
    defaulted(
        "services.*.checks[].ssl",
        Kind::Boolean,
        Preset::Boolean(false),
        "http: TLS; checked by a connect, with a warning",
    ),
    later(
        "services.*.checks[].ssl_timeout",
        Kind::Any,
        "`open_timeout` is the limit, as in fact in Ruby",
    ),
];

pub(super) fn read(given: &Given<'_>) -> Option<HttpCheck> {
    let map = given.map;
    let uri = map.key("uri").required();
    let target = uri.parsed(|text| {
        if text.is_empty() || text.contains(|c: char| c.is_whitespace() || c.is_control()) {
            return Err("must be a request target without blanks, like `/health`".to_owned());
        }
        Ok(text.to_owned())
    });
    if target
        .as_ref()
        .is_some_and(|uri| !uri.starts_with('/') && !uri.contains("://"))
    {
        uri.warn("does not begin with `/`: sent as it is, most servers refuse it");
    }
    let ssl = map.key("ssl").or_preset(Cursor::boolean);
    if ssl {
        map.key("ssl")
            .warn("not built yet: the port is checked by a tcp connect instead");
    }
    let open_timeout = map.key("open_timeout");
    let open_timeout = open_timeout.or_preset(|key| key.duration_at_least(MILLISECOND));
    let read_timeout = map
        .key("read_timeout")
        .duration_at_least(MILLISECOND)
        .unwrap_or(given.timeout);
    let expect = map.key("expect").text();
    let headers = map
        .key("headers")
        .entries()
        .iter()
        .filter_map(|(name, value)| header(name, value))
        .collect();
    let (host, port) = given.target.clone()?;
    Some(HttpCheck {
        host,
        port,
        uri: target?,
        ssl,
        open_timeout,
        read_timeout,
        expect,
        headers,
    })
}

fn header(name: &str, value: &Cursor<'_>) -> Option<(String, String)> {
    let token = |c: char| c.is_ascii_alphanumeric() || "!#$%&'*+-.^_`|~".contains(c);
    if name.is_empty() || !name.chars().all(token) {
        value.error("not a header name");
        return None;
    }
    let text = value.clone().required().text()?;
    if text.contains(|c: char| c.is_control() && c != '\t') {
        value.error("a header's value must be without control characters");
        return None;
    }
    Some((name.to_owned(), text))
}

impl HttpCheck {
    /// As Ruby names it, whatever is configured.
    pub(super) fn name(&self) -> String {
        format!("http-{}:{}{}", self.host, self.port, self.uri)
    }

    /// The longest that one attempt takes.
    pub(super) fn deadline(&self) -> Duration {
        match self.ssl {
            true => self.open_timeout,
            false => self.open_timeout.saturating_add(self.read_timeout),
        }
    }
}

pub(super) async fn run(settings: &HttpCheck, names: &Names) -> Outcome {
    let limit = settings.deadline();
    let until = Instant::now() + limit;
    let request = match settings.ssl {
        true => Ok(None),
        false => request(settings).map(Some),
    };
    let request = match request {
        Ok(request) => request,
        Err(reason) => return Outcome::Fail(reason),
    };
    let stream = match connect(&settings.host, settings.port, settings.open_timeout, names).await {
        Ok(stream) => stream,
        Err(outcome) => return outcome,
    };
    let Some(request) = request else {
        return Outcome::Pass;
    };
    let mut step = Step::Head;
    let exchange = async {
        let mut connection = Connection::open(stream).await?;
        let judge = async |answer| {
            step = Step::Body;
            judge(answer, settings.expect.as_deref()).await
        };
        connection.exchange(request, judge).await
    };
    match timeout_at(until, exchange).await {
        Ok(Ok(Ok(()))) => Outcome::Pass,
        Ok(Ok(Err(reason))) => Outcome::Fail(reason),
        Ok(Err(failure)) => Outcome::Fail(Chain(&failure).to_string()),
        Err(_elapsed) => Outcome::Timeout { step, after: limit },
    }
}

fn request(settings: &HttpCheck) -> Result<Request<Empty<Bytes>>, String> {
    let uri: Uri = settings
        .uri
        .parse()
        .map_err(|error| format!("uri `{}`: {error}", settings.uri))?;
    let host = match settings.host.as_str() {
        literal if literal.contains(':') && !literal.starts_with('[') => {
            format!("[{literal}]:{}", settings.port)
        }
        host => format!("{host}:{}", settings.port),
    };
    let mut request = Request::new(Empty::new());
    *request.uri_mut() = uri;
    let headers = request.headers_mut();
    headers.insert(ACCEPT, HeaderValue::from_static("*/*"));
    headers.insert(USER_AGENT, HeaderValue::from_static("Ruby"));
    headers.insert(CONNECTION, HeaderValue::from_static("close"));
    headers.insert(
        HOST,
        HeaderValue::try_from(host).map_err(|_| format!("host `{}`", settings.host))?,
    );
    for (name, value) in &settings.headers {
        let key = HeaderName::try_from(name).map_err(|_| format!("header name `{name}`"))?;
        // The value may be a credential: name the header only.
        headers.insert(
            key,
            HeaderValue::try_from(value).map_err(|_| format!("value of header `{name}`"))?,
        );
    }
    Ok(request)
}

/// Judges an answer, from its head to the end of its body.
async fn judge(answer: Response<Incoming>, expect: Option<&str>) -> Result<(), String> {
    let status = answer.status();
    if !(200..400).contains(&status.as_u16()) {
        return Err(format!("status {}", status.as_u16()));
    }
    let has_length = answer.headers().contains_key(CONTENT_LENGTH);
    let mut body = answer.into_body();
    let mut search = expect.map(|text| Search::new(text.as_bytes()));
    while let Some(frame) = body.frame().await {
        let data = match frame {
            Ok(frame) => frame.into_data().unwrap_or_default(),
            // Ruby takes a body shorter than its Content-Length.
            Err(error) if has_length && is_early_end(&error) => break,
            Err(error) => return Err(Chain(&error).to_string()),
        };
        if let Some(search) = &mut search {
            search.take(&data);
        }
    }
    match search {
        Some(search) if !search.found => Err("the body does not hold the `expect` text".to_owned()),
        _ => Ok(()),
    }
}

fn is_early_end(error: &hyper::Error) -> bool {
    let cause =
        std::error::Error::source(error).and_then(|cause| cause.downcast_ref::<io::Error>());
    cause.is_some_and(|cause| cause.kind() == io::ErrorKind::UnexpectedEof)
}

/// Looks for a text in a body that comes in pieces.
struct Search<'a> {
    text: &'a [u8],
    /// The end of what came, in which the text may have begun: shorter than it.
    end: Vec<u8>,
    found: bool,
}

impl<'a> Search<'a> {
    fn new(text: &'a [u8]) -> Self {
        Self {
            text,
            end: Vec::new(),
            // Nothing is in everything.
            found: text.is_empty(),
        }
    }

    fn take(&mut self, piece: &[u8]) {
        if self.found {
            return;
        }
        self.end.extend_from_slice(piece);
        let mut places = self.end.windows(self.text.len());
        self.found = places.any(|place| place == self.text);
        let over = (self.end.len() + 1).saturating_sub(self.text.len());
        self.end.drain(..over);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        /// Whatever the pieces are, the text is found where it is in the whole, and little is kept.
        #[test]
        fn a_text_is_found_over_any_pieces(
            text in "[ab]{0,5}",
            pieces in proptest::collection::vec("[ab]{0,9}", 0..9),
        ) {
            let mut search = Search::new(text.as_bytes());
            for piece in &pieces {
                search.take(piece.as_bytes());
                prop_assert!(search.end.len() <= text.len());
            }
            prop_assert_eq!(search.found, pieces.concat().contains(&text));
        }
    }
}
