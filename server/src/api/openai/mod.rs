//! OpenAI's audio API: `POST /v1/audio/transcriptions`, `POST /v1/audio/translations`, `GET /v1/models`.
//!
//! ```text
//! form -> asked (what is wanted) -> model by name -> decode -> body (whole) | stream (server-sent events)
//! ```

mod asked;
mod body;
pub mod error;
mod form;
pub mod models;
mod stream;
mod text;

use std::sync::Arc;

use axum::Router;
use axum::extract::{Request, State};
use axum::middleware;
use axum::response::Response;
use axum::routing::{get, post};
use hush_whisper::Task;

use super::ApiState;
use super::keys::{KeyGuard, Shape, require_key};
use super::speech::Speech;
use super::upload::{self, FormFile, Upload, Wanted};
use super::work::WARNING;
use asked::Asked;
use error::{OpenAiError, Refusals};
use form::{Answer, TranscriptionForm, TranslationForm};

const FORM: Wanted = Wanted { file: "file", keeps: asked::is_known };

/// Samples without a header (speaches' extension).
const RAW_TYPES: [&str; 2] = ["audio/pcm", "audio/raw"];

pub fn routes(state: &ApiState) -> Router<ApiState> {
    let guard = KeyGuard { state: state.clone(), shape: Shape::OpenAi };
    Router::new()
        .route("/v1/audio/transcriptions", post(transcriptions))
        .route("/v1/audio/translations", post(translations))
        .route("/v1/models", get(models::list))
        // Names of the hub have a slash.
        .route("/v1/models/{*id}", get(models::retrieve))
        .route_layer(middleware::from_fn_with_state(guard, require_key))
}

/// Whether a path answers in OpenAI's shapes, also where there is no route.
pub fn is_own(path: &str) -> bool {
    path == "/v1" || path.starts_with("/v1/")
}

/// Write what is said in a recording.
///
/// With `stream` the answer is server-sent events: a `transcript.text.delta` for each piece of text as soon as it is
/// decoded, then `transcript.text.done` with the whole.
#[utoipa::path(
    post,
    path = "/v1/audio/transcriptions",
    tag = "OpenAI",
    request_body(content = TranscriptionForm, content_type = "multipart/form-data"),
    responses(
        (status = 200, description = "The transcript in the form that `response_format` asks for.", content(
            (Answer = "application/json"),
            (String = "text/plain"),
            (String = "text/vtt"),
            (String = "text/event-stream"),
        )),
        Refusals,
    ),
)]
pub async fn transcriptions(State(state): State<ApiState>, request: Request) -> Result<Response, OpenAiError> {
    answer(&state, request, Task::Transcribe).await
}

/// Write in English what is said in another language.
#[utoipa::path(
    post,
    path = "/v1/audio/translations",
    tag = "OpenAI",
    request_body(content = TranslationForm, content_type = "multipart/form-data"),
    responses(
        (status = 200, description = "The translation in the form that `response_format` asks for.", content(
            (Answer = "application/json"),
            (String = "text/plain"),
            (String = "text/vtt"),
            (String = "text/event-stream"),
        )),
        Refusals,
    ),
)]
pub async fn translations(State(state): State<ApiState>, request: Request) -> Result<Response, OpenAiError> {
    answer(&state, request, Task::Translate).await
}

async fn answer(state: &ApiState, request: Request, task: Task) -> Result<Response, OpenAiError> {
    let (head, body) = request.into_parts();
    let form = upload::receive(&head.headers, body, FORM, &state.config.upload).await?;
    let model = find_model(state, asked::model(&form.fields));
    let asked = Asked::parse(task, &form.fields, model.as_ref().map(|model| model.defaults()).unwrap_or_default())?;
    let upload = match form.file {
        FormFile::File(upload) => upload,
        FormFile::Missing => return Err(OpenAiError::missing_file()),
        FormFile::Text(_) => return Err(OpenAiError::not_a_file()),
    };
    let model = model?;
    state.check_vad(&asked.options)?;
    let warning = state.check_abilities(&*model, &asked.options)?;
    let is_encoded = !is_raw(&upload);
    let recording = state.decode(upload, is_encoded).await?;
    let answered = if asked.stream {
        stream::answer(state, model, recording, asked).await
    } else {
        body::answer(state, model, recording, asked).await
    };
    let mut response = answered?;
    response.headers_mut().extend(warning.map(|warning| (WARNING, warning)));
    Ok(response)
}

fn find_model(state: &ApiState, name: Option<&str>) -> Result<Arc<dyn Speech>, OpenAiError> {
    let Some(name) = name else { return Ok(state.catalogue.default_model()) };
    state.catalogue.find(name).ok_or_else(|| OpenAiError::model_not_found(name, &state.catalogue.cards()))
}

fn is_raw(upload: &Upload) -> bool {
    upload.content_type.as_deref().is_some_and(|content_type| RAW_TYPES.contains(&content_type))
}
