//! The admin API of a server: `GET /admin/v1/models`, `POST /admin/v1/models/{model}/load` and `.../unload`, `GET
//! /admin/v1/events`, `GET` and `PUT /admin/v1/log-level`. Requests are strict, so that a misspelt condition is an
//! error and never an unconditional command. Answers may get further fields, which an older reader ignores.

use std::fmt;
use std::time::Duration;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::percent::segment;
use crate::state::{ModelState, UnloadReason, UnloadRefusal};

/// All paths below this one require a credential.
pub const ADMIN_PATH: &str = "/admin/v1";

/// The path for unloading a model.
pub fn unload_path(model: &str) -> String {
    format!("{ADMIN_PATH}/models/{}/unload", segment(model))
}

/// The path for loading a model.
pub fn load_path(model: &str) -> String {
    format!("{ADMIN_PATH}/models/{}/load", segment(model))
}

/// The audience of the token that a server's own pod has, and the first part of every [`ServerAudience`].
pub const TOKEN_AUDIENCE: &str = "hush-server";

/// The audience of a token for one server: `hush-server/NAMESPACE/POD-UID`, at most 140 characters. The API server
/// gives each pod a UID of its own, so every other server refuses a token that one server has received.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ServerAudience(String);

impl ServerAudience {
    const NAMESPACE_MAX_BYTES: usize = 63;
    const POD_UID_MAX_BYTES: usize = 64;

    /// Both values are those of the pod's `metadata`.
    pub fn new(namespace: &str, pod_uid: &str) -> Result<Self, InvalidValue> {
        let is_label = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
        if !(1..=Self::NAMESPACE_MAX_BYTES).contains(&namespace.len()) || !namespace.bytes().all(is_label) {
            return Err(InvalidValue("the namespace must be 1 to 63 lower-case letters, digits and `-`"));
        }

        let is_uid = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-';
        if !(1..=Self::POD_UID_MAX_BYTES).contains(&pod_uid.len()) || !pod_uid.bytes().all(is_uid) {
            return Err(InvalidValue("the pod's UID must be 1 to 64 letters, digits and `-`"));
        }

        Ok(Self(format!("{TOKEN_AUDIENCE}/{namespace}/{pod_uid}")))
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for ServerAudience {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Seconds in a request: finite, not negative, at most one week.
#[derive(Clone, Copy, Debug, PartialEq, PartialOrd, Serialize, Deserialize, JsonSchema)]
#[serde(try_from = "f64", into = "f64")]
#[schemars(extend("minimum" = 0, "maximum" = 604_800))]
pub struct Seconds(f64);

impl Seconds {
    pub const MAX: Self = Self(7.0 * 86400.0);

    pub fn new(seconds: f64) -> Result<Self, InvalidValue> {
        if (0.0..=Self::MAX.0).contains(&seconds) {
            Ok(Self(seconds))
        } else {
            Err(InvalidValue("must be a number of seconds from 0 to 604800"))
        }
    }

    pub const fn get(self) -> f64 {
        self.0
    }
}

/// Why a value of a request is invalid: what the value must be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct InvalidValue(pub &'static str);

impl fmt::Display for InvalidValue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.0)
    }
}

impl std::error::Error for InvalidValue {}

impl TryFrom<f64> for Seconds {
    type Error = InvalidValue;

    fn try_from(seconds: f64) -> Result<Self, InvalidValue> {
        Self::new(seconds)
    }
}

impl From<Seconds> for f64 {
    fn from(seconds: Seconds) -> Self {
        seconds.0
    }
}

impl From<Seconds> for Duration {
    fn from(seconds: Seconds) -> Self {
        Self::from_secs_f64(seconds.0)
    }
}

/// Why a command is given, in CamelCase. A word that is not in [`UnloadReason`] is counted as `Other` and logged as it
/// is, so that a newer controller can send commands to an older server.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(try_from = "String", into = "String")]
pub struct CommandReason(String);

impl CommandReason {
    const MAX_BYTES: usize = 64;

    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The reason as metrics count it.
    pub fn kind(&self) -> UnloadReason {
        UnloadReason::ALL.into_iter().find(|known| known.as_str() == self.0).unwrap_or(UnloadReason::Other)
    }
}

impl Default for CommandReason {
    fn default() -> Self {
        UnloadReason::Manual.into()
    }
}

impl From<UnloadReason> for CommandReason {
    fn from(reason: UnloadReason) -> Self {
        Self(reason.as_str().to_owned())
    }
}

impl TryFrom<String> for CommandReason {
    type Error = InvalidValue;

    fn try_from(word: String) -> Result<Self, InvalidValue> {
        let is_camel_case = word.starts_with(|first: char| first.is_ascii_uppercase())
            && word.bytes().all(|byte| byte.is_ascii_alphanumeric());
        if is_camel_case && word.len() <= Self::MAX_BYTES {
            Ok(Self(word))
        } else {
            Err(InvalidValue("must be one word in CamelCase of at most 64 letters and digits, such as IdleTimeout"))
        }
    }
}

impl From<CommandReason> for String {
    fn from(reason: CommandReason) -> Self {
        reason.0
    }
}

/// `namespace/name` of a policy; `/name` for a policy of the whole cluster.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(try_from = "String", into = "String")]
pub struct PolicyRef(String);

impl PolicyRef {
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl TryFrom<String> for PolicyRef {
    type Error = InvalidValue;

    fn try_from(text: String) -> Result<Self, InvalidValue> {
        let is_valid = |part: &str, max: usize| {
            part.len() <= max
                && part.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-' || b == b'.')
        };

        match text.split_once('/') {
            Some((namespace, name)) if is_valid(namespace, 63) && is_valid(name, 253) && !name.is_empty() => {
                Ok(Self(text))
            }
            _ => Err(InvalidValue("must be namespace/name, or /name for a policy of the whole cluster")),
        }
    }
}

impl From<PolicyRef> for String {
    fn from(policy: PolicyRef) -> Self {
        policy.0
    }
}

/// What an unload ends.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum UnloadMethod {
    /// The model leaves by the unload of its app, whose process may go on and keep memory of its own.
    #[default]
    App,
    /// The process of the app ends too, so that nothing stays on the device. It ends with its last model; where the
    /// server cannot end it, the unload is that of the app.
    Process,
}

/// What became of the process that held an unloaded model.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum ProcessOutcome {
    /// No process of it is left.
    Ended,
    /// It goes on: the command did not ask for its end.
    Kept,
    /// It goes on, because other models of it are in memory. It ends when the last of them leaves.
    KeptForOthers,
    /// It goes on, because the server has not started it and cannot end it.
    CannotEnd,
}

impl ProcessOutcome {
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Ended => "ended",
            Self::Kept => "kept",
            Self::KeptForOthers => "kept_for_others",
            Self::CannotEnd => "cannot_end",
        }
    }
}

/// Body of `POST .../unload`. The owner of the model checks each `if_` condition. If a condition does not hold, nothing
/// changes, and the answer is 409 with the [`UnloadRefusal`] as its code.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct UnloadRequest {
    /// Unload only this generation.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub if_generation: Option<u64>,
    /// Unload only if the model has been idle for this long; 0: only if no request holds it now.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub if_idle_seconds: Option<Seconds>,
    /// How long to wait for requests in flight. Those that are not done by then are started again after the next load.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub drain_seconds: Option<Seconds>,
    /// How long the model must not be loaded again after the unload, for any request. The hold expires by itself.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub hold_seconds: Option<Seconds>,
    /// What the unload ends. Absent: what the server's own unloads end. A server of an earlier release does not know the
    /// field and refuses the command: send it only where `hush_app_process_unload` is 1.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub unload: Option<UnloadMethod>,
    pub reason: CommandReason,
    /// The policy that the command is given for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub policy: Option<PolicyRef>,
}

/// What an unload command did.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum UnloadOutcome {
    Unloaded,
    /// The model was not in memory, and the command had no condition; its hold is in force.
    AlreadyUnloaded,
}

/// Answer to `POST .../unload` after the model's process has ended. Fields in bytes are absent where the device's
/// memory is not known.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct UnloadResponse {
    pub model: String,
    pub outcome: UnloadOutcome,
    /// The generation that was unloaded.
    pub generation: u64,
    /// Device memory that the model held before the unload.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vram_before_bytes: Option<u64>,
    /// Device memory that was returned.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reclaimed_bytes: Option<u64>,
    /// Device memory that was not returned.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub residual_bytes: Option<u64>,
    /// What became of the process that held the model; absent when the model was not in memory.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub process: Option<ProcessOutcome>,
    /// Time of waiting for requests in flight.
    pub drain_seconds: f64,
    /// Time from the end of the waiting until the process was reaped.
    pub exit_seconds: f64,
    /// Time from there until the device's memory had settled.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub verify_seconds: Option<f64>,
}

/// Body of `POST .../load`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct LoadRequest {
    /// Load only if the model has not been loaded again since this generation.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub if_generation: Option<u64>,
    /// Load also while a hold of an earlier unload is in force, and end the hold. Without this the answer is 409
    /// `held`.
    pub despite_hold: bool,
    /// How long to wait for the end of the load. After that, or at once with 0, the answer is 202 and the load goes on.
    /// Default: 60.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub wait_seconds: Option<Seconds>,
    pub reason: CommandReason,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub policy: Option<PolicyRef>,
}

/// What a load command did.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum LoadOutcome {
    /// The model is in memory: it was loaded by this command or before it.
    Ready,
    /// The load was accepted and goes on; 202.
    Pending,
}

/// Answer to `POST .../load`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct LoadResponse {
    pub model: String,
    pub outcome: LoadOutcome,
    pub state: ModelState,
    pub generation: u64,
    /// Time that this command waited.
    pub waited_seconds: f64,
}

/// When a model is unloaded without a command.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum ReportedResidency {
    Resident,
    Idle,
    OnDemand,
}

/// A model at one moment. A decision on it is safe only with conditions in the command that follows.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct ModelStatus {
    pub model: String,
    pub state: ModelState,
    /// Grows by one at each load; 0 before the first.
    pub generation: u64,
    pub residency: ReportedResidency,
    /// With residency `idle`: the idle timeout; absent: the model is not unloaded by itself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub idle_timeout_seconds: Option<f64>,
    /// Seconds since the last request or the load ended; 0 while the model is busy or not loaded.
    pub idle_seconds: f64,
    /// Seconds since this generation became ready; 0 while the model is not loaded.
    pub loaded_seconds: f64,
    /// Requests that hold the model.
    pub inflight: u64,
    /// Requests that wait for the model.
    pub queued: u64,
    /// The device in the server's settings: `cpu`, `cuda:0`.
    pub device: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub precision: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gpu_uuid: Option<String>,
    /// Device memory that the model holds; while it is not loaded, what it needed last time.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vram_bytes: Option<u64>,
    /// While the model waits for memory: how much it needs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory_demand_bytes: Option<u64>,
    /// Seconds until the model may be loaded again, after an unload with a hold.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hold_remaining_seconds: Option<f64>,
    /// Duration of the last load.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_load_seconds: Option<f64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub failure: Option<LoadFailure>,
}

/// Why the last load failed.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct LoadFailure {
    pub message: String,
    /// Seconds until the next attempt.
    pub retry_after_seconds: f64,
}

/// Body of `PUT /admin/v1/log-level`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct LogLevelRequest {
    /// The filter, as in the option `--log-level`. Absent: the configured one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub level: Option<String>,
    /// How long the filter applies before the configured one applies again. Absent: until the next change or the end of
    /// the server.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub for_seconds: Option<Seconds>,
}

/// Answer to `GET` and `PUT /admin/v1/log-level`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct LogLevelResponse {
    /// The current filter, of the server and its runners.
    pub level: String,
    /// The filter that the server was started with.
    pub configured_level: String,
    /// Seconds until the configured filter applies again; absent: no end is set.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub remaining_seconds: Option<f64>,
}

/// Answer to `GET /admin/v1/models`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct ModelList {
    /// The models, sorted by name.
    pub models: Vec<ModelStatus>,
    /// The id of the last event that this list includes; see [`AdminEvent`].
    pub event_id: u64,
}

/// One event of `GET /admin/v1/events`. Its SSE `event` is the `type`; its SSE `id` increases by one with each change
/// since the server started.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum AdminEvent {
    /// All models: at the beginning, and after [`AdminEvent::Lost`].
    Snapshot { models: Vec<ModelStatus> },
    /// A model changed its state, became busy or idle, or got a hold.
    Model { from: ModelState, model: Box<ModelStatus> },
    /// The reader was too slow, and this many changes are lost. A snapshot follows.
    Lost { count: u64 },
}

impl AdminEvent {
    /// The SSE `event` of this event.
    pub const fn name(&self) -> &'static str {
        match self {
            Self::Snapshot { .. } => "snapshot",
            Self::Model { .. } => "model",
            Self::Lost { .. } => "lost",
        }
    }
}

/// Body of every error answer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct AdminErrorBody {
    /// A code for programs: one of [`code`], or the reason for a refused unload ([`UnloadRefusal`]).
    pub code: String,
    /// A message for people.
    pub message: String,
    /// The field of the request that is wrong.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub field: Option<String>,
}

impl AdminErrorBody {
    /// The reason for a refused unload; `None` for any other error.
    pub fn refusal(&self) -> Option<UnloadRefusal> {
        UnloadRefusal::ALL.into_iter().find(|refusal| refusal.as_str() == self.code)
    }
}

/// Codes of [`AdminErrorBody`] besides those of [`UnloadRefusal`].
pub mod code {
    /// 400: the body is invalid; `field` names the wrong field.
    pub const INVALID_REQUEST: &str = "invalid_request";
    /// 401: the request has no credential.
    pub const UNAUTHENTICATED: &str = "unauthenticated";
    /// 401: the credential is not valid.
    pub const INVALID_TOKEN: &str = "invalid_token";
    /// 403: the credential is valid and has no right to the command; or the server has no way to check credentials.
    pub const FORBIDDEN: &str = "forbidden";
    /// 404
    pub const UNKNOWN_MODEL: &str = "unknown_model";
    /// 404
    pub const NOT_FOUND: &str = "not_found";
    /// 405
    pub const METHOD_NOT_ALLOWED: &str = "method_not_allowed";
    /// 409: a hold is in force; `Retry-After` says how long.
    pub const HELD: &str = "held";
    /// 413
    pub const BODY_TOO_LARGE: &str = "body_too_large";
    /// 415
    pub const UNSUPPORTED_MEDIA_TYPE: &str = "unsupported_media_type";
    /// 500
    pub const INTERNAL: &str = "internal";
    /// 503: the service that checks the credential does not answer.
    pub const AUTHENTICATION_UNAVAILABLE: &str = "authentication_unavailable";
    /// 503: the limit of open event streams is reached; `Retry-After` says when to try again.
    pub const TOO_MANY_READERS: &str = "too_many_readers";
    /// 503: the load failed, and the next attempt waits; `Retry-After` says how long.
    pub const LOAD_FAILED: &str = "load_failed";
    /// 503
    pub const SHUTTING_DOWN: &str = "shutting_down";
}
