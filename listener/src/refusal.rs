//! Errors that no handler wrote, in the format of the listener.

use axum::body::{Body, to_bytes};
use axum::extract::{Request, State};
use axum::http::{HeaderValue, StatusCode, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};

use super::PROBE_PATHS;

/// Codes of errors, for programs. They never change.
pub mod code {
    /// 400: the head of the request cannot be used.
    pub const MALFORMED_REQUEST: &str = "malformed_request";
    /// 404
    pub const NOT_FOUND: &str = "not_found";
    /// 405
    pub const METHOD_NOT_ALLOWED: &str = "method_not_allowed";
    /// 408: the request did not come in time.
    pub const REQUEST_TIMEOUT: &str = "request_timeout";
    /// 413
    pub const BODY_TOO_LARGE: &str = "body_too_large";
    /// 414
    pub const URI_TOO_LONG: &str = "uri_too_long";
    /// 415
    pub const UNSUPPORTED_MEDIA_TYPE: &str = "unsupported_media_type";
    /// 431
    pub const HEAD_TOO_LARGE: &str = "head_too_large";
    /// 500
    pub const INTERNAL: &str = "internal";
    /// 503: every connection is in use; `Retry-After` says when to try again.
    pub const TOO_MANY_CONNECTIONS: &str = "too_many_connections";
}

/// Longer texts are not used as messages.
const MESSAGE_LIMIT_BYTES: usize = 4 << 10;

/// An error answer that no handler wrote.
#[derive(Clone, Copy, Debug)]
pub struct ListenerRefusal<'a> {
    pub status: StatusCode,
    /// One of [`code`].
    pub code: &'static str,
    /// A message for people: what is wrong, and the fix.
    pub message: &'a str,
    /// The path of the request, where it is known.
    pub path: Option<&'a str>,
}

/// Makes the body of an error, which is JSON.
pub type ErrorFormat = fn(&ListenerRefusal<'_>) -> String;

impl ListenerRefusal<'_> {
    pub fn into_response(self, format_error: ErrorFormat) -> Response {
        let mut response = (self.status, format_error(&self)).into_response();
        response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
        response
    }

    /// The bytes of the answer, for a connection whose request hyper cannot answer. The connection is closed after it.
    pub(super) fn to_wire(self, format_error: ErrorFormat) -> Vec<u8> {
        let body = format_error(&self);

        let (status, length) = (self.status, body.len());
        let reason = status.canonical_reason().unwrap_or_default();
        format!(
            "HTTP/1.1 {} {reason}\r\ncontent-type: application/json\r\ncontent-length: {length}\r\nconnection: close\r\n\r\n{body}",
            status.as_u16()
        )
        .into_bytes()
    }
}

/// Code and message for a status that hyper or axum answer without a body.
pub(super) fn default_message(status: StatusCode) -> (&'static str, &'static str) {
    match status {
        StatusCode::NOT_FOUND => (code::NOT_FOUND, "there is no such route"),
        StatusCode::METHOD_NOT_ALLOWED => {
            (code::METHOD_NOT_ALLOWED, "this route has another method; see the header `Allow`")
        }
        StatusCode::REQUEST_TIMEOUT => (code::REQUEST_TIMEOUT, "the request did not come in time"),
        StatusCode::PAYLOAD_TOO_LARGE => (code::BODY_TOO_LARGE, "the body is too large"),
        StatusCode::URI_TOO_LONG => (code::URI_TOO_LONG, "the address is too long"),
        StatusCode::UNSUPPORTED_MEDIA_TYPE => {
            (code::UNSUPPORTED_MEDIA_TYPE, "the body has a `Content-Type` that this route does not accept")
        }
        StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE => (code::HEAD_TOO_LARGE, "the headers are too large or too many"),
        status if status.is_server_error() => (code::INTERNAL, "this server failed; its log says why"),
        _ => (code::MALFORMED_REQUEST, "the request is not HTTP/1.1 as it must be"),
    }
}

/// State of [`format_errors`].
#[derive(Clone, Copy, Debug)]
pub struct FormatErrors {
    pub format_error: ErrorFormat,
    /// Whether errors of the server (5xx) are formatted, too.
    pub server_errors: bool,
}

/// Middleware: formats the refusals of axum itself (routes, methods, extractors), which are plain text or empty. The
/// answers of probes stay plain text, for people.
pub async fn format_errors(State(state): State<FormatErrors>, request: Request, next: Next) -> Response {
    let path = request.uri().path().to_owned();
    let response = next.run(request).await;
    let status = response.status();
    let is_error = status.is_client_error() || state.server_errors && status.is_server_error();

    let is_bare =
        response.headers().get(header::CONTENT_TYPE).is_none_or(|kind| kind.as_bytes().starts_with(b"text/plain"));

    if !is_error || !is_bare || PROBE_PATHS.contains(&path.as_str()) {
        return response;
    }

    let (mut head, body) = response.into_parts();

    let bytes = to_bytes(body, MESSAGE_LIMIT_BYTES).await.unwrap_or_default();
    let text = String::from_utf8_lossy(&bytes);
    let (code, default) = default_message(status);

    let message = if text.trim().is_empty() { default } else { text.trim() };
    let body = (state.format_error)(&ListenerRefusal { status, code, message, path: Some(&path) });

    head.headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    head.headers.remove(header::CONTENT_LENGTH);
    Response::from_parts(head, Body::from(body))
}
