//! Serves the connections of clients, and ends them at a shutdown.

use std::sync::Arc;

use hush_listener::{AcceptOptions, accept_connections};
use tokio::net::TcpListener;

use super::connection::serve_connection;
use super::core::ProxyCore;

/// Serves until `core.shutdown` is cancelled. Then no connection is accepted, requests may finish until the deadline, and
/// the rest are cut off. Dropping the future cuts off all connections at once.
pub async fn serve(listener: TcpListener, core: Arc<ProxyCore>) {
    let shutdown = core.shutdown.clone();
    let accepting =
        AcceptOptions { max_connections: core.settings.max_connections, drain_deadline: core.settings.drain_deadline };

    accept_connections(listener, shutdown, accepting, |accepted| serve_connection(accepted, Arc::clone(&core))).await;
}
