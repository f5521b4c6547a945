//! `POST /asr`.

use axum::body::{Body, Bytes};
use axum::extract::{Query, Request, State};
use axum::http::header;
use axum::response::{IntoResponse, Response};
use futures_util::stream;

use super::ApiState;
use super::error::ApiError;
use super::intake::WARNING;
use super::openapi::{AsrParameters, AudioForm, AudioRefusals};
use super::query::AsrQuery;
use crate::format::{JsonShape, TranscriptFormat, TranscriptWriter};
use crate::job::Transcription;
use hush_listener::header::{quote, quote_unprintable};

/// Transcribe a recording.
///
/// The server waits as long as the model is busy or loading, and answers when the transcript is complete.
#[utoipa::path(
    post,
    path = "/asr",
    tag = "whisper-asr-webservice",
    params(AsrParameters),
    request_body(content = AudioForm, content_type = "multipart/form-data"),
    responses(
        (status = 200, description = "The transcript in the format that `output` names, also for JSON.", body = String,
            content_type = "text/plain; charset=utf-8",
            headers(
                ("Asr-Engine" = String, description = "The engine whose JSON format the answer has."),
                ("Hush-Warning" = String, description = "Why the text may be wrong: the model was not trained for the task."),
                ("Content-Disposition" = String, description = "The name of the upload with the format as its extension."),
            )),
        AudioRefusals,
    ),
)]
pub async fn asr(
    State(state): State<ApiState>,
    Query(pairs): Query<Vec<(String, String)>>,
    request: Request,
) -> Result<Response, ApiError> {
    let (head, body) = request.into_parts();
    let speech = state.speech();
    let query = AsrQuery::parse(&pairs, speech.defaults());
    let (query, upload) = state.receive(&head.headers, body, query).await?;
    let file_name = format!("{}.{}", quote(&upload.file_name), quote_unprintable(&query.output));

    state.check_vad(&query.options)?;
    let warning = state.check_abilities(&*speech, &query.options)?;
    let format = format(&query.output, state.config.json_shape);
    let words = query.words(state.config.json_shape);

    let recording = state.decode(upload, query.encode).await?;
    let Transcription { transcript, segments } = speech.transcribe(recording, query.options, None).await?;
    state.metrics.record_transcript(speech.model(), &transcript);

    let write_failed = |error| ApiError::Internal(format!("a transcript could not be written: {error}"));
    let mut writer = TranscriptWriter::with_words(format, words, Vec::new()).map_err(write_failed)?;
    for segment in segments {
        writer.segment(segment).map_err(write_failed)?;
    }

    let text = writer.finish(&transcript).map_err(write_failed)?;

    let headers = [
        (header::CONTENT_TYPE, "text/plain; charset=utf-8".to_owned()),
        (header::HeaderName::from_static("asr-engine"), state.config.json_shape.engine().to_owned()),
        (header::CONTENT_DISPOSITION, format!("attachment; filename=\"{file_name}\"")),
    ];

    // A stream has no Content-Length, like the answer of whisper-asr-webservice.
    let body = Body::from_stream(stream::iter([Ok::<_, std::convert::Infallible>(Bytes::from(text))]));
    let mut response = (headers, body).into_response();
    response.headers_mut().extend(warning.map(|warning| (WARNING, warning)));
    Ok(response)
}

/// Maps `output` to a format. An unknown value is text, as in whisper-asr-webservice.
fn format(output: &str, json_shape: JsonShape) -> TranscriptFormat {
    match output {
        "vtt" => TranscriptFormat::Vtt,
        "srt" => TranscriptFormat::Srt,
        "tsv" => TranscriptFormat::Tsv,
        "json" => TranscriptFormat::Json(json_shape),
        _ => TranscriptFormat::Txt,
    }
}
