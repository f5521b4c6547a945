//! Loading and unloading: the requests, and what their answers mean.

use std::time::Duration;

use serde_json::{Map, Value};

use super::answer::{AnswerReader, tells_lack_of_memory};
use super::condition::Condition;
use super::description::{ActionDescription, ConfirmDescription, OutcomeDescription, OutcomeName, StepDescription};
use super::listing::Cause;
use super::problem::FieldScope;
use super::request::RequestTemplate;
use super::template::{Placeholders, TemplateValues};
use super::{ActionStepOutcome, AppAction, AppAnswer, AppRequest};

const CONFIRM_TIMEOUT: Duration = Duration::from_secs(10);

/// A compiled action.
#[derive(Clone, Debug)]
pub(super) struct Action {
    steps: Vec<Step>,
    always: Vec<RequestTemplate>,
    confirm: Option<(RequestTemplate, Condition)>,
    /// The steps are repeated for each instance.
    is_per_instance: bool,
}

#[derive(Clone, Debug)]
struct Step {
    only_if: Option<(String, Value)>,
    request: RequestTemplate,
    outcomes: Vec<ActionOutcome>,
}

#[derive(Clone, Debug)]
struct ActionOutcome {
    when: Condition,
    is: OutcomeName,
    cause: Cause,
}

impl Action {
    pub(super) fn compile(
        source: &ActionDescription,
        allowed: &Placeholders<'_>,
        timeout: Duration,
        field: &FieldScope<'_>,
    ) -> Option<Self> {
        if source.steps.is_empty() {
            field.member("steps").report("at least one step is needed");
        }
        let steps_field = field.member("steps");
        let compile = |(i, step)| Step::compile(step, allowed, timeout, &steps_field.item(i));
        let steps = source.steps.iter().enumerate().map(compile).collect::<Option<Vec<_>>>();

        // They do not belong to one instance.
        let shared = Placeholders { instance: false, ..*allowed };
        let always_field = field.member("always");
        let compile = |(i, request)| RequestTemplate::compile(request, &shared, timeout, &always_field.item(i));
        let always = source.always.iter().enumerate().map(compile).collect::<Option<Vec<_>>>();

        let confirm = match &source.confirm {
            Some(confirm) => Some(compile_confirm(confirm, &shared, &field.member("confirm"))?),
            None => None,
        };
        let steps = steps?;
        let is_per_instance = steps.iter().any(|step| step.request.has_instance());
        Some(Self { steps, always: always?, confirm, is_per_instance })
    }

    pub(super) fn has_confirm(&self) -> bool {
        self.confirm.is_some()
    }

    /// The parameters whose members are added to bodies.
    pub(super) fn object_parameters(&self) -> impl Iterator<Item = &str> {
        let steps = self.steps.iter().map(|step| &step.request);
        steps.chain(&self.always).filter_map(RequestTemplate::object_parameter)
    }

    /// The requests; those of the steps once for each of `instances` if they name one.
    pub(super) fn requests(&self, instances: &[&str], values: &TemplateValues<'_>) -> AppAction {
        let instances = if self.is_per_instance { instances } else { &[""] };
        let steps = instances.iter().flat_map(|instance| {
            let values = TemplateValues { instance, ..*values };
            self.effective_steps(values.parameters).map(move |step| step.request.render(&values))
        });

        AppAction { steps: steps.collect(), always: self.always.iter().map(|request| request.render(values)).collect() }
    }

    pub(super) fn read_step(&self, step: usize, answer: &AppAnswer, values: &TemplateValues<'_>) -> ActionStepOutcome {
        let steps: Vec<&Step> = self.effective_steps(values.parameters).collect();
        let Some(step) = step.checked_rem(steps.len()).and_then(|step| steps.get(step)) else {
            return ActionStepOutcome::Failed { cause: "the action has no steps".to_owned(), out_of_memory: false };
        };
        step.read(answer, values)
    }

    pub(super) fn confirm_request(&self, values: &TemplateValues<'_>) -> Option<AppRequest> {
        self.confirm.as_ref().map(|(request, _)| request.render(values))
    }

    /// Whether the action has come true, as the answer says; without a confirmation it has.
    pub(super) fn is_confirmed(&self, answer: &AppAnswer, values: &TemplateValues<'_>) -> bool {
        let Some((request, when)) = &self.confirm else { return true };
        when.is_true(&AnswerReader::new(answer, request.format), values)
    }

    fn effective_steps<'a>(&'a self, parameters: &'a Map<String, Value>) -> impl Iterator<Item = &'a Step> {
        self.steps.iter().filter(move |step| match &step.only_if {
            Some((parameter, wanted)) => parameters.get(parameter) == Some(wanted),
            None => true,
        })
    }
}

impl Step {
    fn compile(
        source: &StepDescription,
        allowed: &Placeholders<'_>,
        timeout: Duration,
        field: &FieldScope<'_>,
    ) -> Option<Self> {
        let only_if = source.only_if.as_ref().map(|only_if| (only_if.parameter.clone(), only_if.equals.clone()));
        if let Some((parameter, _)) = &only_if
            && !allowed.parameters.contains(&parameter.as_str())
        {
            field.member("onlyIf.parameter").report(format!("`{parameter}` is none of `parameters`"));
        }

        let request = RequestTemplate::compile(&source.request, allowed, timeout, &field.member("request"));
        let field = field.member("outcomes");
        let compile = |(i, outcome)| ActionOutcome::compile(outcome, allowed, &field.item(i));
        let outcomes = source.outcomes.iter().enumerate().map(compile).collect::<Option<Vec<_>>>();
        Some(Self { only_if, request: request?, outcomes: outcomes? })
    }

    fn read(&self, answer: &AppAnswer, values: &TemplateValues<'_>) -> ActionStepOutcome {
        let answer = AnswerReader::new(answer, self.request.format);
        let said = || self.request.describe(&answer, values);
        let failed = |cause: String| {
            let out_of_memory = tells_lack_of_memory(&cause) || tells_lack_of_memory(&answer.message());
            ActionStepOutcome::Failed { cause, out_of_memory }
        };

        let Some(outcome) = self.outcomes.iter().find(|outcome| outcome.when.is_true(&answer, values)) else {
            return if answer.is_success() { ActionStepOutcome::Done } else { failed(said()) };
        };
        let cause = || outcome.cause.read(answer.document(), said);
        match outcome.is {
            OutcomeName::Done => ActionStepOutcome::Done,
            OutcomeName::Busy => ActionStepOutcome::Busy { cause: cause() },
            OutcomeName::Failed => failed(cause()),
            OutcomeName::OutOfMemory => ActionStepOutcome::Failed { cause: cause(), out_of_memory: true },
        }
    }
}

impl ActionOutcome {
    fn compile(source: &OutcomeDescription, allowed: &Placeholders<'_>, field: &FieldScope<'_>) -> Option<Self> {
        let when = Condition::compile(&source.when, allowed, &field.member("when"))?;
        Some(Self { when, is: source.is, cause: Cause::compile(&source.cause, &field.member("cause")) })
    }
}

pub(super) fn compile_confirm(
    source: &ConfirmDescription,
    allowed: &Placeholders<'_>,
    field: &FieldScope<'_>,
) -> Option<(RequestTemplate, Condition)> {
    let request = RequestTemplate::compile(&source.request, allowed, CONFIRM_TIMEOUT, &field.member("request"));
    let when = Condition::compile(&source.when, allowed, &field.member("when"));
    Some((request?, when?))
}
