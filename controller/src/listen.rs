//! The controller's HTTP listener: its limits, and the shape of its errors.

use axum::{Router, middleware};
use hush_listener::{HEAD_TIMEOUT, ListenOptions, ListenerRefusal, ShapeErrors, shape_errors};
use tokio::net::TcpListener;

/// Enough for scrapes, probes, open pages (each holds a stream) and users of the plugin.
const MAX_CONNECTIONS: usize = 256;

pub const LISTEN_OPTIONS: ListenOptions =
    ListenOptions { max_connections: MAX_CONNECTIONS, head_patience: HEAD_TIMEOUT, shape: error_shape };

/// The same shape as the errors of [`crate::web`].
fn error_shape(refusal: &ListenerRefusal<'_>) -> String {
    serde_json::json!({ "code": refusal.code, "message": refusal.message }).to_string()
}

/// Gives errors that no handler writes, such as an unknown route, the shape of all other errors.
pub fn with_error_shape(router: Router) -> Router {
    router.layer(middleware::from_fn_with_state(ShapeErrors { shape: error_shape, server_errors: true }, shape_errors))
}

/// Serves until the future is dropped.
pub async fn serve(listener: TcpListener, router: Router, options: ListenOptions) {
    hush_listener::serve(listener, with_error_shape(router), options).await;
}
