//! A decision as a command of the admin API, and how it ended.

use std::time::Duration;

use hush_contract::admin::{
    ErrorBody, LoadRequest, LoadResponse, PolicyName, Reason, Seconds, UnloadOutcome, UnloadRequest, UnloadResponse,
    load_path, unload_path,
};
use hush_core::{Action, Decision};
use hush_log::printable;
use hyper::StatusCode;
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::backoff::Verdict;
use crate::http::{Answer, Client, HttpError};
use crate::observe::BaseUrl;

const ANSWER_LIMIT_BYTES: usize = 64 << 10;
/// The longest code and message of a refusal that are kept: they go to logs, Events, the status and the page.
const CODE_MAX_CHARS: usize = 64;
const MESSAGE_MAX_CHARS: usize = 300;
/// Beyond the drain: for the exit of the process and the proof that its memory came back. Less than the core's patience.
const UNLOAD_PATIENCE: Duration = Duration::from_secs(45);
/// A load is accepted at once and goes on by itself.
const LOAD_PATIENCE: Duration = Duration::from_secs(10);

/// How a command ended.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(tag = "outcome")]
pub enum Outcome {
    #[serde(rename_all = "camelCase")]
    Unloaded {
        #[serde(skip_serializing_if = "Option::is_none")]
        reclaimed_bytes: Option<u64>,
        #[serde(skip_serializing_if = "Option::is_none")]
        residual_bytes: Option<u64>,
    },
    /// Accepted; the next samples tell how it goes on.
    Loading,
    /// The condition did not hold any more; nothing changed.
    Refused { code: String, message: String },
    /// Not sent: this controller may not act now.
    Withheld { message: String },
    /// Nothing is known to have changed; the next samples tell.
    Failed { code: &'static str, message: String },
}

impl Outcome {
    pub fn failed(code: &'static str, message: impl std::fmt::Display) -> Self {
        Self::Failed { code, message: printable(&message.to_string(), MESSAGE_MAX_CHARS) }
    }

    /// What a server reports of bytes, no more of them than its card has; `None`: the model is on no card that is known.
    #[must_use]
    pub fn on_card_of(self, total_bytes: Option<u64>) -> Self {
        let bound = |bytes: Option<u64>| bytes.zip(total_bytes).map(|(bytes, total)| bytes.min(total));
        match self {
            Self::Unloaded { reclaimed_bytes, residual_bytes } => {
                Self::Unloaded { reclaimed_bytes: bound(reclaimed_bytes), residual_bytes: bound(residual_bytes) }
            }
            other => other,
        }
    }

    /// Bounded, for metrics.
    pub const fn label(&self) -> &'static str {
        match self {
            Self::Unloaded { .. } => "unloaded",
            Self::Loading => "loading",
            Self::Refused { .. } => "refused",
            Self::Withheld { .. } => "withheld",
            Self::Failed { code, .. } => code,
        }
    }

    /// `None`: it says nothing of the server yet.
    pub const fn verdict(&self) -> Option<Verdict> {
        match self {
            Self::Loading => Some(Verdict::Done),
            // The next sample tells: see `UnprovenUnloads`.
            Self::Unloaded { .. } => None,
            Self::Refused { .. } => Some(Verdict::Refused),
            Self::Failed { .. } => Some(Verdict::Failed),
            Self::Withheld { .. } => None,
        }
    }
}

#[derive(Debug, thiserror::Error)]
enum CommandError {
    #[error("no answer within {0:?}")]
    Timeout(Duration),
    #[error(transparent)]
    Http(#[from] HttpError),
    #[error("the decision cannot be written as a command: {0}")]
    Write(String),
    #[error("{status}: {message}")]
    Credential { status: StatusCode, message: String },
    #[error("{status}: {message}")]
    Server { status: StatusCode, message: String },
    #[error("its answer cannot be read: {0}")]
    Answer(#[from] serde_json::Error),
}

impl CommandError {
    const fn code(&self) -> &'static str {
        match self {
            Self::Timeout(_) => "timeout",
            Self::Http(error) => error.label(),
            Self::Write(_) => "internal",
            Self::Credential { .. } => "unauthorized",
            Self::Server { .. } => "server_error",
            Self::Answer(_) => "malformed",
        }
    }
}

/// Sends one command and waits for its end.
pub async fn send(client: &Client, url: &BaseUrl, token: Option<&str>, decision: &Decision) -> Outcome {
    let patience = match decision.action {
        Action::Unload => UNLOAD_PATIENCE + Duration::from_secs(decision.drain_seconds.unwrap_or(0)),
        Action::Load => LOAD_PATIENCE,
    };
    let command = async {
        match decision.action {
            Action::Unload => unload(client, url, token, decision).await,
            Action::Load => load(client, url, token, decision).await,
        }
    };
    let ended = tokio::time::timeout(patience, command).await.unwrap_or(Err(CommandError::Timeout(patience)));
    ended.unwrap_or_else(|error| Outcome::failed(error.code(), error))
}

async fn unload(
    client: &Client,
    url: &BaseUrl,
    token: Option<&str>,
    decision: &Decision,
) -> Result<Outcome, CommandError> {
    let request = UnloadRequest {
        if_generation: decision.if_generation,
        if_idle_seconds: seconds(decision.if_idle_seconds),
        drain_seconds: seconds(decision.drain_seconds),
        hold_seconds: seconds(decision.hold_seconds),
        reason: reason(decision)?,
        policy: policy(decision)?,
    };
    let answer = post(client, url, &unload_path(&decision.model), token, &request).await?;
    Ok(match read::<UnloadResponse>(&answer)? {
        Ok(UnloadResponse { outcome: UnloadOutcome::Unloaded, reclaimed_bytes, residual_bytes, .. }) => {
            Outcome::Unloaded { reclaimed_bytes, residual_bytes }
        }
        Ok(UnloadResponse { outcome: UnloadOutcome::AlreadyUnloaded, .. }) => {
            Outcome::Unloaded { reclaimed_bytes: Some(0), residual_bytes: None }
        }
        Err(refused) => refused,
    })
}

async fn load(
    client: &Client,
    url: &BaseUrl,
    token: Option<&str>,
    decision: &Decision,
) -> Result<Outcome, CommandError> {
    let request = LoadRequest {
        if_generation: decision.if_generation,
        wait_seconds: seconds(Some(0)),
        reason: reason(decision)?,
        policy: policy(decision)?,
        ..LoadRequest::default()
    };
    let answer = post(client, url, &load_path(&decision.model), token, &request).await?;
    Ok(read::<LoadResponse>(&answer)?.map_or_else(|refused| refused, |_| Outcome::Loading))
}

async fn post<T: Serialize>(
    client: &Client,
    url: &BaseUrl,
    path: &str,
    token: Option<&str>,
    request: &T,
) -> Result<Answer, CommandError> {
    let uri = url.join(path).map_err(HttpError::from)?;
    Ok(client.post(uri, token, serde_json::to_vec(request)?, ANSWER_LIMIT_BYTES).await?)
}

/// The answer, or the refusal.
fn read<T: DeserializeOwned>(answer: &Answer) -> Result<Result<T, Outcome>, CommandError> {
    if answer.status.is_success() {
        return Ok(Ok(serde_json::from_slice(&answer.body)?));
    }
    let status = answer.status;
    let body: Option<ErrorBody> = serde_json::from_slice(&answer.body).ok();
    let (code, message) = match body {
        Some(body) => (printable(&body.code, CODE_MAX_CHARS), printable(&body.message, MESSAGE_MAX_CHARS)),
        None => (String::new(), "no reason given".to_owned()),
    };
    match status {
        StatusCode::CONFLICT => Ok(Err(Outcome::Refused { code, message })),
        StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => Err(CommandError::Credential { status, message }),
        _ => Err(CommandError::Server { status, message }),
    }
}

/// The server takes a week at most. Nothing is lost by that: the generation is a condition too.
fn seconds(whole: Option<u64>) -> Option<Seconds> {
    whole.map(|whole| Seconds::new(whole as f64).unwrap_or(Seconds::MAX))
}

fn reason(decision: &Decision) -> Result<Reason, CommandError> {
    decision
        .reason
        .as_str()
        .to_owned()
        .try_into()
        .map_err(|error: hush_contract::admin::InvalidValue| CommandError::Write(error.to_string()))
}

/// A person needs no policy.
fn policy(decision: &Decision) -> Result<Option<PolicyName>, CommandError> {
    if decision.policy.is_empty() {
        return Ok(None);
    }
    let name = PolicyName::try_from(decision.policy.clone()).map_err(|error| CommandError::Write(error.to_string()))?;
    Ok(Some(name))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A refusal that would write to the terminal of the person who reads it.
    #[test]
    fn what_a_hostile_server_says_is_one_line_of_bounded_length() {
        let message = format!("\u{1b}]0;owned\u{7}\n2026 INFO all is well\u{202e}{}", "A".repeat(30_000));
        let body = serde_json::json!({"code": "busy\u{1b}[31m", "message": message}).to_string();
        let answer = |status| Answer { status, body: body.clone().into() };
        let refused = read::<LoadResponse>(&answer(StatusCode::CONFLICT)).unwrap().unwrap_err();
        let Outcome::Refused { code, message } = refused else { panic!("{refused:?}") };
        assert_eq!(code, "busy�[31m");
        assert!(message.starts_with("�]0;owned��2026 INFO all is well�AAA"), "{message}");
        assert_eq!(message.chars().count(), MESSAGE_MAX_CHARS);

        let error = read::<LoadResponse>(&answer(StatusCode::BAD_GATEWAY)).unwrap_err();
        let Outcome::Failed { message, .. } = Outcome::failed(error.code(), error) else { unreachable!() };
        assert!(message.chars().all(hush_log::is_printable) && message.chars().count() <= MESSAGE_MAX_CHARS);
    }
}
