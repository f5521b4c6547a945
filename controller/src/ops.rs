//! The operations routes of the controller's listener: `/metrics`, `/healthz`, `/readyz`.

use std::sync::Arc;

use axum::Router;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;

use crate::control_loop::Readiness;
use crate::metrics::ControllerMetrics;

#[derive(Clone)]
struct OpsState {
    metrics: Arc<ControllerMetrics>,
    readiness: Readiness,
}

pub fn router(metrics: Arc<ControllerMetrics>, readiness: Readiness) -> Router {
    Router::new()
        .route(hush_contract::metrics::PATH, get(scrape))
        .route("/healthz", get(healthz))
        .route("/readyz", get(readyz))
        .with_state(OpsState { metrics, readiness })
}

async fn scrape(State(ops): State<OpsState>) -> Response {
    match ops.metrics.encode() {
        Ok(text) => ([(header::CONTENT_TYPE, prometheus::TEXT_FORMAT)], text).into_response(),
        Err(error) => {
            tracing::error!("encoding the metrics failed: {error}");
            StatusCode::INTERNAL_SERVER_ERROR.into_response()
        }
    }
}

/// Liveness: the control loop still steps.
async fn healthz(State(ops): State<OpsState>) -> Response {
    match ops.readiness.check_alive() {
        Ok(()) => "ok\n".into_response(),
        Err(since_step) => {
            let text = format!("the loop has not stepped for {} s\n", since_step.as_secs());
            (StatusCode::SERVICE_UNAVAILABLE, text).into_response()
        }
    }
}

/// Readiness: no part that the controller needs is missing; otherwise one line for each missing part.
async fn readyz(State(ops): State<OpsState>) -> Response {
    let missing = ops.readiness.missing();
    if missing.is_empty() {
        "ok\n".into_response()
    } else {
        (StatusCode::SERVICE_UNAVAILABLE, format!("{}\n", missing.join("\n"))).into_response()
    }
}
