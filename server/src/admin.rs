//! The admin API ([`hush_residency::admin`]) of this server, on the operations listener.

use std::sync::Arc;

use axum::response::IntoResponse;
use axum::{Router, middleware};
pub use hush_residency::admin::{AdminAccess, AdminError, error_body};

use crate::metrics::ServerMetrics;
use crate::runner::Runners;
use crate::serve;

/// Everything that the routes share.
pub type ServerAdminState = hush_residency::admin::AdminState<Runners>;

/// The routes of the admin API, with a record of each request. To be merged with [`crate::ops::router`], which is
/// open.
pub fn router(state: ServerAdminState, metrics: Arc<ServerMetrics>) -> Router {
    let recorder = serve::Recorder { metrics, panicked: |_| AdminError::panicked().into_response() };

    hush_residency::admin::router(state).layer(middleware::from_fn_with_state(recorder, serve::record))
}
