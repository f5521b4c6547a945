//! What goes wrong on `/v1`, in OpenAI's shape: `{"error":{"message","type","param","code"}}`.
//!
//! Its clients retry 408, 409, 429 and 5xx by themselves, and wait as long as `Retry-After` says, up to 120 s;
//! `x-should-retry` tells them otherwise.

use axum::http::{HeaderName, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use hush_log::explain;
use serde::Serialize;
use utoipa::{IntoResponses, ToSchema};

use super::super::catalogue::ModelCard;
use super::super::error::{ApiError, UploadError, json_response, json_text};
use crate::audio::AudioError;
use crate::job::JobError;
use crate::spool::SpoolError;

const SHOULD_RETRY: HeaderName = HeaderName::from_static("x-should-retry");

/// The longest `Retry-After` that OpenAI's clients honour.
const RETRY_AFTER_MAX_SECONDS: u64 = 120;

const INVALID: &str = "invalid_request_error";
const SERVER: &str = "server_error";

/// The object below `error`, also in the middle of a stream.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, ToSchema)]
#[schema(as = OpenAiFault)]
pub struct ErrorBody {
    pub message: String,
    pub r#type: &'static str,
    /// The field that is at fault.
    pub param: Option<&'static str>,
    /// For programs; never changes.
    pub code: Option<&'static str>,
}

#[derive(Debug)]
pub struct OpenAiError {
    status: StatusCode,
    body: ErrorBody,
    retry_after_seconds: Option<u64>,
    /// `false`: the same request would fail again.
    worth_retrying: bool,
}

impl OpenAiError {
    fn new(status: StatusCode, r#type: &'static str, code: Option<&'static str>, message: String) -> Self {
        let body = ErrorBody { message, r#type, param: None, code };
        Self { status, body, retry_after_seconds: None, worth_retrying: true }
    }

    /// 400: `param` has a value that cannot be used.
    pub fn invalid(param: &'static str, code: &'static str, message: String) -> Self {
        let mut error = Self::new(StatusCode::BAD_REQUEST, INVALID, Some(code), message);
        error.body.param = Some(param);
        error
    }

    pub fn missing_file() -> Self {
        let message = "The form has no field `file`; send the audio as multipart/form-data with a file name.";
        Self::invalid("file", "missing_required_parameter", message.to_owned())
    }

    pub fn not_a_file() -> Self {
        let message = "The field `file` is text, not a file: its part of the form has no file name.";
        Self::invalid("file", "invalid_value", message.to_owned())
    }

    pub fn model_not_found(name: &str, known: &[ModelCard]) -> Self {
        let known: Vec<&str> = known.iter().map(|card| card.id.as_str()).collect();
        let message = format!("The model `{name}` does not exist on this server. It has: {}.", known.join(", "));
        let mut error = Self::new(StatusCode::NOT_FOUND, INVALID, Some("model_not_found"), message);
        error.body.param = Some("model");
        error
    }

    /// 404 and 405 of paths below `/v1`.
    pub fn route(status: StatusCode, method: &str, path: &str) -> Self {
        let (code, message) = match status {
            StatusCode::METHOD_NOT_ALLOWED => ("method_not_allowed", format!("Not allowed to {method} on {path}.")),
            _ => ("unknown_url", format!("Invalid URL ({method} {path}).")),
        };
        Self::new(status, INVALID, Some(code), message)
    }

    /// The body of an error that no handler wrote.
    pub fn refusal(refusal: &hush_listener::Refusal<'_>) -> String {
        let r#type = if refusal.status.is_server_error() { SERVER } else { INVALID };
        let (message, code) = (refusal.message.to_owned(), Some(refusal.code));
        json_text(&Envelope { error: &ErrorBody { message, r#type, param: None, code } })
    }

    pub fn into_body(self) -> ErrorBody {
        self.body
    }

    fn after(mut self, seconds: u64) -> Self {
        self.retry_after_seconds = Some(seconds.clamp(1, RETRY_AFTER_MAX_SECONDS));
        self
    }

    fn final_(mut self) -> Self {
        self.worth_retrying = false;
        self
    }

    /// What happened is in the log, under the id of the request; paths and processes are nobody's business.
    fn internal(code: &'static str, error: &(dyn std::error::Error + 'static)) -> Self {
        tracing::error!(error = explain(error), code, "request failed");
        Self::unexpected(code)
    }

    /// A handler panicked; the log says where.
    pub fn panicked() -> Self {
        Self::unexpected("internal")
    }

    /// 507. What other requests hold comes back by itself; a full disk is the operator's business.
    fn storage_full(cause: &SpoolError, message: String) -> Self {
        let error = Self::new(StatusCode::INSUFFICIENT_STORAGE, SERVER, Some("storage_full"), message);
        match cause {
            SpoolError::Spent(_) => error.after(ApiError::SPENT_RETRY_SECONDS),
            _ => error,
        }
    }

    fn unexpected(code: &'static str) -> Self {
        let message = "The server had an error while processing your request; its log says more, under the \
                       x-request-id of this answer.";
        Self::new(StatusCode::INTERNAL_SERVER_ERROR, SERVER, Some(code), message.to_owned())
    }
}

impl From<UploadError> for OpenAiError {
    fn from(error: UploadError) -> Self {
        let message = error.to_string();
        match error {
            UploadError::TooLarge { limit_bytes } => {
                let message = format!("Maximum content size limit ({limit_bytes}) exceeded");
                Self::new(StatusCode::PAYLOAD_TOO_LARGE, SERVER, None, message)
            }
            UploadError::Stalled { .. } => {
                Self::new(StatusCode::REQUEST_TIMEOUT, INVALID, Some("upload_stalled"), message)
            }
            UploadError::TooSlow { .. } => {
                Self::new(StatusCode::REQUEST_TIMEOUT, INVALID, Some("upload_too_slow"), message)
            }
            UploadError::Spool(cause) if cause.is_storage_full() => Self::storage_full(&cause, message),
            UploadError::Spool(cause) => Self::internal("spool", &cause),
            UploadError::NoBoundary
            | UploadError::Multipart(_)
            | UploadError::FieldTooLarge
            | UploadError::TooManyFields
            | UploadError::TooManyFiles
            | UploadError::ClientGone(_) => Self::new(StatusCode::BAD_REQUEST, INVALID, Some("invalid_form"), message),
        }
    }
}

impl From<AudioError> for OpenAiError {
    fn from(error: AudioError) -> Self {
        match error {
            AudioError::Spool(cause) if cause.is_storage_full() => Self::storage_full(&cause, cause.to_string()),
            error if error.is_client_fault() => {
                let code = match error {
                    AudioError::Empty => "empty_file",
                    AudioError::TooLong { .. } => "audio_too_long",
                    // Which decoder says it differs from machine to machine.
                    _ => "invalid_file_format",
                };
                Self::invalid("file", code, format!("Invalid file: {error}."))
            }
            error => Self::internal(error.label(), &error),
        }
    }
}

impl From<JobError> for OpenAiError {
    fn from(error: JobError) -> Self {
        let message = error.to_string();
        let unavailable = |code, message| Self::new(StatusCode::SERVICE_UNAVAILABLE, SERVER, Some(code), message);
        match error {
            JobError::QueueFull { retry_after_seconds, .. } => {
                let status = StatusCode::TOO_MANY_REQUESTS;
                Self::new(status, "rate_limit_error", Some("queue_full"), message).after(retry_after_seconds)
            }
            JobError::ColdHold { retry_after_seconds, .. } => {
                unavailable("model_loading", message).after(retry_after_seconds)
            }
            JobError::LoadFailed { retry_after_seconds, .. } => {
                unavailable("model_load_failed", message).after(retry_after_seconds)
            }
            JobError::ShuttingDown => unavailable("shutting_down", message).after(ApiError::SHUTDOWN_RETRY_SECONDS),
            JobError::Invalid(message) => Self::new(StatusCode::BAD_REQUEST, INVALID, Some("invalid_value"), message),
            // The same request would take as long again.
            JobError::Overdue { .. } => {
                Self::new(StatusCode::GATEWAY_TIMEOUT, SERVER, Some("busy_timeout"), message).final_()
            }
            // It took its runner along twice, or the engine said no to this very input.
            JobError::RunnerLost { .. } => Self::internal("runner_lost", &error).final_(),
            JobError::Failed(_) => Self::internal("transcription_failed", &error).final_(),
            JobError::Audio(error) => error.into(),
            JobError::Spool(_) => Self::internal("spool", &error),
        }
    }
}

impl From<ApiError> for OpenAiError {
    fn from(error: ApiError) -> Self {
        match error {
            ApiError::Upload(error) => error.into(),
            ApiError::Audio(error) => error.into(),
            ApiError::Job(error) => error.into(),
            ApiError::NoVad => Self::invalid("vad_filter", "vad_not_installed", error.to_string()),
            ApiError::Fields(_) | ApiError::Internal(_) => Self::internal("internal", &error),
        }
    }
}

/// An error in OpenAI's shape.
#[derive(Serialize, ToSchema)]
#[schema(as = OpenAiError)]
pub struct Envelope<'a> {
    error: &'a ErrorBody,
}

/// What the routes for audio answer where they do not do the work.
#[derive(IntoResponses)]
pub enum Refusals {
    /// A field is wrong, the file is not audio, or the model cannot do it.
    #[response(status = 400)]
    Invalid(Envelope<'static>),
    /// This server has API keys, and the request has none of them.
    #[response(status = 401, headers(("WWW-Authenticate" = String, description = "`Bearer`.")))]
    NoKey(Envelope<'static>),
    /// There is no model of this name.
    #[response(status = 404)]
    NoModel(Envelope<'static>),
    /// The upload stopped in the middle, or is too slow.
    #[response(status = 408)]
    Stalled(Envelope<'static>),
    /// The upload is larger than this server takes.
    #[response(status = 413)]
    TooLarge(Envelope<'static>),
    /// Too many requests wait.
    #[response(status = 429, headers(("Retry-After" = u64, description = "Seconds until it may work.")))]
    QueueFull(Envelope<'static>),
    /// The recording could not be transcribed.
    #[response(status = 500)]
    Failed(Envelope<'static>),
    /// The model cannot be loaded now.
    #[response(status = 503, headers(("Retry-After" = u64, description = "Seconds until it may work.")))]
    Unavailable(Envelope<'static>),
    /// It held the model for longer than this server allows.
    #[response(status = 504)]
    Overdue(Envelope<'static>),
    /// There is no room to store the upload or its samples.
    #[response(status = 507, headers(("Retry-After" = u64, description = "Seconds until other requests may have left room.")))]
    StorageFull(Envelope<'static>),
}

/// What the other routes below `/v1` answer whom they do not know.
#[derive(IntoResponses)]
pub enum NoKey {
    /// This server has API keys, and the request has none of them.
    #[response(status = 401, headers(("WWW-Authenticate" = String, description = "`Bearer`.")))]
    NoKey(Envelope<'static>),
}

impl IntoResponse for OpenAiError {
    fn into_response(self) -> Response {
        tracing::debug!(status = self.status.as_u16(), error = self.body.message, "request refused");
        let mut response = json_response(self.status, &Envelope { error: &self.body });
        if let Some(seconds) = self.retry_after_seconds {
            response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from(seconds));
        }
        if !self.worth_retrying {
            response.headers_mut().insert(SHOULD_RETRY, HeaderValue::from_static("false"));
        }
        response
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(error: impl Into<OpenAiError>) -> (u16, Option<&'static str>, Option<u64>, bool) {
        let error = error.into();
        (error.status.as_u16(), error.body.code, error.retry_after_seconds, error.worth_retrying)
    }

    #[test]
    fn clients_are_told_whether_and_when_to_try_again() {
        let model = || "m".to_owned();
        let full = JobError::QueueFull { model: model(), limit: 1, retry_after_seconds: 7 };
        assert_eq!(of(full), (429, Some("queue_full"), Some(7), true));
        let failed = JobError::LoadFailed { model: model(), cause: "no".to_owned(), retry_after_seconds: 4000 };
        assert_eq!(of(failed), (503, Some("model_load_failed"), Some(120), true));
        assert_eq!(of(JobError::ShuttingDown), (503, Some("shutting_down"), Some(10), true));
        let lost = JobError::RunnerLost { model: model(), cause: "signal 9".to_owned() };
        assert_eq!(of(lost), (500, Some("runner_lost"), None, false));
        assert_eq!(of(JobError::Invalid("no".to_owned())), (400, Some("invalid_value"), None, true));
        assert_eq!(of(UploadError::TooLarge { limit_bytes: 5 }), (413, None, None, true));
        assert_eq!(of(AudioError::Empty), (400, Some("empty_file"), None, true));
    }

    #[test]
    fn what_is_internal_stays_inside() {
        let error = OpenAiError::from(JobError::Failed("/models/secret/weights.bin".to_owned()));
        assert!(!error.body.message.contains("secret"), "{}", error.body.message);
    }
}
