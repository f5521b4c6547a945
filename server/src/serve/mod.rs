//! Serves connections: HTTP/1.1 with keep-alive, over TLS if configured. A shutdown lets running requests finish. Each request
//! is recorded in the log, in the metrics and as a trace.

mod half_close;
mod record;
#[cfg(feature = "otel")]
pub mod trace;

use std::convert::Infallible;
use std::future::Future;
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
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio_util::sync::CancellationToken;

use hush_listener::{
    AcceptOptions, AcceptedConnection, ErrorFormat, GuardedIo, GuardedService, HEAD_LIMIT_BYTES, HEAD_TIMEOUT,
    ListenerRefusal, OVERFLOW_TIMEOUT, RequestPhase, RouteScope, accept_connections,
};

pub use hush_listener::ConnectionPeer;

use half_close::{ExchangeState, SharedStream, client_gone};
pub use hush_access::Tls;
pub use record::{Recorder, record};

#[derive(Clone, Debug)]
pub struct ServeOptions {
    /// The longest wait for the head of a request, from the start of the connection or the end of the last answer. It is long
    /// because a client that reuses a connection just when it is closed gets an error.
    pub idle_timeout: Duration,
    /// The longest wait for the rest of a head that has begun.
    pub head_timeout: Duration,
    /// Connections that are open at the same time.
    pub max_connections: usize,
    /// Writes the body of an error that no handler writes.
    pub format_error: ErrorFormat,
    /// How long running requests may go on once the shutdown has begun.
    pub drain_deadline: Duration,
    /// `None`: plain HTTP.
    pub tls: Option<Tls>,
}

impl Default for ServeOptions {
    fn default() -> Self {
        Self {
            idle_timeout: Duration::from_secs(120),
            head_timeout: HEAD_TIMEOUT,
            max_connections: 1024,
            format_error: bare_error_body,
            drain_deadline: Duration::from_secs(30),
            tls: None,
        }
    }
}

/// `{"detail": ...}` alone.
fn bare_error_body(refusal: &ListenerRefusal<'_>) -> String {
    serde_json::json!({ "detail": refusal.message }).to_string()
}

/// Serves until `shutdown` is cancelled. Then no connection is accepted, running requests may finish until the deadline, and
/// the rest are cut off. Dropping the future cuts off all connections at once.
pub async fn serve(listener: TcpListener, router: Router, shutdown: CancellationToken, options: ServeOptions) {
    let accepting = AcceptOptions { max_connections: options.max_connections, drain_deadline: options.drain_deadline };

    accept_connections(listener, shutdown.clone(), accepting, |accepted| {
        let AcceptedConnection { stream, peer, phase, scope, .. } = accepted;
        let connection_options = ConnectionOptions::new(&options, scope, phase);
        let service =
            ConnectionService { peer, state: ExchangeState::new(), router: TowerToHyperService::new(router.clone()) };

        serve_connection(stream, options.tls.clone(), service, shutdown.clone(), connection_options)
    })
    .await;
}

/// The timeouts and limits of one connection.
struct ConnectionOptions {
    idle_timeout: Duration,
    head_timeout: Duration,
    format_error: ErrorFormat,
    route: RouteScope,
    phase: RequestPhase,
}

impl ConnectionOptions {
    fn new(options: &ServeOptions, route: RouteScope, phase: RequestPhase) -> Self {
        let ServeOptions { idle_timeout, head_timeout, format_error, .. } = *options;
        let longest = match route {
            RouteScope::Everything => Duration::MAX,
            RouteScope::ProbesOnly => OVERFLOW_TIMEOUT,
        };

        Self {
            idle_timeout: idle_timeout.min(longest),
            head_timeout: head_timeout.min(longest),
            format_error,
            route,
            phase,
        }
    }
}

async fn serve_connection(
    stream: TcpStream,
    tls: Option<Tls>,
    service: ConnectionService,
    shutdown: CancellationToken,
    options: ConnectionOptions,
) {
    let address = service.peer.address;
    let stream = SharedStream::new(stream);
    let shared = stream.clone();
    let state = service.state.clone();
    let serving = async {
        let Some(tls) = tls.as_ref() else { return serve_http(stream, service, shutdown, options).await };

        let accepted = tokio::select! {
            accepted = tls.accept(stream) => accepted,
            () = shutdown.cancelled() => return,
        };
        match accepted {
            Ok(stream) => serve_http(stream, service, shutdown, options).await,
            Err(error) => tracing::debug!(%error, peer = %service.peer.address, "a TLS handshake failed"),
        }
    };

    tokio::select! {
        () = serving => {}
        () = client_gone(shared.socket(), &state, tls.is_none()) => {
            tracing::debug!(peer = %address, "the client is gone");
        }
    }
}

async fn serve_http<S>(stream: S, service: ConnectionService, shutdown: CancellationToken, options: ConnectionOptions)
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let ConnectionOptions { idle_timeout, head_timeout, format_error, route, phase } = options;
    let stream = GuardedIo::new(stream, phase.clone(), format_error, head_timeout);
    let service = GuardedService::new(service, format_error, route, phase);
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(idle_timeout)
        .max_buf_size(HEAD_LIMIT_BYTES)
        // `client_gone` finds out whether the client is gone.
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

/// The router for one connection. It gives each request the address of its client, and records how far the request has come.
struct ConnectionService {
    peer: ConnectionPeer,
    state: ExchangeState,
    router: TowerToHyperService<Router>,
}

impl Service<Request<Incoming>> for ConnectionService {
    type Response = Response;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Response, Infallible>> + Send>>;

    fn call(&self, request: Request<Incoming>) -> Self::Future {
        let (mut head, body) = request.into_parts();
        head.extensions.insert(self.peer);
        let (body, in_flight) = self.state.begin(head.version, body);

        let answer = self.router.call(Request::from_parts(head, body));
        Box::pin(answer.map(|response| in_flight.answer(response)))
    }
}
