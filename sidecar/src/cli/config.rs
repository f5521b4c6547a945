//! The configuration file: the models of the app, and what differs between them.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::time::Duration;
use std::{fs, io};

use hush_residency::ResidencyRule;
use schemars::JsonSchema;
use serde::Deserialize;

use super::args::{ResidencyArg, SidecarArgs};
use super::values::{read_bytes, read_duration};

/// A longer file is no configuration.
const FILE_LIMIT_BYTES: u64 = 1 << 20;

/// The content of `--config`.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct SidecarFile {
    /// The models of the app; the first is the default, for requests that name none.
    #[serde(default)]
    models: Vec<FileModel>,
    /// Values for the app's parameters, for every model that says nothing else.
    #[serde(default)]
    parameters: serde_json::Map<String, serde_json::Value>,
}

/// A model. What is not given is taken from the command line.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct FileModel {
    /// The name in metrics, policies and requests.
    name: String,
    /// The name under which the app knows the model. Default: `name`.
    app_name: Option<String>,
    /// Further names in requests.
    #[serde(default)]
    aliases: Vec<String>,
    /// `resident`, `idle` or `on-demand`.
    residency: Option<ResidencyWord>,
    /// Such as `5m`; `0s`: never.
    idle_timeout: Option<String>,
    /// Such as `30s`.
    drain_timeout: Option<String>,
    /// What the model needs before it was ever loaded, such as `6GiB`.
    need_bytes: Option<String>,
    /// Values for the app's parameters, such as Xinference's `launch`.
    #[serde(default)]
    parameters: serde_json::Map<String, serde_json::Value>,
}

#[derive(Clone, Copy, Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
enum ResidencyWord {
    Resident,
    Idle,
    OnDemand,
}

/// A model with everything that is known of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConfiguredModel {
    pub name: String,
    pub app_name: Option<String>,
    pub aliases: Vec<String>,
    pub residency: ResidencyRule,
    pub drain: Duration,
    pub need_bytes: u64,
    /// Values for the app's parameters.
    pub parameters: serde_json::Map<String, serde_json::Value>,
}

/// What the command line and the file say of the models.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConfiguredModels {
    /// The default first.
    pub models: Vec<ConfiguredModel>,
    /// Values for the app's parameters, of every model that says nothing else.
    pub parameters: serde_json::Map<String, serde_json::Value>,
}

/// Why the models are not known.
#[derive(Debug, thiserror::Error)]
pub enum SidecarConfigError {
    #[error("--config {} cannot be read", .path.display())]
    Unreadable { path: PathBuf, source: io::Error },
    #[error("--config {}: {problem}", .path.display())]
    Malformed { path: PathBuf, problem: String },
    #[error("--config {}: models[{index}].{field}: {problem}", .path.display())]
    Field { path: PathBuf, index: usize, field: &'static str, problem: String },
    #[error("no model is given: name the models of the app with --model NAME, or in the file of --config")]
    NoModel,
    #[error("the name `{0}` stands for two models: names and aliases must differ")]
    Twice(String),
}

impl SidecarFile {
    /// # Errors
    /// If the file cannot be read or has a field that is not known.
    pub fn read(path: &Path) -> Result<Self, SidecarConfigError> {
        let unreadable = |source| SidecarConfigError::Unreadable { path: path.to_owned(), source };
        let malformed = |problem| SidecarConfigError::Malformed { path: path.to_owned(), problem };

        if fs::metadata(path).map_err(unreadable)?.len() > FILE_LIMIT_BYTES {
            return Err(malformed(format!("it is longer than {FILE_LIMIT_BYTES} bytes")));
        }
        let text = fs::read_to_string(path).map_err(unreadable)?;
        serde_yaml::from_str(&text).map_err(|error| malformed(error.to_string()))
    }
}

/// The models of the command line and of the file.
///
/// # Errors
/// If there is none, or a field cannot be used.
pub fn models(args: &SidecarArgs) -> Result<ConfiguredModels, SidecarConfigError> {
    let mut models: Vec<ConfiguredModel> = args.models.iter().map(|name| of_command_line(args, name)).collect();

    let mut parameters = serde_json::Map::new();
    if let Some(path) = &args.config {
        let file = SidecarFile::read(path)?;
        parameters = file.parameters;
        for (index, entry) in file.models.into_iter().enumerate() {
            models.push(of_file(args, path, index, entry)?);
        }
    }

    if models.is_empty() {
        return Err(SidecarConfigError::NoModel);
    }
    let mut names = BTreeSet::new();
    for name in models.iter().flat_map(|model| model.aliases.iter().chain([&model.name])) {
        if !names.insert(name) {
            return Err(SidecarConfigError::Twice(name.clone()));
        }
    }
    Ok(ConfiguredModels { models, parameters })
}

/// The model that each alias stands for.
pub fn aliases(models: &[ConfiguredModel]) -> BTreeMap<String, String> {
    let of_model = |model: &ConfiguredModel| {
        let name = model.name.clone();
        model.aliases.clone().into_iter().map(move |alias| (alias, name.clone()))
    };

    models.iter().flat_map(of_model).collect()
}

fn of_command_line(args: &SidecarArgs, name: &str) -> ConfiguredModel {
    ConfiguredModel {
        name: name.to_owned(),
        app_name: None,
        aliases: Vec::new(),
        residency: rule(args.life.residency, args.life.idle_timeout.0),
        drain: args.life.drain_timeout,
        need_bytes: args.memory.need_bytes,
        parameters: serde_json::Map::new(),
    }
}

fn of_file(
    args: &SidecarArgs,
    path: &Path,
    index: usize,
    entry: FileModel,
) -> Result<ConfiguredModel, SidecarConfigError> {
    let field = |field, problem| SidecarConfigError::Field { path: path.to_owned(), index, field, problem };
    if entry.name.is_empty() {
        return Err(field("name", "it is empty".to_owned()));
    }

    let residency = match entry.residency {
        Some(ResidencyWord::Resident) => ResidencyArg::Resident,
        Some(ResidencyWord::Idle) => ResidencyArg::Idle,
        Some(ResidencyWord::OnDemand) => ResidencyArg::OnDemand,
        None => args.life.residency,
    };
    let idle_timeout = match &entry.idle_timeout {
        Some(text) => {
            let timeout = read_duration(text).map_err(|problem| field("idleTimeout", problem))?;
            (!timeout.is_zero()).then_some(timeout)
        }
        None => args.life.idle_timeout.0,
    };
    let drain = match &entry.drain_timeout {
        Some(text) => read_duration(text).map_err(|problem| field("drainTimeout", problem))?,
        None => args.life.drain_timeout,
    };
    let need_bytes = match &entry.need_bytes {
        Some(text) => read_bytes(text).map_err(|problem| field("needBytes", problem))?,
        None => args.memory.need_bytes,
    };

    Ok(ConfiguredModel {
        name: entry.name,
        app_name: entry.app_name,
        aliases: entry.aliases,
        residency: rule(residency, idle_timeout),
        drain,
        need_bytes,
        parameters: entry.parameters,
    })
}

fn rule(residency: ResidencyArg, idle_timeout: Option<Duration>) -> ResidencyRule {
    match residency {
        ResidencyArg::Resident => ResidencyRule::Resident,
        ResidencyArg::Idle => ResidencyRule::Idle(idle_timeout),
        ResidencyArg::OnDemand => ResidencyRule::OnDemand,
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::super::args::SidecarCli;
    use super::*;

    fn args(file: Option<&str>, more: &[&str]) -> (SidecarArgs, Option<tempfile::NamedTempFile>) {
        let file = file.map(|text| {
            let file = tempfile::NamedTempFile::new().unwrap();
            fs::write(file.path(), text).unwrap();
            file
        });
        let mut line = vec!["hush-sidecar", "--app", "ollama"];
        line.extend(more);
        let mut args = SidecarCli::try_parse_from(line).unwrap().args;
        args.config = file.as_ref().map(|file| file.path().to_owned());

        (args, file)
    }

    #[test]
    fn models_of_both_sources_come_together_and_inherit() {
        let file =
            "models:\n- name: big\n  appName: big:70b\n  aliases: [gpt-4o]\n  idleTimeout: 0s\n  needBytes: 6GiB\n";
        let (args, _file) = args(Some(file), &["--model", "tiny", "--idle-timeout", "1m", "--drain-timeout", "5s"]);

        let models = models(&args).unwrap().models;

        let minute = ResidencyRule::Idle(Some(Duration::from_secs(60)));
        assert_eq!((&*models[0].name, models[0].residency), ("tiny", minute));
        assert_eq!((models[1].residency, models[1].need_bytes), (ResidencyRule::Idle(None), 6 << 30));
        assert_eq!(models[1].drain, Duration::from_secs(5));
        assert_eq!(aliases(&models), BTreeMap::from([("gpt-4o".to_owned(), "big".to_owned())]));
    }

    #[test]
    fn bad_files_name_the_field() {
        for (file, expected) in [
            ("models:\n- name: a\n  idleTimeout: soon\n", "models[0].idleTimeout: expected a duration"),
            ("models:\n- name: a\n- name: ''\n", "models[1].name: it is empty"),
            ("models:\n- name: a\n  needBytes: lots\n", "models[0].needBytes: expected a size"),
            ("models:\n- name: a\n  residncy: idle\n", "residncy"),
            ("models:\n- name: a\n- name: b\n  aliases: [a]\n", "the name `a` stands for two models"),
            ("{}", "no model is given"),
            ("models: 3", "models"),
        ] {
            let (args, _file) = args(Some(file), &[]);
            let error = models(&args).unwrap_err().to_string();
            assert!(error.contains(expected), "{file}: {error}");
        }
    }
}
