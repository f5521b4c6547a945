//! The controller's listener: how many connections it serves, and what its errors look like.

use axum::{Router, middleware};
use hush_listener::{HEAD_PATIENCE, ListenOptions, Refusal, ShapeErrors, shape_errors};
use tokio::net::TcpListener;

/// Scrapes, probes, open pages (which hold a stream each) and people at a terminal.
const MAX_CONNECTIONS: usize = 256;

pub const LISTEN_OPTIONS: ListenOptions =
    ListenOptions { max_connections: MAX_CONNECTIONS, head_patience: HEAD_PATIENCE, shape: error_shape };

/// As [`crate::web`] writes them.
fn error_shape(refusal: &Refusal<'_>) -> String {
    serde_json::json!({ "code": refusal.code, "message": refusal.message }).to_string()
}

/// Errors that no handler writes, such as that there is no route, get the shape of the others.
pub fn with_error_shape(router: Router) -> Router {
    router.layer(middleware::from_fn_with_state(ShapeErrors { shape: error_shape, server_errors: true }, shape_errors))
}

/// Serves until the future is dropped.
pub async fn serve(listener: TcpListener, router: Router, options: ListenOptions) {
    hush_listener::serve(listener, with_error_shape(router), options).await;
}
