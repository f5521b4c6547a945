//! What the controller logs, changed without a restart, with the token.

use std::time::Duration;

use axum::Json;
use axum::body::Body;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode};
use hush_contract::admin::code;
use hush_log::{ChangeError, LogLevel};
use jiff::{SignedDuration, Timestamp};
use serde::{Deserialize, Serialize};

use super::Web;
use super::actions::{json, may_act};
use super::error::Refusal;

/// Body of `PUT .../log-level`.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct LogLevelRequest {
    /// As the option `--log-level`; left out: the configured one.
    level: Option<String>,
    /// A duration such as `10m`, after which the configured one is in force again.
    duration: Option<String>,
}

#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct LogLevelView {
    level: String,
    configured_level: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    until: Option<Timestamp>,
}

pub async fn get() -> Result<Json<LogLevelView>, Refusal> {
    hush_log::log_level().map(view).ok_or_else(|| unavailable("the log of this controller has not been set up"))
}

pub async fn put(State(web): State<Web>, headers: HeaderMap, body: Body) -> Result<Json<LogLevelView>, Refusal> {
    may_act(&web, &headers).await?;
    let LogLevelRequest { level, duration } = json(body).await?;
    if level.is_none() && duration.is_some() {
        let message = "`duration` needs `level`: without a level the configured one holds, which has no end";
        return Err(Refusal::invalid(message));
    }
    let changed = hush_log::change_log_level(level.as_deref(), duration.as_deref().map(time).transpose()?);
    let changed = changed.map_err(|error| match &error {
        ChangeError::Filter(_) => Refusal::invalid(format!("`level` {error}")),
        ChangeError::Duration => Refusal::invalid(format!("`duration` {error}")),
        ChangeError::Unavailable(_) => unavailable(&error.to_string()),
    })?;
    // A warning, so that it is there with most filters.
    let duration = changed.remaining.map(|remaining| remaining.as_secs());
    tracing::warn!(level = changed.filter, duration, "the log level was changed");
    Ok(view(changed))
}

fn time(text: &str) -> Result<Duration, Refusal> {
    let message = "`duration` must be a duration such as 30m or 1h30m, longer than nothing";
    hush_crds::parse_duration(text).ok_or_else(|| Refusal::invalid(message))
}

fn view(level: LogLevel) -> Json<LogLevelView> {
    let remaining = level.remaining.and_then(|remaining| SignedDuration::try_from(remaining).ok());
    let until = remaining.and_then(|remaining| Timestamp::now().checked_add(remaining).ok());
    Json(LogLevelView { level: level.filter, configured_level: level.configured, until })
}

fn unavailable(message: &str) -> Refusal {
    Refusal::new(StatusCode::INTERNAL_SERVER_ERROR, code::INTERNAL, message)
}
