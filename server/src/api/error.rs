//! Error answers. Faults of the caller have the shapes and texts of FastAPI; faults of the engine are the
//! bare 500 of whisper-asr-webservice. A failure is never a 200, because Bazarr saves the body of every 200.

use axum::body::Body;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use hush_log::explain;
use hush_whisper::vad::VadError;
use serde::Serialize;
use serde_json::{Value, json};
use utoipa::ToSchema;

use crate::audio::AudioError;
use crate::format::PythonJson;
use crate::job::JobError;
use hush_listener::multipart::MultipartError;
use hush_listener::spool::SpoolError;

/// One entry of `detail` in a 422: pydantic's error object.
#[derive(Clone, Debug, PartialEq, Serialize, ToSchema)]
#[schema(as = Fault)]
pub struct FieldError {
    r#type: &'static str,
    /// Place of the fault: `query` or `body`, and the name of the field.
    loc: [&'static str; 2],
    msg: String,
    /// The value that the client sent.
    input: Value,
    #[serde(skip_serializing_if = "Option::is_none")]
    ctx: Option<Value>,
}

/// All faults of a request: the body of a 422.
#[derive(Serialize, ToSchema)]
#[schema(as = Faults)]
pub struct ValidationErrorBody {
    detail: Vec<FieldError>,
}

/// The body of an error as FastAPI writes it, with a message for people.
#[derive(Serialize, ToSchema)]
#[schema(as = Refusal)]
pub struct DetailBody {
    detail: String,
}

impl FieldError {
    fn query(r#type: &'static str, name: &'static str, msg: &str, given: &str) -> Self {
        Self { r#type, loc: ["query", name], msg: msg.to_owned(), input: given.into(), ctx: None }
    }

    pub fn bool_parsing(name: &'static str, given: &str) -> Self {
        Self::query("bool_parsing", name, "Input should be a valid boolean, unable to interpret input", given)
    }

    pub fn int_parsing(name: &'static str, given: &str) -> Self {
        Self::query("int_parsing", name, "Input should be a valid integer, unable to parse string as an integer", given)
    }

    pub fn at_least_one(name: &'static str, given: &str) -> Self {
        let error = Self::query("greater_than_equal", name, "Input should be greater than or equal to 1", given);
        Self { ctx: Some(json!({"ge": 1})), ..error }
    }

    /// Refuses an option of word-by-word subtitles in a request without word timestamps.
    pub fn needs_words(name: &'static str, given: &str) -> Self {
        let error = Self::query("value_error", name, "Value error, needs word_timestamps=true", given);
        Self { ctx: Some(json!({"error": {}})), ..error }
    }

    /// Refuses an unknown task as pydantic refuses a value that is not in an enum.
    pub fn task(given: &str) -> Self {
        let expected = "'transcribe' or 'translate'";
        let error = Self::query("enum", "task", &format!("Input should be {expected}"), given);
        Self { ctx: Some(json!({"expected": expected})), ..error }
    }

    pub fn language(given: &str) -> Self {
        let msg =
            "Value error, unknown language; give a code such as 'en', an English name such as 'english', or 'auto'";

        Self { ctx: Some(json!({"error": {}})), ..Self::query("value_error", "language", msg, given) }
    }

    pub fn missing_file() -> Self {
        Self {
            r#type: "missing",
            loc: ["body", "audio_file"],
            msg: "Field required".to_owned(),
            input: Value::Null,
            ctx: None,
        }
    }

    pub fn not_a_file(given: String) -> Self {
        Self {
            r#type: "value_error",
            loc: ["body", "audio_file"],
            msg: "Value error, Expected UploadFile, received: <class 'str'>".to_owned(),
            input: given.into(),
            ctx: Some(json!({"error": {}})),
        }
    }
}

/// Why the body of a request did not become an upload.
#[derive(Debug, thiserror::Error)]
pub enum UploadFormError {
    #[error("Missing boundary in multipart.")]
    NoBoundary,
    #[error(transparent)]
    Multipart(#[from] MultipartError),
    #[error("Part exceeded maximum size of 1024KB.")]
    FieldTooLarge,
    #[error("Too many fields. Maximum number of fields is 1000.")]
    TooManyFields,
    #[error("Too many files. Maximum number of files is 1000.")]
    TooManyFiles,
    #[error("the upload is larger than this server's limit of {limit_bytes} bytes")]
    TooLarge { limit_bytes: u64 },
    #[error("no byte of the upload came for {seconds} s")]
    Stalled { seconds: u64 },
    #[error(
        "the upload is too slow: {received_bytes} bytes came in {seconds} s, and at least {least_bytes} bytes a second are \
         wanted"
    )]
    TooSlow { received_bytes: u64, seconds: u64, least_bytes: u64 },
    /// The client closed the connection, so the answer is not read.
    #[error("the client is gone: {0}")]
    ClientGone(#[source] axum::Error),
    #[error("storing the upload failed: {0}")]
    Spool(#[source] SpoolError),
}

impl From<SpoolError> for UploadFormError {
    fn from(error: SpoolError) -> Self {
        match error {
            SpoolError::TooLarge { limit_bytes } => Self::TooLarge { limit_bytes },
            error @ (SpoolError::Disk(_) | SpoolError::Folder { .. } | SpoolError::Spent(_)) => Self::Spool(error),
        }
    }
}

#[derive(Debug, thiserror::Error)]
pub enum ApiError {
    /// 422 with one entry for each fault.
    #[error("invalid request")]
    Fields(Vec<FieldError>),
    #[error(transparent)]
    Upload(#[from] UploadFormError),
    #[error(transparent)]
    Audio(#[from] AudioError),
    /// A failed job. [`JobError::Audio`] becomes [`Self::Audio`].
    #[error(transparent)]
    Job(JobError),
    /// `vad_filter=true` was requested, and the operator has not installed the model that it needs.
    #[error("vad_filter: {}", VadError::NoModel)]
    NoVad,
    /// A defect of this server.
    #[error("{0}")]
    Internal(String),
}

impl From<JobError> for ApiError {
    fn from(error: JobError) -> Self {
        match error {
            JobError::Audio(error) => Self::Audio(error),
            error => Self::Job(error),
        }
    }
}

impl ApiError {
    /// Other requests release their share of a budget within minutes.
    pub const SPENT_RETRY_SECONDS: u64 = 30;
    /// After a shutdown another server may take over.
    pub const SHUTDOWN_RETRY_SECONDS: u64 = 10;

    fn status(&self) -> StatusCode {
        match self {
            Self::Fields(_) => StatusCode::UNPROCESSABLE_ENTITY,
            Self::Upload(error) => match error {
                UploadFormError::TooLarge { .. } => StatusCode::PAYLOAD_TOO_LARGE,
                UploadFormError::Stalled { .. } | UploadFormError::TooSlow { .. } => StatusCode::REQUEST_TIMEOUT,
                UploadFormError::Spool(error) => storage_status(error),
                UploadFormError::NoBoundary
                | UploadFormError::Multipart(_)
                | UploadFormError::FieldTooLarge
                | UploadFormError::TooManyFields
                | UploadFormError::TooManyFiles
                | UploadFormError::ClientGone(_) => StatusCode::BAD_REQUEST,
            },
            Self::Audio(AudioError::Spool(error)) => storage_status(error),
            Self::Audio(error) if error.is_client_fault() => StatusCode::BAD_REQUEST,
            Self::Job(
                JobError::QueueFull { .. }
                | JobError::LoadFailed { .. }
                | JobError::ColdHold { .. }
                | JobError::ShuttingDown,
            ) => StatusCode::SERVICE_UNAVAILABLE,
            Self::Job(JobError::Overdue { .. }) => StatusCode::GATEWAY_TIMEOUT,
            Self::Job(JobError::Invalid(_)) | Self::NoVad => StatusCode::BAD_REQUEST,
            Self::Audio(_) | Self::Job(_) | Self::Internal(_) => StatusCode::INTERNAL_SERVER_ERROR,
        }
    }

    fn retry_after_seconds(&self) -> Option<u64> {
        match self {
            Self::Job(
                JobError::QueueFull { retry_after_seconds, .. }
                | JobError::LoadFailed { retry_after_seconds, .. }
                | JobError::ColdHold { retry_after_seconds, .. },
            ) => Some(*retry_after_seconds),
            Self::Job(JobError::ShuttingDown) => Some(Self::SHUTDOWN_RETRY_SECONDS),
            Self::Upload(UploadFormError::Spool(SpoolError::Spent(_)))
            | Self::Audio(AudioError::Spool(SpoolError::Spent(_))) => Some(Self::SPENT_RETRY_SECONDS),
            _ => None,
        }
    }
}

fn storage_status(error: &SpoolError) -> StatusCode {
    if error.is_storage_full() { StatusCode::INSUFFICIENT_STORAGE } else { StatusCode::INTERNAL_SERVER_ERROR }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let status = self.status();
        if status.is_server_error() {
            tracing::error!(status = status.as_u16(), error = explain(&self), "request failed");
        } else {
            tracing::debug!(status = status.as_u16(), error = %self, "request refused");
        }

        let mut response = match &self {
            Self::Fields(errors) => json_response(status, &ValidationErrorBody { detail: errors.clone() }),
            _ if status == StatusCode::INTERNAL_SERVER_ERROR => internal_server_error(),
            error => detail(status, &error.to_string()),
        };

        if let Some(seconds) = self.retry_after_seconds() {
            response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from(seconds));
        }

        response
    }
}

/// Answers `{"detail":"..."}`, as FastAPI's `HTTPException` does.
pub fn detail(status: StatusCode, text: &str) -> Response {
    json_response(status, &DetailBody { detail: text.to_owned() })
}

/// The body of an error that no handler wrote.
pub fn error_body(refusal: &hush_listener::ListenerRefusal<'_>) -> String {
    json_text(&DetailBody { detail: refusal.message.to_owned() })
}

/// Serialises a value as [`json_response`] does.
pub fn json_text<T: Serialize>(value: &T) -> String {
    let mut body = Vec::new();
    // Writing JSON to memory fails only for maps without text keys, and there are none.
    let _ = PythonJson::COMPACT.write(&mut body, value);
    String::from_utf8(body).unwrap_or_default()
}

/// whisper-asr-webservice's answer to every unexpected failure.
pub fn internal_server_error() -> Response {
    let content_type = [(header::CONTENT_TYPE, "text/plain; charset=utf-8")];
    (StatusCode::INTERNAL_SERVER_ERROR, content_type, "Internal Server Error").into_response()
}

/// Answers with JSON as FastAPI prints it.
pub fn json_response<T: Serialize>(status: StatusCode, value: &T) -> Response {
    let mut body = Vec::new();
    match PythonJson::COMPACT.write(&mut body, value) {
        Ok(()) => (status, [(header::CONTENT_TYPE, "application/json")], Body::from(body)).into_response(),
        Err(error) => ApiError::Internal(format!("an answer could not be printed: {error}")).into_response(),
    }
}

#[cfg(test)]
mod tests {
    use std::io;

    use super::*;

    #[test]
    fn a_full_disk_is_507_for_an_upload_and_for_samples() {
        let full = || SpoolError::Disk(io::Error::from(io::ErrorKind::StorageFull));
        for error in [ApiError::Upload(full().into()), ApiError::Audio(AudioError::Spool(full()))] {
            let response = error.into_response();
            assert_eq!(response.status(), StatusCode::INSUFFICIENT_STORAGE);
            assert_eq!(response.headers()[header::CONTENT_TYPE], "application/json");
        }

        let other = SpoolError::Disk(io::Error::from(io::ErrorKind::PermissionDenied));
        assert_eq!(ApiError::Upload(other.into()).into_response().status(), StatusCode::INTERNAL_SERVER_ERROR);
    }
}
