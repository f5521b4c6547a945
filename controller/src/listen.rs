//! The controller's HTTP listener: its limits, and the format of its errors.

use axum::{Router, middleware};
use hush_listener::{FormatErrors, HEAD_TIMEOUT, ListenOptions, ListenerRefusal, format_errors};
use tokio::net::TcpListener;

/// Enough for scrapes, probes, open pages (each holds a stream) and users of the plugin.
const MAX_CONNECTIONS: usize = 256;

pub const LISTEN_OPTIONS: ListenOptions =
    ListenOptions { max_connections: MAX_CONNECTIONS, head_timeout: HEAD_TIMEOUT, format_error: error_body };

/// The same format as the errors of [`crate::web`].
fn error_body(refusal: &ListenerRefusal<'_>) -> String {
    serde_json::json!({ "code": refusal.code, "message": refusal.message }).to_string()
}

/// Gives errors that no handler writes, such as an unknown route, the format of all other errors.
pub fn with_error_format(router: Router) -> Router {
    router.layer(middleware::from_fn_with_state(
        FormatErrors { format_error: error_body, server_errors: true },
        format_errors,
    ))
}

/// Serves until the future is dropped.
pub async fn serve(listener: TcpListener, router: Router, options: ListenOptions) {
    hush_listener::serve(listener, with_error_format(router), options).await;
}
