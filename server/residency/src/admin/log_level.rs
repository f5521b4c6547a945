//! `GET` and `PUT /admin/v1/log-level`: what this server and its runners log, changed without a restart.

use std::time::Duration;

use axum::Extension;
use axum::extract::Request;
use axum::http::StatusCode;
use axum::response::Response;
use hush_contract::admin::{LogLevelRequest, LogLevelResponse, code};
use hush_listener::Caller;
use hush_log::{ActiveLogLevel, ChangeError};

use super::body;
use super::error::{AdminError, json};

pub async fn get() -> Result<Response, AdminError> {
    let level = hush_log::log_level().ok_or_else(|| unavailable("the log of this server has not been set up"))?;

    Ok(level_response(level))
}

pub async fn put(Extension(caller): Extension<Caller>, request: Request) -> Result<Response, AdminError> {
    let (head, content) = request.into_parts();
    let LogLevelRequest { level, for_seconds } = body::read(&head.headers, content).await?;

    if level.is_none() && for_seconds.is_some() {
        let message = "`for_seconds` needs `level`: without a level the configured one holds, which has no end";
        return Err(AdminError::invalid(Some("for_seconds".to_owned()), message));
    }

    let changed = hush_log::change_log_level(level.as_deref(), for_seconds.map(Duration::from));
    let changed = changed.map_err(|error| match &error {
        ChangeError::Filter(_) => AdminError::invalid(Some("level".to_owned()), format!("`level` {error}")),
        ChangeError::Duration => AdminError::invalid(Some("for_seconds".to_owned()), format!("`for_seconds` {error}")),
        ChangeError::Unavailable(_) => unavailable(&error.to_string()),
    })?;

    let for_seconds = changed.remaining.map(|remaining| remaining.as_secs_f64());
    // A warning, because most filters let warnings pass.
    tracing::warn!(caller = %caller, level = changed.filter, for_seconds, "the log level was changed");

    Ok(level_response(changed))
}

fn level_response(level: ActiveLogLevel) -> Response {
    json(&LogLevelResponse {
        level: level.filter,
        configured_level: level.configured,
        remaining_seconds: level.remaining.map(|remaining| remaining.as_secs_f64()),
    })
}

fn unavailable(message: &str) -> AdminError {
    AdminError::new(StatusCode::INTERNAL_SERVER_ERROR, code::INTERNAL, message)
}
