//! What is loaded, as the app says.

use std::time::Duration;

use serde_json::Value;

use super::answer::AnswerReader;
use super::condition::Condition;
use super::description::{
    CauseDescription, ItemsDescription, ListDescription, ModelNaming, PresenceName, PresenceRuleDescription,
    StatesDescription,
};
use super::json_query::JsonQuery;
use super::names::CanonicalName;
use super::problem::FieldScope;
use super::request::RequestTemplate;
use super::template::{Placeholders, TemplateValues};
use super::{AppAnswer, AppAnswerError, AppRequest, ListedModel, ModelPresence};

const TIMEOUT: Duration = Duration::from_secs(10);

/// A compiled list.
#[derive(Clone, Debug)]
pub(super) struct Listing {
    request: RequestTemplate,
    empty_when: Vec<Condition>,
    source: PresenceSource,
}

#[derive(Clone, Debug)]
enum PresenceSource {
    Items(Items),
    Rules { rules: Vec<PresenceRule>, is_per_model: bool },
}

#[derive(Clone, Debug)]
struct Items {
    at: JsonQuery,
    name: JsonQuery,
    other_names: Option<JsonQuery>,
    instance: Option<JsonQuery>,
    states: Option<States>,
    failed: Option<(Condition, Cause)>,
}

#[derive(Clone, Debug)]
struct States {
    at: JsonQuery,
    words: Vec<(String, PresenceName)>,
    missing: Option<PresenceName>,
}

#[derive(Clone, Debug)]
struct PresenceRule {
    when: Condition,
    is: PresenceName,
    cause: Cause,
}

/// Where the cause of a failure is found.
#[derive(Clone, Debug, Default)]
pub(super) struct Cause {
    text: Option<String>,
    json: Option<JsonQuery>,
}

/// What is asked of a list.
#[derive(Clone, Copy)]
pub(super) struct ListQuestion<'a> {
    pub(super) models: &'a [String],
    pub(super) names: &'a CanonicalName,
    /// `model` is replaced.
    pub(super) values: TemplateValues<'a>,
}

impl Listing {
    pub(super) fn compile(
        source: &ListDescription,
        naming: ModelNaming,
        allowed: &Placeholders<'_>,
        field: &FieldScope<'_>,
    ) -> Option<Self> {
        if source.items.is_some() != source.rules.is_empty() {
            field.report("exactly one of `items` and `rules` is needed");
            return None;
        }

        let request = RequestTemplate::compile(&source.request, allowed, TIMEOUT, &field.member("request"));
        let empty_when = Condition::compile_all(&source.empty_when, allowed, &field.member("emptyWhen"));
        let presence = match &source.items {
            Some(items) => Items::compile(items, allowed, &field.member("items")).map(PresenceSource::Items),
            None => {
                let field = field.member("rules");
                let compile = |(i, rule)| PresenceRule::compile(rule, allowed, &field.item(i));
                let rules = source.rules.iter().enumerate().map(compile).collect::<Option<_>>();
                rules.map(|rules| PresenceSource::Rules { rules, is_per_model: naming == ModelNaming::Named })
            }
        };

        let request = request?;
        if source.items.is_none() && naming == ModelNaming::Named && !request.has_model_in_path() {
            field.member("request.path").report("must contain `{model}`, because requests name their model");
        }
        Some(Self { request, empty_when: empty_when?, source: presence? })
    }

    pub(super) fn requests(&self, question: ListQuestion<'_>) -> Vec<AppRequest> {
        let models = self.asked_models(question);
        models.iter().map(|model| self.request.render(&TemplateValues { model, ..question.values })).collect()
    }

    pub(super) fn read(
        &self,
        question: ListQuestion<'_>,
        answers: &[AppAnswer],
    ) -> Result<Vec<ListedModel>, AppAnswerError> {
        let models = self.asked_models(question);
        if models.len() != answers.len() {
            let problem = format!("{} times instead of {}", answers.len(), models.len());
            return Err(AppAnswerError { request: "the list".to_owned(), problem });
        }

        let mut listed = Vec::new();
        for (model, answer) in models.iter().zip(answers) {
            let values = TemplateValues { model, ..question.values };
            let answer = AnswerReader::new(answer, self.request.format);
            if self.empty_when.iter().any(|empty| empty.is_true(&answer, &values)) {
                continue;
            }

            let unreadable = |problem| AppAnswerError { request: self.request.label(&values), problem };
            match &self.source {
                PresenceSource::Items(items) => {
                    listed.extend(items.read(&answer, question, &values).map_err(unreadable)?);
                }
                PresenceSource::Rules { rules, is_per_model } => {
                    let rule = rules.iter().find(|rule| rule.when.is_true(&answer, &values));
                    let rule = rule.ok_or_else(|| unreadable(answer.summary()))?;
                    let named: &[String] = if *is_per_model { std::slice::from_ref(model) } else { question.models };
                    listed.extend(named.iter().map(|model| ListedModel {
                        name: question.names.apply(model),
                        presence: presence(rule.is, || rule.cause.read(answer.document(), || answer.message())),
                        instance: None,
                    }));
                }
            }
        }
        Ok(merged(listed))
    }

    /// The models for which the request is sent: all of them, or one for an answer that holds for all.
    fn asked_models(&self, question: ListQuestion<'_>) -> Vec<String> {
        let mut names = question.models.iter().map(|model| question.names.apply(model));
        match self.source {
            PresenceSource::Rules { is_per_model: true, .. } => names.collect(),
            _ => vec![names.next().unwrap_or_default()],
        }
    }
}

impl Items {
    fn compile(source: &ItemsDescription, allowed: &Placeholders<'_>, field: &FieldScope<'_>) -> Option<Self> {
        let at = JsonQuery::compile(&source.at, &field.member("at"));
        let name = JsonQuery::compile(&source.name, &field.member("name"));
        let other_names = JsonQuery::compile_optional(source.other_names.as_ref(), &field.member("otherNames"));
        let instance = JsonQuery::compile_optional(source.instance.as_ref(), &field.member("instance"));

        let states = match &source.states {
            Some(states) => Some(States::compile(states, &field.member("states"))?),
            None => None,
        };
        let failed = match &source.failed {
            Some(failed) => {
                let field = field.member("failed");
                let when = Condition::compile(&failed.when, allowed, &field.member("when"))?;
                Some((when, Cause::compile(&failed.cause, &field.member("cause"))))
            }
            None => None,
        };
        Some(Self { at: at?, name: name?, other_names, instance, states, failed })
    }

    fn read(
        &self,
        answer: &AnswerReader<'_>,
        question: ListQuestion<'_>,
        values: &TemplateValues<'_>,
    ) -> Result<Vec<ListedModel>, String> {
        if !answer.is_success() {
            return Err(answer.summary());
        }
        let document = answer.document().ok_or_else(|| format!("no JSON: {}", answer.summary()))?;

        let mut listed = Vec::new();
        for item in self.at.select(document) {
            let names = self.name.select_texts(item).into_iter();
            let other_names = self.other_names.iter().flat_map(|names| names.select_texts(item));
            let names: Vec<String> = names.chain(other_names).map(|name| question.names.apply(&name)).collect();

            let is_governed = names.iter().any(|name| question.models.iter().any(|m| question.names.apply(m) == *name));
            let presence = match self.presence(item, values) {
                Ok(presence) => presence,
                Err(problem) if is_governed => return Err(format!("of `{}` {problem}", names.join("`, `"))),
                // What other models say does not matter.
                Err(_) => continue,
            };

            let instances = self.instance.iter().flat_map(|instance| instance.select_texts(item));
            let instance = instances.reduce(|all, instance| format!("{all}\n{instance}"));
            listed.extend(names.into_iter().map(|name| ListedModel {
                name,
                presence: presence.clone(),
                instance: instance.clone(),
            }));
        }
        Ok(listed)
    }

    /// An error completes the sentence "the app answered of `model` ...".
    fn presence(&self, item: &Value, values: &TemplateValues<'_>) -> Result<ModelPresence, String> {
        if let Some((when, cause)) = &self.failed {
            let answer = AppAnswer { status: http::StatusCode::OK, body: item.to_string().into() };
            let answer = AnswerReader::new(&answer, super::description::AnswerFormat::Json);
            if when.is_true(&answer, values) {
                let unknown = || "the app does not say why".to_owned();
                return Ok(ModelPresence::Failed { cause: cause.read(Some(item), unknown) });
            }
        }
        let Some(states) = &self.states else { return Ok(ModelPresence::Loaded) };
        states.read(item)
    }
}

impl States {
    fn compile(source: &StatesDescription, field: &FieldScope<'_>) -> Option<Self> {
        let lists = [
            (&source.loaded, PresenceName::Loaded),
            (&source.loading, PresenceName::Loading),
            (&source.unloading, PresenceName::Unloading),
            (&source.away, PresenceName::Away),
            (&source.failed, PresenceName::Failed),
        ];
        let words: Vec<(String, PresenceName)> =
            lists.iter().flat_map(|(words, is)| words.iter().map(|word| (word.clone(), *is))).collect();

        if source.loaded.is_empty() && source.missing != Some(PresenceName::Loaded) {
            field.member("loaded").report("at least one word must mean that the model is loaded");
        }
        for (i, (word, _)) in words.iter().enumerate() {
            if words[..i].iter().any(|(earlier, _)| earlier == word) {
                field.report(format!("`{word}` stands in two lists"));
            }
        }
        let at = JsonQuery::compile(&source.at, &field.member("at"))?;
        Some(Self { at, words, missing: source.missing })
    }

    fn read(&self, item: &Value) -> Result<ModelPresence, String> {
        let word = self.at.select_texts(item).into_iter().next();
        let is = match &word {
            Some(word) => self.words.iter().find(|(known, _)| known == word).map(|(_, is)| *is),
            None => self.missing,
        };
        let is = is.ok_or_else(|| match &word {
            Some(word) => format!("the unknown state `{word}`"),
            None => format!("no state at `{}`", self.at.text()),
        })?;
        Ok(presence(is, || format!("the app says `{}`", word.unwrap_or_default())))
    }
}

impl PresenceRule {
    fn compile(source: &PresenceRuleDescription, allowed: &Placeholders<'_>, field: &FieldScope<'_>) -> Option<Self> {
        let when = Condition::compile(&source.when, allowed, &field.member("when"))?;
        Some(Self { when, is: source.is, cause: Cause::compile(&source.cause, &field.member("cause")) })
    }
}

impl Cause {
    pub(super) fn compile(source: &CauseDescription, field: &FieldScope<'_>) -> Self {
        let json = JsonQuery::compile_optional(source.json.as_ref(), &field.member("json"));
        Self { text: source.text.clone(), json }
    }

    /// `text: json`, or what is there of both, or `otherwise`.
    pub(super) fn read(&self, document: Option<&Value>, otherwise: impl FnOnce() -> String) -> String {
        let selected = self.json.as_ref().zip(document).map(|(json, document)| json.select_texts(document).join(", "));
        let selected = selected.filter(|selected| !selected.is_empty()).map(|text| super::answer::excerpt(&text));
        match (&self.text, selected) {
            (Some(text), Some(selected)) => format!("{text}: {selected}"),
            (Some(text), None) => text.clone(),
            (None, Some(selected)) => selected,
            (None, None) => otherwise(),
        }
    }
}

fn presence(is: PresenceName, cause: impl FnOnce() -> String) -> ModelPresence {
    match is {
        PresenceName::Away => ModelPresence::Away,
        PresenceName::Loading => ModelPresence::Loading,
        PresenceName::Loaded => ModelPresence::Loaded,
        PresenceName::Unloading => ModelPresence::Unloading,
        PresenceName::Failed => ModelPresence::Failed { cause: cause() },
    }
}

/// One entry for each name. A model that is listed more than once (versions, instances) is what its most present entry
/// says, with the instances of all.
fn merged(listed: Vec<ListedModel>) -> Vec<ListedModel> {
    let rank = |presence: &ModelPresence| match presence {
        ModelPresence::Loaded => 4,
        ModelPresence::Loading => 3,
        ModelPresence::Unloading => 2,
        ModelPresence::Failed { .. } => 1,
        ModelPresence::Away => 0,
    };

    let mut merged: Vec<ListedModel> = Vec::with_capacity(listed.len());
    for model in listed {
        let Some(known) = merged.iter_mut().find(|known| known.name == model.name) else {
            merged.push(model);
            continue;
        };
        known.instance = match (known.instance.take(), model.instance) {
            (Some(known), Some(further)) if known != further => Some(format!("{known}\n{further}")),
            (known, further) => known.or(further),
        };
        if rank(&model.presence) > rank(&known.presence) {
            known.presence = model.presence;
        }
    }
    merged
}
