//! Parses policies from YAML documents and checks them with the rules of the definitions. Each problem has its line.

mod convert;
mod documents;
mod lines;
mod render;
mod spec_fields;

use std::collections::BTreeSet;
use std::fmt;
use std::path::{Path, PathBuf};

use hush_core::{ModelPolicy, PolicyKey};
use hush_crds::{ClusterGpuModelPolicy, GpuModelPolicy};
use hush_log::printable;
use serde::Deserialize;

pub use convert::{cluster, namespaced};
pub use documents::PolicyDocument;
pub use render::to_yaml;

/// A text with as many problems is not checked further.
const PROBLEMS_MAX: usize = 100;
const MESSAGE_MAX_CHARS: usize = 500;

/// A mistake in a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// Counted from 1; `None` where it is not known.
    pub line: Option<u64>,
    /// One line that is safe for a terminal, although it quotes the file.
    pub message: String,
}

impl Problem {
    pub fn new(line: Option<u64>, message: impl AsRef<str>) -> Self {
        Self { line, message: printable(message.as_ref(), MESSAGE_MAX_CHARS) }
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.line {
            Some(line) => write!(f, "line {line}: {}", self.message),
            None => f.write_str(&self.message),
        }
    }
}

/// A file that cannot be used, with all of its problems.
#[derive(Debug, thiserror::Error)]
pub enum FileError {
    #[error("{}: {source}", path.display())]
    Read { path: PathBuf, source: std::io::Error },
    #[error("{}", problem_lines(path, problems))]
    Invalid { path: PathBuf, problems: Vec<Problem> },
}

fn problem_lines(path: &Path, problems: &[Problem]) -> String {
    let lines = problems.iter().map(|problem| match problem.line {
        Some(line) => format!("{}:{line}: {}", path.display(), problem.message),
        None => format!("{}: {}", path.display(), problem.message),
    });
    lines.collect::<Vec<_>>().join("\n")
}

/// Stands for standard input among the files of a command.
const STANDARD_INPUT: &str = "-";

/// All policies of a file.
pub fn read(path: &Path) -> Result<Vec<ModelPolicy>, FileError> {
    let text = std::fs::read_to_string(path).map_err(|source| FileError::Read { path: path.to_owned(), source })?;
    parse(&text).map_err(|problems| FileError::Invalid { path: path.to_owned(), problems })
}

/// As [`read`], with `-` for standard input. For commands that read each file once.
pub fn read_input(path: &Path) -> Result<Vec<ModelPolicy>, FileError> {
    checked_input(path).map(|(policies, _)| policies)
}

/// The name of a file of [`read_input`] in messages.
pub fn input_name(path: &Path) -> &Path {
    if path == Path::new(STANDARD_INPUT) { Path::new("standard input") } else { path }
}

/// As [`read_input`], with the text of the file.
pub fn checked_input(path: &Path) -> Result<(Vec<ModelPolicy>, String), FileError> {
    let name = input_name(path);
    let text = if name == path { std::fs::read_to_string(path) } else { std::io::read_to_string(std::io::stdin()) };
    let text = text.map_err(|source| FileError::Read { path: name.to_owned(), source })?;

    match parse(&text) {
        Ok(policies) => Ok((policies, text)),
        Err(problems) => Err(FileError::Invalid { path: name.to_owned(), problems }),
    }
}

/// All policies of a YAML text of one or more documents, each a policy or a list of them.
pub fn parse(text: &str) -> Result<Vec<ModelPolicy>, Vec<Problem>> {
    parse_at_most(text, usize::MAX)
}

/// As [`parse`], for a text of an untrusted sender: one with more than `policies_max` policies is refused before they are
/// checked.
pub fn parse_at_most(text: &str, policies_max: usize) -> Result<Vec<ModelPolicy>, Vec<Problem>> {
    let mut problems = Vec::new();
    let mut objects = Vec::new();

    for document in documents::split(text) {
        match split_list(document) {
            Ok(found) => objects.extend(found),
            Err(found) => problems.extend(found),
        }
        if objects.len() + problems.len() > policies_max {
            return Err(vec![Problem::new(None, format!("there are more than {policies_max} policies in it"))]);
        }
        if problems.len() >= PROBLEMS_MAX {
            return Err(truncated(problems));
        }
    }

    let mut policies: Vec<ModelPolicy> = Vec::with_capacity(objects.len());
    let mut names: BTreeSet<PolicyKey> = BTreeSet::new();
    for document in objects {
        match parse_document(&document) {
            Ok(policy) if !names.insert(policy.name.clone()) => {
                let message = format!("there are two policies with the name `{}`", policy.name);
                problems.push(Problem::new(document.line_of("metadata.name"), message));
            }
            Ok(policy) => policies.push(policy),
            Err(found) => problems.extend(found),
        }
        if problems.len() >= PROBLEMS_MAX {
            return Err(truncated(problems));
        }
    }

    if policies.is_empty() && problems.is_empty() {
        problems.push(Problem::new(None, "there is no policy in it"));
    }
    if problems.is_empty() { Ok(policies) } else { Err(problems) }
}

fn truncated(mut problems: Vec<Problem>) -> Vec<Problem> {
    problems.truncate(PROBLEMS_MAX);
    problems.push(Problem::new(None, format!("after {PROBLEMS_MAX} mistakes the rest was not checked")));
    problems
}

/// The document itself, or the items of a list, as `kubectl get -o yaml` writes one.
fn split_list(document: PolicyDocument<'_>) -> Result<Vec<PolicyDocument<'_>>, Vec<Problem>> {
    let header = document.header()?;
    let kind = header.kind.as_deref().and_then(|kind| kind.strip_suffix("List"));
    let Some(kind) = kind else { return Ok(vec![document]) };

    let list: PolicyList = document.read()?;
    let objects = list.items.into_iter().enumerate().map(|(index, mut item)| {
        // The items of a list with a kind of its own (`GpuModelPolicyList`) may leave out kind and version.
        if let Some(fields) = item.as_object_mut().filter(|_| !kind.is_empty()) {
            fields.entry("kind").or_insert_with(|| kind.into());
            fields.entry("apiVersion").or_insert_with(|| header.api_version.clone().into());
        }
        document.part(&format!("items[{index}]"), item)
    });
    Ok(objects.collect())
}

#[derive(Deserialize)]
struct PolicyList {
    items: Vec<serde_json::Value>,
}

/// Reads and checks a document that is one policy.
pub fn parse_document(document: &PolicyDocument<'_>) -> Result<ModelPolicy, Vec<Problem>> {
    let header = document.header()?;
    if !header.api_version.as_deref().is_some_and(|version| hush_crds::API_VERSIONS.contains(&version)) {
        let message = format!("`apiVersion` must be `{}`", hush_crds::API_VERSION);
        return Err(vec![Problem::new(document.line_of("apiVersion"), message)]);
    }

    let policy = match header.kind.as_deref() {
        Some("GpuModelPolicy") => namespaced(&document.read::<GpuModelPolicy>()?),
        Some("ClusterGpuModelPolicy") => cluster(&document.read::<ClusterGpuModelPolicy>()?),
        _ => {
            let message = "`kind` must be `GpuModelPolicy` or `ClusterGpuModelPolicy`";
            return Err(vec![Problem::new(document.line_of("kind"), message)]);
        }
    };

    policy.map_err(|problems| {
        let with_line =
            |invalid: hush_crds::InvalidField| Problem::new(document.line_of(&invalid.path), invalid.to_string());
        problems.into_iter().take(PROBLEMS_MAX).map(with_line).collect()
    })
}
