//! Policies as people write them: YAML documents, checked with the rules of the definitions, each complaint with its line.

mod convert;
mod documents;
mod lines;
mod render;

use std::collections::BTreeSet;
use std::fmt;
use std::path::{Path, PathBuf};

use hush_core::{Policy, PolicyName};
use hush_crds::{ClusterGpuModelPolicy, GpuModelPolicy};
use hush_log::printable;
use serde::Deserialize;

pub use convert::{cluster, namespaced};
pub use documents::PolicyDocument;
pub use render::yaml;

/// A text that is wrong everywhere is not looked at further.
const PROBLEMS_MAX: usize = 100;
const MESSAGE_MAX_CHARS: usize = 500;

/// Something that is wrong in a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// Counted from 1, where it is known.
    pub line: Option<u64>,
    /// In one line, fit for a terminal: it repeats words of the file.
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

/// A file that cannot be used, with everything that is wrong in it.
#[derive(Debug, thiserror::Error)]
pub enum FileError {
    #[error("{}: {source}", path.display())]
    Read { path: PathBuf, source: std::io::Error },
    #[error("{}", listing(path, problems))]
    Invalid { path: PathBuf, problems: Vec<Problem> },
}

fn listing(path: &Path, problems: &[Problem]) -> String {
    let lines = problems.iter().map(|problem| match problem.line {
        Some(line) => format!("{}:{line}: {}", path.display(), problem.message),
        None => format!("{}: {}", path.display(), problem.message),
    });
    lines.collect::<Vec<_>>().join("\n")
}

/// What stands for standard input among the files of a command.
const STANDARD_INPUT: &str = "-";

/// All policies of a file, or everything that is wrong in it.
pub fn read(path: &Path) -> Result<Vec<Policy>, FileError> {
    let text = std::fs::read_to_string(path).map_err(|source| FileError::Read { path: path.to_owned(), source })?;
    parse(&text).map_err(|problems| FileError::Invalid { path: path.to_owned(), problems })
}

/// As [`read`], and `-` is standard input. For commands that read each file once.
pub fn read_input(path: &Path) -> Result<Vec<Policy>, FileError> {
    checked_input(path).map(|(policies, _)| policies)
}

/// What messages call a file of [`read_input`].
pub fn input_name(path: &Path) -> &Path {
    if path == Path::new(STANDARD_INPUT) { Path::new("standard input") } else { path }
}

/// As [`read_input`], with the text that it is made of.
pub fn checked_input(path: &Path) -> Result<(Vec<Policy>, String), FileError> {
    let name = input_name(path);
    let text = if name == path { std::fs::read_to_string(path) } else { std::io::read_to_string(std::io::stdin()) };
    let text = text.map_err(|source| FileError::Read { path: name.to_owned(), source })?;
    match parse(&text) {
        Ok(policies) => Ok((policies, text)),
        Err(problems) => Err(FileError::Invalid { path: name.to_owned(), problems }),
    }
}

/// All policies of a YAML text of one or more documents, each a policy or a list of them.
pub fn parse(text: &str) -> Result<Vec<Policy>, Vec<Problem>> {
    parse_at_most(text, usize::MAX)
}

/// The same of a text that comes from elsewhere: one with more policies than these is not looked at.
pub fn parse_at_most(text: &str, policies_max: usize) -> Result<Vec<Policy>, Vec<Problem>> {
    let mut problems = Vec::new();
    let mut objects = Vec::new();
    for document in documents::split(text) {
        match objects_of(document) {
            Ok(found) => objects.extend(found),
            Err(found) => problems.extend(found),
        }
        if objects.len() + problems.len() > policies_max {
            return Err(vec![Problem::new(None, format!("there are more than {policies_max} policies in it"))]);
        }
        if problems.len() >= PROBLEMS_MAX {
            return Err(enough(problems));
        }
    }

    let mut policies: Vec<Policy> = Vec::with_capacity(objects.len());
    let mut names: BTreeSet<PolicyName> = BTreeSet::new();
    for document in objects {
        match policy(&document) {
            Ok(policy) if !names.insert(policy.name.clone()) => {
                let message = format!("there are two policies with the name `{}`", policy.name);
                problems.push(Problem::new(document.line_of("metadata.name"), message));
            }
            Ok(policy) => policies.push(policy),
            Err(found) => problems.extend(found),
        }
        if problems.len() >= PROBLEMS_MAX {
            return Err(enough(problems));
        }
    }
    if policies.is_empty() && problems.is_empty() {
        problems.push(Problem::new(None, "there is no policy in it"));
    }
    if problems.is_empty() { Ok(policies) } else { Err(problems) }
}

fn enough(mut problems: Vec<Problem>) -> Vec<Problem> {
    problems.truncate(PROBLEMS_MAX);
    problems.push(Problem::new(None, format!("after {PROBLEMS_MAX} mistakes the rest was not looked at")));
    problems
}

/// The document itself, or the items of a list, as `kubectl get -o yaml` writes one.
fn objects_of(document: PolicyDocument<'_>) -> Result<Vec<PolicyDocument<'_>>, Vec<Problem>> {
    let header = document.header()?;
    let Some(kind) = header.kind.as_deref().and_then(|kind| kind.strip_suffix("PolicyList")) else {
        return Ok(vec![document]);
    };
    let list: PolicyList = document.read()?;
    let objects = list.items.into_iter().enumerate().map(|(at, mut item)| {
        // The items of an API server's own lists (`GpuModelPolicyList`) may leave out what the list says.
        if let Some(fields) = item.as_object_mut().filter(|_| !kind.is_empty()) {
            fields.entry("kind").or_insert_with(|| kind.into());
            fields.entry("apiVersion").or_insert_with(|| header.api_version.clone().into());
        }
        document.part(&format!("items[{at}]"), item)
    });
    Ok(objects.collect())
}

#[derive(Deserialize)]
struct PolicyList {
    items: Vec<serde_json::Value>,
}

/// One policy object.
pub fn policy(document: &PolicyDocument<'_>) -> Result<Policy, Vec<Problem>> {
    let header = document.header()?;
    if !header.api_version.as_deref().is_some_and(|version| hush_crds::API_VERSIONS.contains(&version)) {
        let message = format!("`apiVersion` must be `{}`", hush_crds::API_VERSION);
        return Err(vec![Problem::new(document.line_of("apiVersion"), message)]);
    }
    let found = match header.kind.as_deref() {
        Some("GpuModelPolicy") => namespaced(&document.read::<GpuModelPolicy>()?),
        Some("ClusterGpuModelPolicy") => cluster(&document.read::<ClusterGpuModelPolicy>()?),
        _ => {
            let message = "`kind` must be `GpuModelPolicy` or `ClusterGpuModelPolicy`";
            return Err(vec![Problem::new(document.line_of("kind"), message)]);
        }
    };
    found.map_err(|found| {
        let located = |invalid: hush_crds::Invalid| Problem::new(document.line_of(&invalid.path), invalid.to_string());
        found.into_iter().take(PROBLEMS_MAX).map(located).collect()
    })
}
