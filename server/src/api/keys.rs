//! API keys of the public listener.

use std::time::Duration;

use axum::extract::{Request, State};
use axum::http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header};
use axum::middleware::Next;
use axum::response::Response;
use serde::Serialize;

use super::ApiState;
use super::error::{detail, json_response};
use super::upload::{self, UploadOptions};

const API_KEY: HeaderName = HeaderName::from_static("x-api-key");

/// A stranger's upload is read only so far that usual clients see the answer rather than a reset connection.
const STRANGER_LIMIT_BYTES: u64 = 16 << 20;
const STRANGER_SILENCE: Duration = Duration::from_secs(5);

/// In whose words a group of routes refuses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shape {
    /// `{"detail": ...}`, as FastAPI's security helpers.
    Asr,
    /// `{"error": {...}}`, as OpenAI.
    OpenAi,
}

/// State of [`require_key`], for one group of routes.
#[derive(Clone)]
pub struct KeyGuard {
    pub state: ApiState,
    pub shape: Shape,
}

/// Middleware for [`axum::Router::route_layer`]: lets in whoever has a key (`Authorization: Bearer` or `X-API-Key`), or
/// everybody when no keys are configured.
pub async fn require_key(State(guard): State<KeyGuard>, request: Request, next: Next) -> Response {
    let Some(keys) = &guard.state.config.keys else { return next.run(request).await };
    let presented = presented(request.headers());
    match presented.and_then(|key| keys.find(key)) {
        Some(name) => {
            crate::request::note(|facts| facts.key = Some(name));
            next.run(request).await
        }
        None => {
            let response = refusal(guard.shape, presented.is_some());
            let (head, body) = request.into_parts();
            let options = UploadOptions {
                max_drain_bytes: STRANGER_LIMIT_BYTES,
                idle_timeout: STRANGER_SILENCE,
                ..guard.state.config.upload.clone()
            };
            upload::discard(&head.headers, body, &options).await;
            response
        }
    }
}

fn presented(headers: &HeaderMap) -> Option<&str> {
    let bearer = headers.get(header::AUTHORIZATION).and_then(|value| {
        let (scheme, key) = value.to_str().ok()?.split_once(' ')?;
        scheme.eq_ignore_ascii_case("Bearer").then_some(key.trim())
    });
    bearer.or_else(|| headers.get(API_KEY)?.to_str().ok()).filter(|key| !key.is_empty())
}

#[derive(Serialize)]
struct OpenAiRefusal {
    error: OpenAiError,
}

#[derive(Serialize)]
struct OpenAiError {
    message: &'static str,
    r#type: &'static str,
    param: Option<&'static str>,
    code: Option<&'static str>,
}

fn refusal(shape: Shape, presented: bool) -> Response {
    let status = StatusCode::UNAUTHORIZED;
    let mut response = match (shape, presented) {
        (Shape::Asr, false) => detail(status, "Not authenticated"),
        (Shape::Asr, true) => detail(status, "Invalid API key"),
        (Shape::OpenAi, presented) => {
            let (message, code) = match presented {
                true => ("Incorrect API key provided.", Some("invalid_api_key")),
                false => (
                    "You didn't provide an API key. Provide it in the Authorization header, as `Authorization: Bearer \
                     YOUR_KEY`.",
                    None,
                ),
            };
            let error = OpenAiError { message, r#type: "invalid_request_error", param: None, code };
            json_response(status, &OpenAiRefusal { error })
        }
    };
    response.headers_mut().insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
    response
}
