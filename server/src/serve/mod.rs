//! Connections: HTTP/1.1 with keep-alive, over TLS if wanted, an end that lets running requests finish, and a record of each request.

mod half_close;
mod record;
mod tls;
#[cfg(feature = "otel")]
pub mod trace;

use std::convert::Infallible;
use std::future::Future;
use std::io;
use std::pin::Pin;
use std::time::Duration;

use axum::Router;
use axum::response::Response;
use futures_util::FutureExt;
use hyper::Request;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::Service;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use rustix::net::sockopt;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use hush_listener::{
    Admission, ConnectionLimit, GuardedIo, GuardedService, HEAD_LIMIT_BYTES, HEAD_PATIENCE, OVERFLOW_PATIENCE, Refusal,
    RequestPhase, Route, Shape,
};

pub use hush_listener::ConnectionPeer as Peer;

use half_close::{Exchange, SharedStream, client_gone};
pub use record::{Recorder, record};
pub use tls::Tls;

/// Out of file descriptors, most likely: connections that end give some back.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Below the 60 s after which common proxies drop a silent connection.
const KEEPALIVE_IDLE: Duration = Duration::from_secs(45);
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(15);
const KEEPALIVE_PROBES: u32 = 5;

#[derive(Clone, Debug)]
pub struct ServeOptions {
    /// Longest wait for the head of a request, from the start of the connection or the end of the last answer. Long,
    /// because a client that reuses a connection at the moment of its end sees an error.
    pub head_timeout: Duration,
    /// Longest wait for the rest of a head that has begun.
    pub head_patience: Duration,
    /// Connections that are open at the same time.
    pub max_connections: usize,
    /// How errors look that no handler writes.
    pub shape: Shape,
    /// How long running requests may go on once the shutdown has begun.
    pub drain_deadline: Duration,
    /// `None`: plain HTTP.
    pub tls: Option<Tls>,
}

impl Default for ServeOptions {
    fn default() -> Self {
        Self {
            head_timeout: Duration::from_secs(120),
            head_patience: HEAD_PATIENCE,
            max_connections: 1024,
            shape: bare_shape,
            drain_deadline: Duration::from_secs(30),
            tls: None,
        }
    }
}

/// `{"detail": ...}` alone.
fn bare_shape(refusal: &Refusal<'_>) -> String {
    serde_json::json!({ "detail": refusal.message }).to_string()
}

/// Serves until `shutdown` is cancelled, then accepts nothing more, lets running requests finish until the deadline
/// and cuts off the rest. Dropping the future cuts off everything at once.
pub async fn serve(listener: TcpListener, router: Router, shutdown: CancellationToken, options: ServeOptions) {
    let connections = TaskTracker::new();
    let cut_off = CancellationToken::new();
    let _cut_off_on_drop = cut_off.clone().drop_guard();
    let limit = ConnectionLimit::new(options.max_connections);
    loop {
        let accepted = tokio::select! {
            () = shutdown.cancelled() => break,
            accepted = listener.accept() => accepted,
        };
        let (stream, address) = match accepted {
            Ok(accepted) => accepted,
            Err(error) if is_of_one_connection(&error) => continue,
            Err(error) => {
                tracing::error!(%error, "accepting a connection failed");
                tokio::time::sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        let (place, route) = match limit.admit() {
            Admission::Served(place) => (place, Route::Everything),
            Admission::Overflow(place) => (place, Route::ProbesOnly),
            Admission::Closed => continue,
        };
        let (router, shutdown, cut_off) = (router.clone(), shutdown.clone(), cut_off.clone());
        let (terms, tls) = (Terms::new(&options, route, place.phase.clone()), options.tls.clone());
        let (peer, exchange) = (Peer { address }, Exchange::new());
        let service = ConnectionService { peer, exchange, router: TowerToHyperService::new(router) };
        connections.spawn(async move {
            tokio::select! {
                () = place.phase.evicted() => {}
                () = connection(stream, tls, service, shutdown, terms) => {}
                () = cut_off.cancelled() => {}
            }
        });
    }
    drop(listener);
    connections.close();
    if tokio::time::timeout(options.drain_deadline, connections.wait()).await.is_err() {
        tracing::warn!(connections = connections.len(), "cutting off what still runs at the end of the shutdown");
        cut_off.cancel();
        connections.wait().await;
    }
}

/// What a connection is given.
struct Terms {
    head_timeout: Duration,
    head_patience: Duration,
    shape: Shape,
    route: Route,
    phase: RequestPhase,
}

impl Terms {
    fn new(options: &ServeOptions, route: Route, phase: RequestPhase) -> Self {
        let ServeOptions { head_timeout, head_patience, shape, .. } = *options;
        let most = match route {
            Route::Everything => Duration::MAX,
            Route::ProbesOnly => OVERFLOW_PATIENCE,
        };
        let (head_timeout, head_patience) = (head_timeout.min(most), head_patience.min(most));
        Self { head_timeout, head_patience, shape, route, phase }
    }
}

async fn connection(
    stream: TcpStream,
    tls: Option<Tls>,
    service: ConnectionService,
    shutdown: CancellationToken,
    terms: Terms,
) {
    let address = service.peer.address;
    if let Err(error) = set_options(&stream) {
        tracing::debug!(%error, "socket options");
    }
    let stream = SharedStream::new(stream);
    let (shared, exchange) = (stream.clone(), service.exchange.clone());
    let serving = async {
        let Some(tls) = tls.as_ref() else { return http(stream, service, shutdown, terms).await };
        let accepted = tokio::select! {
            accepted = tls.accept(stream) => accepted,
            () = shutdown.cancelled() => return,
        };
        match accepted {
            Ok(stream) => http(stream, service, shutdown, terms).await,
            Err(error) => tracing::debug!(%error, peer = %service.peer.address, "a TLS handshake failed"),
        }
    };
    tokio::select! {
        () = serving => {}
        () = client_gone(shared.socket(), &exchange, tls.is_none()) => {
            tracing::debug!(peer = %address, "the client is gone");
        }
    }
}

async fn http<S>(stream: S, service: ConnectionService, shutdown: CancellationToken, terms: Terms)
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let Terms { head_timeout, head_patience, shape, route, phase } = terms;
    let stream = GuardedIo::new(stream, phase.clone(), shape, head_patience);
    let service = GuardedService::new(service, shape, route, phase);
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(head_timeout)
        .max_buf_size(HEAD_LIMIT_BYTES)
        // Whether a client is gone is found out by `client_gone`.
        .half_close(true)
        .serve_connection(TokioIo::new(stream), service);
    let mut connection = std::pin::pin!(connection);
    let ended = tokio::select! {
        ended = connection.as_mut() => ended,
        () = shutdown.cancelled() => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(error) = ended {
        tracing::debug!(%error, "a connection broke");
    }
}

/// The router for one connection: it is told who asks, and tells how far the request has come.
struct ConnectionService {
    peer: Peer,
    exchange: Exchange,
    router: TowerToHyperService<Router>,
}

impl Service<Request<Incoming>> for ConnectionService {
    type Response = Response;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Response, Infallible>> + Send>>;

    fn call(&self, request: Request<Incoming>) -> Self::Future {
        let (mut head, body) = request.into_parts();
        head.extensions.insert(self.peer);
        let (body, in_flight) = self.exchange.begin(head.version, body);
        let answer = self.router.call(Request::from_parts(head, body));
        Box::pin(answer.map(|response| in_flight.answer(response)))
    }
}

/// An answer may take an hour, and nothing is sent meanwhile: keep-alive probes show who has vanished without a word,
/// and keep NAT and load balancers from forgetting the connection.
fn set_options(stream: &TcpStream) -> io::Result<()> {
    stream.set_nodelay(true)?;
    sockopt::set_socket_keepalive(stream, true)?;
    sockopt::set_tcp_keepidle(stream, KEEPALIVE_IDLE)?;
    sockopt::set_tcp_keepintvl(stream, KEEPALIVE_INTERVAL)?;
    sockopt::set_tcp_keepcnt(stream, KEEPALIVE_PROBES)?;
    Ok(())
}

fn is_of_one_connection(error: &io::Error) -> bool {
    use io::ErrorKind::{ConnectionAborted, ConnectionRefused, ConnectionReset};
    matches!(error.kind(), ConnectionAborted | ConnectionRefused | ConnectionReset)
}
