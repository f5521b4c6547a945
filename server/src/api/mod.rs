//! The public listener: the HTTP API of whisper-asr-webservice with subgen's `/status`, and OpenAI's audio API.

mod asr;
mod catalogue;
mod cors;
mod detect;
mod error;
mod header;
mod health;
mod keys;
mod live;
mod multipart;
pub mod openai;
pub mod openapi;
mod path;
mod query;
mod speech;
mod upload;
mod work;

use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::extract::{Request, State};
use axum::http::{HeaderValue, StatusCode};
use axum::middleware;
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use hush_listener::{Refusal, ShapeErrors, shape_errors};
use tower::util::MapRequest;

pub use catalogue::{Catalogue, DEFAULT_ALIASES, ModelCard, Single, is_alias, is_same_model};
pub(crate) use error::detail;
pub use keys::{KeyGuard, Shape, require_key};
pub use live::{Live, Show};
pub use speech::{ServedModel, Speech};
pub use upload::UploadOptions;

use crate::audio::DecodeOptions;
use crate::auth::KeyFile;
use crate::format::JsonShape;
use crate::metrics::Metrics;
use crate::recording::Decoder;
use crate::serve;
use crate::web;

/// What the operator chooses of the API.
#[derive(Clone, Debug)]
pub struct ApiConfig {
    /// Whose JSON `/asr` answers with, and the `Asr-Engine` that it says.
    pub json_shape: JsonShape,
    pub upload: UploadOptions,
    pub decode: DecodeOptions,
    /// Files that are decoded at the same time; the others wait, uploaded.
    pub concurrent_decodes: usize,
    /// Whether `/` is a page; `/docs` otherwise.
    pub web_ui: bool,
    /// Longest silence in a stream of events.
    pub stream_heartbeat: Duration,
    /// Who may use the API; `None`: everybody.
    pub keys: Option<KeyFile>,
    /// Whether runners have the model for `vad_filter`.
    pub has_vad: bool,
    /// How long requests of OpenAI's API wait for a model that is not loaded; those of `/asr` wait for ever.
    pub cold_hold: Duration,
    /// Of the pages that may use the API; `*`: of all.
    pub cors_origins: Vec<HeaderValue>,
}

impl Default for ApiConfig {
    fn default() -> Self {
        let cores = std::thread::available_parallelism().map_or(2, usize::from);
        Self {
            json_shape: JsonShape::default(),
            upload: UploadOptions::default(),
            decode: DecodeOptions::default(),
            concurrent_decodes: 2 * cores,
            web_ui: true,
            // A quarter of the 60 s after which common proxies give up.
            stream_heartbeat: Duration::from_secs(15),
            keys: None,
            has_vad: false,
            cold_hold: Duration::from_secs(60),
            cors_origins: Vec::new(),
        }
    }
}

/// Everything that the routes share; cheap to clone.
#[derive(Clone)]
pub struct ApiState {
    catalogue: Arc<dyn Catalogue>,
    metrics: Arc<Metrics>,
    config: Arc<ApiConfig>,
    decoder: Decoder,
    live: Live,
}

impl ApiState {
    pub fn new(catalogue: Arc<dyn Catalogue>, metrics: Arc<Metrics>, config: ApiConfig) -> Self {
        let decoder = Decoder::new(config.decode.clone(), config.concurrent_decodes);
        Self { catalogue, metrics, config: Arc::new(config), decoder, live: Live::default() }
    }

    /// With models to show at `/v1/hush/`.
    #[must_use]
    pub fn with_live(self, live: Live) -> Self {
        Self { live, ..self }
    }

    /// The model of routes that name none.
    fn speech(&self) -> Arc<dyn Speech> {
        self.catalogue.default_model()
    }
}

/// The routes, also under paths that people type ([`path`]), and for pages of other origins ([`cors`]).
pub fn router(state: ApiState) -> Router {
    let cors = cors::layer(&state.config.cors_origins);
    let router = Router::new().fallback_service(MapRequest::new(routes(state), path::repair::<Body>));
    match cors {
        // Around everything, so that a page may read why it is refused.
        Some(cors) => router.layer(cors),
        None => router,
    }
}

/// How errors look that no handler writes: in the words of the API whose path was asked for.
pub fn error_shape(refusal: &Refusal<'_>) -> String {
    match refusal.path {
        Some(path) if openai::is_own(path) => openai::error::OpenAiError::refusal(refusal),
        _ => error::refusal(refusal),
    }
}

/// The routes under their own paths.
pub fn routes(state: ApiState) -> Router {
    let recorder = serve::Recorder { metrics: Arc::clone(&state.metrics), panicked };
    let recorded = middleware::from_fn_with_state(recorder, serve::record);
    let guard = KeyGuard { state: state.clone(), shape: Shape::Asr };
    let v1_guard = KeyGuard { state: state.clone(), shape: Shape::OpenAi };
    let live = Router::new()
        .route("/v1/hush/models", get(live::models))
        .route("/v1/hush/events", get(live::events))
        .route_layer(middleware::from_fn_with_state(v1_guard, require_key));
    Router::new()
        .route("/asr", post(asr::asr))
        .route("/detect-language", post(detect::detect_language))
        .route("/status", get(health::status))
        .route_layer(middleware::from_fn_with_state(guard, require_key))
        .merge(openai::routes(&state))
        .merge(live)
        .route("/", get(health::index))
        .route("/healthz", get(health::healthz))
        .route("/readyz", get(health::readyz))
        .route("/openapi.json", get(openapi::openapi))
        .merge(web::routes())
        .fallback(not_found)
        .method_not_allowed_fallback(method_not_allowed)
        // A bare 500 is what whisper-asr-webservice answers.
        .layer(middleware::from_fn_with_state(ShapeErrors { shape: error_shape, server_errors: false }, shape_errors))
        .layer(recorded)
        .with_state(state)
}

async fn not_found(state: State<ApiState>, request: Request) -> Response {
    refuse(&state, request, StatusCode::NOT_FOUND, "Not Found").await
}

async fn method_not_allowed(state: State<ApiState>, request: Request) -> Response {
    refuse(&state, request, StatusCode::METHOD_NOT_ALLOWED, "Method Not Allowed").await
}

/// In the words of the path whose handler it was.
fn panicked(path: &str) -> Response {
    if openai::is_own(path) {
        return openai::error::OpenAiError::panicked().into_response();
    }
    error::internal_server_error()
}

async fn refuse(state: &ApiState, request: Request, status: StatusCode, text: &str) -> Response {
    let (head, body) = request.into_parts();
    upload::discard(&head.headers, body, &state.config.upload).await;
    if openai::is_own(head.uri.path()) {
        return openai::error::OpenAiError::route(status, head.method.as_str(), head.uri.path()).into_response();
    }
    error::detail(status, text)
}
