//! What an app says and understands. Everything here is pure: it makes requests and reads answers, and its callers
//! send them. An [`App`] is made of a description in YAML: those of the known apps are part of the program, and a user
//! may write another one. Both are read by the same code, so a user's description can say whatever those of the known
//! apps say.
//!
//! | module | holds |
//! |---|---|
//! | `description` | the format: types that serde reads, and their JSON schema |
//! | `check`, `problem` | from a text to a compiled description, with every mistake and its field |
//! | `compile` | the compiled description |
//! | `kind` | [`App`]: a compiled description and the user's parameters |
//! | `known` | the descriptions that are part of the program (`sidecar/apps`) |
//! | `template`, `request`, `parameters`, `credential`, `names` | requests to the app |
//! | `answer`, `json_query`, `metrics_text`, `condition` | what any answer says |
//! | `identity`, `listing`, `action` | what the answers to the sidecar's requests mean |
//! | `path`, `route` | which route a client's request has |

mod action;
mod answer;
mod check;
mod compile;
mod condition;
mod credential;
mod description;
mod identity;
mod json_query;
mod kind;
mod known;
mod listing;
mod metrics_text;
mod names;
mod parameters;
mod path;
mod problem;
mod request;
mod route;
mod template;
#[cfg(test)]
mod tests;

use std::time::Duration;

use bytes::Bytes;
use http::{Method, StatusCode};

pub use check::{check, schema};
pub use credential::CredentialError;
pub use kind::App;
pub use parameters::AppParameters;
pub use problem::DescriptionProblem;
pub use route::UNKNOWN_ROUTE;

/// A request to the app that the sidecar itself makes.
#[derive(Clone, Debug, PartialEq)]
pub struct AppRequest {
    pub method: Method,
    /// Path and query.
    pub path: String,
    /// Sent as JSON; `None`: no body.
    pub body: Option<serde_json::Value>,
    /// How long the whole answer may take.
    pub timeout: Duration,
}

/// The answer to an [`AppRequest`], with its whole body.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AppAnswer {
    pub status: StatusCode,
    pub body: Bytes,
}

/// The app as it identified itself.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct AppIdentity {
    pub version: Option<String>,
    /// What should be set otherwise, though the app can be governed as it is.
    pub warnings: Vec<String>,
}

/// Why an app cannot be governed: which flag must be set, or what is not as expected.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct UnsuitableApp(pub String);

/// An answer of the app that cannot be read.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{request} answered {problem}")]
pub struct AppAnswerError {
    /// Method and path.
    pub request: String,
    pub problem: String,
}

/// Whether a model is in memory, as the app says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ModelPresence {
    Away,
    Loading,
    Loaded,
    Unloading,
    Failed { cause: String },
}

/// A model of the app's list.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ListedModel {
    /// In the form of [`App::canonical_name`].
    pub name: String,
    pub presence: ModelPresence,
    /// A value that changes when the app loads the model anew by itself (Ollama: `context_length`). Several instances of
    /// one model have a line each.
    pub instance: Option<String>,
}

/// Requests that load or unload a model, in their order.
#[derive(Clone, Debug, PartialEq)]
pub struct AppAction {
    /// The first that is not [`ActionStepOutcome::Done`] ends the action.
    pub steps: Vec<AppRequest>,
    /// Sent after the steps, also after a failed one (InvokeAI: resume the queue).
    pub always: Vec<AppRequest>,
}

/// What the answer to one step of an action means.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ActionStepOutcome {
    Done,
    /// The app is at work and refuses. Nothing has changed.
    Busy {
        cause: String,
    },
    Failed {
        cause: String,
        out_of_memory: bool,
    },
}

/// How the proxy treats the requests of a route.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RouteClass {
    /// Counts as use of the model: waits for it, resets its idle time.
    Work,
    /// Forwarded while the app runs; counts as nothing.
    NotWork,
    /// Forwarded only while the model is loaded, because the app would load it; counts as nothing.
    NotWorkLoadedOnly,
    /// Refused: it changes models behind the sidecar's back.
    Closed,
    /// A websocket that only displays: stays open over an unload, counts as nothing.
    DisplaySocket,
    /// A websocket that works: counts as use while frames went either way recently.
    WorkSocket,
}

/// Where a request names its model.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ModelNameSource {
    /// Nowhere: it is the default model.
    None,
    /// The top-level member of a JSON body, the part of a form, or else the query: whichever the request has.
    Body {
        member: String,
    },
    Query {
        parameter: String,
    },
    /// The model of an earlier request, to which this query parameter refers.
    Earlier {
        parameter: String,
    },
    /// Taken from the path already.
    Path {
        name: String,
    },
}

/// The route of a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RouteMatch {
    pub class: RouteClass,
    /// The path with placeholders, for metrics and logs.
    pub template: String,
    pub model: ModelNameSource,
    /// Top-level members of the JSON body that are cut out, such as `keep_alive`.
    pub removed_members: Vec<String>,
    /// Query parameters that are cut out, such as `autoload`.
    pub removed_parameters: Vec<String>,
    /// The work ends when the app is idle, not with the answer (ComfyUI's `/prompt`).
    pub ends_when_app_is_idle: bool,
    /// The request waits for its model as long as it takes, instead of at most `--cold-hold`.
    pub waits_forever: bool,
    /// Bodies that have no work in them but are commands to the app.
    pub command: Option<DisguisedCommand>,
}

/// Ollama's `/api/generate` without a prompt is no work: it loads the model, or with `keep_alive: 0` unloads it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DisguisedCommand {
    /// A body with none of these members, or only with empty ones, is a command.
    pub work_members: Vec<String>,
    /// The command is to unload if this member is 0.
    pub unload_member: Option<String>,
}

/// What a body without work asks the app to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BodyCommand {
    Load,
    /// Must not reach the app.
    Unload,
}

impl DisguisedCommand {
    /// The command that a JSON object is; `None`: it is work. `member` gives the JSON text of a top-level member.
    pub fn find<'a>(&self, mut member: impl FnMut(&str) -> Option<&'a [u8]>) -> Option<BodyCommand> {
        if self.work_members.iter().any(|name| member(name).is_some_and(|value| !is_empty_json(value))) {
            return None;
        }
        let unload = self.unload_member.as_ref().and_then(|name| member(name));
        Some(if unload.is_some_and(is_zero_json) { BodyCommand::Unload } else { BodyCommand::Load })
    }
}

/// `null`, `""` and `[]`.
fn is_empty_json(value: &[u8]) -> bool {
    let inside = value.iter().filter(|byte| !byte.is_ascii_whitespace()).copied();
    let inside: Vec<u8> = inside.take(5).collect();
    matches!(inside.as_slice(), b"null" | b"\"\"" | b"[]")
}

/// `0`, `0.0`, `-0`, `0e3`, `"0"`, `"0s"`, `"0h0m"`: a number or a duration that is 0.
fn is_zero_json(value: &[u8]) -> bool {
    let text = value.trim_ascii();
    let text = text.strip_prefix(b"\"").and_then(|text| text.strip_suffix(b"\"")).unwrap_or(text);
    let mantissa = text.split(|byte| matches!(byte, b'e' | b'E')).next().unwrap_or_default();
    let has_digit = |digits: std::ops::RangeInclusive<u8>| mantissa.iter().any(|byte| digits.contains(byte));
    let is_number_or_duration =
        text.iter().all(|byte| byte.is_ascii_digit() || b"+-.eEhmsun".contains(byte) || *byte >= 0x80);
    is_number_or_duration && has_digit(b'0'..=b'0') && !has_digit(b'1'..=b'9')
}

/// Why a description of an app cannot be used.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct DescriptionError(pub String);
