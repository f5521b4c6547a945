//! Decisions as commands of the servers' admin API, and the outcomes of the commands.

use std::time::Duration;

use hush_contract::admin::{
    AdminErrorBody, CommandReason, InvalidValue, LoadRequest, LoadResponse, PolicyRef, ProcessOutcome, Seconds,
    UnloadMethod, UnloadOutcome, UnloadRequest, UnloadResponse, load_path, unload_path,
};
use hush_core::{Action, Decision, PolicyUnload};
use hush_log::printable;
use hyper::StatusCode;
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::backoff::CommandVerdict;
use crate::http::{HttpClient, HttpError, HttpResponse};
use crate::observe::BaseUrl;

const ANSWER_LIMIT_BYTES: usize = 64 << 10;
/// The longest code and message of a refusal that are kept: they go to logs, Events, the status and the page.
const CODE_MAX_CHARS: usize = 64;
const MESSAGE_MAX_CHARS: usize = 300;
/// The time for an unload beyond its drain: the process exits, and its memory is seen to come back. Shorter than the time
/// for which the core waits for an unload.
const UNLOAD_TIMEOUT: Duration = Duration::from_secs(45);
/// The time for a load, which the server accepts at once and carries out afterwards.
const LOAD_TIMEOUT: Duration = Duration::from_secs(10);

/// How a command ended.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(tag = "outcome")]
pub enum CommandResult {
    #[serde(rename_all = "camelCase")]
    Unloaded {
        #[serde(skip_serializing_if = "Option::is_none")]
        reclaimed_bytes: Option<u64>,
        #[serde(skip_serializing_if = "Option::is_none")]
        residual_bytes: Option<u64>,
        /// What became of the process that held the model.
        #[serde(skip_serializing_if = "Option::is_none")]
        process: Option<ProcessOutcome>,
    },
    /// The server has accepted the load; the next samples show its result.
    Loading,
    /// The condition of the command did not hold any more; nothing has changed.
    Refused { code: String, message: String },
    /// The command was not sent: this controller may not act now.
    Withheld { message: String },
    /// It is not known whether anything has changed; the next samples show it.
    Failed { code: &'static str, message: String },
}

impl CommandResult {
    pub fn failed(code: &'static str, message: impl std::fmt::Display) -> Self {
        Self::Failed { code, message: printable(&message.to_string(), MESSAGE_MAX_CHARS) }
    }

    /// Limits the bytes that a server reports to the size of the GPU; `None`: the GPU of the model is not known, and the
    /// figures are dropped.
    #[must_use]
    pub fn bounded_by(self, gpu_total_bytes: Option<u64>) -> Self {
        let bounded = |bytes: Option<u64>| bytes.zip(gpu_total_bytes).map(|(bytes, total)| bytes.min(total));
        match self {
            Self::Unloaded { reclaimed_bytes, residual_bytes, process } => Self::Unloaded {
                reclaimed_bytes: bounded(reclaimed_bytes),
                residual_bytes: bounded(residual_bytes),
                process,
            },
            other => other,
        }
    }

    /// Why the process of the app goes on although the command asked for its end; `None`: it has ended, or was not to.
    pub const fn kept_process(&self, decision: &Decision) -> Option<&'static str> {
        match (self, decision.unload) {
            (Self::Unloaded { process: Some(ProcessOutcome::KeptForOthers), .. }, PolicyUnload::Process) => {
                Some("its process goes on until its other models leave")
            }
            (
                Self::Unloaded { process: Some(ProcessOutcome::Kept | ProcessOutcome::CannotEnd), .. },
                PolicyUnload::Process,
            ) => Some("its process could not be ended"),
            _ => None,
        }
    }

    /// Whether the command has ended the process of the app, as it asked for.
    pub const fn has_ended_process(&self, decision: &Decision) -> bool {
        matches!(
            (self, decision.unload),
            (Self::Unloaded { process: Some(ProcessOutcome::Ended), .. }, PolicyUnload::Process)
        )
    }

    /// The value of the metric label `outcome`: one of a fixed set.
    pub const fn label(&self) -> &'static str {
        match self {
            Self::Unloaded { .. } => "unloaded",
            Self::Loading => "loading",
            Self::Refused { .. } => "refused",
            Self::Withheld { .. } => "withheld",
            Self::Failed { code, .. } => code,
        }
    }

    /// `None`: the outcome says nothing about the server yet.
    pub const fn verdict(&self) -> Option<CommandVerdict> {
        match self {
            Self::Loading => Some(CommandVerdict::Done),
            // The next sample decides: see `UnverifiedUnloads`.
            Self::Unloaded { .. } => None,
            Self::Refused { .. } => Some(CommandVerdict::Refused),
            Self::Failed { .. } => Some(CommandVerdict::Failed),
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
    Write(InvalidValue),
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
pub async fn send(client: &HttpClient, url: &BaseUrl, token: Option<&str>, decision: &Decision) -> CommandResult {
    let timeout = match decision.action {
        Action::Unload => UNLOAD_TIMEOUT + Duration::from_secs(decision.drain_seconds.unwrap_or(0)),
        Action::Load => LOAD_TIMEOUT,
    };
    let command = async {
        match decision.action {
            Action::Unload => unload(client, url, token, decision).await,
            Action::Load => load(client, url, token, decision).await,
        }
    };

    let ended = tokio::time::timeout(timeout, command).await.unwrap_or(Err(CommandError::Timeout(timeout)));
    ended.unwrap_or_else(|error| CommandResult::failed(error.code(), error))
}

async fn unload(
    client: &HttpClient,
    url: &BaseUrl,
    token: Option<&str>,
    decision: &Decision,
) -> Result<CommandResult, CommandError> {
    let request = UnloadRequest {
        if_generation: decision.if_generation,
        if_idle_seconds: bounded_seconds(decision.if_idle_seconds),
        drain_seconds: bounded_seconds(decision.drain_seconds),
        hold_seconds: bounded_seconds(decision.hold_seconds),
        // A server that does not know the field refuses the command: it is never written for one.
        unload: (decision.unload == PolicyUnload::Process).then_some(UnloadMethod::Process),
        reason: reason(decision)?,
        policy: policy(decision)?,
    };
    let answer = post(client, url, &unload_path(&decision.model), token, &request).await?;

    Ok(match read_answer::<UnloadResponse>(&answer)? {
        Ok(UnloadResponse { outcome: UnloadOutcome::Unloaded, reclaimed_bytes, residual_bytes, process, .. }) => {
            CommandResult::Unloaded { reclaimed_bytes, residual_bytes, process }
        }
        Ok(UnloadResponse { outcome: UnloadOutcome::AlreadyUnloaded, .. }) => {
            CommandResult::Unloaded { reclaimed_bytes: Some(0), residual_bytes: None, process: None }
        }
        Err(refused) => refused,
    })
}

async fn load(
    client: &HttpClient,
    url: &BaseUrl,
    token: Option<&str>,
    decision: &Decision,
) -> Result<CommandResult, CommandError> {
    let request = LoadRequest {
        if_generation: decision.if_generation,
        wait_seconds: bounded_seconds(Some(0)),
        reason: reason(decision)?,
        policy: policy(decision)?,
        ..LoadRequest::default()
    };
    let answer = post(client, url, &load_path(&decision.model), token, &request).await?;

    Ok(read_answer::<LoadResponse>(&answer)?.map_or_else(|refused| refused, |_| CommandResult::Loading))
}

async fn post<T: Serialize>(
    client: &HttpClient,
    url: &BaseUrl,
    path: &str,
    token: Option<&str>,
    request: &T,
) -> Result<HttpResponse, CommandError> {
    let uri = url.join(path).map_err(HttpError::from)?;
    Ok(client.post(uri, token, serde_json::to_vec(request)?, ANSWER_LIMIT_BYTES).await?)
}

/// The body of a success; the inner `Err`: the server refused the command with 409.
fn read_answer<T: DeserializeOwned>(answer: &HttpResponse) -> Result<Result<T, CommandResult>, CommandError> {
    if answer.status.is_success() {
        return Ok(Ok(serde_json::from_slice(&answer.body)?));
    }

    let status = answer.status;
    let body: Option<AdminErrorBody> = serde_json::from_slice(&answer.body).ok();
    let (code, message) = match body {
        Some(body) => (printable(&body.code, CODE_MAX_CHARS), printable(&body.message, MESSAGE_MAX_CHARS)),
        None => (String::new(), "no reason given".to_owned()),
    };

    match status {
        StatusCode::CONFLICT => Ok(Err(CommandResult::Refused { code, message })),
        StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => Err(CommandError::Credential { status, message }),
        _ => Err(CommandError::Server { status, message }),
    }
}

/// Limits a time to the week that the server accepts. The command stays safe: the generation is a condition too.
fn bounded_seconds(whole: Option<u64>) -> Option<Seconds> {
    whole.map(|whole| Seconds::new(whole as f64).unwrap_or(Seconds::MAX))
}

fn reason(decision: &Decision) -> Result<CommandReason, CommandError> {
    CommandReason::try_from(decision.reason.as_str().to_owned()).map_err(CommandError::Write)
}

/// `None`: a user asked for the command, without a policy.
fn policy(decision: &Decision) -> Result<Option<PolicyRef>, CommandError> {
    if decision.policy.is_empty() {
        return Ok(None);
    }

    let name = PolicyRef::try_from(decision.policy.clone()).map_err(CommandError::Write)?;
    Ok(Some(name))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A refusal whose control characters would act on the terminal that shows it.
    #[test]
    fn the_message_of_a_hostile_server_is_one_line_of_bounded_length() {
        let message = format!("\u{1b}]0;owned\u{7}\n2026 INFO all is well\u{202e}{}", "A".repeat(30_000));
        let body = serde_json::json!({"code": "busy\u{1b}[31m", "message": message}).to_string();
        let answer = |status| HttpResponse { status, body: body.clone().into() };
        let refused = read_answer::<LoadResponse>(&answer(StatusCode::CONFLICT)).unwrap().unwrap_err();
        let CommandResult::Refused { code, message } = refused else { panic!("{refused:?}") };
        assert_eq!(code, "busy�[31m");
        assert!(message.starts_with("�]0;owned��2026 INFO all is well�AAA"), "{message}");
        assert_eq!(message.chars().count(), MESSAGE_MAX_CHARS);

        let error = read_answer::<LoadResponse>(&answer(StatusCode::BAD_GATEWAY)).unwrap_err();
        let CommandResult::Failed { message, .. } = CommandResult::failed(error.code(), error) else { unreachable!() };
        assert!(message.chars().all(hush_log::is_printable) && message.chars().count() <= MESSAGE_MAX_CHARS);
    }
}
