//! Splits a YAML text into documents that know their line in it. Each document is parsed once, however many objects and
//! problems it has.

use std::cell::OnceCell;
use std::rc::Rc;

use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::Value;
use serde_yaml::Options;

use super::Problem;
use super::lines::LineTree;

/// How many aliases (`*name`) a document may have; each repeats the content that it names.
const ALIASES_MAX: usize = 200;
/// How many parser events the aliases of a document may repeat; in a longer document, as many as it has bytes.
const REPEATED_EVENTS_MIN: usize = 1000;

/// One document, or an object inside of one; cheap to clone.
#[derive(Clone, Debug)]
pub struct PolicyDocument<'a> {
    text: Rc<DocumentText<'a>>,
    part: Option<DocumentPart>,
}

#[derive(Debug)]
struct DocumentText<'a> {
    text: &'a str,
    /// The number of lines of the whole text before this document.
    lines_before: u64,
    content: OnceCell<Result<Value, Problem>>,
    /// `None`: the text is no YAML.
    tree: OnceCell<Option<LineTree>>,
}

/// An object inside of a document.
#[derive(Clone, Debug)]
struct DocumentPart {
    path: String,
    content: Value,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ObjectHeader {
    pub api_version: Option<String>,
    pub kind: Option<String>,
}

/// Splits at each line that begins with `---`, also inside of a block of text. Empty documents are left out.
pub fn split(text: &str) -> impl Iterator<Item = PolicyDocument<'_>> {
    let mut documents = Vec::new();
    let (mut from, mut lines_before) = (0, 0);
    let (mut at, mut has_content) = (0, false);

    for (index, line) in text.split_inclusive('\n').enumerate() {
        let content = line.trim_end_matches(['\n', '\r']);
        let next = at + line.len();
        // YAML allows content after the marker on its line; policies are never written like that.
        if content == "---" || content.starts_with("--- ") {
            if has_content {
                documents.push(PolicyDocument::new(&text[from..at], lines_before));
            }
            (from, lines_before, has_content) = (next, index as u64 + 1, false);
        } else {
            let content = content.trim_start();
            has_content |= !content.is_empty() && !content.starts_with('#');
        }
        at = next;
    }

    if has_content {
        documents.push(PolicyDocument::new(&text[from..], lines_before));
    }
    documents.into_iter()
}

impl<'a> PolicyDocument<'a> {
    /// A text that is one document.
    pub fn whole(text: &'a str) -> Self {
        Self::new(text, 0)
    }

    fn new(text: &'a str, lines_before: u64) -> Self {
        let text = DocumentText { text, lines_before, content: OnceCell::new(), tree: OnceCell::new() };
        Self { text: Rc::new(text), part: None }
    }

    /// The object at `path` in this document.
    pub fn part(&self, path: &str, object: Value) -> Self {
        Self { text: Rc::clone(&self.text), part: Some(DocumentPart { path: path.to_owned(), content: object }) }
    }

    pub fn header(&self) -> Result<ObjectHeader, Vec<Problem>> {
        self.read()
    }

    /// Deserializes as strictly as an API server: a number is no text, and the other way round.
    pub fn read<T: DeserializeOwned>(&self) -> Result<T, Vec<Problem>> {
        let content = match &self.part {
            Some(part) => &part.content,
            None => self.text.content().as_ref().map_err(|problem| vec![problem.clone()])?,
        };

        serde_path_to_error::deserialize(content).map_err(|error| {
            let path = error.path().to_string();
            let message = error.into_inner().to_string();
            let message = if path == "." { message } else { format!("`{path}`: {message}") };
            vec![Problem::new(self.line_of(&path), message)]
        })
    }

    /// The line of a path such as `spec.residency.schedule[0].cron`, or of the longest part of the path that exists.
    pub fn line_of(&self, path: &str) -> Option<u64> {
        let prefix = self.part.as_ref().map_or("", |part| &part.path);
        let line = self.text.tree().as_ref()?.line_of(&format!("{prefix}.{path}"));
        line.map(|line| line + self.text.lines_before)
    }
}

impl DocumentText<'_> {
    fn content(&self) -> &Result<Value, Problem> {
        self.content.get_or_init(|| {
            serde_yaml::from_str_with_options(self.text, options(self.text)).map_err(|error| self.problem(&error))
        })
    }

    fn tree(&self) -> &Option<LineTree> {
        self.tree.get_or_init(|| serde_yaml::from_str_with_options(self.text, options(self.text)).ok())
    }

    /// The message without the line, which a problem has as a field, and without an excerpt of the text, which would not fit
    /// into a line of a log.
    fn problem(&self, error: &serde_yaml::Error) -> Problem {
        let line = error.location().map(|location| location.line()).filter(|line| *line > 0);
        let options = serde_yaml::render_options! { line_offset: self.lines_before };
        let text = error.without_snippet().render_with_options(options);
        let first = text.lines().next().unwrap_or_default();
        let message = first.strip_prefix("error: ").unwrap_or(first);

        Problem::new(line.map(|line| line + self.lines_before), message)
    }
}

/// Limits what aliases repeat, so that the work for a document is in proportion to its length.
fn options(text: &str) -> Options {
    serde_yaml::options! {
        budget: serde_yaml::budget! { max_aliases: ALIASES_MAX },
        alias_limits: serde_yaml::alias_limits! {
            max_total_replayed_events: text.len().max(REPEATED_EVENTS_MIN),
        },
        with_snippet: false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lines(text: &str) -> Vec<(u64, &str)> {
        split(text).map(|document| (document.text.lines_before, document.text.text)).collect()
    }

    #[test]
    fn documents_know_their_line_and_empty_ones_are_left_out() {
        assert_eq!(lines("a: 1\n---\n# no\n\n--- # x\r\nb: 2\r\n"), [(0, "a: 1\n"), (5, "b: 2\r\n")]);
        assert_eq!(lines("---\n---\na"), [(2, "a")]);
        assert!(lines("").is_empty() && lines("---\n").is_empty());

        let document = split("---\n\na:\n  b: [1, x]\n").next().unwrap();
        assert_eq!((document.line_of("a.b[1]"), document.line_of("x")), (Some(4), None));
    }

    #[test]
    fn aliases_repeat_no_more_than_the_length_of_the_text_allows() {
        let mut text = "a0: &a0 [x, x, x, x, x, x, x, x]\n".to_owned();
        for level in 1..9 {
            let before = format!("*a{}", level - 1);
            text.push_str(&format!("a{level}: &a{level} [{}]\n", [before.as_str(); 8].join(", ")));
        }

        let problems = PolicyDocument::whole(&text).read::<Value>().unwrap_err();
        assert!(problems[0].message.contains("alias"), "{problems:?}");

        let used = "a: &a {app: whisper}\nb: *a\n";
        assert_eq!(PolicyDocument::whole(used).read::<Value>().unwrap()["b"]["app"], "whisper");
    }
}
