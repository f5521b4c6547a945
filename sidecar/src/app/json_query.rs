//! JSONPath (RFC 9535) over answers.

use jsonpath_rust::parser::model::JpQuery;
use jsonpath_rust::parser::parse_json_path;
use jsonpath_rust::query::js_path_process;
use serde_json::Value;

use super::problem::FieldScope;

/// A compiled JSONPath.
#[derive(Clone, Debug)]
pub(super) struct JsonQuery {
    text: String,
    query: JpQuery,
}

impl JsonQuery {
    pub(super) fn compile(text: &str, field: &FieldScope<'_>) -> Option<Self> {
        match parse_json_path(text) {
            Ok(query) => Some(Self { text: text.to_owned(), query }),
            Err(error) => {
                let cause = cause_line(&error.to_string());
                field.report(format!("`{text}` is no JSONPath such as `$.models[*].name`: {cause}"));
                None
            }
        }
    }

    pub(super) fn compile_optional(text: Option<&String>, field: &FieldScope<'_>) -> Option<Self> {
        text.and_then(|text| Self::compile(text, field))
    }

    /// The values that it selects, in their order.
    pub(super) fn select<'a>(&self, document: &'a Value) -> Vec<&'a Value> {
        js_path_process(&self.query, document)
            .map(|found| found.into_iter().map(|found| found.val).collect())
            .unwrap_or_default()
    }

    /// The values that it selects as texts: without quotes, and without `null`.
    pub(super) fn select_texts(&self, document: &Value) -> Vec<String> {
        self.select(document).into_iter().filter_map(scalar_text).collect()
    }

    pub(super) fn text(&self) -> &str {
        &self.text
    }
}

/// The parser draws the place with several lines; the one that says what it expected begins with `=`.
fn cause_line(message: &str) -> String {
    let lines = || message.lines().map(str::trim).filter(|line| !line.is_empty());
    let expected = lines().find_map(|line| line.strip_prefix("= "));
    expected.or_else(|| lines().next()).unwrap_or_default().to_owned()
}

/// A value as it stands in a sentence; `None`: `null`.
pub(super) fn scalar_text(value: &Value) -> Option<String> {
    match value {
        Value::Null => None,
        Value::String(text) => Some(text.clone()),
        other => Some(other.to_string()),
    }
}
