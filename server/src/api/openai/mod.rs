//! OpenAI's audio API: `POST /v1/audio/transcriptions`, `POST /v1/audio/translations`, `GET /v1/models`.
//!
//! ```text
//! form -> parameters -> model by name -> decode -> body (whole) | stream (server-sent events)
//! ```

mod body;
pub mod error;
mod form;
pub mod models;
mod parameters;
mod stream;
mod text;

use std::sync::Arc;

use axum::Router;
use axum::extract::{Request, State};
use axum::middleware;
use axum::response::Response;
use axum::routing::{get, post};
use hush_whisper::SpeechTask;

use super::ApiState;
use super::intake::WARNING;
use super::keys::{ErrorStyle, KeyGuard, require_key};
use super::speech::TranscriptionModel;
use super::upload::{self, FormFile, FormSpec, UploadedFile};
use error::{OpenAiError, OpenAiRefusals};
use form::{TranscriptionAnswer, TranscriptionForm, TranslationForm};
use parameters::TranscriptionParameters;

const FORM: FormSpec = FormSpec { file_field: "file", is_kept: parameters::is_known };

/// Media types of samples without a header (an extension of speaches).
const RAW_TYPES: [&str; 2] = ["audio/pcm", "audio/raw"];

pub fn routes(state: &ApiState) -> Router<ApiState> {
    let guard = KeyGuard { state: state.clone(), style: ErrorStyle::OpenAi };
    Router::new()
        .route("/v1/audio/transcriptions", post(transcriptions))
        .route("/v1/audio/translations", post(translations))
        .route("/v1/models", get(models::list))
        // Names of models on the hub have a slash.
        .route("/v1/models/{*id}", get(models::retrieve))
        .route_layer(middleware::from_fn_with_state(guard, require_key))
}

/// Whether errors for this path have OpenAI's shape, also where the path has no route.
pub fn owns_path(path: &str) -> bool {
    path == "/v1" || path.starts_with("/v1/")
}

/// Transcribe a recording.
///
/// With `stream` the answer is server-sent events: a `transcript.text.delta` for each piece of text as soon as it is
/// decoded, then `transcript.text.done` with the whole text.
#[utoipa::path(
    post,
    path = "/v1/audio/transcriptions",
    tag = "OpenAI",
    request_body(content = TranscriptionForm, content_type = "multipart/form-data"),
    responses(
        (status = 200, description = "The transcript in the format that `response_format` names.", content(
            (TranscriptionAnswer = "application/json"),
            (String = "text/plain"),
            (String = "text/vtt"),
            (String = "text/event-stream"),
        )),
        OpenAiRefusals,
    ),
)]
pub async fn transcriptions(State(state): State<ApiState>, request: Request) -> Result<Response, OpenAiError> {
    transcribe(&state, request, SpeechTask::Transcribe).await
}

/// Translate speech of another language into English text.
#[utoipa::path(
    post,
    path = "/v1/audio/translations",
    tag = "OpenAI",
    request_body(content = TranslationForm, content_type = "multipart/form-data"),
    responses(
        (status = 200, description = "The translation in the format that `response_format` names.", content(
            (TranscriptionAnswer = "application/json"),
            (String = "text/plain"),
            (String = "text/vtt"),
            (String = "text/event-stream"),
        )),
        OpenAiRefusals,
    ),
)]
pub async fn translations(State(state): State<ApiState>, request: Request) -> Result<Response, OpenAiError> {
    transcribe(&state, request, SpeechTask::Translate).await
}

async fn transcribe(state: &ApiState, request: Request, task: SpeechTask) -> Result<Response, OpenAiError> {
    let (head, body) = request.into_parts();

    let form = upload::receive(&head.headers, body, FORM, &state.config.upload).await?;
    let model = find_model(state, parameters::model(&form.fields));
    let defaults = model.as_ref().map(|model| model.defaults()).unwrap_or_default();
    let parameters = TranscriptionParameters::parse(task, &form.fields, defaults)?;

    let upload = match form.file {
        FormFile::File(upload) => upload,
        FormFile::Missing => return Err(OpenAiError::missing_file()),
        FormFile::Text(_) => return Err(OpenAiError::not_a_file()),
    };

    let model = model?;
    state.check_vad(&parameters.options)?;
    let warning = state.check_abilities(&*model, &parameters.options)?;
    let is_encoded = !is_raw(&upload);
    let recording = state.decode(upload, is_encoded).await?;

    let answer = if parameters.stream {
        stream::transcribe(state, model, recording, parameters).await
    } else {
        body::transcribe(state, model, recording, parameters).await
    };

    let mut response = answer?;
    response.headers_mut().extend(warning.map(|warning| (WARNING, warning)));
    Ok(response)
}

fn find_model(state: &ApiState, name: Option<&str>) -> Result<Arc<dyn TranscriptionModel>, OpenAiError> {
    let Some(name) = name else { return Ok(state.catalogue.default_model()) };
    state.catalogue.find(name).ok_or_else(|| OpenAiError::model_not_found(name, &state.catalogue.cards()))
}

fn is_raw(upload: &UploadedFile) -> bool {
    upload.content_type.as_deref().is_some_and(|content_type| RAW_TYPES.contains(&content_type))
}
