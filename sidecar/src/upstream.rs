//! HTTP/1.1 connections to the app, in cleartext.
//!
//! Idle connections are kept for a short time, because common servers close theirs after 5 s and a request that meets
//! the end of a connection is lost. A request is repeated exactly once, and only while no byte of it was written: where a
//! kept connection turned out to be closed, or where the app refused the connection. hyper-util's own client repeats a
//! request on any number of kept connections, so the pool is this module's own.

mod connection;
mod credential;
mod pool;

use std::collections::HashMap;
use std::fmt;
use std::io;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use axum::body::Body;
use bytes::{Bytes, BytesMut};
use http::header::{CONTENT_TYPE, HOST};
use http::{HeaderValue, Request, Uri};
use http_body_util::BodyExt;
use tokio::net::TcpStream;
use tokio::time::{sleep, timeout};

use crate::app::{AppAnswer, AppRequest};

pub use connection::{AnswerBody, ConnectionWatch, UpstreamAnswer};
pub use credential::UpstreamCredential;
pub use pool::IDLE_UPSTREAM_MAX;

use connection::{SendFailure, UpstreamConnection};
use pool::UpstreamPool;

/// The limit for answers to the sidecar's own requests.
const CALL_LIMIT_BYTES: usize = 16 << 20;

/// The pause before a refused connection is tried once more: an app that restarts listens again soon.
const REFUSED_PAUSE: Duration = Duration::from_millis(100);

/// Where the app listens, and how it is spoken to.
#[derive(Clone)]
pub struct UpstreamSettings {
    /// A host name or an address, without brackets.
    pub host: String,
    pub port: u16,
    pub connect_timeout: Duration,
    /// How long an idle connection is kept.
    pub idle_timeout: Duration,
    /// The port on which the app tells how much work it has, where it is another one than its description says.
    pub busy_port: Option<u16>,
    /// Sent with the sidecar's own requests alone; those of clients carry their own.
    pub credential: Option<UpstreamCredential>,
}

impl UpstreamSettings {
    pub fn new(host: impl Into<String>, port: u16) -> Self {
        Self {
            host: host.into(),
            port,
            connect_timeout: Duration::from_secs(5),
            // uvicorn closes its idle connections after 5 s.
            idle_timeout: Duration::from_millis(3500),
            busy_port: None,
            credential: None,
        }
    }

    /// Reads `http://HOST[:PORT]`, without a path.
    ///
    /// # Errors
    /// If the text is no such address; the error says what is wrong.
    pub fn from_url(url: &str) -> Result<Self, UpstreamUrlError> {
        let uri: Uri = url.parse().map_err(|_| UpstreamUrlError::Malformed { url: url.to_owned() })?;
        let error = |problem| UpstreamUrlError::Unusable { url: url.to_owned(), problem };

        if uri.scheme_str() != Some("http") {
            return Err(error("it must begin with `http://`: the app is spoken to in cleartext on this machine"));
        }
        if uri.path() != "/" || uri.query().is_some() {
            return Err(error("it must not have a path or a query"));
        }

        let authority = uri.authority().ok_or_else(|| error("the host is missing"))?;
        if authority.as_str().contains('@') {
            return Err(error("it must not have a user name; give the credential in a file"));
        }

        let host = authority.host().trim_start_matches('[').trim_end_matches(']');
        Ok(Self::new(host, authority.port_u16().unwrap_or(80)))
    }

    /// Whether the app listens on the loopback of this machine.
    pub fn is_local(&self) -> bool {
        self.host == "localhost" || self.host.parse().is_ok_and(|host: IpAddr| host.is_loopback())
    }

    /// The value of `Host`, and the address in messages.
    fn authority(&self) -> String {
        let Self { host, port, .. } = self;
        if host.contains(':') { format!("[{host}]:{port}") } else { format!("{host}:{port}") }
    }
}

impl fmt::Debug for UpstreamSettings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "UpstreamSettings({})", self.authority())
    }
}

/// Why the address of an app cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum UpstreamUrlError {
    #[error("`{url}` is no address such as `http://127.0.0.1:8080`")]
    Malformed { url: String },
    #[error("`{url}` cannot be used as the address of the app: {problem}")]
    Unusable { url: String, problem: &'static str },
}

/// The app's listener. Cheap to clone; clones share the idle connections.
#[derive(Clone)]
pub struct Upstream {
    inner: Arc<UpstreamInner>,
}

struct UpstreamInner {
    settings: UpstreamSettings,
    authority: String,
    host: HeaderValue,
    pool: UpstreamPool,
    /// The app on its other ports, of which it has a few.
    other_ports: Mutex<HashMap<u16, Upstream>>,
}

impl fmt::Debug for Upstream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Upstream").field("address", &self.inner.authority).finish_non_exhaustive()
    }
}

/// Why the app gives no answer.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum UpstreamError {
    /// Nothing listens there: the app does not run, or has not come up yet.
    #[error("{address} does not accept connections")]
    Refused { address: String, source: io::Error },
    #[error("no answer after {seconds} s")]
    TimedOut { seconds: f64 },
    #[error("the answer is larger than {limit_bytes} bytes")]
    TooLarge { limit_bytes: usize },
    #[error("the connection broke")]
    Broken(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// The request cannot be sent at all.
    #[error("the request cannot be sent")]
    Request(#[source] http::Error),
}

impl UpstreamError {
    /// Whether no byte of the request was written.
    pub const fn is_unsent(&self) -> bool {
        matches!(self, Self::Refused { .. } | Self::Request(_))
    }

    /// The value of the label `cause` in metrics.
    pub const fn label(&self) -> &'static str {
        match self {
            Self::Refused { .. } => "refused",
            Self::TimedOut { .. } => "timed_out",
            Self::TooLarge { .. } => "too_large",
            Self::Broken(_) => "broken",
            Self::Request(_) => "request",
        }
    }
}

impl Upstream {
    /// Connects to nothing yet. An unusable host name is an error of each request.
    pub fn new(settings: UpstreamSettings) -> Self {
        let authority = settings.authority();
        let host = HeaderValue::try_from(&authority).unwrap_or(HeaderValue::from_static("localhost"));
        let pool = UpstreamPool::new(settings.idle_timeout);

        let other_ports = Mutex::default();
        Self { inner: Arc::new(UpstreamInner { settings, authority, host, pool, other_ports }) }
    }

    /// The same app on another of its ports, with connections of its own, which are kept as those of the first port are.
    #[must_use]
    pub fn with_port(&self, port: u16) -> Self {
        let mut others = self.inner.other_ports.lock().unwrap_or_else(PoisonError::into_inner);
        let other = others.entry(port);

        other.or_insert_with(|| Self::new(UpstreamSettings { port, ..self.inner.settings.clone() })).clone()
    }

    pub fn settings(&self) -> &UpstreamSettings {
        &self.inner.settings
    }

    /// `host:port`, as the app sees it in `Host`.
    pub fn authority(&self) -> &str {
        &self.inner.authority
    }

    /// The value of `Host` in requests to the app.
    pub fn host(&self) -> &HeaderValue {
        &self.inner.host
    }

    /// Sends a request of the sidecar's own, with the app's credential, and reads the whole answer.
    ///
    /// # Errors
    /// If the app does not answer in time, or with more than 16 MiB.
    pub async fn call(&self, request: &AppRequest) -> Result<AppAnswer, UpstreamError> {
        let outgoing = self.own_request(request)?;
        let seconds = request.timeout.as_secs_f64();

        let answered = timeout(request.timeout, async {
            let UpstreamAnswer { head, body } = self.forward(outgoing, &ConnectionWatch::default()).await?;
            Ok(AppAnswer { status: head.status, body: read_bounded(body).await? })
        });
        answered.await.unwrap_or(Err(UpstreamError::TimedOut { seconds }))
    }

    /// As [`Self::call`], over a new connection, and only if `may_send` agrees when the connection is there: what it finds
    /// out about the app holds for the process that has accepted the connection. `None`: nothing was sent.
    ///
    /// # Errors
    /// As [`Self::call`].
    pub async fn call_if<C: Future<Output = bool>>(
        &self,
        request: &AppRequest,
        may_send: impl FnOnce() -> C,
    ) -> Result<Option<AppAnswer>, UpstreamError> {
        let outgoing = self.own_request(request)?;
        let seconds = request.timeout.as_secs_f64();

        let answered = timeout(request.timeout, async {
            let connection = self.connect().await?;
            if !may_send().await {
                return Ok(None);
            }
            let sent = connection.send(outgoing, &ConnectionWatch::default()).await;
            let UpstreamAnswer { head, body } = sent.map_err(|failure| UpstreamError::Broken(failure.into_error()))?;
            Ok(Some(AppAnswer { status: head.status, body: read_bounded(body).await? }))
        });
        answered.await.unwrap_or(Err(UpstreamError::TimedOut { seconds }))
    }

    fn own_request(&self, request: &AppRequest) -> Result<Request<Body>, UpstreamError> {
        let mut builder = Request::builder().method(&request.method).uri(&request.path).header(HOST, self.host());
        if let Some(credential) = &self.inner.settings.credential {
            let (name, value) = credential.header();
            builder = builder.header(name, value);
        }

        let body = match &request.body {
            None => Body::empty(),
            Some(json) => {
                builder = builder.header(CONTENT_TYPE, "application/json");
                Body::from(json.to_string())
            }
        };
        builder.body(body).map_err(UpstreamError::Request)
    }

    /// Sends a request, whose target is a path and a query and which has the headers that the app is to see, and returns
    /// the head of the answer with its body as a stream. `watch` learns the connection; dropping the future or the body
    /// closes it.
    ///
    /// # Errors
    /// If there is no connection, or it breaks before the head of the answer.
    pub async fn forward(
        &self,
        mut request: Request<Body>,
        watch: &ConnectionWatch,
    ) -> Result<UpstreamAnswer, UpstreamError> {
        let kept = self.inner.pool.take();

        let connection = match kept {
            Some(connection) => match connection.send(request, watch).await {
                Ok(answer) => return Ok(answer),
                Err(SendFailure::Unsent(returned)) => {
                    request = *returned;
                    self.connect().await?
                }
                Err(SendFailure::Broken(error)) => return Err(UpstreamError::Broken(error)),
            },
            None => match self.connect().await {
                Err(UpstreamError::Refused { .. }) => {
                    sleep(REFUSED_PAUSE).await;
                    self.connect().await?
                }
                connected => connected?,
            },
        };

        connection.send(request, watch).await.map_err(|failure| UpstreamError::Broken(failure.into_error()))
    }

    async fn connect(&self) -> Result<UpstreamConnection, UpstreamError> {
        let UpstreamSettings { host, port, connect_timeout, .. } = &self.inner.settings;
        let refused = |source| UpstreamError::Refused { address: self.inner.authority.clone(), source };

        let connected = timeout(*connect_timeout, TcpStream::connect((host.as_str(), *port))).await;
        let stream = connected.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into())).map_err(refused)?;
        // A failure only delays requests.
        let _ = stream.set_nodelay(true);

        UpstreamConnection::open(stream, self.inner.pool.clone()).await.map_err(UpstreamError::Broken)
    }
}

async fn read_bounded(mut body: AnswerBody) -> Result<Bytes, UpstreamError> {
    let mut whole = BytesMut::new();

    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(|error| UpstreamError::Broken(Box::new(error)))?;
        let Ok(data) = frame.into_data() else { continue };

        if whole.len() + data.len() > CALL_LIMIT_BYTES {
            return Err(UpstreamError::TooLarge { limit_bytes: CALL_LIMIT_BYTES });
        }
        whole.extend_from_slice(&data);
    }
    Ok(whole.freeze())
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use http::Method;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;

    use super::*;

    #[tokio::test]
    async fn calls_to_another_port_share_a_connection() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let accepted = Arc::new(AtomicUsize::new(0));
        let counted = Arc::clone(&accepted);
        tokio::spawn(async move {
            loop {
                let (mut stream, _) = listener.accept().await.unwrap();
                counted.fetch_add(1, Ordering::Relaxed);
                tokio::spawn(async move {
                    let mut scratch = [0; 4096];
                    while stream.read(&mut scratch).await.is_ok_and(|read| read > 0) {
                        stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\n0").await.unwrap();
                    }
                });
            }
        });

        let upstream = Upstream::new(UpstreamSettings::new("127.0.0.1", 1));
        let (method, path, timeout) = (Method::GET, "/metrics".to_owned(), Duration::from_secs(20));
        let request = AppRequest { method, path, body: None, timeout };
        for _ in 0..10 {
            assert_eq!(upstream.with_port(port).call(&request).await.unwrap().body, "0");
            // A connection is given back by a task of its own.
            sleep(Duration::from_millis(20)).await;
        }
        assert!(accepted.load(Ordering::Relaxed) < 10);
    }

    #[test]
    fn addresses_of_apps() {
        let authority = |url| UpstreamSettings::from_url(url).map(|settings| settings.authority());

        assert_eq!(authority("http://127.0.0.1:8080").unwrap(), "127.0.0.1:8080");
        assert_eq!(authority("http://[::1]:8080/").unwrap(), "[::1]:8080");
        assert_eq!(authority("http://app").unwrap(), "app:80");
        for url in ["https://a:1", "http://a:1/v1", "a:1", "http://u:p@a:1", "", "http://"] {
            let error = authority(url).unwrap_err().to_string();
            assert!(error.contains(&format!("`{url}`")), "{error}");
        }
    }
}
