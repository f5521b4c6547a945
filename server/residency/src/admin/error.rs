//! The error responses, all of one shape.

use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use hush_contract::UnloadRefusal;
use hush_contract::admin::{AdminErrorBody, code};
use serde::Serialize;

use crate::model_handle::LoadCommandError;
use crate::snapshot::ModelSnapshot;

/// When a client may expect another server in the place of one that is ending.
const SHUTDOWN_RETRY_SECONDS: u64 = 10;

/// An error response of the admin API.
#[derive(Debug)]
pub struct AdminError {
    status: StatusCode,
    body: AdminErrorBody,
    retry_after_seconds: Option<u64>,
    /// The value of `WWW-Authenticate`.
    challenge: Option<&'static str>,
}

impl AdminError {
    pub fn new(status: StatusCode, code: &str, message: impl Into<String>) -> Self {
        let body = AdminErrorBody { code: code.to_owned(), message: message.into(), field: None };

        Self { status, body, retry_after_seconds: None, challenge: None }
    }

    /// The body, or the named field of it, is not valid.
    pub fn invalid(field: Option<String>, message: impl Into<String>) -> Self {
        let error = Self::new(StatusCode::BAD_REQUEST, code::INVALID_REQUEST, message);
        Self { body: AdminErrorBody { field, ..error.body }, ..error }
    }

    /// An error with the header that says which credential is wanted.
    pub fn unauthorized(code: &str, message: impl Into<String>, challenge: &'static str) -> Self {
        Self { challenge: Some(challenge), ..Self::new(StatusCode::UNAUTHORIZED, code, message) }
    }

    /// A handler panicked; the log says where.
    pub fn panicked() -> Self {
        Self::new(StatusCode::INTERNAL_SERVER_ERROR, code::INTERNAL, "this server failed; its log says why")
    }

    pub fn too_many_readers(max: usize, retry_after_seconds: u64) -> Self {
        let message = format!("{max} streams of events are open already; close one");
        let error = Self::new(StatusCode::SERVICE_UNAVAILABLE, code::TOO_MANY_READERS, message);
        Self { retry_after_seconds: Some(retry_after_seconds), ..error }
    }

    pub fn not_found() -> Self {
        Self::new(StatusCode::NOT_FOUND, code::NOT_FOUND, "there is no such route")
    }

    pub fn method_not_allowed() -> Self {
        let message = "this route has another method; see the header `Allow`";
        Self::new(StatusCode::METHOD_NOT_ALLOWED, code::METHOD_NOT_ALLOWED, message)
    }

    pub fn unknown_model<'a>(name: &str, known: impl Iterator<Item = &'a str>) -> Self {
        let known = known.map(|name| format!("`{name}`")).collect::<Vec<_>>().join(", ");
        let message = format!("there is no model `{}` here; there is {known}", name.escape_debug());

        Self::new(StatusCode::NOT_FOUND, code::UNKNOWN_MODEL, message)
    }

    /// `now`: only for the message. It may be newer than the refusal.
    pub fn refused(refusal: UnloadRefusal, now: &ModelSnapshot) -> Self {
        let ModelSnapshot { model, generation, inflight, queued, idle, state, .. } = now;

        let message = match refusal {
            UnloadRefusal::Busy => format!("`{model}` is busy: {inflight} in flight, {queued} queued"),
            UnloadRefusal::NotIdle => {
                format!("`{model}` has not been idle for that long, but for {:.3} s", idle.as_secs_f64())
            }
            UnloadRefusal::GenerationChanged => format!("`{model}` is at generation {generation}"),
            UnloadRefusal::Loading => format!("`{model}` is loading"),
            UnloadRefusal::NotLoaded => format!("`{model}` is not in memory (state `{}`)", state.as_str()),
            UnloadRefusal::Draining => format!("`{model}` is on its way out already"),
        };

        Self::new(StatusCode::CONFLICT, refusal.as_str(), format!("{message}; nothing was changed"))
    }

    pub fn not_loaded(model: &str, error: &LoadCommandError) -> Self {
        let (status, code, retry_after_seconds) = match error {
            LoadCommandError::GenerationChanged => {
                (StatusCode::CONFLICT, UnloadRefusal::GenerationChanged.as_str(), None)
            }
            LoadCommandError::Held { retry_after_seconds } => {
                (StatusCode::CONFLICT, code::HELD, Some(*retry_after_seconds))
            }
            LoadCommandError::Failed { retry_after_seconds, .. } => {
                (StatusCode::SERVICE_UNAVAILABLE, code::LOAD_FAILED, Some(*retry_after_seconds))
            }
            LoadCommandError::ShuttingDown => {
                (StatusCode::SERVICE_UNAVAILABLE, code::SHUTTING_DOWN, Some(SHUTDOWN_RETRY_SECONDS))
            }
        };

        Self { retry_after_seconds, ..Self::new(status, code, format!("`{model}`: {error}")) }
    }
}

impl IntoResponse for AdminError {
    fn into_response(self) -> Response {
        tracing::debug!(status = self.status.as_u16(), code = self.body.code, message = self.body.message, "refused");

        let mut response = (self.status, json(&self.body)).into_response();
        let headers = response.headers_mut();
        if let Some(seconds) = self.retry_after_seconds {
            headers.insert(header::RETRY_AFTER, HeaderValue::from(seconds));
        }
        if let Some(challenge) = self.challenge {
            headers.insert(header::WWW_AUTHENTICATE, HeaderValue::from_static(challenge));
        }

        response
    }
}

pub fn json<T: Serialize>(value: &T) -> Response {
    axum::Json(value).into_response()
}
