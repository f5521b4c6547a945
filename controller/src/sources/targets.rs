//! Servers named on the command line or in a YAML file.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::str::FromStr;

use hush_core::{Labels, ServerName};
use serde::Deserialize;

use super::Source;
use crate::observe::{BaseUrl, InvalidUrl, SERVER_LABEL, ScrapeTarget as Target, Targets};

/// A server and how policies know it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NamedTarget {
    pub server: ServerName,
    pub target: Target,
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
    /// Without a name it is called after its address; its labels always hold [`SERVER_LABEL`], so that a policy can
    /// select every server.
    fn new(name: Option<&str>, url: BaseUrl, node: Option<String>, mut labels: Labels) -> Result<Self, InvalidTarget> {
        let address = url.authority().replace(['[', ']'], "").replace(':', "-").to_ascii_lowercase();
        let (namespace, name) = match name {
            None => ("default", address.as_str()),
            Some(name) => name.split_once('/').unwrap_or(("default", name)),
        };
        let part = |text: &str| {
            !text.is_empty()
                && text.len() <= 253
                && text.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-' || b == b'.')
        };
        if !part(namespace) || !part(name) {
            return Err(InvalidTarget::Name);
        }
        labels.entry(SERVER_LABEL.to_owned()).or_insert_with(|| "true".to_owned());
        let server = ServerName(format!("{namespace}/{name}"));
        let node = node.unwrap_or_else(|| url.host().to_owned());
        Ok(Self { server, target: Target { url, labels, node, audience: None } })
    }
}

/// `[[NAMESPACE/]NAME=]URL`
impl FromStr for NamedTarget {
    type Err = InvalidTarget;

    fn from_str(text: &str) -> Result<Self, InvalidTarget> {
        let named = text.split_once('=').filter(|(name, _)| !name.contains(':'));
        let (name, url) = named.map_or((None, text), |(name, url)| (Some(name), url));
        Self::new(name, url.parse()?, None, Labels::new())
    }
}

/// Targets of the command line, and those of a file.
#[derive(Clone, Debug)]
pub struct TargetsFile {
    pub fixed: Vec<NamedTarget>,
    pub path: Option<PathBuf>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    targets: Vec<Entry>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Entry {
    url: String,
    /// `NAME` or `NAMESPACE/NAME`.
    name: Option<String>,
    node: Option<String>,
    #[serde(default)]
    labels: BTreeMap<String, String>,
}

impl Source for TargetsFile {
    type Value = Targets;
    const NAME: &'static str = "targets";

    fn read(&self) -> Result<Targets, String> {
        let mut all = Targets::new();
        let mut add = |named: NamedTarget| match all.insert(named.server.clone(), named.target) {
            Some(_) => Err(format!("there are two targets with the name `{}`", named.server)),
            None => Ok(()),
        };
        for target in &self.fixed {
            add(target.clone())?;
        }
        if let Some(path) = &self.path {
            let failed = |error: &dyn std::fmt::Display| format!("{}: {error}", path.display());
            let text = std::fs::read_to_string(path).map_err(|error| failed(&error))?;
            let file: File = serde_yaml::from_str(&text).map_err(|error| failed(&error))?;
            for (index, entry) in file.targets.into_iter().enumerate() {
                let place = |error: &dyn std::fmt::Display| failed(&format!("targets[{index}]: {error}"));
                let url = entry.url.parse::<BaseUrl>().map_err(|error| place(&format!("`url` {error}")))?;
                let target = NamedTarget::new(entry.name.as_deref(), url, entry.node, entry.labels);
                add(target.map_err(|error| place(&error))?).map_err(|error| place(&error))?;
            }
        }
        Ok(all)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_target_is_called_after_its_address_or_by_its_name() {
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
        for (text, complaint) in [
            ("targets:\n- {url: 'h:2'}\n", "targets[0]: `url` must be the URL"),
            ("targets:\n- {url: 'http://h:2', name: a}\n", "two targets with the name `default/a`"),
            ("targets:\n- {adress: 'http://h:2'}\n", "adress"),
            ("target: []\n", "target"),
        ] {
            std::fs::write(&path, text).unwrap();
            let error = file.read().unwrap_err();
            assert!(error.contains(complaint) && error.contains("targets.yaml"), "{error}");
        }
    }
}
