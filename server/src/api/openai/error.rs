//! Errors of the routes below `/v1`, in OpenAI's shape: `{"error":{"message","type","param","code"}}`.
//!
//! OpenAI's clients retry 408, 409, 429 and 5xx by themselves and wait as long as `Retry-After` says, up to 120 s.
//! `x-should-retry: false` stops them.

use axum::http::{HeaderName, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use hush_log::explain;
use serde::Serialize;
use utoipa::{IntoResponses, ToSchema};

use super::super::catalogue::ModelCard;
use super::super::error::{ApiError, UploadFormError, json_response, json_text};
use crate::audio::AudioError;
use crate::job::JobError;
use hush_listener::spool::SpoolError;

const SHOULD_RETRY: HeaderName = HeaderName::from_static("x-should-retry");

/// The longest `Retry-After` that OpenAI's clients respect.
const RETRY_AFTER_MAX_SECONDS: u64 = 120;

const INVALID: &str = "invalid_request_error";
const SERVER: &str = "server_error";

/// The object below `error`, which a stream may also contain.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, ToSchema)]
#[schema(as = OpenAiFault)]
pub struct OpenAiErrorBody {
    pub message: String,
    pub r#type: &'static str,
    /// The field that is wrong.
    pub param: Option<&'static str>,
    /// A name for programs, which never changes.
    pub code: Option<&'static str>,
}

#[derive(Debug)]
pub struct OpenAiError {
    status: StatusCode,
    body: OpenAiErrorBody,
    retry_after_seconds: Option<u64>,
    /// `false`: the same request would fail again.
    worth_retrying: bool,
}

impl OpenAiError {
    fn new(status: StatusCode, r#type: &'static str, code: Option<&'static str>, message: String) -> Self {
        let body = OpenAiErrorBody { message, r#type, param: None, code };
        Self { status, body, retry_after_seconds: None, worth_retrying: true }
    }

    /// 400: `param` has an invalid value.
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

    /// 404 and 405 for paths below `/v1`.
    pub fn unknown_route(status: StatusCode, method: &str, path: &str) -> Self {
        let (code, message) = match status {
            StatusCode::METHOD_NOT_ALLOWED => ("method_not_allowed", format!("Not allowed to {method} on {path}.")),
            _ => ("unknown_url", format!("Invalid URL ({method} {path}).")),
        };
        Self::new(status, INVALID, Some(code), message)
    }

    /// 401: the request has no key (`is_presented` is `false`), or a key that is not known.
    pub fn unauthorized(is_presented: bool) -> Self {
        let (message, code) = if is_presented {
            ("Incorrect API key provided.", Some("invalid_api_key"))
        } else {
            let message = "You didn't provide an API key. Provide it in the Authorization header, as `Authorization: Bearer \
                           YOUR_KEY`.";
            (message, None)
        };

        Self::new(StatusCode::UNAUTHORIZED, INVALID, code, message.to_owned())
    }

    /// The body of an error that no handler wrote.
    pub fn error_body(refusal: &hush_listener::ListenerRefusal<'_>) -> String {
        let r#type = if refusal.status.is_server_error() { SERVER } else { INVALID };

        let (message, code) = (refusal.message.to_owned(), Some(refusal.code));
        json_text(&OpenAiErrorEnvelope { error: &OpenAiErrorBody { message, r#type, param: None, code } })
    }

    pub fn into_body(self) -> OpenAiErrorBody {
        self.body
    }

    fn retry_after(mut self, seconds: u64) -> Self {
        self.retry_after_seconds = Some(seconds.clamp(1, RETRY_AFTER_MAX_SECONDS));
        self
    }

    fn not_worth_retrying(mut self) -> Self {
        self.worth_retrying = false;
        self
    }

    /// A failure of this server. The log has its cause under the id of the request; the answer names no path and no
    /// process.
    fn internal(code: &'static str, error: &(dyn std::error::Error + 'static)) -> Self {
        tracing::error!(error = explain(error), code, "request failed");
        Self::unexpected(code)
    }

    /// A handler panicked. The log says where.
    pub fn panicked() -> Self {
        Self::unexpected("internal")
    }

    /// 507. Where a budget is spent, other requests give back what they hold; a full disk needs the operator.
    fn storage_full(cause: &SpoolError, message: String) -> Self {
        let error = Self::new(StatusCode::INSUFFICIENT_STORAGE, SERVER, Some("storage_full"), message);
        match cause {
            SpoolError::Spent(_) => error.retry_after(ApiError::SPENT_RETRY_SECONDS),
            _ => error,
        }
    }

    fn unexpected(code: &'static str) -> Self {
        let message = "The server had an error while processing your request; its log says more, under the \
                       x-request-id of this answer.";
        Self::new(StatusCode::INTERNAL_SERVER_ERROR, SERVER, Some(code), message.to_owned())
    }
}

impl From<UploadFormError> for OpenAiError {
    fn from(error: UploadFormError) -> Self {
        let message = error.to_string();
        match error {
            UploadFormError::TooLarge { limit_bytes } => {
                let message = format!("Maximum content size limit ({limit_bytes}) exceeded");
                Self::new(StatusCode::PAYLOAD_TOO_LARGE, SERVER, None, message)
            }
            UploadFormError::Stalled { .. } => {
                Self::new(StatusCode::REQUEST_TIMEOUT, INVALID, Some("upload_stalled"), message)
            }
            UploadFormError::TooSlow { .. } => {
                Self::new(StatusCode::REQUEST_TIMEOUT, INVALID, Some("upload_too_slow"), message)
            }
            UploadFormError::Spool(cause) if cause.is_storage_full() => Self::storage_full(&cause, message),
            UploadFormError::Spool(cause) => Self::internal("spool", &cause),
            UploadFormError::NoBoundary
            | UploadFormError::Multipart(_)
            | UploadFormError::FieldTooLarge
            | UploadFormError::TooManyFields
            | UploadFormError::TooManyFiles
            | UploadFormError::ClientGone(_) => {
                Self::new(StatusCode::BAD_REQUEST, INVALID, Some("invalid_form"), message)
            }
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
                    // The reason differs between machines, because it depends on which decoder reports it.
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
                Self::new(status, "rate_limit_error", Some("queue_full"), message).retry_after(retry_after_seconds)
            }
            JobError::ColdHold { retry_after_seconds, .. } => {
                unavailable("model_loading", message).retry_after(retry_after_seconds)
            }
            JobError::LoadFailed { retry_after_seconds, .. } => {
                unavailable("model_load_failed", message).retry_after(retry_after_seconds)
            }
            JobError::ShuttingDown => {
                unavailable("shutting_down", message).retry_after(ApiError::SHUTDOWN_RETRY_SECONDS)
            }
            JobError::Invalid(message) => Self::new(StatusCode::BAD_REQUEST, INVALID, Some("invalid_value"), message),
            // The same request would take as long again.
            JobError::Overdue { .. } => {
                Self::new(StatusCode::GATEWAY_TIMEOUT, SERVER, Some("busy_timeout"), message).not_worth_retrying()
            }

            // The request ended its runner twice, or the engine refused this very input.
            JobError::RunnerLost { .. } => Self::internal("runner_lost", &error).not_worth_retrying(),
            JobError::Failed(_) => Self::internal("transcription_failed", &error).not_worth_retrying(),
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
pub struct OpenAiErrorEnvelope<'a> {
    error: &'a OpenAiErrorBody,
}

/// The error answers of the audio routes.
#[derive(IntoResponses)]
pub enum OpenAiRefusals {
    /// A field is invalid, the file is not audio, or the model cannot do the task.
    #[response(status = 400)]
    Invalid(OpenAiErrorEnvelope<'static>),
    /// The server requires an API key, and the request has no valid one.
    #[response(status = 401, headers(("WWW-Authenticate" = String, description = "`Bearer`.")))]
    NoKey(OpenAiErrorEnvelope<'static>),
    /// The server has no model of this name.
    #[response(status = 404)]
    NoModel(OpenAiErrorEnvelope<'static>),
    /// The upload stalled or is too slow.
    #[response(status = 408)]
    Stalled(OpenAiErrorEnvelope<'static>),
    /// The upload is larger than the limit of this server.
    #[response(status = 413)]
    TooLarge(OpenAiErrorEnvelope<'static>),
    /// Too many requests are waiting.
    #[response(status = 429, headers(("Retry-After" = u64, description = "Seconds until a retry may succeed.")))]
    QueueFull(OpenAiErrorEnvelope<'static>),
    /// The recording could not be transcribed.
    #[response(status = 500)]
    Failed(OpenAiErrorEnvelope<'static>),
    /// The model cannot be loaded now.
    #[response(status = 503, headers(("Retry-After" = u64, description = "Seconds until a retry may succeed.")))]
    Unavailable(OpenAiErrorEnvelope<'static>),
    /// The request held the model for longer than this server allows.
    #[response(status = 504)]
    Overdue(OpenAiErrorEnvelope<'static>),
    /// The server has no room to store the upload or its samples.
    #[response(status = 507, headers(("Retry-After" = u64, description = "Seconds until other requests may have released room.")))]
    StorageFull(OpenAiErrorEnvelope<'static>),
}

/// The error answer of the other routes below `/v1` to requests without a valid API key.
#[derive(IntoResponses)]
pub enum OpenAiNoKey {
    /// The server requires an API key, and the request has no valid one.
    #[response(status = 401, headers(("WWW-Authenticate" = String, description = "`Bearer`.")))]
    NoKey(OpenAiErrorEnvelope<'static>),
}

impl IntoResponse for OpenAiError {
    fn into_response(self) -> Response {
        tracing::debug!(status = self.status.as_u16(), error = self.body.message, "request refused");

        let mut response = json_response(self.status, &OpenAiErrorEnvelope { error: &self.body });
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

    fn answer_to(error: impl Into<OpenAiError>) -> (u16, Option<&'static str>, Option<u64>, bool) {
        let error = error.into();
        (error.status.as_u16(), error.body.code, error.retry_after_seconds, error.worth_retrying)
    }

    #[test]
    fn clients_are_told_whether_and_when_to_try_again() {
        let model = || "m".to_owned();
        let full = JobError::QueueFull { model: model(), limit: 1, retry_after_seconds: 7 };
        assert_eq!(answer_to(full), (429, Some("queue_full"), Some(7), true));

        let failed = JobError::LoadFailed { model: model(), cause: "no".to_owned(), retry_after_seconds: 4000 };
        assert_eq!(answer_to(failed), (503, Some("model_load_failed"), Some(120), true));
        assert_eq!(answer_to(JobError::ShuttingDown), (503, Some("shutting_down"), Some(10), true));
        let lost = JobError::RunnerLost { model: model(), cause: "signal 9".to_owned() };
        assert_eq!(answer_to(lost), (500, Some("runner_lost"), None, false));
        assert_eq!(answer_to(JobError::Invalid("no".to_owned())), (400, Some("invalid_value"), None, true));
        assert_eq!(answer_to(UploadFormError::TooLarge { limit_bytes: 5 }), (413, None, None, true));
        assert_eq!(answer_to(AudioError::Empty), (400, Some("empty_file"), None, true));
    }

    #[test]
    fn internal_causes_stay_out_of_the_answer() {
        let error = OpenAiError::from(JobError::Failed("/models/secret/weights.bin".to_owned()));
        assert!(!error.body.message.contains("secret"), "{}", error.body.message);
    }
}
