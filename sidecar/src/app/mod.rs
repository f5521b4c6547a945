//! What an app says and understands. Everything here is pure: it makes requests and reads answers, and whoever calls it
//! sends them. An [`App`] is made of a description in YAML: those of the known apps are part of the program, and a user
//! may write another one.

use std::time::Duration;

use bytes::Bytes;
use http::{Method, StatusCode};

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
    /// A value that changes when the app loads the model anew by itself (Ollama: `context_length`).
    pub instance: Option<String>,
}

/// Requests that load or unload a model, in their order.
#[derive(Clone, Debug, PartialEq)]
pub struct AppAction {
    /// The first that is not [`StepOutcome::Done`] ends the action.
    pub steps: Vec<AppRequest>,
    /// Sent after the steps, also after a failed one (InvokeAI: resume the queue).
    pub always: Vec<AppRequest>,
}

/// What the answer to one step of an action means.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum StepOutcome {
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
}

/// A kind of app.
#[derive(Clone, Debug)]
pub struct App {
    _private: (),
}

/// Why a description of an app cannot be used.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct DescriptionError(pub String);

impl App {
    /// The names of the apps that are known.
    pub fn known() -> impl Iterator<Item = &'static str> {
        std::iter::empty()
    }

    /// The description of a known app, as a beginning for another one.
    pub fn source(_name: &str) -> Option<&'static str> {
        None
    }

    /// A known app by its name; `None`: it is not known.
    pub fn find(_name: &str) -> Option<Self> {
        None
    }

    /// An app that a user describes.
    ///
    /// # Errors
    /// If the text is no valid description; the error names the field.
    pub fn from_yaml(_text: &str) -> Result<Self, DescriptionError> {
        Err(DescriptionError("not built yet".to_owned()))
    }

    /// `ollama`, `llama-server`; the value of the label `app`.
    pub fn name(&self) -> &str {
        todo!()
    }

    /// Whether the process holds one model, which no request names.
    pub fn has_one_model(&self) -> bool {
        todo!()
    }

    /// The name under which the app lists a model (Ollama: `tiny` is `tiny:latest`).
    pub fn canonical_name(&self, _model: &str) -> String {
        todo!()
    }

    /// The requests that tell whether this is the app, and whether the flags that governing it needs are set. They load
    /// nothing.
    pub fn identify(&self) -> Vec<AppRequest> {
        todo!()
    }

    /// Reads the answers to [`Self::identify`], in their order.
    ///
    /// # Errors
    /// If it is another app, or a flag is missing: the error says which.
    pub fn read_identity(&self, _answers: &[AppAnswer]) -> Result<AppIdentity, UnsuitableApp> {
        todo!()
    }

    /// The requests that list what is loaded; `None`: the app has no such list, and the sidecar's own record counts.
    pub fn list(&self, _models: &[String]) -> Option<Vec<AppRequest>> {
        todo!()
    }

    /// Reads the answers to [`Self::list`], in their order. A model that the app does not list is away.
    ///
    /// # Errors
    /// If an answer cannot be read; then nothing is known.
    pub fn read_list(&self, _models: &[String], _answers: &[AppAnswer]) -> Result<Vec<ListedModel>, AppAnswerError> {
        todo!()
    }

    /// The request whose answer says how much work the app has; `None`: the app does not say.
    pub fn busy(&self, _model: &str) -> Option<AppRequest> {
        todo!()
    }

    /// The number of pieces of work that the app has, running and waiting.
    ///
    /// # Errors
    /// If the answer cannot be read.
    pub fn read_busy(&self, _model: &str, _answer: &AppAnswer) -> Result<u64, AppAnswerError> {
        todo!()
    }

    /// Loads a model; `None`: the app loads it with the first request, and nothing is sent.
    pub fn load(&self, _model: &str) -> Option<AppAction> {
        todo!()
    }

    /// Unloads a model; `None`: the app cannot, and only its end frees the memory.
    pub fn unload(&self, _model: &str) -> Option<AppAction> {
        todo!()
    }

    /// Reads the answer to a step of [`Self::load`].
    pub fn read_load_step(&self, _model: &str, _step: usize, _answer: &AppAnswer) -> StepOutcome {
        todo!()
    }

    /// Reads the answer to a step of [`Self::unload`].
    pub fn read_unload_step(&self, _model: &str, _step: usize, _answer: &AppAnswer) -> StepOutcome {
        todo!()
    }

    /// The route of a request. An unknown route is [`RouteClass::Work`] of the default model, or
    /// [`RouteClass::NotWorkLoadedOnly`] if the method is GET, HEAD or OPTIONS. `is_upgrade`: the request asks for a
    /// websocket.
    pub fn route(&self, _method: &Method, _path: &str, _query: Option<&str>, _is_upgrade: bool) -> RouteMatch {
        todo!()
    }

    /// The default path of the readiness probe in process mode.
    pub fn ready_path(&self) -> &str {
        todo!()
    }
}
