//! The controller's log level, and how it is changed without a restart, with the page token.

use std::time::Duration;

use axum::Json;
use axum::body::Body;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode};
use hush_contract::admin::code;
use hush_log::{ActiveLogLevel, ChangeError};
use jiff::{SignedDuration, Timestamp};

use super::WebState;
use super::actions::{check_token, read_json};
use super::error::ApiRefusal;
use super::view::{ChangeLogLevelRequest, LogLevelView};

pub async fn get() -> Result<Json<LogLevelView>, ApiRefusal> {
    let level = hush_log::log_level();
    level.map(view).ok_or_else(|| unavailable("the log of this controller has not been set up"))
}

pub async fn put(
    State(web): State<WebState>,
    headers: HeaderMap,
    body: Body,
) -> Result<Json<LogLevelView>, ApiRefusal> {
    check_token(&web, &headers).await?;
    let ChangeLogLevelRequest { level, duration } = read_json(body).await?;
    if level.is_none() && duration.is_some() {
        let message = "`duration` needs `level`: without a level the configured one holds, which has no end";
        return Err(ApiRefusal::invalid(message));
    }

    let duration = duration.as_deref().map(parse_duration).transpose()?;
    let changed = hush_log::change_log_level(level.as_deref(), duration).map_err(|error| match &error {
        ChangeError::Filter(_) => ApiRefusal::invalid(format!("`level` {error}")),
        ChangeError::Duration => ApiRefusal::invalid(format!("`duration` {error}")),
        ChangeError::Unavailable(_) => unavailable(&error.to_string()),
    })?;

    // It is logged as a warning, so that most filters show it.
    let duration = changed.remaining.map(|remaining| remaining.as_secs());
    tracing::warn!(level = changed.filter, duration, "the log level was changed");
    Ok(view(changed))
}

fn parse_duration(text: &str) -> Result<Duration, ApiRefusal> {
    let message = "`duration` must be a duration such as 30m or 1h30m, longer than 0";
    hush_crds::parse_duration(text).ok_or_else(|| ApiRefusal::invalid(message))
}

fn view(level: ActiveLogLevel) -> Json<LogLevelView> {
    let remaining = level.remaining.and_then(|remaining| SignedDuration::try_from(remaining).ok());
    let until = remaining.and_then(|remaining| Timestamp::now().checked_add(remaining).ok());

    Json(LogLevelView { level: level.filter, configured_level: level.configured, until })
}

fn unavailable(message: &str) -> ApiRefusal {
    ApiRefusal::new(StatusCode::INTERNAL_SERVER_ERROR, code::INTERNAL, message)
}
