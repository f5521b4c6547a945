//! Is it there (`/healthz`), can it serve (`/readyz`), what is it (`/status`, `/`).

use axum::extract::State;
use axum::http::StatusCode;
use axum::response::{Html, IntoResponse, Response};
use hush_contract::ModelState;
use serde::Serialize;

use super::ApiState;
use super::error::json_response;

pub async fn healthz() -> &'static str {
    "ok"
}

/// Able to serve, also while the model is cold or busy; otherwise what is missing, one line each.
pub async fn readyz(State(state): State<ApiState>) -> Response {
    let missing = state.speech().missing();
    if missing.is_empty() {
        return "ok".into_response();
    }
    (StatusCode::SERVICE_UNAVAILABLE, missing.join("\n")).into_response()
}

#[derive(Serialize)]
struct Status<'a> {
    /// Bazarr's "Test Connection" shows it.
    version: &'static str,
    /// The default first.
    models: Vec<ModelStatus<'a>>,
}

#[derive(Serialize)]
struct ModelStatus<'a> {
    name: &'a str,
    state: ModelState,
}

pub async fn status(State(state): State<ApiState>) -> Response {
    let served = state.catalogue.served();
    let models = served.iter().map(|model| ModelStatus { name: model.model(), state: model.state() }).collect();
    let version = concat!("Hush ", env!("CARGO_PKG_VERSION"));
    json_response(StatusCode::OK, &Status { version, models })
}

pub async fn index() -> Html<&'static str> {
    Html(include_str!("index.html"))
}
