//! The public listener: the HTTP API of whisper-asr-webservice with subgen's `/status`, and OpenAI's audio API.

mod asr;
mod catalogue;
mod cors;
mod detect;
mod error;
mod health;
mod intake;
mod keys;
mod live;
pub mod openai;
pub mod openapi;
mod path;
mod query;
mod speech;
mod upload;

use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::extract::{Request, State};
use axum::http::{HeaderValue, StatusCode};
use axum::middleware;
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use hush_listener::{FormatErrors, ListenerRefusal, format_errors};
use tower::util::MapRequest;

pub use catalogue::{DEFAULT_ALIASES, ModelCard, ModelCatalogue, SingleModelCatalogue, is_alias, is_same_model};
pub use keys::{ErrorStyle, KeyGuard, require_key};
pub use live::{LiveFeed, ModelSnapshots};
pub use speech::{ServedModel, TranscriptionModel};
pub use upload::UploadOptions;

use crate::audio::DecodeOptions;
use crate::format::JsonShape;
use crate::metrics::ServerMetrics;
use crate::recording::AudioDecoder;
use crate::serve;
use crate::web;
use hush_access::KeyFile;

/// Settings of the API.
#[derive(Clone, Debug)]
pub struct ApiConfig {
    /// The engine whose JSON format `/asr` answers with, and which its `Asr-Engine` header names.
    pub json_shape: JsonShape,
    pub upload: UploadOptions,
    pub decode: DecodeOptions,
    /// Number of files that are decoded at the same time; further uploads wait.
    pub concurrent_decodes: usize,
    /// Whether `/` serves the page; otherwise `/` redirects to `/docs`.
    pub web_ui: bool,
    /// Longest silence in a stream of events.
    pub stream_heartbeat: Duration,
    /// The keys that open the API; `None`: no key is needed.
    pub keys: Option<KeyFile>,
    /// Whether the model that `vad_filter` needs is installed.
    pub has_vad: bool,
    /// How long requests of OpenAI's API wait for a model that is not loaded. Requests of `/asr` wait without a limit.
    pub cold_hold: Duration,
    /// Origins whose pages may use the API; `*` stands for all origins.
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

/// State that all routes share; cheap to clone.
#[derive(Clone)]
pub struct ApiState {
    catalogue: Arc<dyn ModelCatalogue>,
    metrics: Arc<ServerMetrics>,
    config: Arc<ApiConfig>,
    decoder: AudioDecoder,
    live: LiveFeed,
}

impl ApiState {
    pub fn new(catalogue: Arc<dyn ModelCatalogue>, metrics: Arc<ServerMetrics>, config: ApiConfig) -> Self {
        let decoder = AudioDecoder::new(config.decode.clone(), config.concurrent_decodes);
        Self { catalogue, metrics, config: Arc::new(config), decoder, live: LiveFeed::default() }
    }

    /// Adds the source of the models that `/v1/hush/` shows.
    #[must_use]
    pub fn with_live(self, live: LiveFeed) -> Self {
        Self { live, ..self }
    }

    /// The model for routes that name none.
    fn speech(&self) -> Arc<dyn TranscriptionModel> {
        self.catalogue.default_model()
    }
}

/// The routes, also under mistyped paths ([`path`]), with the CORS layer ([`cors`]).
pub fn router(state: ApiState) -> Router {
    let cors = cors::layer(&state.config.cors_origins);

    let router = Router::new().fallback_service(MapRequest::new(routes(state), path::repair::<Body>));
    match cors {
        // Outermost, so that a page can read also why a request is refused.
        Some(cors) => router.layer(cors),
        None => router,
    }
}

/// Formats an error that no handler wrote in the style of the API that the path belongs to.
pub fn error_body(refusal: &ListenerRefusal<'_>) -> String {
    match refusal.path {
        Some(path) if openai::owns_path(path) => openai::error::OpenAiError::error_body(refusal),
        _ => error::error_body(refusal),
    }
}

/// The routes under their own paths.
pub fn routes(state: ApiState) -> Router {
    let recorder = serve::Recorder { metrics: Arc::clone(&state.metrics), panicked: panic_response };
    let recorded = middleware::from_fn_with_state(recorder, serve::record);

    let guard = KeyGuard { state: state.clone(), style: ErrorStyle::Asr };
    let v1_guard = KeyGuard { state: state.clone(), style: ErrorStyle::OpenAi };

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
        // whisper-asr-webservice answers a bare 500, so server errors keep their body.
        .layer(middleware::from_fn_with_state(
            FormatErrors { format_error: error_body, server_errors: false },
            format_errors,
        ))
        .layer(recorded)
        .with_state(state)
}

async fn not_found(state: State<ApiState>, request: Request) -> Response {
    refuse(&state, request, StatusCode::NOT_FOUND, "Not Found").await
}

async fn method_not_allowed(state: State<ApiState>, request: Request) -> Response {
    refuse(&state, request, StatusCode::METHOD_NOT_ALLOWED, "Method Not Allowed").await
}

/// The answer of a handler that panicked, in the style of its path.
fn panic_response(path: &str) -> Response {
    if openai::owns_path(path) {
        return openai::error::OpenAiError::panicked().into_response();
    }

    error::internal_server_error()
}

async fn refuse(state: &ApiState, request: Request, status: StatusCode, text: &str) -> Response {
    let (head, body) = request.into_parts();
    upload::discard(&head.headers, body, &state.config.upload).await;

    if openai::owns_path(head.uri.path()) {
        return openai::error::OpenAiError::unknown_route(status, head.method.as_str(), head.uri.path())
            .into_response();
    }

    error::detail(status, text)
}
