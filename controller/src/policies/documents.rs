//! The documents of a YAML text, each with its place in it.

use serde::Deserialize;
use serde::de::DeserializeOwned;

use super::Problem;
use super::lines::Tree;

/// One document; everything before it is blank lines, so that its line numbers are those of the whole text.
#[derive(Clone, Debug)]
pub struct Document {
    text: String,
    part: Option<Part>,
}

/// An object inside of a document.
#[derive(Clone, Debug)]
struct Part {
    path: String,
    content: String,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Head {
    pub api_version: Option<String>,
    pub kind: Option<String>,
}

/// A line that begins with `---` begins a document, also inside of a block of text. Empty documents are left out.
pub fn split(text: &str) -> Vec<Document> {
    let mut documents = Vec::new();
    let mut current = String::new();
    let mut blank = String::new();
    for line in text.lines() {
        blank.push('\n');
        if line == "---" || line.starts_with("--- ") {
            documents.push(std::mem::replace(&mut current, blank.clone()));
            // What follows the marker on its line would be content; policies are never written like that.
        } else {
            current.push_str(line);
            current.push('\n');
        }
    }
    documents.push(current);
    let meaningful =
        |text: &String| text.lines().any(|line| !line.trim().is_empty() && !line.trim_start().starts_with('#'));
    documents.into_iter().filter(meaningful).map(Document::whole).collect()
}

impl Document {
    /// A text that is one document.
    pub fn whole(text: String) -> Self {
        Self { text, part: None }
    }

    /// The object at `path` in this document.
    pub fn part(&self, path: &str, object: &serde_json::Value) -> Self {
        Self { text: self.text.clone(), part: Some(Part { path: path.to_owned(), content: object.to_string() }) }
    }

    pub fn head(&self) -> Result<Head, Vec<Problem>> {
        self.read()
    }

    /// As an API server reads it: what is written as a number is no text, and the other way round.
    pub fn read<T: DeserializeOwned>(&self) -> Result<T, Vec<Problem>> {
        let content = self.part.as_ref().map_or(&self.text, |part| &part.content);
        let value: serde_json::Value = serde_yaml::from_str(content).map_err(|error| {
            let line = match &self.part {
                None => error.location().map(|location| location.line()).filter(|line| *line > 0),
                // A place in the copy says nothing; the object begins here.
                Some(_) => self.line_of(""),
            };
            vec![Problem { line, message: plain(&error) }]
        })?;
        serde_path_to_error::deserialize(value).map_err(|error| {
            let path = error.path().to_string();
            let message = error.into_inner().to_string();
            let message = if path == "." { message } else { format!("`{path}`: {message}") };
            vec![Problem { line: self.line_of(&path), message }]
        })
    }

    /// The line of a path such as `spec.residency.schedule[0].cron`, or of the nearest part of it that is there.
    pub fn line_of(&self, path: &str) -> Option<u64> {
        let tree: Tree = serde_yaml::from_str(&self.text).ok()?;
        let prefix = self.part.as_ref().map_or("", |part| &part.path);
        tree.line_of(&format!("{prefix}.{path}"))
    }
}

/// The message alone: the line is said apart, and a picture of the text does not belong into a log.
fn plain(error: &serde_yaml::Error) -> String {
    let text = error.without_snippet().to_string();
    let first = text.lines().next().unwrap_or_default();
    first.strip_prefix("error: ").unwrap_or(first).to_owned()
}
