//! The configuration file: the models of the app, and what differs between them.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::time::Duration;
use std::{fs, io};

use hush_residency::ResidencyRule;
use schemars::JsonSchema;
use serde::Deserialize;

use super::args::{GivenOptions, ResidencyArg, SidecarArgs};
use super::values::{read_bytes, read_count, read_duration, read_limit};

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
    /// What the file says instead of options.
    #[serde(flatten)]
    options: FileOptions,
}

/// Options in the file, each written as its option is. An option or a variable beats them.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
struct FileOptions {
    /// How long a request waits for a model that is not in memory, before it is answered with 503.
    cold_hold: Option<serde_json::Value>,
    /// Requests that may wait for a model; one more is answered with 429.
    max_queue: Option<serde_json::Value>,
    /// Requests that may be in flight in the app at the same time, for each model.
    concurrency: Option<serde_json::Value>,
    /// How much of a request's body is held in plain memory; more goes into the spool.
    attribution_bytes: Option<serde_json::Value>,
    /// The longest request body.
    max_body: Option<serde_json::Value>,
    /// A request whose body stops for this long is answered with 408.
    body_stall: Option<serde_json::Value>,
    /// A client that reads nothing of what is sent to it for this long is cut off; 0: never.
    client_stall: Option<serde_json::Value>,
    /// A websocket that works counts as idle after this long without a frame.
    socket_idle: Option<serde_json::Value>,
    /// The longest wait for the first byte of an answer; 0: no limit.
    first_byte_timeout: Option<serde_json::Value>,
    /// The longest pause within an answer, after which it is broken off; 0: no limit.
    between_bytes_timeout: Option<serde_json::Value>,
    /// The longest time for a whole request; 0: no limit.
    request_timeout: Option<serde_json::Value>,
    /// Connections of clients at the same time.
    max_connections: Option<serde_json::Value>,
    /// How long a client's connection is kept without a request.
    keep_alive: Option<serde_json::Value>,
    /// How long a connection to the app may take.
    connect_timeout: Option<serde_json::Value>,
    /// How long a connection to the app is kept without a request.
    upstream_idle: Option<serde_json::Value>,
    /// Certificate of the listener for clients, PEM, followed by its chain.
    tls_cert: Option<PathBuf>,
    /// Key of `tlsCert`, PEM.
    tls_key: Option<PathBuf>,
    /// Certificate of the operations listener, PEM, followed by its chain.
    ops_tls_cert: Option<PathBuf>,
    /// Key of `opsTlsCert`, PEM.
    ops_tls_key: Option<PathBuf>,
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
    #[error("--config {}: {key}: {problem}", .path.display())]
    Option { path: PathBuf, key: &'static str, problem: String },
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

impl FileOptions {
    /// Sets the options that neither the command line nor a variable gives.
    fn apply(self, args: &mut SidecarArgs, path: &Path) -> Result<(), SidecarConfigError> {
        let given = args.given.clone();
        let source = OptionsFile { given: &given, path };
        let requests = &mut args.requests;

        source.set("coldHold", self.cold_hold, &mut requests.cold_hold, read_duration)?;
        source.set("maxQueue", self.max_queue, &mut requests.max_queue, read_count)?;
        source.set("concurrency", self.concurrency, &mut requests.concurrency, read_count)?;
        source.set("attributionBytes", self.attribution_bytes, &mut requests.attribution_bytes, read_bytes)?;
        source.set("maxBody", self.max_body, &mut requests.max_body, read_bytes)?;
        source.set("bodyStall", self.body_stall, &mut requests.body_stall, read_duration)?;
        source.set("clientStall", self.client_stall, &mut requests.client_stall, read_limit)?;
        source.set("socketIdle", self.socket_idle, &mut requests.socket_idle, read_duration)?;
        source.set("firstByteTimeout", self.first_byte_timeout, &mut requests.first_byte_timeout, read_limit)?;
        source.set(
            "betweenBytesTimeout",
            self.between_bytes_timeout,
            &mut requests.between_bytes_timeout,
            read_limit,
        )?;
        source.set("requestTimeout", self.request_timeout, &mut requests.request_timeout, read_limit)?;
        source.set("maxConnections", self.max_connections, &mut requests.max_connections, read_count)?;
        source.set("keepAlive", self.keep_alive, &mut requests.keep_alive, read_duration)?;
        source.set("connectTimeout", self.connect_timeout, &mut requests.connect_timeout, read_duration)?;
        source.set("upstreamIdle", self.upstream_idle, &mut requests.upstream_idle, read_duration)?;

        let security = &mut args.security;
        for (key, file, target) in [
            ("tlsCert", self.tls_cert, &mut security.tls_cert),
            ("tlsKey", self.tls_key, &mut security.tls_key),
            ("opsTlsCert", self.ops_tls_cert, &mut security.ops_tls_cert),
            ("opsTlsKey", self.ops_tls_key, &mut security.ops_tls_key),
        ] {
            if file.is_some() && !source.is_given(key) {
                *target = file;
            }
        }
        Ok(())
    }
}

/// Where options of the file come from, and what beats them.
struct OptionsFile<'a> {
    given: &'a GivenOptions,
    path: &'a Path,
}

impl OptionsFile<'_> {
    /// `key`: in camel case; clap knows the option in snake case.
    fn is_given(&self, key: &str) -> bool {
        let mut option = String::new();
        for letter in key.chars() {
            if letter.is_ascii_uppercase() {
                option.push('_');
            }
            option.push(letter.to_ascii_lowercase());
        }
        self.given.contains(&option)
    }

    fn set<T>(
        &self,
        key: &'static str,
        value: Option<serde_json::Value>,
        target: &mut T,
        read: impl Fn(&str) -> Result<T, String>,
    ) -> Result<(), SidecarConfigError> {
        let Some(value) = value else { return Ok(()) };
        // A number needs no quotes.
        let text = value.as_str().map_or_else(|| value.to_string(), str::to_owned);

        // Also a value that does not count must be one.
        let value = read(&text).map_err(|problem| {
            let problem = format!("{problem}, and not `{text}`");
            SidecarConfigError::Option { path: self.path.to_owned(), key, problem }
        })?;
        if !self.is_given(key) {
            *target = value;
        }
        Ok(())
    }
}

/// The models of the command line and of the file. Options that only the file gives are set in `args`.
///
/// # Errors
/// If there is no model, or a field cannot be used.
pub fn configure(args: &mut SidecarArgs) -> Result<ConfiguredModels, SidecarConfigError> {
    let mut models = Vec::new();
    let mut parameters = serde_json::Map::new();
    let file = match args.config.clone() {
        None => None,
        Some(path) => {
            let file = SidecarFile::read(&path)?;
            file.options.clone().apply(args, &path)?;
            Some((path, file))
        }
    };

    models.extend(args.models.iter().map(|name| of_command_line(args, name)));
    if let Some((path, file)) = &file {
        parameters = file.parameters.clone();
        for (index, entry) in file.models.iter().cloned().enumerate() {
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
        let mut args = SidecarCli::read(line).unwrap().args;
        args.config = file.as_ref().map(|file| file.path().to_owned());

        (args, file)
    }

    #[test]
    fn models_of_both_sources_come_together_and_inherit() {
        let file =
            "models:\n- name: big\n  appName: big:70b\n  aliases: [gpt-4o]\n  idleTimeout: 0s\n  needBytes: 6GiB\n";
        let (mut args, _file) = args(Some(file), &["--model", "tiny", "--idle-timeout", "1m", "--drain-timeout", "5s"]);

        let models = configure(&mut args).unwrap().models;

        let minute = ResidencyRule::Idle(Some(Duration::from_secs(60)));
        assert_eq!((&*models[0].name, models[0].residency), ("tiny", minute));
        assert_eq!((models[1].residency, models[1].need_bytes), (ResidencyRule::Idle(None), 6 << 30));
        assert_eq!(models[1].drain, Duration::from_secs(5));
        assert_eq!(aliases(&models), BTreeMap::from([("gpt-4o".to_owned(), "big".to_owned())]));
    }

    #[test]
    fn options_beat_the_file_and_the_file_beats_defaults() {
        let file = "models: [{name: a}]\nbodyStall: 7\ncoldHold: 1m30s\nattributionBytes: 64KiB\nbetweenBytesTimeout: 5s\nclientStall: 0\n\
                    tlsCert: /a/tls.crt\ntlsKey: /a/tls.key\n";
        let (mut args, _file) = args(Some(file), &["--cold-hold", "60s", "--tls-key", "/b/tls.key"]);

        configure(&mut args).unwrap();

        let requests = &args.requests;
        assert_eq!(requests.body_stall, Duration::from_secs(7));
        assert_eq!(requests.cold_hold, Duration::from_secs(60), "the command line gives it, though it is the default");
        assert_eq!(requests.attribution_bytes, 64 << 10);
        assert_eq!(requests.between_bytes_timeout.0, Some(Duration::from_secs(5)));
        assert_eq!(requests.client_stall.0, None);
        assert_eq!(requests.max_queue, 256);
        assert_eq!(args.security.tls_cert.as_deref(), Some(Path::new("/a/tls.crt")));
        assert_eq!(args.security.tls_key.as_deref(), Some(Path::new("/b/tls.key")));
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
            ("models:\n- name: a\nbodyStall: soon\n", "bodyStall: expected a duration"),
            ("models:\n- name: a\nattributionBytes: 1 apple\n", "attributionBytes: expected a size"),
            ("models:\n- name: a\nmaxQueue: -1\n", "maxQueue: expected a whole number, and not `-1`"),
            ("models:\n- name: a\ncoldHold: [1s]\n", "coldHold: expected a duration"),
            ("models:\n- name: a\nmaxQueue: many\n", "maxQueue: expected a whole number"),
            ("models:\n- name: a\nbodyStal: 1s\n", "bodyStal"),
        ] {
            let (mut args, _file) = args(Some(file), &[]);
            let error = configure(&mut args).unwrap_err().to_string();
            assert!(error.contains(expected), "{file}: {error}");
        }
    }
}
