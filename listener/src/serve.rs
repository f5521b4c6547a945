//! A listener without TLS and without an end: that of the controller.

use std::time::Duration;

use axum::extract::ConnectInfo;
use axum::{Extension, Router};
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::net::{TcpListener, TcpStream};

use super::connections::{Admission, ConnectionLimit, Place};
use super::io::GuardedIo;
use super::refusal::Shape;
use super::service::{GuardedService, Route};
use super::{HEAD_LIMIT_BYTES, OVERFLOW_PATIENCE};

/// Out of file descriptors, most likely: connections that end give some back.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// Between two requests; scrapes come every 15 s, and every minute where they are rare.
const IDLE_TIMEOUT: Duration = Duration::from_secs(120);

#[derive(Clone, Copy, Debug)]
pub struct ListenOptions {
    /// Connections that are open at the same time.
    pub max_connections: usize,
    /// Longest wait for the rest of a head that has begun.
    pub head_patience: Duration,
    pub shape: Shape,
}

/// Serves until the future is dropped. Each request carries the address of its peer as [`ConnectInfo`].
pub async fn serve(listener: TcpListener, router: Router, options: ListenOptions) {
    let limit = ConnectionLimit::new(options.max_connections);
    loop {
        let (stream, peer) = match listener.accept().await {
            Ok(accepted) => accepted,
            Err(error) => {
                tracing::warn!(%error, "accepting a connection failed");
                tokio::time::sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        let (place, route) = match limit.admit() {
            Admission::Served(place) => (place, Route::Everything),
            Admission::Overflow(place) => (place, Route::ProbesOnly),
            Admission::Closed => continue,
        };
        let router = router.clone().layer(Extension(ConnectInfo(peer)));
        tokio::spawn(connection(stream, router, place, route, options));
    }
}

async fn connection(stream: TcpStream, router: Router, place: Place, route: Route, options: ListenOptions) {
    // It only delays answers where it cannot be set.
    let _ = stream.set_nodelay(true);
    let (idle, patience) = match route {
        Route::Everything => (IDLE_TIMEOUT, options.head_patience),
        Route::ProbesOnly => (OVERFLOW_PATIENCE, OVERFLOW_PATIENCE),
    };
    let (shape, phase) = (options.shape, place.phase.clone());
    let io = GuardedIo::new(stream, phase.clone(), shape, patience);
    let service = GuardedService::new(TowerToHyperService::new(router), shape, route, phase.clone());
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(idle)
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
