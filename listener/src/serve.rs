//! The listeners of the controller, and of the sidecar's operations: they serve until they are dropped.

use std::future::{Future, ready};
use std::io;
use std::sync::Arc;
use std::time::Duration;

use axum::extract::ConnectInfo;
use axum::{Extension, Router};
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};

use super::connections::{ConnectionAdmission, ConnectionLimit, ConnectionSlot};
use super::io::GuardedIo;
use super::refusal::ErrorFormat;
use super::service::{GuardedService, RouteScope};
use super::{HEAD_LIMIT_BYTES, OVERFLOW_TIMEOUT};

/// Pause after a failed `accept`, most likely because no file descriptor is free; connections that end free some.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// Timeout between two requests. Scrapes come every 15 s, or every minute.
const IDLE_TIMEOUT: Duration = Duration::from_secs(120);

#[derive(Clone, Copy, Debug)]
pub struct ListenOptions {
    /// The most connections at a time.
    pub max_connections: usize,
    /// Timeout for the rest of a head that has begun.
    pub head_timeout: Duration,
    pub format_error: ErrorFormat,
}

/// Serves until the future is dropped. Each request carries the address of its peer as [`ConnectInfo`].
pub async fn serve(listener: TcpListener, router: Router, options: ListenOptions) {
    serve_after_handshake(listener, router, options, |stream| ready(Ok(stream))).await;
}

/// As [`serve`], with a handshake, such as that of TLS, at the beginning of each connection. It must end by itself when the
/// client sends nothing.
pub async fn serve_after_handshake<S, H>(
    listener: TcpListener,
    router: Router,
    options: ListenOptions,
    handshake: impl Fn(TcpStream) -> H + Send + Sync + 'static,
) where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    H: Future<Output = io::Result<S>> + Send + 'static,
{
    let limit = ConnectionLimit::new(options.max_connections);
    let handshake = Arc::new(handshake);

    loop {
        let (stream, peer) = match listener.accept().await {
            Ok(accepted) => accepted,
            Err(error) => {
                tracing::warn!(%error, "accepting a connection failed");
                tokio::time::sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };

        let (slot, route) = match limit.admit() {
            ConnectionAdmission::Served(slot) => (slot, RouteScope::Everything),
            ConnectionAdmission::Overflow(slot) => (slot, RouteScope::ProbesOnly),
            ConnectionAdmission::Closed => continue,
        };
        // A failure only delays answers.
        let _ = stream.set_nodelay(true);

        let router = router.clone().layer(Extension(ConnectInfo(peer)));
        let handshake = Arc::clone(&handshake);
        tokio::spawn(async move {
            let stream = tokio::select! {
                stream = handshake(stream) => stream,
                () = slot.phase.evicted() => return,
            };
            match stream {
                Ok(stream) => serve_connection(stream, router, slot, route, options).await,
                Err(error) => tracing::debug!(%error, %peer, "a handshake failed"),
            }
        });
    }
}

async fn serve_connection<S>(stream: S, router: Router, slot: ConnectionSlot, route: RouteScope, options: ListenOptions)
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let (idle_timeout, head_timeout) = match route {
        RouteScope::Everything => (IDLE_TIMEOUT, options.head_timeout),
        RouteScope::ProbesOnly => (OVERFLOW_TIMEOUT, OVERFLOW_TIMEOUT),
    };

    let (format_error, phase) = (options.format_error, slot.phase.clone());
    let io = GuardedIo::new(stream, phase.clone(), format_error, head_timeout);
    let service = GuardedService::new(TowerToHyperService::new(router), format_error, route, phase.clone());
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(idle_timeout)
        .max_buf_size(HEAD_LIMIT_BYTES)
        .serve_connection(TokioIo::new(io), service);

    let ended = tokio::select! {
        ended = connection => ended,
        () = phase.evicted() => return,
    };

    if let Err(error) = ended {
        tracing::debug!(%error, "a connection broke");
    }
}
