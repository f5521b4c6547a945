//! `GET /metrics`.

use std::sync::Arc;

use axum::Router;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::middleware;
use axum::response::{IntoResponse, Response};
use axum::routing::get;

use super::Metrics;
use crate::serve;

/// The part of the operations listener that needs no credential: `GET /metrics` and `GET /healthz`.
pub fn router(metrics: Arc<Metrics>) -> Router {
    let panicked = |_: &str| StatusCode::INTERNAL_SERVER_ERROR.into_response();
    let recorder = serve::Recorder { metrics: Arc::clone(&metrics), panicked };
    let recorded = middleware::from_fn_with_state(recorder, serve::record);
    Router::new()
        .route("/metrics", get(scrape))
        .route("/healthz", get(|| async { "ok" }))
        .layer(recorded)
        .with_state(metrics)
}

async fn scrape(State(metrics): State<Arc<Metrics>>) -> Response {
    // Collectors read /proc and ask drivers: not on a thread that serves connections.
    let encoded = tokio::task::spawn_blocking(move || metrics.encode()).await;
    match encoded {
        Ok(Ok(text)) => ([(header::CONTENT_TYPE, prometheus::TEXT_FORMAT)], text).into_response(),
        Ok(Err(error)) => failed(&error),
        Err(panicked) => failed(&panicked),
    }
}

fn failed(error: &(dyn std::error::Error + 'static)) -> Response {
    tracing::error!(error, "encoding the metrics failed");
    StatusCode::INTERNAL_SERVER_ERROR.into_response()
}
