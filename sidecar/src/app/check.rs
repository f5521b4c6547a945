//! From the text of a description to the app, with every mistake and its place.

use std::cell::RefCell;

use serde_json::Value;

use super::DescriptionError;
use super::compile::CompiledApp;
use super::description::AppDescription;
use super::problem::{DescriptionProblem, FieldScope};

/// A longer file is no description but a mistake.
const LIMIT_BYTES: usize = 1 << 20;

/// Every mistake in a description; none: it can be used.
pub fn check(text: &str) -> Vec<DescriptionProblem> {
    compile(text).err().unwrap_or_default()
}

/// The JSON schema of descriptions, as `docs/app-description.schema.json` holds it.
pub fn schema() -> String {
    let schema = schemars::schema_for!(AppDescription);
    let mut text = serde_json::to_string_pretty(&schema).unwrap_or_default();
    text.push('\n');
    text
}

pub(super) fn compile_or_join(text: &str) -> Result<CompiledApp, DescriptionError> {
    compile(text)
        .map_err(|problems| DescriptionError(problems.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n")))
}

fn compile(text: &str) -> Result<CompiledApp, Vec<DescriptionProblem>> {
    let description = parse(text).map_err(|problem| vec![problem])?;

    let problems = RefCell::default();
    let app = CompiledApp::compile(description, &FieldScope::root(&problems));
    match (app, problems.into_inner()) {
        (Some(app), problems) if problems.is_empty() => Ok(app),
        (_, problems) => Err(problems),
    }
}

fn parse(text: &str) -> Result<AppDescription, DescriptionProblem> {
    let whole = |message: String| DescriptionProblem { field: String::new(), line: None, message };
    if text.len() > LIMIT_BYTES {
        let length = text.len();
        return Err(whole(format!("{length} bytes are too long for a description; the limit is {LIMIT_BYTES}")));
    }

    let document: Value = serde_yaml::from_str(text).map_err(|error| yaml_problem(&error))?;
    if !document.is_object() {
        return Err(whole("a description is a mapping that begins with `name:`".to_owned()));
    }
    serde_path_to_error::deserialize(document).map_err(|error| {
        let path = error.path().to_string();
        let field = if path == "." { String::new() } else { path };
        let message = error.into_inner().to_string();

        // The same mistake again, this time with its line.
        let located = serde_yaml::from_str::<AppDescription>(text).err();
        DescriptionProblem { field, line: located.as_ref().and_then(line_of), message }
    })
}

fn yaml_problem(error: &serde_yaml::Error) -> DescriptionProblem {
    let text = error.without_snippet().to_string();
    let first = text.lines().next().unwrap_or_default();
    let message = first.strip_prefix("error: ").unwrap_or(first).to_owned();
    DescriptionProblem { field: String::new(), line: line_of(error), message }
}

fn line_of(error: &serde_yaml::Error) -> Option<u64> {
    error.location().map(|location| location.line()).filter(|line| *line > 0)
}
