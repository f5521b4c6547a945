//! Is it there (`/healthz`), can it serve (`/readyz`), what is it (`/status`, `/`).

use axum::extract::State;
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Redirect, Response};
use hush_contract::ModelState;
use serde::Serialize;
use utoipa::ToSchema;

use super::error::json_response;
use super::openapi::NoKey;
use super::{ApiState, live};
use crate::{spool, web};

/// Whether the process is alive.
#[utoipa::path(get, path = "/healthz", tag = "Health", responses(
    (status = 200, description = "`ok`, whatever the models do.", body = String),
))]
pub async fn healthz() -> &'static str {
    "ok"
}

/// Whether requests can be served.
///
/// Also while a model is cold or busy.
#[utoipa::path(get, path = "/readyz", tag = "Health", responses(
    (status = 200, description = "`ok`.", body = String),
    (status = 503, description = "What is missing, one line each.", body = String),
))]
pub async fn readyz(State(state): State<ApiState>) -> Response {
    let mut missing = state.speech().missing();
    missing.extend(spool_problem(&state).await);
    if missing.is_empty() {
        return "ok".into_response();
    }
    (StatusCode::SERVICE_UNAVAILABLE, missing.join("\n")).into_response()
}

/// Why large uploads cannot be stored. On a blocking thread, since it tries a disk.
async fn spool_problem(state: &ApiState) -> Option<String> {
    let dir = state.config.upload.dir.clone();
    let checked = tokio::task::spawn_blocking(move || spool::check_folder(dir.as_deref())).await;
    match checked {
        Ok(Ok(())) => None,
        Ok(Err(error)) => Some(error.to_string()),
        Err(panicked) => Some(format!("the folder for uploads could not be looked at: {panicked}")),
    }
}

/// What this server is.
#[derive(Serialize, ToSchema)]
struct Status<'a> {
    /// Bazarr's "Test Connection" shows it.
    version: &'static str,
    /// The default first.
    models: Vec<ModelStatus<'a>>,
}

#[derive(Serialize, ToSchema)]
struct ModelStatus<'a> {
    name: &'a str,
    #[schema(schema_with = live::model_state)]
    state: ModelState,
}

/// The version, and the state of the model.
#[utoipa::path(get, path = "/status", tag = "whisper-asr-webservice", responses(
    (status = 200, description = "As subgen's; Bazarr shows the version.", body = Status),
    NoKey,
))]
pub async fn status(State(state): State<ApiState>) -> Response {
    let served = state.catalogue.served();
    let models = served.iter().map(|model| ModelStatus { name: model.model(), state: model.state() }).collect();
    let version = concat!("Hush ", env!("CARGO_PKG_VERSION"));
    json_response(StatusCode::OK, &Status { version, models })
}

/// The page for browsers; everything else is sent on to the reference, as the peer does.
pub async fn index(State(state): State<ApiState>, headers: HeaderMap) -> Response {
    if state.config.web_ui && web::wants_page(&headers) {
        return web::index(&headers);
    }
    let vary = HeaderValue::from_static("accept");
    ([(header::VARY, vary)], Redirect::temporary("/docs")).into_response()
}
