//! Responses that are no success.

use axum::Json;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use hush_contract::admin::code;

use super::view::{ErrorView, ProblemView};

/// A request that is refused or has failed, as its sender sees it.
#[derive(Debug)]
pub struct ApiRefusal {
    pub status: StatusCode,
    pub body: ErrorView,
}

impl ApiRefusal {
    pub fn new(status: StatusCode, code: &'static str, message: impl Into<String>) -> Self {
        Self { status, body: ErrorView { code: code.into(), message: message.into(), problems: Vec::new() } }
    }

    pub fn invalid(message: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, code::INVALID_REQUEST, message)
    }

    pub fn yaml(problems: Vec<ProblemView>) -> Self {
        let mut refusal = Self::invalid("the policies have mistakes");
        refusal.body.problems = problems;
        refusal
    }

    /// The control loop has ended, because the process is about to end.
    pub fn stopping() -> Self {
        Self::new(StatusCode::SERVICE_UNAVAILABLE, code::SHUTTING_DOWN, "the controller is shutting down")
    }
}

impl IntoResponse for ApiRefusal {
    fn into_response(self) -> Response {
        let mut response = (self.status, Json(self.body)).into_response();

        if self.status == StatusCode::UNAUTHORIZED {
            response.headers_mut().insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        }
        response
    }
}
