//! Servers that the command line or a YAML file names.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::str::FromStr;

use hush_core::{Labels, ServerName};
use serde::Deserialize;

use super::FileSource;
use crate::observe::{BaseUrl, InvalidUrl, SERVER_LABEL, ScrapeTarget, Targets};

/// A server, and the name by which policies select it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NamedTarget {
    pub server: ServerName,
    pub target: ScrapeTarget,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InvalidTarget {
    #[error(transparent)]
    Url(#[from] InvalidUrl),
    #[error(
        "the name must be NAME or NAMESPACE/NAME of lower-case letters, digits, `-` and `.`, as in speech/subtitles=http://127.0.0.1:9001"
    )]
    Name,
}

impl NamedTarget {
    /// Without a name the target is named after its address. Its labels always contain [`SERVER_LABEL`], so that a policy
    /// can select every server.
    fn new(name: Option<&str>, url: BaseUrl, node: Option<String>, mut labels: Labels) -> Result<Self, InvalidTarget> {
        let address = url.authority().replace(['[', ']'], "").replace(':', "-").to_ascii_lowercase();
        let (namespace, name) = match name {
            None => ("default", address.as_str()),
            Some(name) => name.split_once('/').unwrap_or(("default", name)),
        };

        let is_valid_part = |text: &str| {
            !text.is_empty()
                && text.len() <= 253
                && text.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-' || b == b'.')
        };
        if !is_valid_part(namespace) || !is_valid_part(name) {
            return Err(InvalidTarget::Name);
        }

        labels.entry(SERVER_LABEL.to_owned()).or_insert_with(|| "true".to_owned());
        let server = ServerName(format!("{namespace}/{name}"));
        let node = node.unwrap_or_else(|| url.host().to_owned());
        Ok(Self { server, target: ScrapeTarget { url, labels, node, audience: None } })
    }
}

/// From `[[NAMESPACE/]NAME=]URL`.
impl FromStr for NamedTarget {
    type Err = InvalidTarget;

    fn from_str(text: &str) -> Result<Self, InvalidTarget> {
        let named = text.split_once('=').filter(|(name, _)| !name.contains(':'));
        let (name, url) = named.map_or((None, text), |(name, url)| (Some(name), url));
        Self::new(name, url.parse()?, None, Labels::new())
    }
}

/// The targets of the command line, and those of a file.
#[derive(Clone, Debug)]
pub struct TargetsFile {
    pub fixed: Vec<NamedTarget>,
    pub path: Option<PathBuf>,
}

#[derive(Debug, thiserror::Error)]
pub enum TargetsFileError {
    #[error("{}: {source}", path.display())]
    Read { path: PathBuf, source: std::io::Error },
    #[error("{}: {source}", path.display())]
    Yaml { path: PathBuf, source: Box<serde_yaml::Error> },
    #[error("{}: targets[{index}]: {source}", path.display())]
    Entry { path: PathBuf, index: usize, source: TargetEntryError },
    #[error(transparent)]
    Duplicate(#[from] DuplicateTarget),
}

/// What is wrong with an entry of the file.
#[derive(Debug, thiserror::Error)]
pub enum TargetEntryError {
    #[error("`url` {0}")]
    Url(#[source] InvalidUrl),
    #[error(transparent)]
    ScrapeTarget(#[from] InvalidTarget),
    #[error(transparent)]
    Duplicate(#[from] DuplicateTarget),
}

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("there are two targets with the name `{0}`")]
pub struct DuplicateTarget(ServerName);

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct TargetsDocument {
    targets: Vec<TargetEntry>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct TargetEntry {
    url: String,
    /// `NAME` or `NAMESPACE/NAME`.
    name: Option<String>,
    node: Option<String>,
    #[serde(default)]
    labels: BTreeMap<String, String>,
}

impl TargetEntry {
    fn parse(self) -> Result<NamedTarget, TargetEntryError> {
        let url = self.url.parse::<BaseUrl>().map_err(TargetEntryError::Url)?;
        Ok(NamedTarget::new(self.name.as_deref(), url, self.node, self.labels)?)
    }
}

impl FileSource for TargetsFile {
    type Value = Targets;
    type Error = TargetsFileError;

    const NAME: &'static str = "targets";

    fn read(&self) -> Result<Targets, TargetsFileError> {
        let mut all = Targets::new();
        for target in &self.fixed {
            insert(&mut all, target.clone())?;
        }
        let Some(path) = &self.path else { return Ok(all) };

        let text =
            std::fs::read_to_string(path).map_err(|source| TargetsFileError::Read { path: path.clone(), source })?;
        let document: TargetsDocument = serde_yaml::from_str(&text)
            .map_err(|source| TargetsFileError::Yaml { path: path.clone(), source: Box::new(source) })?;

        for (index, entry) in document.targets.into_iter().enumerate() {
            let added = entry.parse().and_then(|target| Ok(insert(&mut all, target)?));
            added.map_err(|source| TargetsFileError::Entry { path: path.clone(), index, source })?;
        }
        Ok(all)
    }
}

fn insert(all: &mut Targets, NamedTarget { server, target }: NamedTarget) -> Result<(), DuplicateTarget> {
    match all.insert(server.clone(), target) {
        Some(_) => Err(DuplicateTarget(server)),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_target_is_named_after_its_address_or_by_its_name() {
        let server = |text: &str| text.parse::<NamedTarget>().map(|named| named.server.0);
        assert_eq!(server("http://127.0.0.1:9001").unwrap(), "default/127.0.0.1-9001");
        assert_eq!(server("subtitles=http://127.0.0.1:9001").unwrap(), "default/subtitles");
        assert_eq!(server("speech/a=https://gpu-1:9001/").unwrap(), "speech/a");
        assert_eq!(server("Speech/a=http://gpu-1:9001"), Err(InvalidTarget::Name));
        assert_eq!(server("a/b/c=http://gpu-1:9001"), Err(InvalidTarget::Name));
        assert_eq!(server("gpu-1:9001"), Err(InvalidTarget::Url(InvalidUrl)));

        let named: NamedTarget = "a=http://gpu-1:9001".parse().unwrap();
        assert_eq!(named.target.labels[SERVER_LABEL], "true");
        assert_eq!(named.target.node, "gpu-1");
    }

    #[test]
    fn a_file_of_targets_names_what_is_wrong_in_it() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("targets.yaml");
        let file = TargetsFile { fixed: vec!["a=http://h:1".parse().unwrap()], path: Some(path.clone()) };

        std::fs::write(&path, "targets:\n- {url: 'http://h:2', name: s/b, node: n1, labels: {app: x}}\n").unwrap();
        let targets = file.read().unwrap();
        assert_eq!(targets.len(), 2);
        let b = &targets[&ServerName::from("s/b")];
        assert_eq!((b.node.as_str(), b.labels["app"].as_str()), ("n1", "x"));

        for (text, message) in [
            ("targets:\n- {url: 'h:2'}\n", "targets[0]: `url` must be the URL"),
            ("targets:\n- {url: 'http://h:2', name: a}\n", "two targets with the name `default/a`"),
            ("targets:\n- {adress: 'http://h:2'}\n", "adress"),
            ("target: []\n", "target"),
        ] {
            std::fs::write(&path, text).unwrap();
            let error = file.read().unwrap_err().to_string();
            assert!(error.contains(message) && error.contains("targets.yaml"), "{error}");
        }
    }
}
