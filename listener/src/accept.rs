//! Accepts connections until a shutdown, and lets those that are open finish.

use std::future::Future;
use std::io;
use std::time::Duration;

use rustix::net::sockopt;
use tokio::net::{TcpListener, TcpStream};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::auth::ConnectionPeer;
use super::connections::{ConnectionAdmission, ConnectionLimit};
use super::service::{RequestPhase, RouteScope};

/// The pause after a failed accept. Most likely the process has no free file descriptor, and a connection that ends frees one.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Below the 60 s after which common proxies drop a silent connection.
const KEEPALIVE_IDLE: Duration = Duration::from_secs(45);
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(15);
const KEEPALIVE_PROBES: u32 = 5;

#[derive(Clone, Copy, Debug)]
pub struct AcceptOptions {
    /// Connections that are open at the same time.
    pub max_connections: usize,
    /// How long open connections may go on once the shutdown has begun.
    pub drain_deadline: Duration,
}

/// A connection that was accepted, and what may be served on it.
pub struct AcceptedConnection {
    pub stream: TcpStream,
    pub peer: ConnectionPeer,
    pub phase: RequestPhase,
    pub scope: RouteScope,
    /// The slots of all connections of the listener.
    pub limit: ConnectionLimit,
}

/// Passes each connection to `serve_connection` until `shutdown` is cancelled. Then no connection is accepted, open ones may
/// finish until the deadline, and the rest are cut off. Dropping the future cuts off all connections at once.
pub async fn accept_connections<S, F>(
    listener: TcpListener,
    shutdown: CancellationToken,
    options: AcceptOptions,
    serve_connection: S,
) where
    S: Fn(AcceptedConnection) -> F,
    F: Future<Output = ()> + Send + 'static,
{
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
            Err(error) if concerns_one_connection(&error) => continue,
            Err(error) => {
                tracing::error!(%error, "accepting a connection failed");
                tokio::time::sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        let (slot, scope) = match limit.admit() {
            ConnectionAdmission::Served(slot) => (slot, RouteScope::Everything),
            ConnectionAdmission::Overflow(slot) => (slot, RouteScope::ProbesOnly),
            ConnectionAdmission::Closed => continue,
        };
        if let Err(error) = set_socket_options(&stream) {
            tracing::debug!(%error, "socket options");
        }

        let peer = ConnectionPeer { address };
        let serving = serve_connection(AcceptedConnection {
            stream,
            peer,
            phase: slot.phase.clone(),
            scope,
            limit: limit.clone(),
        });
        let cut_off = cut_off.clone();
        connections.spawn(async move {
            tokio::select! {
                () = slot.phase.evicted() => {}
                () = serving => {}
                () = cut_off.cancelled() => {}
            }
        });
    }

    drop(listener);
    drain_connections(&connections, &cut_off, options.drain_deadline).await;
}

/// Waits for open connections until the deadline, and cuts off the rest.
async fn drain_connections(connections: &TaskTracker, cut_off: &CancellationToken, deadline: Duration) {
    connections.close();

    if tokio::time::timeout(deadline, connections.wait()).await.is_err() {
        tracing::warn!(connections = connections.len(), "cutting off what still runs at the end of the shutdown");
        cut_off.cancel();
        connections.wait().await;
    }
}

/// An answer may take an hour, in which nothing is sent. TCP keep-alive probes find clients that have vanished without closing
/// the connection, and keep NAT and load balancers from dropping it.
fn set_socket_options(stream: &TcpStream) -> io::Result<()> {
    stream.set_nodelay(true)?;
    sockopt::set_socket_keepalive(stream, true)?;
    sockopt::set_tcp_keepidle(stream, KEEPALIVE_IDLE)?;
    sockopt::set_tcp_keepintvl(stream, KEEPALIVE_INTERVAL)?;
    sockopt::set_tcp_keepcnt(stream, KEEPALIVE_PROBES)?;
    Ok(())
}

/// Whether only the connection that was to be accepted has failed.
fn concerns_one_connection(error: &io::Error) -> bool {
    use io::ErrorKind::{ConnectionAborted, ConnectionRefused, ConnectionReset};
    matches!(error.kind(), ConnectionAborted | ConnectionRefused | ConnectionReset)
}
