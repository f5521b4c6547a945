//! Conditions on answers, and numbers that are read from them.

use serde_json::Value;

use super::answer::AnswerReader;
use super::description::{ConditionDescription, NumberTermDescription};
use super::json_query::{JsonQuery, scalar_text};
use super::metrics_text;
use super::problem::FieldScope;
use super::template::{Placeholders, TemplateValues, TextTemplate};

/// A compiled condition.
#[derive(Clone, Debug, Default)]
pub(super) struct Condition {
    status: Vec<u16>,
    /// In lower case.
    text: Option<String>,
    json: Option<(JsonQuery, JsonTest)>,
    number: Option<(NumberSum, f64, f64)>,
    not: Option<Box<Condition>>,
}

/// What is asked of the values that a JSONPath selects.
#[derive(Clone, Debug)]
enum JsonTest {
    Exists,
    OneOf(Vec<Value>),
    /// In lower case.
    Contains(String),
}

impl Condition {
    pub(super) fn compile(
        source: &ConditionDescription,
        allowed: &Placeholders<'_>,
        field: &FieldScope<'_>,
    ) -> Option<Self> {
        if *source == ConditionDescription::default() {
            field.report("a condition must have one of `status`, `text`, `json`, `number` and `not`");
            return None;
        }
        for status in source.status.iter().filter(|status| !(100..=599).contains(*status)) {
            field.member("status").report(format!("{status} is no HTTP status; it must be from 100 to 599"));
        }

        let not = match &source.not {
            Some(not) => Some(Box::new(Self::compile(not, allowed, &field.member("not"))?)),
            None => None,
        };
        Some(Self {
            status: source.status.clone(),
            text: source.text.as_ref().map(|text| text.to_lowercase()),
            json: compile_json(source, field)?,
            number: compile_range(source, allowed, field)?,
            not,
        })
    }

    pub(super) fn compile_all(
        sources: &[ConditionDescription],
        allowed: &Placeholders<'_>,
        field: &FieldScope<'_>,
    ) -> Option<Vec<Self>> {
        let compile = |(i, source)| Self::compile(source, allowed, &field.item(i));
        sources.iter().enumerate().map(compile).collect()
    }

    pub(super) fn is_true(&self, answer: &AnswerReader<'_>, values: &TemplateValues<'_>) -> bool {
        self.evaluate(answer, values) == Some(true)
    }

    /// Kleene's three values: `None` is unknown, and one part that is false makes the whole false.
    fn evaluate(&self, answer: &AnswerReader<'_>, values: &TemplateValues<'_>) -> Option<bool> {
        let status = (!self.status.is_empty()).then(|| Some(self.status.contains(&answer.status())));
        let text = self.text.as_ref().map(|text| Some(answer.contains(text)));
        let json = self.json.as_ref().map(|(query, test)| Some(test.holds(&query.select(answer.document()?))));
        let number = self.number.as_ref().map(|(sum, least, most)| {
            let value = sum.evaluate(answer, values).ok()?;
            Some((*least..=*most).contains(&value))
        });
        let not = self.not.as_ref().map(|not| not.evaluate(answer, values).map(|held| !held));

        let parts: Vec<Option<bool>> = [status, text, json, number, not].into_iter().flatten().collect();
        if parts.contains(&Some(false)) {
            return Some(false);
        }
        parts.iter().all(Option::is_some).then_some(true)
    }
}

/// The outer `None`: a problem was reported.
fn compile_json(source: &ConditionDescription, field: &FieldScope<'_>) -> Option<Option<(JsonQuery, JsonTest)>> {
    let tests: Vec<JsonTest> = [
        source.equals.clone().map(|value| JsonTest::OneOf(vec![value])),
        source.one_of.clone().map(JsonTest::OneOf),
        source.contains.as_ref().map(|text| JsonTest::Contains(text.to_lowercase())),
    ]
    .into_iter()
    .flatten()
    .collect();

    if tests.len() > 1 {
        field.report("at most one of `equals`, `oneOf` and `contains` is possible");
        return None;
    }
    match &source.json {
        None if tests.is_empty() => Some(None),
        None => {
            field.report("`equals`, `oneOf` and `contains` need `json`");
            None
        }
        Some(path) => {
            let query = JsonQuery::compile(path, &field.member("json"))?;
            Some(Some((query, tests.into_iter().next().unwrap_or(JsonTest::Exists))))
        }
    }
}

/// The outer `None`: a problem was reported.
fn compile_range(
    source: &ConditionDescription,
    allowed: &Placeholders<'_>,
    field: &FieldScope<'_>,
) -> Option<Option<(NumberSum, f64, f64)>> {
    let has_bound = source.at_least.is_some() || source.at_most.is_some();
    if source.number.is_empty() == has_bound {
        field.report("`number` needs `atLeast` or `atMost`, and these need `number`");
        return None;
    }
    if source.number.is_empty() {
        return Some(None);
    }

    let sum = NumberSum::compile(&source.number, allowed, &field.member("number"))?;
    let least = source.at_least.unwrap_or(f64::NEG_INFINITY);
    Some(Some((sum, least, source.at_most.unwrap_or(f64::INFINITY))))
}

impl JsonTest {
    fn holds(&self, selected: &[&Value]) -> bool {
        match self {
            Self::Exists => !selected.is_empty(),
            Self::OneOf(values) => selected.iter().any(|found| values.iter().any(|value| is_equal(found, value))),
            Self::Contains(text) => selected
                .iter()
                .filter_map(|found| scalar_text(found))
                .any(|found| found.to_lowercase().contains(text.as_str())),
        }
    }
}

/// `1` and `1.0` are equal, which they are not as `Value`s.
fn is_equal(one: &Value, other: &Value) -> bool {
    match (one.as_f64(), other.as_f64()) {
        (Some(one), Some(other)) => one == other,
        _ => one == other,
    }
}

/// A compiled sum of parts.
#[derive(Clone, Debug)]
pub(super) struct NumberSum {
    terms: Vec<NumberTerm>,
}

#[derive(Clone, Debug)]
struct NumberTerm {
    source: NumberSource,
    missing_is_zero: bool,
    subtract: bool,
}

#[derive(Clone, Debug)]
enum NumberSource {
    Count(JsonQuery),
    Sum(JsonQuery),
    Metric { name: String, labels: Vec<(String, TextTemplate)> },
    When(Box<Condition>),
}

impl NumberSum {
    pub(super) fn compile(
        sources: &[NumberTermDescription],
        allowed: &Placeholders<'_>,
        field: &FieldScope<'_>,
    ) -> Option<Self> {
        if sources.is_empty() {
            field.report("at least one part is needed, such as `{count: \"$.queue[*]\"}`");
            return None;
        }
        let compile = |(i, source)| NumberTerm::compile(source, allowed, &field.item(i));
        let terms = sources.iter().enumerate().map(compile).collect::<Option<Vec<_>>>()?;
        Some(Self { terms })
    }

    /// An error says what is missing.
    pub(super) fn evaluate(&self, answer: &AnswerReader<'_>, values: &TemplateValues<'_>) -> Result<f64, String> {
        let mut sum = 0.0;
        for term in &self.terms {
            let value = match term.source.evaluate(answer, values) {
                Err(_) if term.missing_is_zero => 0.0,
                value => value?,
            };
            sum += if term.subtract { -value } else { value };
        }
        Ok(sum)
    }
}

impl NumberTerm {
    fn compile(source: &NumberTermDescription, allowed: &Placeholders<'_>, field: &FieldScope<'_>) -> Option<Self> {
        let given = [source.count.is_some(), source.sum.is_some(), source.metric.is_some(), source.when.is_some()];
        if given.iter().filter(|is_given| **is_given).count() != 1 {
            field.report("exactly one of `count`, `sum`, `metric` and `when` is needed");
            return None;
        }
        if source.metric.is_none() && !source.labels.is_empty() {
            field.member("labels").report("labels belong to a `metric`");
            return None;
        }

        let compiled = if let Some(path) = &source.count {
            NumberSource::Count(JsonQuery::compile(path, &field.member("count"))?)
        } else if let Some(path) = &source.sum {
            NumberSource::Sum(JsonQuery::compile(path, &field.member("sum"))?)
        } else if let Some(name) = &source.metric {
            let labels_field = field.member("labels");
            let compile = |(label, value): (&String, &String)| {
                TextTemplate::compile(value, allowed, &labels_field.member(label)).map(|value| (label.clone(), value))
            };
            let labels = source.labels.iter().map(compile).collect::<Option<_>>()?;
            NumberSource::Metric { name: name.clone(), labels }
        } else {
            let condition = source.when.as_deref()?;
            NumberSource::When(Box::new(Condition::compile(condition, allowed, &field.member("when"))?))
        };
        Some(Self { source: compiled, missing_is_zero: source.missing_is_zero, subtract: source.subtract })
    }
}

impl NumberSource {
    fn evaluate(&self, answer: &AnswerReader<'_>, values: &TemplateValues<'_>) -> Result<f64, String> {
        const NO_JSON: &str = "something that is no JSON";
        match self {
            Self::Count(query) => Ok(query.select(answer.document().ok_or(NO_JSON)?).len() as f64),
            Self::Sum(query) => {
                let selected = query.select(answer.document().ok_or(NO_JSON)?);
                let numbers = selected.into_iter().filter_map(as_number);
                let sum = numbers.reduce(|sum, number| sum + number);
                sum.ok_or_else(|| format!("without a number at `{}`", query.text()))
            }
            Self::Metric { name, labels } => {
                let labels: Vec<(String, String)> =
                    labels.iter().map(|(label, value)| (label.clone(), value.render(values))).collect();
                let sum = metrics_text::sum_of(&answer.text(), name, &labels);
                sum.ok_or_else(|| format!("without the metric `{name}`"))
            }
            Self::When(condition) => {
                let is_true = condition.evaluate(answer, values).ok_or(NO_JSON)?;
                Ok(f64::from(u8::from(is_true)))
            }
        }
    }
}

/// Numbers, and booleans as 1 and 0.
fn as_number(value: &Value) -> Option<f64> {
    value.as_f64().or_else(|| value.as_bool().map(|is_true| f64::from(u8::from(is_true))))
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;

    use bytes::Bytes;
    use http::StatusCode;
    use serde_json::{Map, json};

    use super::*;
    use crate::app::AppAnswer;
    use crate::app::description::AnswerFormat;

    fn compile(source: Value) -> Result<Condition, String> {
        let source: ConditionDescription = serde_json::from_value(source).unwrap();
        let problems = RefCell::default();
        let condition = Condition::compile(&source, &Placeholders::NONE, &FieldScope::root(&problems));
        let message = problems.borrow().first().map(ToString::to_string);
        condition.ok_or_else(|| message.unwrap())
    }

    fn holds(source: Value, status: u16, body: &str) -> bool {
        let answer =
            AppAnswer { status: StatusCode::from_u16(status).unwrap(), body: Bytes::copy_from_slice(body.as_bytes()) };
        let parameters = Map::new();
        let values = TemplateValues { model: "m", instance: "", parameters: &parameters };
        compile(source).unwrap().is_true(&AnswerReader::new(&answer, AnswerFormat::Json), &values)
    }

    #[test]
    fn all_parts_must_hold() {
        let condition = json!({"status": [200], "json": "$.a", "equals": 1, "text": "X"});
        assert!(holds(condition.clone(), 200, r#"{"a":1.0,"b":"x"}"#));
        assert!(!holds(condition.clone(), 201, r#"{"a":1,"b":"x"}"#));
        assert!(!holds(condition.clone(), 200, r#"{"a":1}"#));
        assert!(!holds(condition, 200, r#"{"a":2,"b":"x"}"#));

        assert!(holds(json!({"json": "$[*].s", "contains": "BUSY"}), 200, r#"[{"s":"a"},{"s":"still busy"}]"#));
        assert!(holds(json!({"json": "$.s", "oneOf": ["a", null]}), 200, r#"{"s":null}"#));
    }

    #[test]
    fn what_cannot_be_read_is_true_neither_way() {
        assert!(!holds(json!({"json": "$.a"}), 200, "<html>"));
        assert!(!holds(json!({"not": {"json": "$.a"}}), 200, "<html>"));
        assert!(holds(json!({"not": {"json": "$.a"}}), 200, "{}"));
        assert!(holds(json!({"not": {"json": "$.a", "status": [500]}}), 200, "<html>"));
    }

    #[test]
    fn numbers_are_sums_within_bounds() {
        let used = json!({"number": [{"sum": "$.d[*].total"}, {"sum": "$.d[*].free", "subtract": true}], "atMost": 5});
        assert!(holds(used.clone(), 200, r#"{"d":[{"total":10,"free":8},{"total":3,"free":0}]}"#));
        assert!(!holds(used.clone(), 200, r#"{"d":[{"total":10,"free":4}]}"#));
        assert!(!holds(used.clone(), 200, r#"{"d":[]}"#));
        assert!(!holds(json!({"not": used}), 200, "{}"));
    }

    #[test]
    fn a_condition_that_can_never_be_meant_is_refused() {
        let problem = |source| compile(source).unwrap_err();
        assert!(problem(json!({})).contains("must have one of"));
        assert!(problem(json!({"equals": 1})).contains("need `json`"));
        assert!(problem(json!({"json": "$.a", "equals": 1, "contains": "x"})).contains("at most one of"));
        assert!(problem(json!({"json": "a."})).starts_with("`json`: `a.` is no JSONPath"));
        assert!(problem(json!({"number": [{"count": "$"}]})).contains("needs `atLeast`"));
        assert!(problem(json!({"number": [{"count": "$", "metric": "m"}], "atMost": 1})).starts_with("`number[0]`: "));
    }
}
