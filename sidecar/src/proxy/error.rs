//! Answers that the proxy gives itself, in the form of the API that the client speaks.

use std::time::Duration;

use axum::body::Body;
use axum::response::Response;
use http::header::{CONTENT_TYPE, RETRY_AFTER};
use http::{HeaderValue, StatusCode};
use hush_listener::{ListenerRefusal, code};
use hush_log::explain;
use hush_residency::AcquireError;
use serde_json::{Value, json};

use super::attribution::{BodyScanError, CompressedBody};
use super::intake::IntakeError;
use super::models::UnknownModel;
use crate::upstream::UpstreamError;

/// openai-python does not wait longer than this.
const RETRY_AFTER_MAX: Duration = Duration::from_secs(120);
/// After a shutdown another instance may take over, and an app that is away may come back.
const AWAY_RETRY: Duration = Duration::from_secs(10);
/// Other requests give their share of the spool back within minutes.
const SPENT_RETRY: Duration = Duration::from_secs(30);

/// Why a request is not forwarded, or has no answer of the app.
#[derive(Debug, thiserror::Error)]
pub enum ProxyError {
    #[error(
        "this route loads or unloads models and is closed: the GPU sidecar in front of the app decides that. Use the \
         sidecar's admin API instead: `POST {}/models/{{model}}/unload` or `.../load` on its admin listener",
        hush_contract::admin::ADMIN_PATH
    )]
    Closed,
    #[error("The model `{}` does not exist on this server. It has: {}.", .0.name, .0.known.join(", "))]
    UnknownModel(UnknownModel),
    #[error(
        "the body is compressed (`Content-Encoding: {}`), so that the model that it names cannot be read; send it without \
         `Content-Encoding`",
        .0.encoding
    )]
    Compressed(CompressedBody),
    #[error(transparent)]
    Body(#[from] IntakeError),
    #[error("the query names its model twice: {0}")]
    Query(#[source] BodyScanError),
    #[error("this server does not serve the method {0}")]
    Method(http::Method),
    #[error("the target of the request must be a path")]
    Target,
    #[error("this server has no file left for a connection to the app; try again later")]
    NoFile,
    #[error("model `{model}`: {cause}")]
    Acquire { model: String, cause: AcquireError },
    #[error("model `{model}` is not in memory, and this request does not load it; try again later")]
    Away { model: String, retry_after: Duration },
    #[error("the app cannot be governed: {cause}")]
    Unsuitable { cause: String },
    #[error("the app does not run: {cause}")]
    NotRunning { cause: String },
    #[error("the app gave no answer: {}", explain(.0))]
    Upstream(#[source] UpstreamError),
    #[error("the app gave no answer within {seconds} s")]
    FirstByte { seconds: u64 },
    #[error("the request took longer than {seconds} s")]
    RequestTimeout { seconds: u64 },
    #[error("the app changed the protocol without being asked")]
    UnaskedUpgrade,
}

impl From<BodyScanError> for ProxyError {
    fn from(error: BodyScanError) -> Self {
        Self::Body(IntakeError::Scan(error))
    }
}

impl ProxyError {
    pub fn status(&self) -> StatusCode {
        match self {
            Self::Closed => StatusCode::FORBIDDEN,
            Self::UnknownModel(_) => StatusCode::NOT_FOUND,
            Self::Compressed(_) => StatusCode::UNSUPPORTED_MEDIA_TYPE,
            Self::Body(error) => intake_status(error),
            Self::Query(_) | Self::Target => StatusCode::BAD_REQUEST,
            Self::Method(_) => StatusCode::METHOD_NOT_ALLOWED,
            Self::Acquire { cause: AcquireError::QueueFull { .. }, .. } => StatusCode::TOO_MANY_REQUESTS,
            Self::Acquire { .. }
            | Self::Away { .. }
            | Self::Unsuitable { .. }
            | Self::NotRunning { .. }
            | Self::NoFile => StatusCode::SERVICE_UNAVAILABLE,
            Self::Upstream(error) if error.is_unsent() => StatusCode::SERVICE_UNAVAILABLE,
            Self::Upstream(_) | Self::UnaskedUpgrade => StatusCode::BAD_GATEWAY,
            Self::FirstByte { .. } | Self::RequestTimeout { .. } => StatusCode::GATEWAY_TIMEOUT,
        }
    }

    /// For programs; never changes.
    pub const fn code(&self) -> &'static str {
        match self {
            Self::Closed => "route_closed",
            Self::UnknownModel(_) => "model_not_found",
            Self::Compressed(_) => code::UNSUPPORTED_MEDIA_TYPE,
            Self::Body(IntakeError::TooLarge { .. }) => code::BODY_TOO_LARGE,
            Self::Body(IntakeError::Stalled { .. }) => code::REQUEST_TIMEOUT,
            Self::Body(IntakeError::Spool(_)) => "insufficient_storage",
            Self::NoFile | Self::Body(IntakeError::NoFile) => code::TOO_MANY_CONNECTIONS,
            Self::Body(IntakeError::Read(_) | IntakeError::Task(_)) => code::INTERNAL,
            Self::Body(_) | Self::Query(_) => "invalid_body",
            Self::Method(_) => code::METHOD_NOT_ALLOWED,
            Self::Target => code::MALFORMED_REQUEST,
            Self::Acquire { cause: AcquireError::QueueFull { .. }, .. } => "queue_full",
            Self::Acquire { cause: AcquireError::LoadFailed { .. }, .. } => "model_load_failed",
            Self::Acquire { cause: AcquireError::ShuttingDown, .. } => "shutting_down",
            Self::Acquire { .. } | Self::Away { .. } => "model_not_loaded",
            Self::Unsuitable { .. } => "app_unsuitable",
            Self::NotRunning { .. } => "app_not_running",
            Self::Upstream(error) if error.is_unsent() => "app_not_running",
            Self::Upstream(_) | Self::UnaskedUpgrade => "app_failed",
            Self::FirstByte { .. } | Self::RequestTimeout { .. } => "app_timeout",
        }
    }

    fn retry_after(&self) -> Option<Duration> {
        let after = match self {
            Self::Acquire { cause, .. } => match cause {
                AcquireError::QueueFull { retry_after_seconds, .. }
                | AcquireError::LoadFailed { retry_after_seconds, .. }
                | AcquireError::ColdHold { retry_after_seconds, .. } => Duration::from_secs(*retry_after_seconds),
                AcquireError::ShuttingDown => AWAY_RETRY,
            },
            Self::Away { retry_after, .. } => *retry_after,
            Self::Unsuitable { .. } | Self::NotRunning { .. } | Self::NoFile => AWAY_RETRY,
            Self::Body(IntakeError::NoFile) => AWAY_RETRY,
            Self::Upstream(error) if error.is_unsent() => AWAY_RETRY,
            Self::Body(IntakeError::Spool(_)) => SPENT_RETRY,
            _ => return None,
        };
        Some(after.clamp(Duration::from_secs(1), RETRY_AFTER_MAX))
    }

    fn parameter(&self) -> Option<&'static str> {
        match self {
            Self::UnknownModel(_) | Self::Query(_) => Some("model"),
            Self::Body(IntakeError::Scan(BodyScanError::TwoNames { .. } | BodyScanError::NameNotText)) => Some("model"),
            _ => None,
        }
    }

    /// The answer to a request for `path`.
    pub fn into_response(self, path: &str) -> Response {
        let body = error_body(path, self.status(), self.code(), &self.to_string(), self.parameter());

        let mut response = Response::new(Body::from(body));
        *response.status_mut() = self.status();
        response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
        if let Some(after) = self.retry_after() {
            response.headers_mut().insert(RETRY_AFTER, HeaderValue::from(after.as_millis().div_ceil(1000) as u64));
        }
        response
    }
}

const fn intake_status(error: &IntakeError) -> StatusCode {
    match error {
        IntakeError::Scan(_) | IntakeError::ClientGone(_) => StatusCode::BAD_REQUEST,
        IntakeError::TooLarge { .. } => StatusCode::PAYLOAD_TOO_LARGE,
        IntakeError::Stalled { .. } => StatusCode::REQUEST_TIMEOUT,
        IntakeError::Spool(_) => StatusCode::INSUFFICIENT_STORAGE,
        IntakeError::NoFile => StatusCode::SERVICE_UNAVAILABLE,
        IntakeError::Read(_) | IntakeError::Task(_) => StatusCode::INTERNAL_SERVER_ERROR,
    }
}

/// The body of an error that the listener writes before the proxy sees the request.
pub fn format_refusal(refusal: &ListenerRefusal<'_>) -> String {
    error_body(refusal.path.unwrap_or("/"), refusal.status, refusal.code, refusal.message, None)
}

/// Ollama and Triton have a text, FastAPI a `detail`, everything else is like OpenAI.
fn error_body(path: &str, status: StatusCode, code: &str, message: &str, param: Option<&str>) -> String {
    let body: Value = if path.starts_with("/api/") || path.starts_with("/v2/") {
        json!({ "error": message })
    } else if path.starts_with("/sdapi/") {
        json!({ "detail": message })
    } else {
        let kind = match status {
            StatusCode::TOO_MANY_REQUESTS => "rate_limit_error",
            status if status.is_server_error() => "server_error",
            _ => "invalid_request_error",
        };
        json!({ "error": { "message": message, "type": kind, "param": param, "code": code } })
    };
    body.to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_have_the_form_of_their_api() {
        let unknown = || ProxyError::UnknownModel(UnknownModel { name: "x".to_owned(), known: vec!["a".to_owned()] });
        let body = |path| {
            serde_json::from_str::<Value>(&error_body(
                path,
                unknown().status(),
                unknown().code(),
                &unknown().to_string(),
                unknown().parameter(),
            ))
            .unwrap()
        };

        let message = "The model `x` does not exist on this server. It has: a.";
        assert_eq!(body("/api/chat"), json!({"error": message}));
        assert_eq!(body("/sdapi/v1/txt2img"), json!({"detail": message}));
        let expected = json!({"error": {"message": message, "type": "invalid_request_error", "param": "model", "code": "model_not_found"}});
        assert_eq!(body("/v1/chat/completions"), expected);
        assert_eq!(body("/completion"), expected);
    }

    #[test]
    fn clients_are_told_when_to_come_back() {
        let retry = |seconds| {
            let cause = AcquireError::LoadFailed { cause: "x".to_owned(), retry_after_seconds: seconds };
            let response = ProxyError::Acquire { model: "a".to_owned(), cause }.into_response("/v1/x");
            assert_eq!(response.status(), StatusCode::SERVICE_UNAVAILABLE);
            response.headers()[RETRY_AFTER].to_str().unwrap().to_owned()
        };
        assert_eq!([0, 7, 500].map(retry), ["1", "7", "120"]);
    }
}
