//! Accepts the connections of clients, and ends them at a shutdown.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use hush_listener::{ConnectionAdmission, ConnectionLimit, ConnectionPeer, RouteScope};
use rustix::net::sockopt;
use tokio::net::{TcpListener, TcpStream};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::connection::serve_connection;
use super::core::ProxyCore;

/// The pause after a failed accept. Most likely the process has no free file descriptor, and a connection that ends frees
/// one.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Below the 60 s after which common proxies drop a silent connection.
const KEEPALIVE_IDLE: Duration = Duration::from_secs(45);
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(15);
const KEEPALIVE_PROBES: u32 = 5;

/// Serves until `core.shutdown` is cancelled. Then no connection is accepted, requests may finish until the deadline, and
/// the rest are cut off. Dropping the future cuts off all connections at once.
pub async fn serve(listener: TcpListener, core: Arc<ProxyCore>) {
    let connections = TaskTracker::new();
    let cut_off = CancellationToken::new();
    let _cut_off_on_drop = cut_off.clone().drop_guard();
    let limit = ConnectionLimit::new(core.settings.max_connections);

    loop {
        let accepted = tokio::select! {
            () = core.shutdown.cancelled() => break,
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

        let (core, cut_off) = (Arc::clone(&core), cut_off.clone());
        connections.spawn(async move {
            let phase = slot.phase.clone();
            tokio::select! {
                () = slot.phase.evicted() => {}
                () = serve_connection(stream, core, ConnectionPeer { address }, phase, scope) => {}
                () = cut_off.cancelled() => {}
            }
        });
    }

    drop(listener);
    connections.close();
    if tokio::time::timeout(core.settings.drain_deadline, connections.wait()).await.is_err() {
        tracing::warn!(connections = connections.len(), "cutting off what still runs at the end of the shutdown");
        cut_off.cancel();
        connections.wait().await;
    }
}

/// An answer may take an hour, in which nothing is sent. The probes find clients that have vanished without closing the
/// connection, and keep NAT and load balancers from dropping it.
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
