//! What a configuration file holds.

use std::path::PathBuf;
use std::str::FromStr;

use hush_whisper::{MOST_CANDIDATES, TranscribeOptions, VadOptions};
use schemars::JsonSchema;
use serde::Deserialize;

use super::Checked;
use crate::cli::values::{
    AsrEngine, ByteSize, CorsOrigin, DeviceChoice, Language, Listen, LogFormat, LogLevel, Percent, PrecisionChoice,
    Residency, Span, Switch, ValueError,
};

/// Settings of `hush-server serve`. Each is written as its option is; an option or a variable beats it.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
#[schemars(title = "Configuration of hush-server")]
pub struct ConfigFile {
    /// Address of the public API: `0.0.0.0:9000`.
    pub listen: Option<Checked<Listen>>,
    /// Address of the operations port: `127.0.0.1:9001`.
    pub ops_listen: Option<Checked<Listen>>,
    /// Origins of pages that may use the public API from a browser: `[https://app.example.com]`, or `['*']` for all.
    pub cors_origins: Option<Vec<Checked<CorsOrigin>>>,
    /// Folder that holds the installed models.
    pub models_dir: Option<PathBuf>,
    /// Whether a model that is not installed is downloaded from the hub: `true` or `false`.
    pub install_missing: Option<Checked<Switch>>,
    /// Whether installed models are served that are not named here: `true` or `false`.
    pub serve_installed: Option<Checked<Switch>>,
    /// Names that mean the default model, beside its own: `[whisper-1]`.
    pub default_aliases: Option<Vec<String>>,
    /// Models that may be in memory at the same time; 0 is no limit.
    pub max_loaded: Option<Checked<Count>>,
    /// `resident`, `idle` or `on-demand`.
    pub residency: Option<Checked<Residency>>,
    /// How long an idle model stays: `90s`, `5m`, `1h30m`; 0 is for ever.
    pub idle_timeout: Option<Checked<Span>>,
    /// Keep a process waiting with its libraries loaded and no model: `true` or `false`.
    pub spare_runner: Option<Checked<Switch>>,
    /// How long a model may take to load.
    pub load_timeout: Option<Checked<Span>>,
    /// How long the model's process may be silent in the middle of work.
    pub stall_timeout: Option<Checked<Span>>,
    /// How long one request may hold the model: `10m`; 0 is for ever.
    pub busy_timeout: Option<Checked<Span>>,
    /// How long work in progress may go on after SIGTERM.
    pub drain_timeout: Option<Checked<Span>>,
    /// Requests that may wait for one model.
    pub max_queue: Option<Checked<Count>>,
    /// Requests that one model works on at the same time.
    pub max_batch: Option<Checked<Count>>,
    /// How long a request of the OpenAI API waits for a model that is not in memory.
    pub cold_hold: Option<Checked<Span>>,
    /// Largest upload: `4GiB`.
    pub max_upload: Option<Checked<ByteSize>>,
    /// Longest audio that is transcribed: `6h`.
    pub max_audio_duration: Option<Checked<Span>>,
    /// What the decoded audio of all requests together may hold: `4GiB`.
    pub max_decoded: Option<Checked<ByteSize>>,
    /// What the uploads of all requests together may hold: `16GiB`.
    pub max_spool: Option<Checked<ByteSize>>,
    /// Least bytes a second of an upload: `1KiB`; 0 is no limit.
    pub min_upload_rate: Option<Checked<ByteSize>>,
    /// Connections to the public API that are open at the same time.
    pub max_connections: Option<Checked<Count>>,
    /// Folder for uploads that are too large for memory.
    pub spool_dir: Option<PathBuf>,
    /// Size up to which an upload is kept in memory: `1MiB`.
    pub spool_memory: Option<Checked<ByteSize>>,
    /// What uploads and decoded audio of all requests together are kept of in memory: `128MiB`.
    pub spool_memory_total: Option<Checked<ByteSize>>,
    /// Shape of the JSON of `/asr`: `openai_whisper` or `faster_whisper`.
    pub asr_engine: Option<Checked<AsrEngine>>,
    /// `cpu`, `cuda`, `cuda:N` or `auto`.
    pub device: Option<Checked<DeviceChoice>>,
    /// `fp32`, `fp16`, `int8` or `auto`.
    pub precision: Option<Checked<PrecisionChoice>>,
    /// Threads that compute on the CPU; 0 is one for each core.
    pub threads: Option<Checked<Count>>,
    /// ONNX Runtime's shared library.
    pub ort_lib: Option<PathBuf>,
    /// Silero's model for voice activity detection.
    pub vad_model: Option<PathBuf>,
    /// The ffmpeg program.
    pub ffmpeg: Option<PathBuf>,
    /// Tokens that a hard window may cost at higher temperatures: `2400`; 0 is no limit.
    pub fallback_tokens: Option<Checked<Count>>,
    /// How long a hard window may take at higher temperatures: `20s`; 0 is no limit.
    pub fallback_time: Option<Checked<Span>>,
    /// NVIDIA's management library.
    pub nvml_lib: Option<PathBuf>,
    /// How often the GPUs are looked at.
    pub gpu_sample_interval: Option<Checked<Span>>,
    /// Device memory that must stay free beside a model that loads: `256MiB`.
    pub headroom: Option<Checked<ByteSize>>,
    /// How long an unload waits for the device's memory to come back.
    pub reclaim_timeout: Option<Checked<Span>>,
    /// Unload the longest idle model when more than this share of its GPU is used: `95%`, or `off`.
    pub memory_reclaimer: Option<Checked<Percent>>,
    /// Certificate of the public listener, PEM; makes it HTTPS.
    pub tls_cert: Option<PathBuf>,
    /// Its key.
    pub tls_key: Option<PathBuf>,
    /// Certificate of the operations listener, PEM; makes it HTTPS.
    pub ops_tls_cert: Option<PathBuf>,
    /// Its key.
    pub ops_tls_key: Option<PathBuf>,
    /// Keys of the public API, one a line.
    pub api_keys_file: Option<PathBuf>,
    /// Tokens of the admin API, one a line.
    pub admin_token_file: Option<PathBuf>,
    /// Whether browsers get a page for people: `true` or `false`.
    pub web_ui: Option<Checked<Switch>>,
    /// `text` or `json`.
    pub log_format: Option<Checked<LogFormat>>,
    /// A level, or a filter such as `info,hush_server=debug`.
    pub log_level: Option<Checked<LogLevel>>,
    /// The models that are served; the first is the default.
    pub models: Option<Vec<ModelConfig>>,
}

/// One model. What it says beats the settings for the whole server.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct ModelConfig {
    /// An installed name (`base`) or a model of the hub (`openai/whisper-base`); with `path`, what requests call it.
    pub name: Option<String>,
    /// A model directory, instead of an installed name.
    pub path: Option<PathBuf>,
    /// Other names that requests may use for it.
    pub aliases: Vec<String>,
    /// `resident`, `idle` or `on-demand`.
    pub residency: Option<Checked<Residency>>,
    /// How long it stays when idle; 0 is for ever.
    pub idle_timeout: Option<Checked<Span>>,
    /// `fp32`, `fp16`, `int8` or `auto`.
    pub precision: Option<Checked<PrecisionChoice>>,
    /// `cpu`, `cuda`, `cuda:N` or `auto`.
    pub device: Option<Checked<DeviceChoice>>,
    /// Threads that compute on the CPU.
    pub threads: Option<Checked<Count>>,
    /// Requests that may wait for it.
    pub max_queue: Option<Checked<Count>>,
    /// For requests that do not say otherwise.
    pub defaults: DecodingDefaults,
}

/// How a model decodes where a request does not say.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct DecodingDefaults {
    /// A code such as `en`, an English name such as `english`, or `auto`.
    pub language: Option<Checked<Language>>,
    /// Names and spellings that the model should know.
    pub prompt: Option<String>,
    /// Leave out what is not speech: `true` or `false`.
    pub vad_filter: Option<Checked<Switch>>,
    /// As `vadFilter`, and the pieces of a long recording are written side by side: `true` or `false`.
    pub vad_parallel: Option<Checked<Switch>>,
    /// Beams of the search where the temperature is 0: from 1 to 32.
    pub beam_size: Option<Checked<Candidates>>,
    /// Candidates where the temperature is above 0: from 1 to 32.
    pub best_of: Option<Checked<Candidates>>,
}

impl DecodingDefaults {
    /// As the engine is told.
    pub fn options(&self) -> TranscribeOptions {
        fn value<T: FromStr>(checked: &Option<Checked<T>>) -> Option<T> {
            checked.as_ref().and_then(Checked::value)
        }
        let on = |switch: &Option<Checked<Switch>>| value(switch).is_some_and(|Switch(on)| on);
        let parallel = on(&self.vad_parallel);
        let fallback = TranscribeOptions::default();
        TranscribeOptions {
            language: value(&self.language).and_then(|Language(choice)| choice.into_code()),
            initial_prompt: self.prompt.clone(),
            vad: (parallel || on(&self.vad_filter)).then(|| VadOptions { parallel, ..VadOptions::default() }),
            beam_size: value(&self.beam_size).map(|Candidates(count)| count),
            best_of: value(&self.best_of).map_or(fallback.best_of, |Candidates(count)| count),
            ..fallback
        }
    }
}

/// A whole number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Count(pub usize);

impl FromStr for Count {
    type Err = ValueError;

    fn from_str(text: &str) -> Result<Self, ValueError> {
        text.parse().map(Self).map_err(|_| ValueError("expected a whole number".to_owned()))
    }
}

/// As many beams or candidates as the engine takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Candidates(pub usize);

impl FromStr for Candidates {
    type Err = ValueError;

    fn from_str(text: &str) -> Result<Self, ValueError> {
        let count = text.parse().ok().filter(|count| (1..=MOST_CANDIDATES).contains(count));
        count.map(Self).ok_or_else(|| ValueError(format!("expected a whole number from 1 to {MOST_CANDIDATES}")))
    }
}

impl ModelConfig {
    /// As `--model` takes it.
    pub fn source(&self) -> Option<String> {
        let path = self.path.as_ref().map(|path| path.display().to_string());
        path.or_else(|| self.name.clone())
    }
}

impl ConfigFile {
    /// What one value alone cannot show.
    pub(super) fn checked(self) -> Result<Self, String> {
        let is_zero = |number: &Option<Checked<Count>>| number.as_ref().is_some_and(|number| number.text() == "0");
        if is_zero(&self.max_queue) {
            return Err("maxQueue must be at least 1".to_owned());
        }
        let models = self.models.as_deref().unwrap_or_default();
        if self.models.is_some() && models.is_empty() {
            return Err("models is empty; name one, or leave it out".to_owned());
        }
        let mut names: Vec<&str> = Vec::new();
        for (at, model) in models.iter().enumerate() {
            let place = format!("models[{at}]");
            if is_zero(&model.max_queue) {
                return Err(format!("{place}: maxQueue must be at least 1"));
            }
            if model.source().is_none() {
                return Err(format!("{place} has neither a name nor a path"));
            }
            for name in model.name.iter().chain(&model.aliases) {
                if names.contains(&name.as_str()) {
                    return Err(format!("{place}: the name `{name}` is given twice"));
                }
                names.push(name);
            }
        }
        Ok(self)
    }

    /// The text of the option `--name`, if the file has it.
    pub fn option(&self, name: &str) -> Option<&str> {
        fn text<T: FromStr>(value: &Option<Checked<T>>) -> Option<&str> {
            value.as_ref().map(Checked::text)
        }
        match name {
            "listen" => text(&self.listen),
            "ops-listen" => text(&self.ops_listen),
            "install-missing" => text(&self.install_missing),
            "serve-installed" => text(&self.serve_installed),
            "max-loaded" => text(&self.max_loaded),
            "residency" => text(&self.residency),
            "idle-timeout" => text(&self.idle_timeout),
            "spare-runner" => text(&self.spare_runner),
            "load-timeout" => text(&self.load_timeout),
            "stall-timeout" => text(&self.stall_timeout),
            "busy-timeout" => text(&self.busy_timeout),
            "drain-timeout" => text(&self.drain_timeout),
            "max-queue" => text(&self.max_queue),
            "max-batch" => text(&self.max_batch),
            "cold-hold" => text(&self.cold_hold),
            "max-upload" => text(&self.max_upload),
            "max-audio-duration" => text(&self.max_audio_duration),
            "max-decoded" => text(&self.max_decoded),
            "max-spool" => text(&self.max_spool),
            "min-upload-rate" => text(&self.min_upload_rate),
            "max-connections" => text(&self.max_connections),
            "spool-memory" => text(&self.spool_memory),
            "spool-memory-total" => text(&self.spool_memory_total),
            "asr-engine" => text(&self.asr_engine),
            "device" => text(&self.device),
            "precision" => text(&self.precision),
            "threads" => text(&self.threads),
            "fallback-tokens" => text(&self.fallback_tokens),
            "fallback-time" => text(&self.fallback_time),
            "gpu-sample-interval" => text(&self.gpu_sample_interval),
            "headroom" => text(&self.headroom),
            "reclaim-timeout" => text(&self.reclaim_timeout),
            "memory-reclaimer" => text(&self.memory_reclaimer),
            "web-ui" => text(&self.web_ui),
            "log-format" => text(&self.log_format),
            "log-level" => text(&self.log_level),
            _ => None,
        }
    }

    /// The path of the option `--name`, if the file has it.
    pub fn path(&self, name: &str) -> Option<PathBuf> {
        match name {
            "models-dir" => self.models_dir.clone(),
            "spool-dir" => self.spool_dir.clone(),
            "ort-lib" => self.ort_lib.clone(),
            "vad-model" => self.vad_model.clone(),
            "ffmpeg" => self.ffmpeg.clone(),
            "nvml-lib" => self.nvml_lib.clone(),
            "tls-cert" => self.tls_cert.clone(),
            "tls-key" => self.tls_key.clone(),
            "ops-tls-cert" => self.ops_tls_cert.clone(),
            "ops-tls-key" => self.ops_tls_key.clone(),
            "api-keys-file" => self.api_keys_file.clone(),
            "admin-token-file" => self.admin_token_file.clone(),
            _ => None,
        }
    }
}
