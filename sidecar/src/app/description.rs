//! The format in which an app is described: what a YAML file may contain. Nothing is checked here beyond types and field
//! names; `compile` checks the rest.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::Deserialize;
use serde_json::Value;

/// A kind of model server: how the sidecar recognises it, reads it, loads and unloads its models, and which of its routes
/// are work.
#[derive(Clone, Debug, PartialEq, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct AppDescription {
    /// The name of the kind, in lower-case letters, digits and dashes. It is the value of the label `app` in metrics.
    pub name: String,
    /// The name as the app's own documentation writes it. Default: `name`.
    pub title: Option<String>,
    /// The port on which the app listens by default.
    pub port: Option<u16>,
    /// The path of the readiness probe in process mode.
    #[serde(default = "default_ready_path")]
    pub ready_path: String,
    /// Whether requests name a model, or the process has one.
    pub models: ModelNaming,
    /// How a model is named in the app's list.
    #[serde(default)]
    pub canonical_name: CanonicalNameDescription,
    /// Names of models that the sidecar forwards without governing them, with `*` for any text: models that run elsewhere.
    #[serde(default)]
    pub not_governed: Vec<String>,
    /// How the sidecar's own requests carry the app's key.
    #[serde(default)]
    pub credential: CredentialDescription,
    /// Values that the user's configuration gives for each model, such as the body of a launch. Templates use them by name.
    #[serde(default)]
    pub parameters: BTreeMap<String, ParameterDescription>,
    /// What must be set in the app, one sentence each; for people.
    #[serde(default)]
    pub setup: Vec<String>,
    /// What the sidecar cannot find out through the app's API, one sentence each; it is logged at the start.
    #[serde(default)]
    pub cannot_see: Vec<String>,
    /// What stays on the device after an unload; for people.
    pub remains: Option<String>,
    /// Requests that tell whether this is the app and whether its flags are set. They must not load anything. The first
    /// one tells whether it is the app at all.
    #[serde(default)]
    pub identify: Vec<IdentityDescription>,
    /// The request that tells what is loaded. Without it the sidecar's own record counts.
    pub list: Option<ListDescription>,
    /// Whether an app without a list has its model in memory from its start on.
    #[serde(default)]
    pub starts_loaded: bool,
    /// For an app that starts with its model in memory: the answer after which this is not known, where no sidecar has left
    /// a record. Then the app is left alone until it is started anew.
    pub unknown_when: Option<ConfirmDescription>,
    /// The request that tells how much work the app has. Without it only the requests through the sidecar count.
    pub busy: Option<BusyDescription>,
    /// The requests that load a model. Without them the app loads it with the first request.
    pub load: Option<ActionDescription>,
    /// The requests that unload a model. Without them only the end of the process frees the memory.
    pub unload: Option<ActionDescription>,
    /// Top-level members that are cut out of the JSON body of every route that is work.
    #[serde(default)]
    pub remove_members: Vec<String>,
    /// Query parameters that are cut out of the requests of every route.
    #[serde(default)]
    pub remove_parameters: Vec<String>,
    /// The routes of the app. A closed route wins over all others; of the rest, the first that matches. A route that is
    /// not listed is work of the default model, or with GET `notWorkLoadedOnly`.
    #[serde(default)]
    pub routes: Vec<RouteDescription>,
}

fn default_ready_path() -> String {
    "/health".to_owned()
}

/// Whether requests name a model.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub enum ModelNaming {
    /// Requests name their model.
    Named,
    /// The process has one model, whatever requests say.
    One,
}

/// The form in which the app lists the name of a model. The rules apply to the names of requests, of the configuration and
/// of the list.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct CanonicalNameDescription {
    /// Upper and lower case mean the same; the canonical form is lower case.
    #[serde(default)]
    pub ignore_case: bool,
    /// Beginnings that are cut off, as often as they occur.
    #[serde(default)]
    pub drop_prefixes: Vec<String>,
    /// Ends that are cut off, as often as they occur.
    #[serde(default)]
    pub drop_suffixes: Vec<String>,
    /// The tag that a name without one has: with `latest`, `tiny` is `tiny:latest`.
    pub default_tag: Option<String>,
}

/// How a request of the sidecar carries the app's key.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct CredentialDescription {
    /// `bearer`: `Authorization: Bearer KEY`. `basic`: the key is `user:password`. `header`: the key is the value of
    /// `header`. `line`: the key is a whole line `Name: value`.
    #[serde(default)]
    pub scheme: CredentialScheme,
    /// The header, with the scheme `header`.
    pub header: Option<String>,
}

impl Default for CredentialDescription {
    fn default() -> Self {
        Self { scheme: CredentialScheme::Bearer, header: None }
    }
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub enum CredentialScheme {
    #[default]
    Bearer,
    Basic,
    Header,
    Line,
}

/// A value that the user gives for a model.
#[derive(Clone, Debug, PartialEq, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ParameterDescription {
    /// What it is, in one sentence.
    pub description: String,
    /// Whether each model must have it.
    #[serde(default)]
    pub required: bool,
    /// The value without one of the user. A text may contain `{model}`.
    pub default: Option<Value>,
}

/// A request that the sidecar makes. `{model}` stands for the name of the model, percent-encoded in paths and queries;
/// `{+model}` leaves slashes as they are; `{instance}` stands for the instance in the list, and `{NAME}` for a parameter.
/// A brace is written twice where it is meant.
#[derive(Clone, Debug, PartialEq, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct RequestDescription {
    #[serde(default = "default_method")]
    pub method: String,
    /// Path and query.
    pub path: String,
    /// Sent as JSON. A text that is exactly `{NAME}` becomes the value itself, and a member without a value is left out.
    pub body: Option<Value>,
    /// A parameter that is an object: its members are added to the body, whose own members come first.
    pub add_members_of: Option<String>,
    /// Another port of the app, only of `busy`.
    pub port: Option<u16>,
    /// How long the whole answer may take. Default: 10 to read, 600 to load, 120 to unload.
    pub timeout_seconds: Option<u64>,
    /// The form of the answer.
    #[serde(default)]
    pub answer: AnswerFormat,
}

fn default_method() -> String {
    "GET".to_owned()
}

/// The form of an answer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub enum AnswerFormat {
    /// One JSON document.
    #[default]
    Json,
    /// Server-sent events, read as an array of the JSON documents in their `data`.
    Events,
    /// One JSON document in each line, read as an array.
    Lines,
}

/// What must be true of an answer: all parts that are given. A part that cannot be read, such as JSON of a text, is
/// never true, also within `not`.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ConditionDescription {
    /// The status is one of these.
    #[serde(default)]
    pub status: Vec<u16>,
    /// The answer contains this text, in upper or lower case.
    pub text: Option<String>,
    /// A JSONPath (RFC 9535). Alone: it selects something.
    pub json: Option<String>,
    /// One of the values that `json` selects is this one. For `null` use a filter in the path.
    pub equals: Option<Value>,
    /// One of the values that `json` selects is one of these.
    pub one_of: Option<Vec<Value>>,
    /// One of the texts that `json` selects contains this one, in upper or lower case.
    pub contains: Option<String>,
    /// The sum of these is from `atLeast` to `atMost`.
    #[serde(default)]
    pub number: Vec<NumberTermDescription>,
    pub at_least: Option<f64>,
    pub at_most: Option<f64>,
    /// This is not true.
    pub not: Option<Box<ConditionDescription>>,
}

/// A part of a sum: one of `count`, `sum`, `metric` and `when`.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct NumberTermDescription {
    /// How many values this JSONPath selects.
    pub count: Option<String>,
    /// The sum of the numbers that this JSONPath selects; it must select one.
    pub sum: Option<String>,
    /// The sum of this metric in Prometheus' text format.
    pub metric: Option<String>,
    /// Only series of the metric that have these labels. A value may contain `{model}`.
    #[serde(default)]
    pub labels: BTreeMap<String, String>,
    /// 0, instead of an error, where the metric or the number is missing.
    #[serde(default)]
    pub missing_is_zero: bool,
    /// 1 if this is true, 0 if it is false.
    pub when: Option<Box<ConditionDescription>>,
    /// Subtracted instead of added.
    #[serde(default)]
    pub subtract: bool,
}

/// One look at the app's identity.
#[derive(Clone, Debug, PartialEq, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct IdentityDescription {
    pub request: RequestDescription,
    /// A JSONPath to the app's version.
    pub version: Option<String>,
    /// Otherwise the app is refused.
    #[serde(default)]
    pub must: Vec<DemandDescription>,
    /// Otherwise a warning is logged.
    #[serde(default)]
    pub should: Vec<DemandDescription>,
}

/// What is asked of the app, and the sentence for when it is not so.
#[derive(Clone, Debug, PartialEq, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct DemandDescription {
    pub that: ConditionDescription,
    /// The flag to set, or what is wrong.
    pub otherwise: String,
}

/// What is loaded: either `items`, for an app that lists models, or `rules`, for the state of one.
#[derive(Clone, Debug, PartialEq, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ListDescription {
    /// With `rules`, the path may contain `{model}`: then it is sent once for each model.
    pub request: RequestDescription,
    /// Answers that mean that nothing is loaded: one of these is true.
    #[serde(default)]
    pub empty_when: Vec<ConditionDescription>,
    pub items: Option<ItemsDescription>,
    /// The first that is true decides. If none is, nothing is known.
    #[serde(default)]
    pub rules: Vec<PresenceRuleDescription>,
}

/// The models of a list.
#[derive(Clone, Debug, PartialEq, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ItemsDescription {
    /// A JSONPath to the items.
    pub at: String,
    /// A JSONPath within an item (`$` is the item) to its name.
    pub name: String,
    /// A JSONPath within an item to further names.
    pub other_names: Option<String>,
    /// A JSONPath within an item to a value that changes when the app loads the model anew by itself. Several make
    /// several instances.
    pub instance: Option<String>,
    /// Where an item says its state. Without it every item is loaded.
    pub states: Option<StatesDescription>,
    /// The item says that its load failed.
    pub failed: Option<FailureDescription>,
}

/// The words in which an item says its state. A word in none of the lists is an error.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct StatesDescription {
    /// A JSONPath within an item.
    pub at: String,
    #[serde(default)]
    pub loaded: Vec<String>,
    #[serde(default)]
    pub loading: Vec<String>,
    #[serde(default)]
    pub unloading: Vec<String>,
    #[serde(default)]
    pub away: Vec<String>,
    #[serde(default)]
    pub failed: Vec<String>,
    /// What an item without a state is.
    pub missing: Option<PresenceName>,
}

/// When an item has failed, and why.
#[derive(Clone, Debug, PartialEq, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct FailureDescription {
    pub when: ConditionDescription,
    #[serde(default)]
    pub cause: CauseDescription,
}

/// The text of a cause: `text`, then what `json` selects.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct CauseDescription {
    pub text: Option<String>,
    /// A JSONPath.
    pub json: Option<String>,
}

#[derive(Clone, Debug, PartialEq, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct PresenceRuleDescription {
    pub when: ConditionDescription,
    pub is: PresenceName,
    /// The default of `failed`.
    #[serde(default)]
    pub cause: CauseDescription,
}

/// Whether a model is in memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub enum PresenceName {
    Away,
    Loading,
    Loaded,
    Unloading,
    Failed,
}

/// How much work the app has, running and waiting.
#[derive(Clone, Debug, PartialEq, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct BusyDescription {
    pub request: RequestDescription,
    /// Answers that mean that there is no work: one of these is true.
    #[serde(default)]
    pub idle_when: Vec<ConditionDescription>,
    /// The sum of these is the number of pieces of work.
    pub number: Vec<NumberTermDescription>,
}

/// Requests that load or unload a model.
#[derive(Clone, Debug, PartialEq, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ActionDescription {
    /// In their order; the first that is not done ends the action. If one contains `{instance}`, they are repeated for
    /// each instance in the list.
    pub steps: Vec<StepDescription>,
    /// Sent after the steps, also after a failed one.
    #[serde(default)]
    pub always: Vec<RequestDescription>,
    /// What tells, after an unload, that the memory is free, for apps without a list.
    pub confirm: Option<ConfirmDescription>,
}

/// One request of an action.
#[derive(Clone, Debug, PartialEq, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct StepDescription {
    /// Only if a parameter of the model has a value.
    pub only_if: Option<ParameterConditionDescription>,
    pub request: RequestDescription,
    /// The first whose condition is true decides. Otherwise a status from 200 to 299 is done, and any other has failed.
    #[serde(default)]
    pub outcomes: Vec<OutcomeDescription>,
}

#[derive(Clone, Debug, PartialEq, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ParameterConditionDescription {
    pub parameter: String,
    pub equals: Value,
}

#[derive(Clone, Debug, PartialEq, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct OutcomeDescription {
    pub when: ConditionDescription,
    pub is: OutcomeName,
    /// The text of the errors `busy`, `failed` and `outOfMemory`. Default: what the answer says.
    #[serde(default)]
    pub cause: CauseDescription,
}

/// What an answer to a step means.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub enum OutcomeName {
    Done,
    /// The app is at work and refuses; nothing has changed.
    Busy,
    Failed,
    OutOfMemory,
}

/// A request, and the condition that its answer is to fulfil.
#[derive(Clone, Debug, PartialEq, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ConfirmDescription {
    pub request: RequestDescription,
    pub when: ConditionDescription,
}

/// Routes that are treated alike.
#[derive(Clone, Debug, PartialEq, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct RouteDescription {
    pub class: RouteClassName,
    /// Default: every method.
    #[serde(default)]
    pub methods: Vec<String>,
    /// Patterns: `{model}` is one segment that names the model, `{other}` is any segment, and `/**` at the end is any rest,
    /// also none. `/**/` at the beginning is for apps that only look at the end of a path. Letters match in upper and lower
    /// case.
    pub paths: Vec<String>,
    /// Where a request names its model. Default with `models: named`: the segment `{model}`, else the member `model` of the
    /// body (`query` for a websocket); nowhere for routes that are no work.
    pub model: Option<ModelSourceDescription>,
    /// Top-level members that are cut out of the JSON body.
    #[serde(default)]
    pub remove_members: Vec<String>,
    /// Query parameters that are cut out.
    #[serde(default)]
    pub remove_parameters: Vec<String>,
    /// The work ends when the app is idle, not with the answer: the request only queues it, or the app goes on when the
    /// client leaves. It needs `busy`.
    #[serde(default)]
    pub ends_when_app_is_idle: bool,
    /// A request waits for its model as long as it takes.
    #[serde(default)]
    pub waits_forever: bool,
    /// Bodies that are a command in disguise instead of work.
    pub command: Option<CommandDescription>,
}

/// A body without any work in it is a command of the app to load the model, or to unload it.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct CommandDescription {
    /// A body that has none of these members, or only empty ones, is a command.
    pub without: Vec<String>,
    /// The command is to unload if this member is 0.
    pub unload_if_zero: Option<String>,
}

/// How the proxy treats the requests of a route.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub enum RouteClassName {
    /// Use of the model: waits for it, resets its idle time.
    Work,
    /// Forwarded while the app runs.
    NotWork,
    /// Forwarded only while the model is loaded.
    NotWorkLoadedOnly,
    /// Refused.
    Closed,
    /// A websocket that only displays.
    DisplaySocket,
    /// A websocket that works.
    WorkSocket,
}

/// Where a request names its model.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub enum ModelSourceDescription {
    /// Nowhere: it is the default model.
    None,
    /// This top-level member of a JSON body, this part of a form, or else this query parameter.
    Body(String),
    /// This query parameter.
    Query(String),
    /// It refers to an earlier request and has its model.
    Earlier(EarlierRequestDescription),
}

/// How a request refers to an earlier one.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct EarlierRequestDescription {
    /// The header of the earlier request that has its id.
    pub header: String,
    /// The query parameter that has this id.
    pub query: String,
}
