//! The controller's own listener: `/metrics`, `/healthz`, `/readyz`.

use std::sync::Arc;

use axum::Router;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;

use crate::metrics::Metrics;
use crate::run::Readiness;

#[derive(Clone)]
struct Ops {
    metrics: Arc<Metrics>,
    readiness: Readiness,
}

pub fn router(metrics: Arc<Metrics>, readiness: Readiness) -> Router {
    Router::new()
        .route(hush_contract::metrics::PATH, get(scrape))
        .route("/healthz", get(healthz))
        .route("/readyz", get(readyz))
        .with_state(Ops { metrics, readiness })
}

async fn scrape(State(ops): State<Ops>) -> Response {
    match ops.metrics.encode() {
        Ok(text) => ([(header::CONTENT_TYPE, prometheus::TEXT_FORMAT)], text).into_response(),
        Err(error) => {
            tracing::error!("encoding the metrics failed: {error}");
            StatusCode::INTERNAL_SERVER_ERROR.into_response()
        }
    }
}

/// Alive: the loop steps.
async fn healthz(State(ops): State<Ops>) -> Response {
    match ops.readiness.alive() {
        Ok(()) => "ok\n".into_response(),
        Err(silent) => {
            let text = format!("the loop has not stepped for {} s\n", silent.as_secs());
            (StatusCode::SERVICE_UNAVAILABLE, text).into_response()
        }
    }
}

/// Able: nothing that it needs is missing.
async fn readyz(State(ops): State<Ops>) -> Response {
    let missing = ops.readiness.missing();
    if missing.is_empty() {
        "ok\n".into_response()
    } else {
        (StatusCode::SERVICE_UNAVAILABLE, format!("{}\n", missing.join("\n"))).into_response()
    }
}
