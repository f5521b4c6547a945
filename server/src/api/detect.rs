//! `POST /detect-language`.

use axum::extract::{Query, Request, State};
use axum::http::StatusCode;
use axum::response::Response;
use hush_whisper::language;
use serde::Serialize;
use utoipa::ToSchema;

use super::error::{ApiError, json_response};
use super::openapi::{AudioForm, AudioRefusals, DetectParameters};
use super::{ApiState, query};

/// The most probable language.
#[derive(Serialize, ToSchema)]
struct Detected<'a> {
    /// Lower-case English name.
    detected_language: &'a str,
    language_code: &'a str,
    /// Probability of the detected language. (whisper-asr-webservice gives that of the last code in the alphabet.)
    confidence: f32,
}

/// Detect the language that is spoken in the first 30 seconds of a recording.
#[utoipa::path(
    post,
    path = "/detect-language",
    tag = "whisper-asr-webservice",
    params(DetectParameters),
    request_body(content = AudioForm, content_type = "multipart/form-data"),
    responses(
        (status = 200, description = "The language.", body = Detected),
        AudioRefusals,
    ),
)]
pub async fn detect_language(
    State(state): State<ApiState>,
    Query(pairs): Query<Vec<(String, String)>>,
    request: Request,
) -> Result<Response, ApiError> {
    let (head, body) = request.into_parts();
    let (encode, upload) = state.receive(&head.headers, body, query::encode(&pairs)).await?;
    let recording = state.decode_beginning(upload, encode).await?;

    let languages = state.speech().detect_language(recording).await?;
    let best = languages.first().ok_or_else(|| ApiError::Internal("no language was detected".to_owned()))?;

    let detected = Detected {
        detected_language: language::name(&best.code).unwrap_or(&best.code),
        language_code: &best.code,
        confidence: best.probability,
    };
    Ok(json_response(StatusCode::OK, &detected))
}
