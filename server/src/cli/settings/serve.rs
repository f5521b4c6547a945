//! The settings of `serve`.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use clap::{ArgAction, Args};
use serde::Serialize;

use super::limits::LimitSettings;
use super::memory::MemorySettings;
use super::merge::MergedSettings;
use super::model::ModelOverrides;
use super::security::{SecurityOptions, SecuritySettings};
use super::shared::{EngineSettings, LogSettings, StoreSettings, check_precision};
use super::{LegacyUse, SettingError, must_be_longer_than_zero, none_if_zero};
use crate::api::DEFAULT_ALIASES;
use crate::cli::config::{self, ConfigFile, ModelConfig};
use crate::cli::env::Env;
use crate::cli::values::{
    AsrEngine, ByteSize, CorsOrigin, DurationArg, ListenAddress, ResidencyChoice, Switch, WholeNumber,
};

/// Each request of a batch has a thread in the runner and a window in its memory.
const MOST_BATCH: usize = 256;

/// Options that a reload applies to the running server: by models that are added or changed, or when a request comes.
/// All others take a restart.
const APPLIED_BY_RELOAD: [&str; 15] = [
    "models-dir",
    "default-alias",
    "serve-installed",
    "install-missing",
    "residency",
    "idle-timeout",
    "drain-timeout",
    "max-queue",
    "max-batch",
    "device",
    "precision",
    "threads",
    "fallback-tokens",
    "fallback-time",
    "encoder-context",
];

/// The options of `serve`, and what follows from them.
///
/// A field is an option: its comment is the help, its name with dashes is the flag, and variable, key of the
/// configuration file, JSON schema and reload follow from that.
#[derive(Args, Clone, Debug, PartialEq, Serialize)]
#[command(after_long_help = crate::cli::command_line::SERVE_NOTES)]
pub struct ServeSettings {
    /// Model to serve: an installed name (base), a model of the hub (openai/whisper-base) or a model directory.
    ///
    /// May be given several times; the first is the one that /asr uses. As a variable: names with commas between them.
    /// Default: the installed model if there is exactly one, else base.
    // Empty: see `model_store::Store::default_model`.
    #[arg(long = "model", value_name = "NAME|DIR")]
    pub models: Vec<String>,

    #[command(flatten)]
    #[serde(flatten)]
    pub store: StoreSettings,

    /// A file with these settings and those of each model, in YAML; see docs/configuration.md. Default: none.
    ///
    /// Options and variables take precedence over it. SIGHUP reads it again.
    #[arg(long, value_name = "FILE")]
    #[serde(skip)]
    pub config: Option<PathBuf>,

    /// Check the settings, print the result, and end.
    #[arg(
        long,
        value_name = "BOOL",
        action = ArgAction::Set,
        value_parser = Switch::read,
        num_args = 0..=1,
        require_equals = true,
        default_missing_value = "true",
        default_value = "false"
    )]
    #[serde(skip)]
    pub check_config: bool,

    /// Additional names of the default model in the OpenAI API; a date may follow them.
    ///
    /// May be given several times; as a variable, with commas.
    #[arg(long = "default-alias", value_name = "NAME", value_delimiter = ',', default_values = DEFAULT_ALIASES)]
    pub default_aliases: Vec<String>,

    /// Whether every installed model is served when a request names it: true or false.
    ///
    /// Default: true when no model is named by --model, a variable or the configuration file, else false.
    #[arg(
        long,
        value_name = "BOOL",
        action = ArgAction::Set,
        value_parser = Switch::read,
        default_value = "true",
        hide_default_value = true
    )]
    pub serve_installed: bool,

    /// Models that may be in memory at the same time; 0 is no limit.
    ///
    /// The least recently used idle model is unloaded before another is loaded.
    #[arg(
        long,
        value_name = "N",
        value_parser = WholeNumber::read,
        default_value = "0",
        help_heading = "Residency"
    )]
    pub max_loaded: usize,

    /// Whether a model that is not installed is downloaded from the hub and installed at start: true or false.
    #[arg(
        long,
        value_name = "BOOL",
        action = ArgAction::Set,
        value_parser = Switch::read,
        default_value = "true"
    )]
    pub install_missing: bool,

    /// Whether the web page is served at /: true or false. Without it / redirects to /docs.
    #[arg(
        long,
        value_name = "BOOL",
        action = ArgAction::Set,
        value_parser = Switch::read,
        default_value = "true",
        help_heading = "Listeners"
    )]
    pub web_ui: bool,

    /// Address of the public API.
    #[arg(
        long,
        value_name = "ADDR",
        value_parser = ListenAddress::read,
        default_value = "0.0.0.0:9000",
        help_heading = "Listeners"
    )]
    pub listen: SocketAddr,

    /// Address of the operations port: /metrics and /admin.
    #[arg(
        long,
        value_name = "ADDR",
        value_parser = ListenAddress::read,
        default_value = "127.0.0.1:9001",
        help_heading = "Listeners"
    )]
    pub ops_listen: SocketAddr,

    /// Origin of pages that may use the public API from a browser, such as https://app.example.com, or * for all.
    ///
    /// May be given several times; as a variable, with commas. Default: none, only the page of this server.
    #[arg(long = "cors-origin", value_name = "ORIGIN", value_delimiter = ',', help_heading = "Listeners")]
    pub cors_origins: Vec<CorsOrigin>,

    /// When a model stays in memory: resident, idle or on-demand.
    ///
    /// resident: loaded at start and kept. idle: loaded by the first request, unloaded after --idle-timeout without
    /// one. on-demand: unloaded as soon as no request waits.
    #[arg(long, value_name = "MODE", default_value = "idle", help_heading = "Residency")]
    pub residency: ResidencyChoice,

    /// How long an idle model stays loaded with --residency idle: 90s, 5m, 1h30m, or whole seconds; 0: it is never
    /// unloaded.
    ///
    /// The clock starts when the last request ends.
    #[arg(
        long,
        value_name = "DURATION",
        value_parser = DurationArg::read,
        default_value = "5m",
        help_heading = "Residency"
    )]
    pub idle_timeout: Option<Duration>,

    /// Keep a spare process that has loaded the libraries and no model, so that a cold start only has to load the
    /// model.
    ///
    /// It uses some host memory and no GPU memory.
    #[arg(
        long,
        value_name = "BOOL",
        action = ArgAction::Set,
        value_parser = Switch::read,
        num_args = 0..=1,
        require_equals = true,
        default_missing_value = "true",
        default_value = "false",
        help_heading = "Residency"
    )]
    pub spare_runner: bool,

    /// How long a model may take to load before its process is ended and the load counts as failed.
    #[arg(
        long,
        value_name = "DURATION",
        value_parser = DurationArg::read,
        default_value = "5m",
        help_heading = "Residency"
    )]
    pub load_timeout: Duration,

    /// How long the model's process may be silent in the middle of work before it counts as hung.
    #[arg(
        long,
        value_name = "DURATION",
        value_parser = DurationArg::read,
        default_value = "2m",
        help_heading = "Residency"
    )]
    pub stall_timeout: Duration,

    /// How long one request may hold the model; longer ones are ended with an error. 0 is no limit.
    ///
    /// If the model's process goes on with it, the process is ended and its other requests start again.
    #[arg(
        long,
        value_name = "DURATION",
        value_parser = DurationArg::read,
        default_value = "0",
        help_heading = "Residency"
    )]
    pub busy_timeout: Option<Duration>,

    /// How long work in progress may go on after SIGTERM.
    #[arg(
        long,
        value_name = "DURATION",
        value_parser = DurationArg::read,
        default_value = "30s",
        help_heading = "Residency"
    )]
    pub drain_timeout: Duration,

    /// Requests that may wait for one model; more are refused.
    #[arg(
        long,
        value_name = "N",
        value_parser = WholeNumber::read,
        default_value = "256",
        help_heading = "Requests"
    )]
    pub max_queue: usize,

    /// Requests that one model works on at the same time: their decoding steps are done together.
    ///
    /// More gives more text per second and needs more memory, which a GPU holds from the load on; the others wait in
    /// the queue.
    #[arg(
        long,
        value_name = "N",
        value_parser = WholeNumber::read,
        default_value = "8",
        help_heading = "Requests"
    )]
    pub max_batch: usize,

    /// Largest upload: 4GiB, 512MiB, 100MB, or whole bytes. Larger ones are answered with 413.
    #[arg(
        long = "max-upload",
        value_name = "SIZE",
        value_parser = ByteSize::read,
        default_value = "4GiB",
        help_heading = "Requests"
    )]
    pub max_upload_bytes: u64,

    #[command(flatten)]
    #[serde(flatten)]
    pub limits: LimitSettings,

    /// Folder for uploads that are too large for memory. Default: the system's folder for temporary files.
    #[arg(long, value_name = "DIR", help_heading = "Requests")]
    pub spool_dir: Option<PathBuf>,

    /// Size up to which an upload is kept in memory instead of in --spool-dir.
    #[arg(
        long = "spool-memory",
        value_name = "SIZE",
        value_parser = ByteSize::read,
        default_value = "1MiB",
        help_heading = "Requests"
    )]
    pub spool_memory_bytes: u64,

    /// Format of the JSON of /asr, named after the engines of whisper-asr-webservice: openai_whisper or faster_whisper.
    #[arg(long, value_name = "ENGINE", default_value = "openai_whisper", help_heading = "Requests")]
    pub asr_engine: AsrEngine,

    /// How long a request of the OpenAI API waits for a model that is not in memory; then it is answered with 503 and
    /// Retry-After.
    ///
    /// Requests to /asr wait without a limit, because after an error Bazarr would not use the server for a day.
    #[arg(
        long,
        value_name = "DURATION",
        value_parser = DurationArg::read,
        default_value = "60s",
        help_heading = "Requests"
    )]
    pub cold_hold: Duration,

    #[command(flatten)]
    #[serde(flatten)]
    pub memory: MemorySettings,

    #[command(flatten)]
    #[serde(flatten)]
    pub(super) security_options: SecurityOptions,

    #[command(flatten)]
    #[serde(flatten)]
    pub engine: EngineSettings,

    #[command(flatten)]
    #[serde(flatten)]
    pub log: LogSettings,

    /// What the options for security come to.
    #[arg(skip)]
    #[serde(skip)]
    pub security: SecuritySettings,

    /// What the configuration file says of single models, by the name or directory that `models` has.
    #[arg(skip)]
    #[serde(skip)]
    pub overrides: BTreeMap<String, ModelOverrides>,

    #[arg(skip)]
    #[serde(skip)]
    pub legacy: Vec<LegacyUse>,
}

impl ServeSettings {
    /// Fills in what depends on several options or on the models of the configuration file, and checks all of them.
    pub(super) fn complete(
        merged: MergedSettings<Self>,
        env: &Env,
        file: &ConfigFile,
        legacy: Vec<LegacyUse>,
    ) -> Result<Self, SettingError> {
        let is_spool_given = merged.is_given("max_spool_bytes");
        let is_serve_installed_given = merged.is_given("serve_installed");
        let mut settings = Self { legacy, ..merged.settings };

        let configured = file.models.as_deref().unwrap_or_default();
        if settings.models.is_empty() {
            settings.models = configured.iter().filter_map(ModelConfig::source).collect();
        }
        settings.overrides = configured.iter().filter_map(|model| Some((model.source()?, model.into()))).collect();
        if !is_serve_installed_given {
            settings.serve_installed = settings.models.is_empty();
        }

        none_if_zero(&mut settings.idle_timeout);
        none_if_zero(&mut settings.busy_timeout);
        settings.engine.complete();
        settings.limits.complete(settings.max_upload_bytes, is_spool_given)?;
        settings.security = settings.security_options.resolve(env)?;
        settings.check()?;
        Ok(settings)
    }

    fn check(&self) -> Result<(), SettingError> {
        let refused = |problem: String| Err(SettingError::Combination(problem));

        let (listen, ops_listen) = (self.listen, self.ops_listen);
        let is_same_host =
            listen.ip() == ops_listen.ip() || listen.ip().is_unspecified() || ops_listen.ip().is_unspecified();
        if listen.port() == ops_listen.port() && listen.port() != 0 && is_same_host {
            return refused(format!(
                "--listen {listen} and --ops-listen {ops_listen} are the same port; give one of them another"
            ));
        }

        if self.max_queue == 0 {
            return refused("--max-queue must be at least 1".to_owned());
        }
        if !(1..=MOST_BATCH).contains(&self.max_batch) {
            return refused(format!("--max-batch must lie between 1 and {MOST_BATCH}"));
        }
        must_be_longer_than_zero("load-timeout", self.load_timeout)?;
        must_be_longer_than_zero("stall-timeout", self.stall_timeout)?;
        self.memory.check()?;
        self.check_precisions()
    }

    fn check_precisions(&self) -> Result<(), SettingError> {
        let engine = &self.engine;
        check_precision(engine.device, engine.precision, "", &self.legacy)?;

        for (source, own) in &self.overrides {
            let device = own.device.unwrap_or(engine.device);
            let precision = own.precision.unwrap_or(engine.precision);
            let prefix = format!("model `{source}` of the configuration file: ");
            check_precision(device, precision, &prefix, &self.legacy)?;
        }
        Ok(())
    }

    /// What the configuration file says of a model, which is named as `models` has it or as requests call it.
    pub fn overrides_of(&self, name: &str) -> ModelOverrides {
        let is_called = |overrides: &&ModelOverrides| overrides.name.as_deref() == Some(name);
        let overrides = self.overrides.get(name).or_else(|| self.overrides.values().find(is_called));

        overrides.cloned().unwrap_or_default()
    }

    /// Keys of the configuration file whose values differ in `other` and which take a restart.
    pub fn restart_for(&self, other: &Self) -> Vec<&'static str> {
        let (before, after) = (self.values(), other.values());

        let options = config::file_options().iter().filter(|known| !APPLIED_BY_RELOAD.contains(&known.long()));
        let differing = options.filter(|known| before.get(known.field()) != after.get(known.field()));
        differing.map(|known| known.key).collect()
    }

    /// The values of the options that the configuration file may have, by the names of their fields.
    ///
    /// Empty where a path is not valid UTF-8, which JSON cannot hold: then a reload reports no difference.
    pub(super) fn values(&self) -> serde_json::Value {
        serde_json::to_value(self).unwrap_or_default()
    }
}
