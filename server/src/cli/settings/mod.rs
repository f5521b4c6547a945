//! Arguments and environment -> settings. Pure: the environment is an argument, nothing is read from the disk.
//!
//! Precedence: flag, `HUSH_` variable, variable of whisper-asr-webservice, default. An empty variable is not set.

mod limits;
mod security;
mod sources;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::fmt;
use std::net::SocketAddr;
use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::time::Duration;

use hush_whisper::{FALLBACK_SECONDS, FALLBACK_TOKENS, TranscribeOptions, VadOptions};

use super::args::{Cli, Command, InstallArgs, LogArgs, ModelsArgs, ServeArgs, TranscribeArgs};
use super::config::{self, Checked, ConfigError, ConfigFile, ModelConfig};
use super::env::Env;
use super::values::{
    AsrEngine, ByteSize, CorsOrigin, DeviceChoice, Language, Listen, LogFormat, OutputFormat, Precision,
    PrecisionChoice, Residency, Span, TaskWord,
};
use super::variable;
use crate::api::DEFAULT_ALIASES;
use crate::format::{Layout, Words};
use crate::gpu::GpuRef;
pub use limits::LimitSettings;
pub use security::{SecuritySettings, TlsFiles};
use sources::{Count, Number, Sources, legacy_seconds};

/// Each request of a batch has a thread in the runner and a window in its memory.
const MOST_BATCH: usize = 256;

/// A variable or a combination of options that cannot be used. Ends the program with the exit status of a usage error.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum SettingError {
    #[error("the variable {variable} is {value:?}: {problem}")]
    Variable { variable: String, value: String, problem: String },
    #[error("{0}")]
    Combination(String),
    #[error("{0}")]
    Config(String),
}

impl From<ConfigError> for SettingError {
    fn from(error: ConfigError) -> Self {
        Self::Config(error.to_string())
    }
}

/// A variable of whisper-asr-webservice that decided something; `serve` logs each.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LegacyUse {
    pub variable: &'static str,
    pub value: String,
    /// The option it stands for, without dashes.
    pub option: &'static str,
}

impl fmt::Display for LegacyUse {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { variable: name, value, option } = self;
        write!(f, "{name}={value} is used for --{option}; its name here is {}", variable(option))
    }
}

#[derive(Debug)]
pub enum Settings {
    Serve(Box<ServeSettings>),
    Install(InstallSettings),
    Transcribe(Box<TranscribeSettings>),
    Models(ModelsSettings),
    Runner(LogSettings),
    /// Whether CUDA works on this GPU with this ONNX Runtime; asked by `serve` in a process of its own.
    ProbeCuda {
        library: PathBuf,
        index: u32,
    },
}

impl Settings {
    /// Whether the process itself opens ONNX Runtime. `serve` leaves that to its runners.
    pub fn opens_runtime(&self) -> bool {
        match self {
            Self::Transcribe(_) | Self::Runner(_) | Self::ProbeCuda { .. } => true,
            Self::Serve(_) | Self::Install(_) | Self::Models(_) => false,
        }
    }
}

#[derive(Clone, Debug, PartialEq)]
pub struct EngineSettings {
    pub device: DeviceChoice,
    pub precision: PrecisionChoice,
    /// `None`: one for each core that the process may use.
    pub threads: Option<usize>,
    /// `None`: look for it ([`crate::app::ort_library::find`]).
    pub ort_lib: Option<PathBuf>,
    /// `None`: look for it ([`crate::app::vad_model::find`]).
    pub vad_model: Option<PathBuf>,
    /// `None`: `ffmpeg` in `PATH`.
    pub ffmpeg: Option<PathBuf>,
    pub fallback: FallbackSettings,
}

/// What a window may cost beyond its first attempt; `None` is without end.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct FallbackSettings {
    pub tokens: Option<usize>,
    pub time: Option<Duration>,
}

impl Default for FallbackSettings {
    fn default() -> Self {
        Self { tokens: Some(FALLBACK_TOKENS), time: Some(Duration::from_secs_f32(FALLBACK_SECONDS)) }
    }
}

impl FallbackSettings {
    pub fn apply(&self, options: TranscribeOptions) -> TranscribeOptions {
        let fallback_seconds = self.time.map(|time| time.as_secs_f32());
        TranscribeOptions { fallback_tokens: self.tokens, fallback_seconds, ..options }
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LogSettings {
    pub format: LogFormat,
    /// Directives of `EnvFilter`, already checked.
    pub level: String,
}

/// What the configuration file says of one model. It beats the settings for the whole server.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ModelOverrides {
    /// What requests call a model that was given as a directory.
    pub name: Option<String>,
    pub aliases: Vec<String>,
    pub residency: Option<Residency>,
    /// Zero: never by idleness.
    pub idle_timeout: Option<Duration>,
    pub precision: Option<PrecisionChoice>,
    pub device: Option<DeviceChoice>,
    pub threads: Option<usize>,
    pub max_queue: Option<usize>,
    /// How it decodes where a request does not say.
    pub defaults: TranscribeOptions,
}

impl From<&ModelConfig> for ModelOverrides {
    fn from(model: &ModelConfig) -> Self {
        let number = |number: &Option<Checked<config::Count>>| {
            number.as_ref().and_then(|number| number.value()).map(|number| number.0)
        };
        Self {
            name: model.name.clone().filter(|_| model.path.is_some()),
            aliases: model.aliases.clone(),
            residency: model.residency.as_ref().and_then(|residency| residency.value()),
            idle_timeout: model.idle_timeout.as_ref().and_then(|timeout| timeout.value()).map(|Span(timeout)| timeout),
            precision: model.precision.as_ref().and_then(|precision| precision.value()),
            device: model.device.as_ref().and_then(|device| device.value()),
            threads: number(&model.threads).filter(|threads| *threads > 0),
            max_queue: number(&model.max_queue),
            defaults: model.defaults.options(),
        }
    }
}

#[derive(Clone, Debug, PartialEq)]
pub struct ServeSettings {
    /// Check and print, do not serve.
    pub check_config: bool,
    /// Names that mean the default model.
    pub default_aliases: Vec<String>,
    /// Whether a request may name any installed model.
    pub serve_installed: bool,
    /// `None`: no limit.
    pub max_loaded: Option<NonZeroUsize>,
    /// By the name or directory that [`Self::models`] has.
    pub overrides: BTreeMap<String, ModelOverrides>,
    /// Names or directories, the first is the default; empty: see [`crate::app::model_store::Store::default_model`].
    pub models: Vec<String>,
    pub models_dir: PathBuf,
    pub install_missing: bool,
    pub web_ui: bool,
    pub listen: SocketAddr,
    pub ops_listen: SocketAddr,
    /// Of pages that may use the public API.
    pub cors_origins: Vec<CorsOrigin>,
    pub residency: Residency,
    /// `None`: never by idleness.
    pub idle_timeout: Option<Duration>,
    pub spare_runner: bool,
    pub load_timeout: Duration,
    pub stall_timeout: Duration,
    /// `None`: a request may hold the model for ever.
    pub busy_timeout: Option<Duration>,
    pub drain_timeout: Duration,
    pub max_queue: usize,
    pub max_batch: usize,
    pub max_upload_bytes: u64,
    pub limits: LimitSettings,
    /// `None`: the system's folder for temporary files.
    pub spool_dir: Option<PathBuf>,
    pub spool_memory_bytes: u64,
    pub asr_engine: AsrEngine,
    /// Of requests that do not wait for a cold model as long as it takes.
    pub cold_hold: Duration,
    pub memory: MemorySettings,
    pub security: SecuritySettings,
    pub engine: EngineSettings,
    pub log: LogSettings,
    pub legacy: Vec<LegacyUse>,
}

impl ServeSettings {
    /// By the name or directory as it was given, or by the name that it has here.
    pub fn overrides_of(&self, name: &str) -> ModelOverrides {
        let own = self
            .overrides
            .get(name)
            .or_else(|| self.overrides.values().find(|overrides| overrides.name.as_deref() == Some(name)));
        own.cloned().unwrap_or_default()
    }

    /// Options that differ in `other` and hold only from the start of a server.
    pub fn restart_for(&self, other: &Self) -> Vec<&'static str> {
        let differs = [
            ("listen", self.listen != other.listen),
            ("opsListen", self.ops_listen != other.ops_listen),
            ("corsOrigins", self.cors_origins != other.cors_origins),
            ("maxLoaded", self.max_loaded != other.max_loaded),
            ("spareRunner", self.spare_runner != other.spare_runner),
            ("loadTimeout", self.load_timeout != other.load_timeout),
            ("stallTimeout", self.stall_timeout != other.stall_timeout),
            ("busyTimeout", self.busy_timeout != other.busy_timeout),
            ("coldHold", self.cold_hold != other.cold_hold),
            ("maxUpload", self.max_upload_bytes != other.max_upload_bytes),
            (
                "maxAudioDuration, maxDecoded, maxSpool, minUploadRate, maxConnections or spoolMemoryTotal",
                self.limits != other.limits,
            ),
            ("spoolDir", self.spool_dir != other.spool_dir),
            ("spoolMemory", self.spool_memory_bytes != other.spool_memory_bytes),
            ("asrEngine", self.asr_engine != other.asr_engine),
            ("ortLib", self.engine.ort_lib != other.engine.ort_lib),
            ("vadModel", self.engine.vad_model != other.engine.vad_model),
            ("ffmpeg", self.engine.ffmpeg != other.engine.ffmpeg),
            ("nvmlLib, gpuSampleInterval, headroom, reclaimTimeout or memoryReclaimer", self.memory != other.memory),
            ("tls, keys or tokens", self.security != other.security),
            ("webUi", self.web_ui != other.web_ui),
            ("logFormat or logLevel", self.log != other.log),
        ];
        differs.into_iter().filter(|(_, differs)| *differs).map(|(name, _)| name).collect()
    }
}

/// Of devices.
#[derive(Clone, Debug, PartialEq)]
pub struct MemorySettings {
    /// `None`: the usual names.
    pub nvml_lib: Option<PathBuf>,
    pub sample_interval: Duration,
    pub headroom_bytes: u64,
    pub reclaim_timeout: Duration,
    /// In per cent of the device; `None`: off.
    pub reclaimer: Option<u8>,
    /// `None`: the device that the models run on.
    pub account_gpu: Option<GpuRef>,
}

#[derive(Clone, Debug, PartialEq)]
pub struct InstallSettings {
    pub sources: Vec<String>,
    pub name: Option<String>,
    pub precisions: Vec<PrecisionChoice>,
    pub device: DeviceChoice,
    /// `None`: `main`.
    pub revision: Option<String>,
    pub force: bool,
    pub keep_download: bool,
    pub models_dir: PathBuf,
    pub log: LogSettings,
    pub legacy: Vec<LegacyUse>,
}

/// How text is searched; `None`: as the engine does by itself, which also checks what is given.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct SearchSettings {
    pub beam_size: Option<usize>,
    pub patience: Option<f32>,
    pub best_of: Option<usize>,
    pub length_penalty: Option<f32>,
    pub temperature: Option<f32>,
}

#[derive(Clone, Debug, PartialEq)]
pub struct TranscribeSettings {
    pub files: Vec<PathBuf>,
    pub output: OutputFormat,
    /// `None`: standard output.
    pub output_dir: Option<PathBuf>,
    pub language: Option<String>,
    pub task: TaskWord,
    pub initial_prompt: Option<String>,
    pub search: SearchSettings,
    pub words: Words,
    pub vad: Option<VadOptions>,
    pub asr_engine: AsrEngine,
    pub model: Option<String>,
    pub models_dir: PathBuf,
    pub install_missing: bool,
    pub engine: EngineSettings,
    pub log: LogSettings,
    pub legacy: Vec<LegacyUse>,
}

#[derive(Clone, Debug, PartialEq)]
pub struct ModelsSettings {
    pub json: bool,
    pub models_dir: PathBuf,
    pub log: LogSettings,
    pub legacy: Vec<LegacyUse>,
}

/// The configuration file that options and variables name.
pub fn config_path(cli: &Cli, env: &Env) -> Option<PathBuf> {
    match &cli.command {
        Command::Serve(args) => args.config.clone().or_else(|| env.path(&variable("config"))),
        _ => None,
    }
}

/// Everything that the options and variables say, with defaults filled in.
pub fn resolve(cli: Cli, env: &Env) -> Result<Settings, SettingError> {
    resolve_with(cli, env, &ConfigFile::default())
}

/// As [`resolve`], with the configuration file of `serve`.
pub fn resolve_with(cli: Cli, env: &Env, file: &ConfigFile) -> Result<Settings, SettingError> {
    Ok(match cli.command {
        Command::Serve(args) => Settings::Serve(Box::new(serve(*args, env, file)?)),
        Command::Install(args) => Settings::Install(install(args, env)?),
        Command::Transcribe(args) => Settings::Transcribe(Box::new(transcribe(args, env)?)),
        Command::Models(args) => Settings::Models(models(args, env)?),
        Command::Runner(args) if args.args.first().is_some_and(|word| word == PROBE_CUDA) => {
            let [_, library, index] = args.args.as_slice() else { return Err(probe_usage()) };
            let index = index.to_str().and_then(|index| index.parse().ok()).ok_or_else(probe_usage)?;
            Settings::ProbeCuda { library: library.into(), index }
        }
        Command::Runner(_) => Settings::Runner(Sources::new(env).log(LogArgs::default())?),
    })
}

/// The first argument of a runner that loads nothing and only looks.
pub const PROBE_CUDA: &str = "probe-cuda";

fn probe_usage() -> SettingError {
    SettingError::Combination(format!("{PROBE_CUDA} wants ONNX Runtime's library and the number of a GPU"))
}

/// `serve` alone; [`resolve`] for any command.
pub fn serve(args: ServeArgs, env: &Env, file: &ConfigFile) -> Result<ServeSettings, SettingError> {
    let mut from = Sources { file: Some(file), ..Sources::new(env) };
    let models = match from.list("model", args.model)? {
        models if models.is_empty() => {
            from.legacy("model", "ASR_MODEL", |name| Ok(vec![name.to_owned()]))?.unwrap_or_default()
        }
        models => models,
    };
    let configured = file.models.as_deref().unwrap_or_default();
    let models = match models.is_empty() {
        true => configured.iter().filter_map(ModelConfig::source).collect(),
        false => models,
    };
    let overrides = configured.iter().filter_map(|model| Some((model.source()?, model.into()))).collect();
    let mut default_aliases = from.list("default-alias", args.default_alias)?;
    if default_aliases.is_empty() {
        default_aliases = file.default_aliases.clone().unwrap_or_else(|| DEFAULT_ALIASES.map(str::to_owned).to_vec());
    }
    let mut cors_origins: Vec<CorsOrigin> = from.list("cors-origin", args.cors_origin)?;
    if cors_origins.is_empty() {
        cors_origins = file.cors_origins.iter().flatten().filter_map(Checked::value).collect();
    }
    let serve_installed = from.switch("serve-installed", args.serve_installed)?.unwrap_or(models.is_empty());
    let max_loaded = from.value("max-loaded", args.max_loaded.map(Count))?.and_then(|count| NonZeroUsize::new(count.0));
    let listen = from.value("listen", args.listen)?.unwrap_or(Listen(([0, 0, 0, 0], 9000).into())).0;
    let ops_listen = from.value("ops-listen", args.ops_listen)?.unwrap_or(Listen(([127, 0, 0, 1], 9001).into())).0;
    if listen.port() == ops_listen.port()
        && listen.port() != 0
        && (listen.ip() == ops_listen.ip() || listen.ip().is_unspecified() || ops_listen.ip().is_unspecified())
    {
        let problem =
            format!("--listen {listen} and --ops-listen {ops_listen} are the same port; give one of them another");
        return Err(SettingError::Combination(problem));
    }
    let idle_timeout = match from.given("idle-timeout", args.idle_timeout)? {
        Some(Span(span)) => Some(span),
        None => from.legacy("idle-timeout", "MODEL_IDLE_TIMEOUT", legacy_seconds)?,
    };
    let idle_timeout = match idle_timeout {
        Some(timeout) => timeout,
        None => from.filed("idle-timeout")?.map_or(Duration::from_secs(300), |Span(timeout)| timeout),
    };
    let max_queue = from.value("max-queue", args.max_queue.map(Count))?.map_or(256, |count| count.0);
    if max_queue == 0 {
        return Err(SettingError::Combination("--max-queue must be at least 1".to_owned()));
    }
    let max_batch = from.value("max-batch", args.max_batch.map(Count))?.map_or(8, |count| count.0);
    if !(1..=MOST_BATCH).contains(&max_batch) {
        return Err(SettingError::Combination(format!("--max-batch must lie between 1 and {MOST_BATCH}")));
    }
    let max_upload_bytes = from.value("max-upload", args.max_upload)?.map_or(4 << 30, |size: ByteSize| size.0);
    let settings = ServeSettings {
        check_config: from.switch("check-config", args.check_config)?.unwrap_or(false),
        default_aliases,
        serve_installed,
        max_loaded,
        overrides,
        models,
        models_dir: from.models_dir(args.store)?,
        install_missing: from.switch("install-missing", args.install_missing)?.unwrap_or(true),
        web_ui: from.switch("web-ui", args.web_ui)?.unwrap_or(true),
        listen,
        ops_listen,
        cors_origins,
        residency: from.value("residency", args.residency)?.unwrap_or(Residency::Idle),
        idle_timeout: (!idle_timeout.is_zero()).then_some(idle_timeout),
        spare_runner: from.switch("spare-runner", args.spare_runner)?.unwrap_or(false),
        load_timeout: from.positive("load-timeout", args.load_timeout, Duration::from_secs(300))?,
        stall_timeout: from.positive("stall-timeout", args.stall_timeout, Duration::from_secs(120))?,
        busy_timeout: from.value("busy-timeout", args.busy_timeout)?.map(|span| span.0).filter(|span| !span.is_zero()),
        drain_timeout: from.value("drain-timeout", args.drain_timeout)?.map_or(Duration::from_secs(30), |span| span.0),
        max_queue,
        max_batch,
        max_upload_bytes,
        limits: from.limits(args.limits, max_upload_bytes)?,
        spool_dir: from.path("spool-dir", args.spool_dir),
        spool_memory_bytes: from.value("spool-memory", args.spool_memory)?.map_or(1 << 20, |size: ByteSize| size.0),
        asr_engine: from.asr_engine(args.asr_engine)?,
        cold_hold: from.value("cold-hold", args.cold_hold)?.map_or(Duration::from_secs(60), |span| span.0),
        memory: from.memory(args.memory)?,
        security: from.security(args.security)?,
        engine: from.engine(args.engine)?,
        log: from.log(args.log)?,
        legacy: Vec::new(),
    };
    check_precision(settings.engine.device, settings.engine.precision, "", &from.legacy)?;
    for (source, own) in &settings.overrides {
        let device = own.device.unwrap_or(settings.engine.device);
        let precision = own.precision.unwrap_or(settings.engine.precision);
        check_precision(device, precision, &format!("model `{source}` of the configuration file: "), &from.legacy)?;
    }
    Ok(ServeSettings { legacy: from.legacy, ..settings })
}

/// CUDA takes fp16 only. `auto`, of either, is not refused: it means what goes with the other.
fn check_precision(
    device: DeviceChoice,
    precision: PrecisionChoice,
    whose: &str,
    legacy: &[LegacyUse],
) -> Result<(), SettingError> {
    let (DeviceChoice::Cuda(_), PrecisionChoice::Exactly(precision)) = (device, precision) else { return Ok(()) };
    if precision == Precision::Fp16 {
        return Ok(());
    }
    let mut problem = format!(
        "{whose}--precision {precision} does not run on --device {device}: CUDA takes fp16 only. Use --precision fp16 or \
         leave it out, or take --device cpu"
    );
    for used in legacy.iter().filter(|used| ["device", "precision"].contains(&used.option)) {
        problem.push_str(&format!(" ({used})"));
    }
    Err(SettingError::Combination(problem))
}

fn install(args: InstallArgs, env: &Env) -> Result<InstallSettings, SettingError> {
    let mut from = Sources::new(env);
    let name = from.text("name", args.name)?;
    if name.is_some() && args.sources.len() > 1 {
        return Err(SettingError::Combination("--name needs exactly one SOURCE".to_owned()));
    }
    let mut precisions = from.list("precision", args.precision)?;
    if precisions.is_empty() {
        precisions.push(PrecisionChoice::Auto);
    }
    let settings = InstallSettings {
        sources: args.sources,
        name,
        precisions,
        device: from.device(args.device)?,
        revision: from.text("revision", args.revision)?,
        force: from.switch("force", args.force)?.unwrap_or(false),
        keep_download: from.switch("keep-download", args.keep_download)?.unwrap_or(false),
        models_dir: from.models_dir(args.store)?,
        log: from.log(args.log)?,
        legacy: Vec::new(),
    };
    for precision in &settings.precisions {
        check_precision(settings.device, *precision, "", &from.legacy)?;
    }
    Ok(InstallSettings { legacy: from.legacy, ..settings })
}

fn transcribe(args: TranscribeArgs, env: &Env) -> Result<TranscribeSettings, SettingError> {
    let mut from = Sources::new(env);
    let model = match from.list("model", args.model.into_iter().collect())?.into_iter().next() {
        Some(model) => Some(model),
        None => from.legacy("model", "ASR_MODEL", |name| Ok(name.to_owned()))?,
    };
    let word_timestamps = from.switch("word-timestamps", args.word_timestamps)?.unwrap_or(false);
    let layout = Layout {
        highlight_words: from.switch("highlight-words", args.highlight_words)?.unwrap_or(false),
        max_line_width: from.at_least_one("max-line-width", args.max_line_width)?,
        max_line_count: from.at_least_one("max-line-count", args.max_line_count)?,
        max_words_per_line: from.at_least_one("max-words-per-line", args.max_words_per_line)?,
    };
    if !word_timestamps && layout != Layout::default() {
        let problem = "--highlight-words, --max-line-width, --max-line-count and --max-words-per-line need \
                       --word-timestamps";
        return Err(SettingError::Combination(problem.to_owned()));
    }
    let vad_filter = from.switch("vad-filter", args.vad_filter)?.unwrap_or(false);
    let parallel = from.switch("vad-parallel", args.vad_parallel)?.unwrap_or(false);
    let words = if word_timestamps { Words::LaidOut(layout) } else { Words::Without };
    let settings = TranscribeSettings {
        files: args.files,
        output: from.value("output", args.output)?.unwrap_or(OutputFormat::Txt),
        output_dir: from.path("output-dir", args.output_dir),
        language: from.value("language", args.language)?.and_then(|Language(choice)| choice.into_code()),
        task: from.value("task", args.task)?.unwrap_or(TaskWord::Transcribe),
        initial_prompt: from.text("initial-prompt", args.initial_prompt)?,
        search: SearchSettings {
            beam_size: from.value("beam-size", args.beam_size.map(Count))?.map(|count| count.0),
            patience: from.value("patience", args.patience.map(Number))?.map(|number| number.0),
            best_of: from.value("best-of", args.best_of.map(Count))?.map(|count| count.0),
            length_penalty: from.value("length-penalty", args.length_penalty.map(Number))?.map(|number| number.0),
            temperature: from.value("temperature", args.temperature.map(Number))?.map(|number| number.0),
        },
        words,
        vad: (vad_filter || parallel).then(|| VadOptions { parallel, ..VadOptions::default() }),
        asr_engine: from.asr_engine(args.asr_engine)?,
        model,
        models_dir: from.models_dir(args.store)?,
        install_missing: from.switch("install-missing", args.install_missing)?.unwrap_or(true),
        engine: from.engine(args.engine)?,
        log: from.log(args.log)?,
        legacy: Vec::new(),
    };
    check_precision(settings.engine.device, settings.engine.precision, "", &from.legacy)?;
    Ok(TranscribeSettings { legacy: from.legacy, ..settings })
}

fn models(args: ModelsArgs, env: &Env) -> Result<ModelsSettings, SettingError> {
    let mut from = Sources::new(env);
    let settings = ModelsSettings {
        json: from.switch("json", args.json)?.unwrap_or(false),
        models_dir: from.models_dir(args.store)?,
        log: from.log(args.log)?,
        legacy: Vec::new(),
    };
    Ok(ModelsSettings { legacy: from.legacy, ..settings })
}
