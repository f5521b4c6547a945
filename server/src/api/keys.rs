//! API keys of the public listener.

use std::time::Duration;

use axum::extract::{Request, State};
use axum::http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};

use super::ApiState;
use super::error::detail;
use super::openai::error::OpenAiError;
use super::upload::{self, UploadOptions};

const API_KEY: HeaderName = HeaderName::from_static("x-api-key");

/// The upload of a client without a key is read only so far that usual clients see the answer and no reset connection.
const UNAUTHENTICATED_LIMIT_BYTES: u64 = 16 << 20;
const UNAUTHENTICATED_IDLE_TIMEOUT: Duration = Duration::from_secs(5);

/// The shape of the errors of a group of routes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ErrorStyle {
    /// `{"detail": ...}`, as in FastAPI's security helpers.
    Asr,
    /// `{"error": {...}}`, as in OpenAI's API.
    OpenAi,
}

/// State of [`require_key`] for one group of routes.
#[derive(Clone)]
pub struct KeyGuard {
    pub state: ApiState,
    pub style: ErrorStyle,
}

/// Middleware for [`axum::Router::route_layer`]: admits requests with a valid key (`Authorization: Bearer` or `X-API-Key`),
/// and every request where no keys are configured.
pub async fn require_key(State(guard): State<KeyGuard>, request: Request, next: Next) -> Response {
    let Some(keys) = &guard.state.config.keys else { return next.run(request).await };

    let presented = presented_key(request.headers());
    match presented.and_then(|key| keys.find(key)) {
        Some(name) => {
            crate::request::note(|facts| facts.key = Some(name));
            next.run(request).await
        }
        None => {
            let response = unauthorized(guard.style, presented.is_some());
            let (head, body) = request.into_parts();

            let options = UploadOptions {
                max_drain_bytes: UNAUTHENTICATED_LIMIT_BYTES,
                idle_timeout: UNAUTHENTICATED_IDLE_TIMEOUT,
                ..guard.state.config.upload.clone()
            };
            upload::discard(&head.headers, body, &options).await;
            response
        }
    }
}

fn presented_key(headers: &HeaderMap) -> Option<&str> {
    let bearer = headers.get(header::AUTHORIZATION).and_then(|value| {
        let (scheme, key) = value.to_str().ok()?.split_once(' ')?;
        scheme.eq_ignore_ascii_case("Bearer").then_some(key.trim())
    });

    bearer.or_else(|| headers.get(API_KEY)?.to_str().ok()).filter(|key| !key.is_empty())
}

fn unauthorized(style: ErrorStyle, is_presented: bool) -> Response {
    let status = StatusCode::UNAUTHORIZED;
    let mut response = match (style, is_presented) {
        (ErrorStyle::Asr, false) => detail(status, "Not authenticated"),
        (ErrorStyle::Asr, true) => detail(status, "Invalid API key"),
        (ErrorStyle::OpenAi, _) => OpenAiError::unauthorized(is_presented).into_response(),
    };

    response.headers_mut().insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
    response
}
