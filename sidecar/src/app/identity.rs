//! Whether an app is what it should be, with the flags that governing it needs.

use std::time::Duration;

use super::answer::AnswerReader;
use super::condition::Condition;
use super::description::{DemandDescription, IdentityDescription};
use super::json_query::JsonQuery;
use super::problem::FieldScope;
use super::request::RequestTemplate;
use super::template::{Placeholders, TemplateValues};
use super::{AppAnswer, AppIdentity, AppRequest, UnsuitableApp};

const TIMEOUT: Duration = Duration::from_secs(10);

/// One request, and what its answer must say.
#[derive(Clone, Debug)]
struct IdentityCheck {
    request: RequestTemplate,
    version: Option<JsonQuery>,
    must: Vec<Demand>,
    should: Vec<Demand>,
}

#[derive(Clone, Debug)]
struct Demand {
    that: Condition,
    otherwise: String,
}

/// All checks of an app's identity.
#[derive(Clone, Debug, Default)]
pub(super) struct IdentityChecks {
    checks: Vec<IdentityCheck>,
}

impl IdentityChecks {
    pub(super) fn compile(sources: &[IdentityDescription], field: &FieldScope<'_>) -> Option<Self> {
        let compile = |(i, source)| IdentityCheck::compile(source, &field.item(i));
        let checks = sources.iter().enumerate().map(compile).collect::<Option<Vec<_>>>()?;
        Some(Self { checks })
    }

    pub(super) fn requests(&self, values: &TemplateValues<'_>) -> Vec<AppRequest> {
        self.checks.iter().map(|check| check.request.render(values)).collect()
    }

    /// The first check tells whether it is the app; only if it is, the flags that are missing are told, all at once.
    pub(super) fn read(
        &self,
        title: &str,
        answers: &[AppAnswer],
        values: &TemplateValues<'_>,
    ) -> Result<AppIdentity, UnsuitableApp> {
        if answers.len() != self.checks.len() {
            let (given, expected) = (answers.len(), self.checks.len());
            return Err(UnsuitableApp(format!(
                "{given} of {expected} answers about the identity of {title} are there"
            )));
        }

        let mut identity = AppIdentity::default();
        let mut missing = Vec::new();
        for (i, (check, answer)) in self.checks.iter().zip(answers).enumerate() {
            let answer = AnswerReader::new(answer, check.request.format);
            let refused: Vec<String> = check.refusals(&answer, values);
            if i == 0 && !refused.is_empty() {
                let problem = refused.join("; ");
                let answered = check.request.describe(&answer, values);
                let is_refused_key = matches!(answer.status(), 401 | 403);
                return Err(UnsuitableApp(if is_refused_key { problem } else { format!("{problem} ({answered})") }));
            }

            missing.extend(refused);
            identity.warnings.extend(check.warnings(&answer, values));
            let version = check.version.as_ref().zip(answer.document());
            let found = version.and_then(|(version, document)| version.select_texts(document).into_iter().next());
            identity.version = identity.version.or(found);
        }

        if missing.is_empty() { Ok(identity) } else { Err(UnsuitableApp(missing.join("; "))) }
    }
}

impl IdentityCheck {
    fn compile(source: &IdentityDescription, field: &FieldScope<'_>) -> Option<Self> {
        if source.must.is_empty() && source.should.is_empty() && source.version.is_none() {
            field.report("one of `must`, `should` and `version` is needed, else the answer means nothing");
        }

        let version = JsonQuery::compile_optional(source.version.as_ref(), &field.member("version"));
        let request = RequestTemplate::compile(&source.request, &Placeholders::NONE, TIMEOUT, &field.member("request"));
        let must = compile_demands(&source.must, &field.member("must"));
        let should = compile_demands(&source.should, &field.member("should"));
        Some(Self { request: request?, version, must: must?, should: should? })
    }

    fn refusals(&self, answer: &AnswerReader<'_>, values: &TemplateValues<'_>) -> Vec<String> {
        let unmet = unmet(&self.must, answer, values);
        if !unmet.is_empty() && matches!(answer.status(), 401 | 403) {
            let request = self.request.label(values);
            let status = answer.status();
            return vec![format!("{request} answered {status}: the sidecar needs the app's key, with admin rights")];
        }
        unmet
    }

    fn warnings(&self, answer: &AnswerReader<'_>, values: &TemplateValues<'_>) -> Vec<String> {
        unmet(&self.should, answer, values)
    }
}

fn unmet(demands: &[Demand], answer: &AnswerReader<'_>, values: &TemplateValues<'_>) -> Vec<String> {
    let unmet = demands.iter().filter(|demand| !demand.that.is_true(answer, values));
    unmet.map(|demand| demand.otherwise.clone()).collect()
}

fn compile_demands(sources: &[DemandDescription], field: &FieldScope<'_>) -> Option<Vec<Demand>> {
    let compile = |(i, source): (usize, &DemandDescription)| {
        let field = field.item(i);
        if source.otherwise.trim().is_empty() {
            field.member("otherwise").report("must say which flag to set, or what is wrong");
        }
        let that = Condition::compile(&source.that, &Placeholders::NONE, &field.member("that"))?;
        Some(Demand { that, otherwise: source.otherwise.clone() })
    };
    sources.iter().enumerate().map(compile).collect()
}
