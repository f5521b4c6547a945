//! A kind of app: its compiled description, and the values that the user gives for its parameters.

use std::collections::BTreeSet;
use std::sync::Arc;

use http::{HeaderName, HeaderValue, Method};
use serde_json::{Map, Value};

use super::action::Action;
use super::answer::AnswerReader;
use super::check::compile_or_join;
use super::compile::CompiledApp;
use super::description::ModelNaming;
use super::listing::ListQuestion;
use super::parameters::{AppParameters, ParameterValues};
use super::route::RouteQuestion;
use super::template::TemplateValues;
use super::{
    ActionStepOutcome, AppAction, AppAnswer, AppAnswerError, AppIdentity, AppRequest, CredentialError,
    DescriptionError, ListedModel, RouteMatch, UnsuitableApp, known,
};

/// A kind of app. Cheap to clone.
#[derive(Clone, Debug)]
pub struct App {
    compiled: Arc<CompiledApp>,
    parameters: Arc<ParameterValues>,
}

/// A model under its canonical name, with its parameters.
struct NamedModel {
    name: String,
    parameters: Map<String, Value>,
}

impl NamedModel {
    fn values(&self) -> TemplateValues<'_> {
        TemplateValues { model: &self.name, instance: "", parameters: &self.parameters }
    }
}

impl App {
    /// The names of the apps that are known.
    pub fn known() -> impl Iterator<Item = &'static str> {
        known::DESCRIPTIONS.iter().map(|(name, _)| *name)
    }

    /// The text of a known app's description, as a beginning for another one.
    pub fn source(name: &str) -> Option<&'static str> {
        known::DESCRIPTIONS.iter().find(|(known, _)| *known == name).map(|(_, text)| *text)
    }

    /// A known app by its name; `None`: it is not known.
    pub fn find(name: &str) -> Option<Self> {
        known::APPS.iter().find(|app| app.name() == name).cloned()
    }

    /// An app that a user describes.
    ///
    /// # Errors
    /// If the text is no valid description; the error names each field that is wrong, in a line of its own.
    pub fn from_yaml(text: &str) -> Result<Self, DescriptionError> {
        let compiled = compile_or_join(text)?;
        let parameters = Arc::new(compiled.parameters.clone());
        Ok(Self { compiled: Arc::new(compiled), parameters })
    }

    /// The same app with the user's values for its parameters, which must be there for each of `models`.
    ///
    /// # Errors
    /// If a parameter is unknown, has another form, or is required and missing; the error names it.
    pub fn with_parameters(&self, given: AppParameters, models: &[String]) -> Result<Self, DescriptionError> {
        let actions = [&self.compiled.load, &self.compiled.unload];
        let objects: BTreeSet<&str> = actions.into_iter().flatten().flat_map(Action::object_parameters).collect();
        let parameters = self.parameters.with(given, &objects, &self.compiled.names).map_err(DescriptionError)?;

        for model in models {
            if let [missing, ..] = parameters.missing(&self.canonical_name(model)).as_slice() {
                let title = &self.compiled.title;
                return Err(DescriptionError(format!(
                    "{title} needs the parameter `{missing}` of the model `{model}`"
                )));
            }
        }
        Ok(Self { compiled: Arc::clone(&self.compiled), parameters: Arc::new(parameters) })
    }

    /// `ollama`, `llama-server`; the value of the label `app`.
    pub fn name(&self) -> &str {
        &self.compiled.name
    }

    /// The name as the app's own documentation writes it.
    pub fn title(&self) -> &str {
        &self.compiled.title
    }

    /// The port on which the app listens by default.
    pub fn default_port(&self) -> Option<u16> {
        self.compiled.default_port
    }

    /// What must be set in the app, one sentence each.
    pub fn setup(&self) -> &[String] {
        &self.compiled.setup
    }

    /// What the sidecar cannot find out through the app's API, one sentence each.
    pub fn cannot_see(&self) -> &[String] {
        &self.compiled.cannot_see
    }

    /// What stays on the device after an unload.
    pub fn remains(&self) -> Option<&str> {
        self.compiled.remains.as_deref()
    }

    /// The header in which the sidecar's own requests carry the app's key, marked as sensitive.
    ///
    /// # Errors
    /// If the key has not the form that the app's scheme needs. The error does not contain it.
    pub fn credential_header(&self, key: &str) -> Result<(HeaderName, HeaderValue), CredentialError> {
        self.compiled.credential.header(key)
    }

    /// Whether the process holds one model, which no request names.
    pub fn has_one_model(&self) -> bool {
        self.compiled.naming == ModelNaming::One
    }

    /// Whether the app has its model in memory from its start on, without a list that would say so.
    pub fn starts_loaded(&self) -> bool {
        self.compiled.starts_loaded && self.compiled.listing.is_none()
    }

    /// For an app that starts loaded: the request that tells whether that is still so, where nothing was recorded.
    pub fn ask_unknown(&self) -> Option<AppRequest> {
        let (request, _) = self.compiled.unknown_when.as_ref()?;
        Some(request.render(&self.model("").values()))
    }

    /// Whether the answer to [`Self::ask_unknown`] says that nothing is known.
    pub fn is_unknown(&self, answer: &AppAnswer) -> bool {
        let Some((request, when)) = &self.compiled.unknown_when else { return false };
        when.is_true(&AnswerReader::new(answer, request.format), &self.model("").values())
    }

    /// Whether the app unloads a model through its API; otherwise the sidecar must start and end its process.
    pub fn can_unload(&self) -> bool {
        self.compiled.unload.is_some()
    }

    /// The name under which the app lists a model (Ollama: `tiny` is `tiny:latest`).
    pub fn canonical_name(&self, model: &str) -> String {
        self.compiled.names.apply(model)
    }

    /// Whether a model runs in this app. Requests to others (Ollama: `x:cloud`) are [`super::RouteClass::NotWork`],
    /// whatever their route.
    pub fn governs(&self, model: &str) -> bool {
        self.compiled.names.is_governed(model)
    }

    /// The requests that tell whether this is the app, and whether the flags that governing it needs are set. They load
    /// nothing.
    pub fn identify(&self) -> Vec<AppRequest> {
        let model = self.model("");
        self.compiled.identity.requests(&model.values())
    }

    /// Reads the answers to [`Self::identify`], in their order.
    ///
    /// # Errors
    /// If it is another app, or a flag is missing: the error says which.
    pub fn read_identity(&self, answers: &[AppAnswer]) -> Result<AppIdentity, UnsuitableApp> {
        let model = self.model("");
        self.compiled.identity.read(&self.compiled.title, answers, &model.values())
    }

    /// The requests that list what is loaded; `None`: the app has no such list, and the sidecar's own record counts.
    pub fn list(&self, models: &[String]) -> Option<Vec<AppRequest>> {
        let model = self.model("");
        self.compiled.listing.as_ref().map(|listing| listing.requests(self.question(models, &model)))
    }

    /// Reads the answers to [`Self::list`], in their order. A model that the app does not list is away. `Failed` also
    /// means that the model is not in memory: some apps say it after they ended a busy instance.
    ///
    /// # Errors
    /// If an answer cannot be read; then nothing is known.
    pub fn read_list(&self, models: &[String], answers: &[AppAnswer]) -> Result<Vec<ListedModel>, AppAnswerError> {
        let model = self.model("");
        let Some(listing) = &self.compiled.listing else { return Ok(Vec::new()) };
        listing.read(self.question(models, &model), answers)
    }

    /// The request whose answer says how much work the app has; `None`: the app does not say, or on another port
    /// ([`Self::busy_on_port`]).
    pub fn busy(&self, model: &str) -> Option<AppRequest> {
        let busy = self.compiled.busy.as_ref().filter(|busy| busy.port().is_none())?;
        Some(busy.request(&self.model(model).values()))
    }

    /// The header by whose value a later request may refer to a request.
    pub fn earlier_header(&self) -> Option<&str> {
        self.compiled.routes.earlier_header()
    }

    /// As [`Self::busy`], for an app that says it on another port than the one it serves (Triton: 8002).
    pub fn busy_on_port(&self, model: &str) -> Option<(u16, AppRequest)> {
        let busy = self.compiled.busy.as_ref()?;
        Some((busy.port()?, busy.request(&self.model(model).values())))
    }

    /// The number of pieces of work that the app has, running and waiting.
    ///
    /// # Errors
    /// If the answer cannot be read.
    pub fn read_busy(&self, model: &str, answer: &AppAnswer) -> Result<u64, AppAnswerError> {
        let Some(busy) = &self.compiled.busy else { return Ok(0) };
        busy.read(answer, &self.model(model).values())
    }

    /// Loads a model; `None`: the app loads it with the first request, and nothing is sent.
    pub fn load(&self, model: &str) -> Option<AppAction> {
        let load = self.compiled.load.as_ref()?;
        Some(load.requests(&[], &self.model(model).values()))
    }

    /// Unloads a model; `None`: the app cannot, and only its end frees the memory. An app that unloads instances (LM
    /// Studio) is asked for the one that has the model's name, which is that of the first; use [`Self::unload_listed`].
    pub fn unload(&self, model: &str) -> Option<AppAction> {
        let model = self.model(model);
        let unload = self.compiled.unload.as_ref()?;
        Some(unload.requests(&[&model.name], &model.values()))
    }

    /// As [`Self::unload`], for every instance of the model in the app's list. Without one there is nothing to send.
    pub fn unload_listed(&self, model: &str, listed: &[ListedModel]) -> Option<AppAction> {
        let model = self.model(model);
        let unload = self.compiled.unload.as_ref()?;
        let instances = listed.iter().filter(|listed| listed.name == model.name).filter_map(|m| m.instance.as_deref());
        let instances: Vec<&str> = instances.flat_map(str::lines).collect();
        Some(unload.requests(&instances, &model.values()))
    }

    /// Reads the answer to a step of [`Self::load`].
    pub fn read_load_step(&self, model: &str, step: usize, answer: &AppAnswer) -> ActionStepOutcome {
        self.read_step(self.compiled.load.as_ref(), model, step, answer)
    }

    /// Reads the answer to a step of [`Self::unload`].
    pub fn read_unload_step(&self, model: &str, step: usize, answer: &AppAnswer) -> ActionStepOutcome {
        self.read_step(self.compiled.unload.as_ref(), model, step, answer)
    }

    /// The request that tells whether an unload is complete, for an app without a list; `None`: nothing tells it.
    pub fn confirm_unload(&self, model: &str) -> Option<AppRequest> {
        self.compiled.unload.as_ref()?.confirm_request(&self.model(model).values())
    }

    /// Whether the answer to [`Self::confirm_unload`] says that the unload is complete.
    pub fn is_unload_confirmed(&self, model: &str, answer: &AppAnswer) -> bool {
        let unload = self.compiled.unload.as_ref();
        unload.is_none_or(|unload| unload.is_confirmed(answer, &self.model(model).values()))
    }

    /// The route of a request. An unknown route is [`super::RouteClass::Work`] of the default model, or
    /// [`super::RouteClass::NotWorkLoadedOnly`] if the method is GET, HEAD or OPTIONS; a websocket of an unknown route is
    /// a [`super::RouteClass::WorkSocket`]. `is_upgrade`: the request asks for a websocket.
    ///
    /// A path that can be read in several ways (encoded, with dots or empty segments) has the strictest class of all of
    /// them, and is closed if they name different models.
    pub fn route(&self, method: &Method, path: &str, query: Option<&str>, is_upgrade: bool) -> RouteMatch {
        let question = RouteQuestion { method, is_upgrade };
        self.compiled.routes.find(question, path, query, &self.compiled.names)
    }

    /// The default path of the readiness probe in process mode.
    pub fn ready_path(&self) -> &str {
        &self.compiled.ready_path
    }

    fn model(&self, model: &str) -> NamedModel {
        let name = self.canonical_name(model);
        let parameters = self.parameters.of(&name);
        NamedModel { name, parameters }
    }

    fn question<'a>(&'a self, models: &'a [String], model: &'a NamedModel) -> ListQuestion<'a> {
        ListQuestion { models, names: &self.compiled.names, values: model.values() }
    }

    fn read_step(&self, action: Option<&Action>, model: &str, step: usize, answer: &AppAnswer) -> ActionStepOutcome {
        let Some(action) = action else {
            let cause = format!("{} has no such action", self.compiled.title);
            return ActionStepOutcome::Failed { cause, out_of_memory: false };
        };
        action.read_step(step, answer, &self.model(model).values())
    }
}
