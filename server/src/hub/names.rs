//! Names of models: the usual short names, and repositories of the hub.

use std::fmt;
use std::str::FromStr;

use super::HubError;

/// Short names and their repositories. A repository is installed under its first short name.
const SHORT: &[(&str, &str)] = &[
    ("tiny", "openai/whisper-tiny"),
    ("tiny.en", "openai/whisper-tiny.en"),
    ("base", "openai/whisper-base"),
    ("base.en", "openai/whisper-base.en"),
    ("small", "openai/whisper-small"),
    ("small.en", "openai/whisper-small.en"),
    ("medium", "openai/whisper-medium"),
    ("medium.en", "openai/whisper-medium.en"),
    // openai/whisper-large is the first version.
    ("large-v1", "openai/whisper-large"),
    ("large-v2", "openai/whisper-large-v2"),
    ("large-v3", "openai/whisper-large-v3"),
    // The newest version, as in openai/whisper and faster-whisper.
    ("large", "openai/whisper-large-v3"),
    ("large-v3-turbo", "openai/whisper-large-v3-turbo"),
    ("turbo", "openai/whisper-large-v3-turbo"),
    ("distil-small.en", "distil-whisper/distil-small.en"),
    ("distil-medium.en", "distil-whisper/distil-medium.en"),
    ("distil-large-v2", "distil-whisper/distil-large-v2"),
    ("distil-large-v3", "distil-whisper/distil-large-v3"),
    ("distil-large-v3.5", "distil-whisper/distil-large-v3.5"),
];

/// Repositories of CTranslate2 conversions whose names cannot be derived from the name of the model.
const CONVERSIONS: &[(&str, &str)] = &[
    ("large-v3-turbo", "mobiuslabsgmbh/faster-whisper-large-v3-turbo"),
    ("large-v3-turbo", "deepdml/faster-whisper-large-v3-turbo-ct2"),
    ("distil-large-v3.5", "distil-whisper/distil-large-v3.5-ct2"),
];

/// The name of a repository on the hub, `owner/name`.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Repo(String);

impl Repo {
    /// The repository of a short name or of a repository name; `None` for any other name.
    pub fn of(name: &str) -> Option<Self> {
        let short = SHORT.iter().find(|(short, _)| *short == name).map(|(_, repo)| Self((*repo).to_owned()));
        short.or_else(|| name.parse().ok())
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The repositories with conversions of this model for CTranslate2, those of faster-whisper first.
    pub fn conversions(&self) -> Vec<Self> {
        let of_name = |name: &'static str| {
            let distilled = name.strip_prefix("distil-").map(|rest| format!("Systran/faster-distil-whisper-{rest}"));
            let usual = std::iter::once(format!("Systran/faster-whisper-{name}")).chain(distilled);
            usual.chain(CONVERSIONS.iter().filter(move |(of, _)| *of == name).map(|(_, repo)| (*repo).to_owned()))
        };
        short_names_of(self).flat_map(of_name).map(Self).collect()
    }

    /// The name of the model's folder: the short name if there is one, otherwise `owner--name`.
    pub fn folder(&self) -> String {
        let short = SHORT.iter().find(|(_, repo)| *repo == self.0);
        short.map_or_else(|| self.0.replace('/', "--"), |(short, _)| (*short).to_owned())
    }
}

impl FromStr for Repo {
    type Err = HubError;

    fn from_str(text: &str) -> Result<Self, HubError> {
        // The hub's own rule, which also ensures that a name cannot lead out of its folder.
        let is_valid = |part: &str| {
            !part.is_empty()
                && part.len() <= 96
                && part.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte))
                && !part.starts_with(['-', '.'])
                && !part.ends_with(['-', '.'])
                && !part.contains("--")
                && !part.contains("..")
        };

        match text.split_once('/') {
            Some((owner, name)) if is_valid(owner) && is_valid(name) => Ok(Self(text.to_owned())),
            _ => Err(HubError::BadName(text.to_owned())),
        }
    }
}

impl fmt::Display for Repo {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// The folder name of a model that is named in a request: `turbo` and `openai/whisper-large-v3-turbo` are one model.
pub fn folder_of(name: &str) -> String {
    Repo::of(name).map_or_else(|| name.to_owned(), |repo| repo.folder())
}

/// The short names of a repository.
pub(super) fn short_names_of(repo: &Repo) -> impl Iterator<Item = &'static str> {
    SHORT.iter().filter(|(_, of)| *of == repo.0).map(|(short, _)| *short)
}

/// All short names, for messages.
pub fn short_names() -> impl Iterator<Item = &'static str> {
    SHORT.iter().map(|(short, _)| *short)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn short_names_mean_repositories() {
        let repo = |name: &str| Repo::of(name).map(|repo| repo.to_string());
        assert_eq!(repo("tiny").as_deref(), Some("openai/whisper-tiny"));
        assert_eq!(repo("large").as_deref(), Some("openai/whisper-large-v3"));
        assert_eq!(repo("large-v1").as_deref(), Some("openai/whisper-large"));
        assert_eq!(repo("turbo").as_deref(), Some("openai/whisper-large-v3-turbo"));
        assert_eq!(repo("distil-large-v3.5").as_deref(), Some("distil-whisper/distil-large-v3.5"));
        assert_eq!(repo("someone/fine-tune").as_deref(), Some("someone/fine-tune"));
        assert_eq!(repo("hush-tiny"), None);

        for short in short_names() {
            let repo = Repo::of(short).unwrap();
            assert!(repo.as_str().parse::<Repo>().is_ok(), "{repo}");
            assert_eq!(Repo::of(&repo.folder()), Some(repo));
        }
    }

    #[test]
    fn conversions_have_the_names_of_faster_whisper() {
        let conversions = |name: &str| -> Vec<String> {
            Repo::of(name).unwrap().conversions().into_iter().map(|repo| repo.to_string()).collect()
        };
        assert_eq!(conversions("base"), ["Systran/faster-whisper-base"]);
        assert!(conversions("distil-large-v3").contains(&"Systran/faster-distil-whisper-large-v3".to_owned()));
        assert!(conversions("turbo").contains(&"mobiuslabsgmbh/faster-whisper-large-v3-turbo".to_owned()));
        assert!(conversions("someone/fine-tune").is_empty() && conversions("Systran/faster-whisper-base").is_empty());

        let all = short_names().flat_map(conversions);
        assert!(all.into_iter().all(|repo| repo.parse::<Repo>().is_ok()));
    }

    #[test]
    fn one_model_has_one_folder() {
        assert_eq!(folder_of("turbo"), "large-v3-turbo");
        assert_eq!(folder_of("openai/whisper-large-v3"), "large-v3");
        assert_eq!(folder_of("large"), "large-v3");
        assert_eq!(folder_of("someone/fine-tune"), "someone--fine-tune");
        assert_eq!(folder_of("my-model"), "my-model");
    }

    #[test]
    fn invalid_names_are_refused() {
        for bad in ["", "a", "/a", "a/", "a/b/c", "../b", "a/..", "a/.b", "a b/c", "a/b?x", "a/b--c", "a//b"] {
            assert!(bad.parse::<Repo>().is_err(), "{bad}");
        }
    }
}
