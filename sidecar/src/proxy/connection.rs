//! One connection of a client: HTTP/1.1 with keep-alive, and a websocket after it.

use std::convert::Infallible;
use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use axum::response::Response;
use hush_listener::{
    AcceptedConnection, ConnectionPeer, GuardedIo, GuardedService, HEAD_LIMIT_BYTES, HEAD_TIMEOUT, OVERFLOW_TIMEOUT,
    RequestPhase, RouteScope,
};
use hyper::Request;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::Service;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::TcpStream;

use super::answer::BrokenOff;
use super::client_stall::{ClientStallLimit, StallLimitedStream};
use super::client_stream::ClientStream;
use super::core::{ConnectionContext, ProxyCore};
use super::error::format_refusal;
use super::tunnel::Tunnel;

/// The most that is read at once from a client. hyper begins with 8 KiB, and doubles it while the client fills it.
const READ_MAX_BYTES: usize = 256 << 10;

/// A socket that takes over its connection when the answer to the handshake is sent.
#[derive(Clone, Default)]
pub struct PendingTunnel(Arc<Mutex<Option<Box<Tunnel>>>>);

impl PendingTunnel {
    pub fn set(&self, tunnel: Tunnel) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(Box::new(tunnel));
    }

    fn take(&self) -> Option<Box<Tunnel>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).take()
    }
}

struct ProxyConnectionService {
    core: Arc<ProxyCore>,
    context: ConnectionContext,
}

impl Service<Request<Incoming>> for ProxyConnectionService {
    type Response = Response;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Response, Infallible>> + Send>>;

    fn call(&self, request: Request<Incoming>) -> Self::Future {
        let (core, context) = (Arc::clone(&self.core), self.context.clone());
        Box::pin(async move { Ok(core.serve(request, context).await) })
    }
}

/// Serves a connection until it ends.
pub async fn serve_connection(accepted: AcceptedConnection, core: Arc<ProxyCore>) {
    let AcceptedConnection { stream, peer, phase, scope, limit } = accepted;
    let file = core.settings.files.take(&limit).await;
    let scope = if file.is_some() { scope } else { RouteScope::ProbesOnly };

    let Some(stream) = shake_hands(stream, &core, peer).await else { return };
    let broken_off = BrokenOff::default();
    let stall = ClientStallLimit::new(core.settings.client_stall, core.metrics.client_stalls_total.clone());
    let tunnel = PendingTunnel::default();
    let context = ConnectionContext {
        peer,
        scheme: stream.scheme(),
        limit,
        phase: phase.clone(),
        broken_off: broken_off.clone(),
        stall: stall.clone(),
        tunnel: tunnel.clone(),
    };

    let stream = StallLimitedStream::new(stream, stall);
    serve_http(stream, core, context, phase, scope, &broken_off).await;

    if let Some(tunnel) = tunnel.take() {
        tunnel.run().await;
    }
    drop(file);
}

/// The handshake of TLS, where the listener has it; `None` where it fails, or the shutdown begins.
async fn shake_hands(stream: TcpStream, core: &ProxyCore, peer: ConnectionPeer) -> Option<ClientStream> {
    let Some(tls) = &core.settings.tls else { return Some(ClientStream::Plain(stream)) };

    let accepted = tokio::select! {
        accepted = tls.accept(stream) => accepted,
        () = core.shutdown.cancelled() => return None,
    };
    match accepted {
        Ok(stream) => Some(ClientStream::Tls(Box::new(stream))),
        Err(error) => {
            tracing::debug!(%error, peer = %peer.address, "a TLS handshake failed");
            None
        }
    }
}

/// Boxed, because a connection that has become a socket needs nothing of it any more.
fn serve_http<'a>(
    stream: StallLimitedStream,
    core: Arc<ProxyCore>,
    context: ConnectionContext,
    phase: RequestPhase,
    scope: RouteScope,
    broken_off: &'a BrokenOff,
) -> Pin<Box<dyn Future<Output = ()> + Send + 'a>> {
    let longest = match scope {
        RouteScope::Everything => Duration::MAX,
        RouteScope::ProbesOnly => OVERFLOW_TIMEOUT,
    };
    let keep_alive = core.settings.keep_alive.min(longest);
    let shutdown = core.shutdown.clone();

    let stream = GuardedIo::new(stream, phase.clone(), format_refusal, HEAD_TIMEOUT.min(longest));
    let service = GuardedService::new(ProxyConnectionService { core, context }, format_refusal, scope, phase);
    let mut connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(keep_alive)
        .max_header_size(HEAD_LIMIT_BYTES)
        .max_buf_size(READ_MAX_BYTES)
        .serve_connection(TokioIo::new(stream), service)
        .with_upgrades();

    Box::pin(async move {
        let ended = tokio::select! {
            ended = &mut connection => ended,
            () = shutdown.cancelled() => {
                Pin::new(&mut connection).graceful_shutdown();
                (&mut connection).await
            }
        };

        let Err(error) = ended else { return };
        tracing::debug!(%error, "a connection broke");
        if broken_off.is_set()
            && let Some(parts) = connection.into_parts()
        {
            // Closing it would look like the end of the answer.
            parts.io.into_inner().into_inner().get_ref().reset_at_close();
        }
    })
}
