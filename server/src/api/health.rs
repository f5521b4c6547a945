//! Liveness (`/healthz`), readiness (`/readyz`) and identity (`/status`, `/`) of the server.

use axum::extract::State;
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Redirect, Response};
use hush_contract::ModelState;
use serde::Serialize;
use utoipa::ToSchema;

use super::error::json_response;
use super::openapi::AsrNoKey;
use super::{ApiState, live};
use crate::web;

/// Whether the process is alive.
#[utoipa::path(get, path = "/healthz", tag = "Health", responses(
    (status = 200, description = "`ok`, in whatever state the models are.", body = String),
))]
pub async fn healthz() -> &'static str {
    "ok"
}

/// Whether requests can be served.
///
/// The server is ready also while a model is not loaded or busy.
#[utoipa::path(get, path = "/readyz", tag = "Health", responses(
    (status = 200, description = "`ok`.", body = String),
    (status = 503, description = "What is missing, one line for each problem.", body = String),
))]
pub async fn readyz(State(state): State<ApiState>) -> Response {
    let mut missing = state.speech().missing();
    missing.extend(spool_problem(&state).await);
    if missing.is_empty() {
        return "ok".into_response();
    }

    (StatusCode::SERVICE_UNAVAILABLE, missing.join("\n")).into_response()
}

/// Why large uploads cannot be stored; `None` where they can. Tries to write to the disk, so it runs on a blocking
/// thread.
async fn spool_problem(state: &ApiState) -> Option<String> {
    let dir = state.config.upload.dir.clone();
    let checked = tokio::task::spawn_blocking(move || hush_listener::spool::check_folder(dir.as_deref())).await;
    match checked {
        Ok(Ok(())) => None,
        Ok(Err(error)) => Some(error.to_string()),
        Err(panicked) => Some(format!("the folder for uploads could not be checked: {panicked}")),
    }
}

/// The version and the models of this server.
#[derive(Serialize, ToSchema)]
#[schema(as = Status)]
struct ServerStatusBody<'a> {
    /// Bazarr's "Test Connection" shows this text.
    version: &'static str,
    /// The default model first.
    models: Vec<ServedModelStatus<'a>>,
}

#[derive(Serialize, ToSchema)]
#[schema(as = ModelStatus)]
struct ServedModelStatus<'a> {
    name: &'a str,
    #[schema(schema_with = live::model_state)]
    state: ModelState,
}

/// The version of the server and the states of its models.
#[utoipa::path(get, path = "/status", tag = "whisper-asr-webservice", responses(
    (status = 200, description = "As in subgen; Bazarr shows the version.", body = ServerStatusBody),
    AsrNoKey,
))]
pub async fn status(State(state): State<ApiState>) -> Response {
    let served = state.catalogue.served();
    let models = served.iter().map(|model| ServedModelStatus { name: model.model(), state: model.state() }).collect();
    let version = concat!("Hush ", env!("CARGO_PKG_VERSION"));
    json_response(StatusCode::OK, &ServerStatusBody { version, models })
}

/// Serves the page to browsers; redirects every other client to the reference, as whisper-asr-webservice does.
pub async fn index(State(state): State<ApiState>, headers: HeaderMap) -> Response {
    if state.config.web_ui && web::wants_page(&headers) {
        return web::index(&headers);
    }

    let vary = HeaderValue::from_static("accept");
    ([(header::VARY, vary)], Redirect::temporary("/docs")).into_response()
}
