//! Runs the files of `sidecar/tests/app-cases`: for each app its answers, and what they mean.

use std::collections::BTreeMap;
use std::path::PathBuf;

use http::Method;
use serde::Deserialize;
use serde_json::{Map, Value, json};

use super::answer;
use crate::app::{
    ActionStepOutcome, App, AppAction, AppAnswer, AppParameters, AppRequest, ListedModel, ModelNameSource,
    ModelPresence, RouteClass, RouteMatch, known,
};

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct AppCases {
    /// The models that are governed; the first is meant where a case names none.
    models: Vec<String>,
    #[serde(default)]
    parameters: BTreeMap<String, Map<String, Value>>,
    /// Names and their canonical form.
    #[serde(default)]
    names: BTreeMap<String, String>,
    #[serde(default)]
    not_governed: Vec<String>,
    /// The requests of the sidecar.
    #[serde(default)]
    identify: Vec<RequestCase>,
    #[serde(default)]
    list: Vec<RequestCase>,
    busy: Option<RequestCase>,
    load: Option<ActionCase>,
    unload: Option<ActionCase>,
    confirm: Option<RequestCase>,
    #[serde(default)]
    identities: Vec<IdentityCase>,
    #[serde(default)]
    lists: Vec<ListCase>,
    #[serde(default)]
    figures: Vec<BusyCase>,
    #[serde(default)]
    load_answers: Vec<OutcomeCase>,
    #[serde(default)]
    unload_answers: Vec<OutcomeCase>,
    #[serde(default)]
    confirmations: Vec<ConfirmCase>,
    /// `METHOD /path?query` (`WS` for a websocket) and the route in the words of `route_text`.
    routes: BTreeMap<String, String>,
}

/// `METHOD /path`, with its body.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
struct RequestCase {
    request: String,
    body: Option<Value>,
    port: Option<u16>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct ActionCase {
    steps: Vec<RequestCase>,
    #[serde(default)]
    always: Vec<RequestCase>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct AnswerCase {
    #[serde(default = "ok")]
    status: u16,
    json: Option<Value>,
    text: Option<String>,
}

fn ok() -> u16 {
    200
}

impl AnswerCase {
    fn answer(&self) -> AppAnswer {
        let json = self.json.as_ref().map(ToString::to_string);
        answer(self.status, json.or_else(|| self.text.clone()).unwrap_or_default())
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct IdentityCase {
    answers: Vec<AnswerCase>,
    version: Option<String>,
    #[serde(default)]
    warnings: Vec<String>,
    /// A part of the refusal.
    refused: Option<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct ListCase {
    answers: Vec<AnswerCase>,
    /// Every model of the list, in the words of `listed_text`.
    is: Option<BTreeMap<String, String>>,
    unreadable: Option<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct BusyCase {
    model: Option<String>,
    answer: AnswerCase,
    is: Option<u64>,
    unreadable: Option<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct OutcomeCase {
    #[serde(default)]
    step: usize,
    answer: AnswerCase,
    is: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct ConfirmCase {
    answer: AnswerCase,
    is: bool,
}

#[test]
fn every_known_app_says_what_was_recorded() {
    let failed: Vec<&str> =
        App::known().filter(|name| std::panic::catch_unwind(|| check_cases(name)).is_err()).collect();
    assert_eq!(failed, [""; 0], "see the messages above");
}

fn check_cases(name: &'static str) {
    let path: PathBuf = [env!("CARGO_MANIFEST_DIR"), "tests/app-cases", &format!("{name}.yaml")].iter().collect();
    let text = std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    let cases: AppCases = serde_yaml::from_str(&text).unwrap_or_else(|error| panic!("{name}.yaml: {error}"));

    let parameters = AppParameters { common: Map::new(), by_model: cases.parameters.clone() };
    let app = App::find(name).unwrap().with_parameters(parameters, &cases.models).unwrap();
    CaseRun { name, app, cases }.check();
}

struct CaseRun {
    name: &'static str,
    app: App,
    cases: AppCases,
}

impl CaseRun {
    fn check(&self) {
        self.check_names();
        self.check_requests();
        self.check_identities();
        self.check_lists();
        self.check_figures();
        self.check_outcomes();
        self.check_routes();
        self.check_that_nothing_is_left_out();
    }

    fn model(&self) -> &str {
        &self.cases.models[0]
    }

    fn check_names(&self) {
        for (name, canonical) in &self.cases.names {
            assert_eq!(self.app.canonical_name(name), *canonical, "{}: {name}", self.name);
            assert_eq!(self.app.canonical_name(canonical), *canonical, "{}: {canonical} is canonical", self.name);
            assert!(self.app.governs(name), "{}: {name}", self.name);
        }
        for name in &self.cases.not_governed {
            assert!(!self.app.governs(name), "{}: {name} runs elsewhere", self.name);
        }
    }

    fn check_requests(&self) {
        let (app, model, cases) = (&self.app, self.model(), &self.cases);
        assert_eq!(as_cases(&app.identify()), cases.identify, "{}: identify", self.name);
        assert_eq!(as_cases(&app.list(&cases.models).unwrap_or_default()), cases.list, "{}: list", self.name);

        let busy = app.busy(model).map(|request| as_case(&request));
        let other_port = app.busy_on_port(model);
        let other_port = other_port.map(|(port, request)| RequestCase { port: Some(port), ..as_case(&request) });
        assert_eq!(busy.or(other_port), cases.busy, "{}: busy", self.name);

        self.check_action("load", app.load(model), cases.load.as_ref());
        self.check_action("unload", app.unload(model), cases.unload.as_ref());
        assert_eq!(app.confirm_unload(model).map(|request| as_case(&request)), cases.confirm, "{}: confirm", self.name);
    }

    fn check_action(&self, what: &str, action: Option<AppAction>, expected: Option<&ActionCase>) {
        let sent = action.map(|action| (as_cases(&action.steps), as_cases(&action.always)));
        let expected = expected.map(|action| (action.steps.clone(), action.always.clone()));
        assert_eq!(sent, expected, "{}: {what}", self.name);
    }

    fn check_identities(&self) {
        for (i, case) in self.cases.identities.iter().enumerate() {
            let answers: Vec<AppAnswer> = case.answers.iter().map(AnswerCase::answer).collect();
            match (self.app.read_identity(&answers), &case.refused) {
                (Ok(identity), None) => {
                    assert_eq!(identity.version, case.version, "{}: identity {i}", self.name);
                    assert_eq!(identity.warnings.len(), case.warnings.len(), "{}: {:?}", self.name, identity.warnings);
                    let pairs = identity.warnings.iter().zip(&case.warnings);
                    pairs.for_each(|(warning, part)| assert!(warning.contains(part), "{}: {warning}", self.name));
                }
                (Err(refusal), Some(part)) => {
                    assert!(refusal.to_string().contains(part), "{}: identity {i}: {refusal}", self.name);
                }
                (read, _) => panic!("{}: identity {i}: {read:?}", self.name),
            }
        }
    }

    fn check_lists(&self) {
        for (i, case) in self.cases.lists.iter().enumerate() {
            let answers: Vec<AppAnswer> = case.answers.iter().map(AnswerCase::answer).collect();
            match (self.app.read_list(&self.cases.models, &answers), &case.is, &case.unreadable) {
                (Ok(listed), Some(expected), None) => {
                    let read: BTreeMap<String, String> =
                        listed.iter().map(|m| (m.name.clone(), listed_text(m))).collect();
                    assert_eq!(read.len(), listed.len(), "{}: list {i} has a name twice", self.name);
                    assert_eq!(read, *expected, "{}: list {i}", self.name);
                }
                (Err(error), None, Some(part)) => {
                    assert!(error.to_string().contains(part), "{}: list {i}: {error}", self.name);
                }
                (read, ..) => panic!("{}: list {i}: {read:?}", self.name),
            }
        }
    }

    fn check_figures(&self) {
        for (i, case) in self.cases.figures.iter().enumerate() {
            let model = case.model.as_deref().unwrap_or(self.model());
            match (self.app.read_busy(model, &case.answer.answer()), &case.unreadable) {
                (Ok(figure), None) => assert_eq!(Some(figure), case.is, "{}: figure {i}", self.name),
                (Err(error), Some(part)) => {
                    assert!(error.to_string().contains(part), "{}: figure {i}: {error}", self.name);
                }
                (read, _) => panic!("{}: figure {i}: {read:?}", self.name),
            }
        }
    }

    fn check_outcomes(&self) {
        let model = self.model();
        for (i, case) in self.cases.load_answers.iter().enumerate() {
            let outcome = self.app.read_load_step(model, case.step, &case.answer.answer());
            assert_eq!(outcome_text(&outcome), case.is, "{}: load answer {i}", self.name);
        }
        for (i, case) in self.cases.unload_answers.iter().enumerate() {
            let outcome = self.app.read_unload_step(model, case.step, &case.answer.answer());
            assert_eq!(outcome_text(&outcome), case.is, "{}: unload answer {i}", self.name);
        }
        for (i, case) in self.cases.confirmations.iter().enumerate() {
            let is_confirmed = self.app.is_unload_confirmed(model, &case.answer.answer());
            assert_eq!(is_confirmed, case.is, "{}: confirmation {i}", self.name);
        }
    }

    fn check_routes(&self) {
        for (request, expected) in &self.cases.routes {
            let (method, target) = request.split_once(' ').unwrap();
            let is_upgrade = method == "WS";
            let method = if is_upgrade { Method::GET } else { method.parse().unwrap() };
            let (path, query) = target.split_once('?').map_or((target, None), |(path, query)| (path, Some(query)));

            let route = self.app.route(&method, path, query, is_upgrade);
            assert_eq!(route_text(&route), *expected, "{}: {request}", self.name);
        }
    }

    /// An app whose answers are not recorded is not tested.
    fn check_that_nothing_is_left_out(&self) {
        let cases = &self.cases;
        let has = |what: &str, is_there: bool| assert!(is_there, "{}: no case of {what}", self.name);
        let begins = |outcomes: &[OutcomeCase], begin: &str| outcomes.iter().any(|case| case.is.starts_with(begin));

        if !self.app.identify().is_empty() {
            has("the right app", cases.identities.iter().any(|case| case.refused.is_none()));
            has("another app", cases.identities.iter().any(|case| case.refused.is_some()));
        }
        if self.app.list(&cases.models).is_some() {
            has("a loaded model", cases.lists.iter().filter_map(|case| case.is.as_ref()).any(|is| !is.is_empty()));
            has(
                "a list without one",
                cases.lists.iter().any(|case| {
                    case.is.as_ref().is_some_and(|is| is.is_empty() || is.values().all(|presence| presence == "away"))
                }),
            );
            has("an unreadable list", cases.lists.iter().any(|case| case.unreadable.is_some()));
        }
        if cases.busy.is_some() {
            has("an idle app", cases.figures.iter().any(|case| case.is == Some(0)));
            has("a busy app", cases.figures.iter().any(|case| case.is.is_some_and(|is| is > 0)));
            has("an unreadable figure", cases.figures.iter().any(|case| case.unreadable.is_some()));
        }
        if cases.load.is_some() {
            has("a load", begins(&cases.load_answers, "done"));
            has("a failed load", begins(&cases.load_answers, "failed"));
            has("a load without memory", begins(&cases.load_answers, "out of memory"));
        }
        if cases.unload.is_some() {
            has("an unload", begins(&cases.unload_answers, "done"));
            has("a failed unload", begins(&cases.unload_answers, "failed"));
        }
        if cases.confirm.is_some() {
            has("a confirmation", cases.confirmations.iter().any(|case| case.is));
            has("no confirmation yet", cases.confirmations.iter().any(|case| !case.is));
        }
        has("a route that is work", cases.routes.values().any(|route| route.starts_with("work")));
        has("a route that is no work", cases.routes.values().any(|route| route.starts_with("notWork")));
        assert_eq!(known::DESCRIPTIONS.iter().filter(|(name, _)| *name == self.app.name()).count(), 1);
    }
}

fn as_cases(requests: &[AppRequest]) -> Vec<RequestCase> {
    requests.iter().map(as_case).collect()
}

fn as_case(request: &AppRequest) -> RequestCase {
    assert!(!request.timeout.is_zero());
    RequestCase { request: format!("{} {}", request.method, request.path), body: request.body.clone(), port: None }
}

/// `loaded`, `loaded as 256`, `failed: why`.
fn listed_text(listed: &ListedModel) -> String {
    let presence = match &listed.presence {
        ModelPresence::Away => "away".to_owned(),
        ModelPresence::Loading => "loading".to_owned(),
        ModelPresence::Loaded => "loaded".to_owned(),
        ModelPresence::Unloading => "unloading".to_owned(),
        ModelPresence::Failed { cause } => format!("failed: {cause}"),
    };
    match &listed.instance {
        Some(instance) => format!("{presence} as {}", instance.replace('\n', ",")),
        None => presence,
    }
}

/// `done`, `busy: why`, `failed: why`, `out of memory: why`.
fn outcome_text(outcome: &ActionStepOutcome) -> String {
    match outcome {
        ActionStepOutcome::Done => "done".to_owned(),
        ActionStepOutcome::Busy { cause } => format!("busy: {cause}"),
        ActionStepOutcome::Failed { cause, out_of_memory: false } => format!("failed: {cause}"),
        ActionStepOutcome::Failed { cause, out_of_memory: true } => format!("out of memory: {cause}"),
    }
}

/// The class, then what else there is: `work body:model -keep_alive ?autoload until-idle forever command`.
fn route_text(route: &RouteMatch) -> String {
    let class = match route.class {
        RouteClass::Work => "work",
        RouteClass::NotWork => "notWork",
        RouteClass::NotWorkLoadedOnly => "notWorkLoadedOnly",
        RouteClass::Closed => return "closed".to_owned(),
        RouteClass::DisplaySocket => "displaySocket",
        RouteClass::WorkSocket => "workSocket",
    };
    let model = match &route.model {
        ModelNameSource::None => None,
        ModelNameSource::Body { member } => Some(format!("body:{member}")),
        ModelNameSource::Query { parameter } => Some(format!("query:{parameter}")),
        ModelNameSource::Earlier { parameter } => Some(format!("earlier:{parameter}")),
        ModelNameSource::Path { name } => Some(format!("path:{name}")),
    };

    let mut words = vec![class.to_owned()];
    words.extend(model);
    words.extend(route.removed_members.iter().map(|member| format!("-{member}")));
    words.extend(route.removed_parameters.iter().map(|parameter| format!("?{parameter}")));
    words.extend(route.ends_when_app_is_idle.then(|| "until-idle".to_owned()));
    words.extend(route.waits_forever.then(|| "forever".to_owned()));
    words.extend(route.command.as_ref().map(|_| "command".to_owned()));
    words.join(" ")
}

#[test]
fn a_command_in_disguise_is_told_from_work() {
    use crate::app::BodyCommand::{Load, Unload};

    let route = super::app("ollama").route(&Method::POST, "/api/generate", None, false);
    let command = route.command.unwrap();
    let find = |body: Value| {
        let members: BTreeMap<String, Vec<u8>> = body
            .as_object()
            .unwrap()
            .iter()
            .map(|(name, value)| (name.clone(), value.to_string().into_bytes()))
            .collect();
        command.find(|name| members.get(name).map(Vec::as_slice))
    };

    assert_eq!(find(json!({"model": "m", "prompt": "x", "keep_alive": 0})), None);
    assert_eq!(find(json!({"model": "m"})), Some(Load));
    assert_eq!(find(json!({"model": "m", "prompt": ""})), Some(Load));
    assert_eq!(find(json!({"model": "m", "prompt": null, "keep_alive": "5m"})), Some(Load));
    assert_eq!(find(json!({"model": "m", "keep_alive": -1})), Some(Load));
    assert_eq!(find(json!({"model": "m", "keep_alive": true})), Some(Load));
    for zero in [json!(0), json!(0.0), json!("0"), json!("0s"), json!("0h0m0s"), json!("-0"), json!("0ms")] {
        assert_eq!(find(json!({"model": "m", "prompt": "", "keep_alive": zero})), Some(Unload), "{zero}");
    }
}
