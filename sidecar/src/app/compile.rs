//! An app's description with everything compiled that can be: paths, templates, conditions, routes.

use std::time::Duration;

use super::AppRequest;
use super::action::{Action, compile_confirm};
use super::answer::AnswerReader;
use super::condition::{Condition, NumberSum};
use super::credential::CredentialForm;
use super::description::{AppDescription, BusyDescription, ModelNaming, RequestDescription};
use super::identity::IdentityChecks;
use super::listing::Listing;
use super::names::CanonicalName;
use super::parameters::ParameterValues;
use super::problem::FieldScope;
use super::request::RequestTemplate;
use super::route::RouteTable;
use super::template::{Placeholders, TemplateValues};
use super::{AppAnswer, AppAnswerError};

const NAME_LENGTH_MAX: usize = 63;
const BUSY_TIMEOUT: Duration = Duration::from_secs(10);
const LOAD_TIMEOUT: Duration = Duration::from_secs(600);
const UNLOAD_TIMEOUT: Duration = Duration::from_secs(120);

/// A compiled description.
#[derive(Clone, Debug)]
pub(super) struct CompiledApp {
    pub(super) name: String,
    pub(super) title: String,
    pub(super) default_port: Option<u16>,
    pub(super) ready_path: String,
    pub(super) naming: ModelNaming,
    pub(super) names: CanonicalName,
    pub(super) credential: CredentialForm,
    pub(super) parameters: ParameterValues,
    pub(super) setup: Vec<String>,
    pub(super) cannot_see: Vec<String>,
    pub(super) remains: Option<String>,
    pub(super) identity: IdentityChecks,
    pub(super) listing: Option<Listing>,
    pub(super) starts_loaded: bool,
    pub(super) unknown_when: Option<(RequestTemplate, Condition)>,
    pub(super) busy: Option<BusyFigure>,
    pub(super) load: Option<Action>,
    pub(super) unload: Option<Action>,
    pub(super) routes: RouteTable,
}

impl CompiledApp {
    /// `None`: problems were reported. Problems may also have been reported with `Some`.
    pub(super) fn compile(source: AppDescription, field: &FieldScope<'_>) -> Option<Self> {
        check_texts(&source, field);
        let parameters: Vec<&str> = source.parameters.keys().map(String::as_str).collect();
        let allowed = Placeholders { model: true, instance: false, parameters: &parameters };
        let has_instances =
            source.list.as_ref().and_then(|list| list.items.as_ref()).is_some_and(|items| items.instance.is_some());
        let unloading = Placeholders { instance: has_instances, ..allowed };

        let identity = IdentityChecks::compile(&source.identify, &field.member("identify"));
        let listing = compile_part(source.list.as_ref(), |list| {
            Listing::compile(list, source.models, &allowed, &field.member("list"))
        });
        let busy =
            compile_part(source.busy.as_ref(), |busy| BusyFigure::compile(busy, &allowed, &field.member("busy")));
        let unknown_when = compile_part(source.unknown_when.as_ref(), |unknown| {
            compile_confirm(unknown, &allowed, &field.member("unknownWhen"))
        });
        let load_field = field.member("load");
        let load =
            compile_part(source.load.as_ref(), |load| Action::compile(load, &allowed, LOAD_TIMEOUT, &load_field));
        let unload = compile_part(source.unload.as_ref(), |unload| {
            Action::compile(unload, &unloading, UNLOAD_TIMEOUT, &field.member("unload"))
        });
        let removed = (source.remove_members.as_slice(), source.remove_parameters.as_slice());
        let routes = RouteTable::compile(&source.routes, source.models, removed, &field.member("routes"));
        let credential = CredentialForm::compile(&source.credential, &field.member("credential"));
        check_together(&source, field);

        let load = load?;
        if load.as_ref().is_some_and(Action::has_confirm) {
            load_field.member("confirm").report("belongs to `unload`");
        }
        Some(Self {
            title: source.title.unwrap_or_else(|| source.name.clone()),
            name: source.name,
            default_port: source.port,
            ready_path: source.ready_path,
            naming: source.models,
            starts_loaded: source.starts_loaded,
            unknown_when: unknown_when?,
            names: CanonicalName::new(source.canonical_name, &source.not_governed),
            credential: credential?,
            parameters: ParameterValues::declared(source.parameters),
            setup: source.setup,
            cannot_see: source.cannot_see,
            remains: source.remains,
            identity: identity?,
            listing: listing?,
            busy: busy?,
            load,
            unload: unload?,
            routes: routes?,
        })
    }
}

/// `Some(None)`: the part is not described; `None`: it has problems.
fn compile_part<S, T>(source: Option<&S>, compile: impl FnOnce(&S) -> Option<T>) -> Option<Option<T>> {
    match source {
        Some(source) => compile(source).map(Some),
        None => Some(None),
    }
}

fn check_texts(source: &AppDescription, field: &FieldScope<'_>) {
    let is_name_byte = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
    let has_length = (1..=NAME_LENGTH_MAX).contains(&source.name.len());
    if !has_length || !source.name.bytes().all(is_name_byte) || source.name.starts_with('-') {
        let message = format!(
            "`{}` must be 1 to {NAME_LENGTH_MAX} lower-case letters, digits and dashes, and not begin with a dash",
            source.name
        );
        field.member("name").report(message);
    }

    if !source.ready_path.starts_with('/') || !source.ready_path.bytes().all(|byte| byte.is_ascii_graphic()) {
        field.member("readyPath").report("must be a path that begins with `/`, without spaces");
    }
    if source.port == Some(0) {
        field.member("port").report("must be from 1 to 65535");
    }
    for name in source.parameters.keys() {
        let is_reserved = ["model", "+model", "instance"].contains(&name.as_str());
        let is_word = !name.is_empty() && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_');
        if is_reserved || !is_word {
            field
                .member("parameters")
                .member(name)
                .report("must be named with letters, digits and `_`, and not `model` or `instance`");
        }
    }
}

/// Parts that need each other.
fn check_together(source: &AppDescription, field: &FieldScope<'_>) {
    let routes = field.member("routes");
    for (i, route) in source.routes.iter().enumerate() {
        if route.ends_when_app_is_idle && source.busy.is_none() {
            routes.item(i).member("endsWhenAppIsIdle").report("needs `busy`, which tells when the app is idle");
        }
    }
    if source.load.is_some() && source.unload.is_none() {
        field.member("load").report("needs `unload`: an app that only its end unloads is loaded by its start");
    }
    if source.unknown_when.is_some() && !source.starts_loaded {
        field.member("unknownWhen").report("belongs to `startsLoaded: true`");
    }
    if source.models == ModelNaming::One && !source.not_governed.is_empty() {
        field.member("notGoverned").report("belongs to `models: named`");
    }

    for (part, request) in requests_but_busy(source) {
        if request.port.is_some() {
            field.member(&part).member("port").report("belongs to `busy`");
        }
    }
}

/// Every request with its field, but that of `busy`.
fn requests_but_busy(source: &AppDescription) -> Vec<(String, &RequestDescription)> {
    let mut requests = Vec::new();
    for (i, check) in source.identify.iter().enumerate() {
        requests.push((format!("identify[{i}].request"), &check.request));
    }
    requests.extend(source.unknown_when.iter().map(|unknown| ("unknownWhen.request".to_owned(), &unknown.request)));
    requests.extend(source.list.iter().map(|list| ("list.request".to_owned(), &list.request)));

    for (name, action) in [("load", &source.load), ("unload", &source.unload)] {
        let Some(action) = action else { continue };
        let steps = action.steps.iter().enumerate();
        requests.extend(steps.map(|(i, step)| (format!("{name}.steps[{i}].request"), &step.request)));
        let always = action.always.iter().enumerate();
        requests.extend(always.map(|(i, request)| (format!("{name}.always[{i}]"), request)));
        requests.extend(action.confirm.iter().map(|confirm| (format!("{name}.confirm.request"), &confirm.request)));
    }
    requests
}

/// The app's own figure of its work.
#[derive(Clone, Debug)]
pub(super) struct BusyFigure {
    request: RequestTemplate,
    idle_when: Vec<Condition>,
    number: NumberSum,
}

impl BusyFigure {
    fn compile(source: &BusyDescription, allowed: &Placeholders<'_>, field: &FieldScope<'_>) -> Option<Self> {
        let request = RequestTemplate::compile(&source.request, allowed, BUSY_TIMEOUT, &field.member("request"));
        let idle_when = Condition::compile_all(&source.idle_when, allowed, &field.member("idleWhen"));
        let number = NumberSum::compile(&source.number, allowed, &field.member("number"));
        Some(Self { request: request?, idle_when: idle_when?, number: number? })
    }

    pub(super) fn port(&self) -> Option<u16> {
        self.request.port
    }

    pub(super) fn request(&self, values: &TemplateValues<'_>) -> AppRequest {
        self.request.render(values)
    }

    pub(super) fn read(&self, answer: &AppAnswer, values: &TemplateValues<'_>) -> Result<u64, AppAnswerError> {
        let unreadable = |problem| AppAnswerError { request: self.request.label(values), problem };
        let answer = AnswerReader::new(answer, self.request.format);
        if self.idle_when.iter().any(|idle| idle.is_true(&answer, values)) {
            return Ok(0);
        }
        if !answer.is_success() {
            return Err(unreadable(answer.summary()));
        }

        let number = self.number.evaluate(&answer, values).map_err(unreadable)?;
        whole_number(number).ok_or_else(|| unreadable(format!("{number} pieces of work")))
    }
}

/// Rounded up, so that any work counts. `None`: it is no number of pieces.
fn whole_number(number: f64) -> Option<u64> {
    const MOST: f64 = 1e15;
    (0.0..=MOST).contains(&number).then(|| number.ceil() as u64)
}
