//! The part of the operations listener that needs no credential: `GET /metrics` and `GET /healthz`.

use std::sync::Arc;

use axum::Router;
use axum::extract::State;
use axum::http::StatusCode;
use axum::middleware;
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use hush_listener::{FormatErrors, format_errors};
use hush_residency::scrape;

use crate::admin;
use crate::gpu::GpuSampler;
use crate::metrics::ServerMetrics;
use crate::serve;

/// The open routes. To be merged with [`crate::admin::router`].
///
/// `gpus`: the source of device figures, which is refreshed for each scrape, so that decisions use current figures.
pub fn router(metrics: Arc<ServerMetrics>, gpus: Option<GpuSampler>) -> Router {
    let panicked = |_: &str| StatusCode::INTERNAL_SERVER_ERROR.into_response();
    let recorder = serve::Recorder { metrics: Arc::clone(&metrics), panicked };
    let format = FormatErrors { format_error: admin::error_body, server_errors: true };
    let recorded = middleware::from_fn_with_state(recorder, serve::record);

    Router::new()
        .route("/metrics", get(metrics_text))
        .route("/healthz", get(|| async { "ok" }))
        .layer(middleware::from_fn_with_state(format, format_errors))
        .layer(recorded)
        .with_state((metrics, gpus))
}

async fn metrics_text(State((metrics, gpus)): State<(Arc<ServerMetrics>, Option<GpuSampler>)>) -> Response {
    scrape(metrics.registry().clone(), gpus).await
}
