//! The command line as clap sees it. Every option is optional here: defaults, variables and their precedence are
//! decided in [`super::settings`]. Each option `--some-name` has the variable `HUSH_SOME_NAME`.

use std::ffi::OsString;
use std::path::PathBuf;

use clap::{Args, Parser, Subcommand};

use super::values::{
    AsrEngine, ByteSize, CorsOrigin, DeviceChoice, GpuChoice, Language, Listen, LogFormat, LogLevel, OutputFormat,
    Percent, PrecisionChoice, Residency, Span, Switch, TaskWord,
};
use crate::auth::{Account, ApiServer};

/// A Whisper speech-to-text server whose model is a guest on the GPU.
///
/// The model runs in a child process. When nobody needs it, the process ends and every byte of its memory is free; the
/// next request brings it back.
#[derive(Debug, Parser)]
#[command(name = "hush-server", version, max_term_width = 110, arg_required_else_help = true)]
#[command(subcommand_required = true)]
pub struct Cli {
    #[command(subcommand)]
    pub command: Command,
}

#[derive(Debug, Subcommand)]
pub enum Command {
    /// Serve the HTTP API: /asr, /detect-language, /status, and the operations port.
    Serve(Box<ServeArgs>),
    /// Turn a checkpoint (a folder, or a model of the Hugging Face hub) into a model directory.
    Install(InstallArgs),
    /// Transcribe files without a server.
    Transcribe(TranscribeArgs),
    /// List the installed models.
    Models(ModelsArgs),
    /// The process that holds a model; started by `serve` and `transcribe`, never by hand.
    #[command(hide = true)]
    Runner(RunnerArgs),
}

#[derive(Args, Debug, Default)]
pub struct RunnerArgs {
    /// Handed on to the runner as they are.
    #[arg(trailing_var_arg = true, allow_hyphen_values = true, hide = true)]
    pub args: Vec<OsString>,
}

#[derive(Args, Debug, Default)]
pub struct StoreArgs {
    /// Folder that holds the installed models, as NAME/PRECISION below it.
    ///
    /// Default: $XDG_DATA_HOME/hush/models, or ~/.local/share/hush/models.
    #[arg(long, value_name = "DIR")]
    pub models_dir: Option<PathBuf>,
}

#[derive(Args, Debug, Default)]
#[command(next_help_heading = "Engine")]
pub struct EngineArgs {
    /// Where the model runs: cpu, cuda, cuda:N (N is the number of the GPU, from 0), cuda:UUID or auto.
    ///
    /// auto takes CUDA when the ONNX Runtime library has its CUDA part beside it and a small graph runs on the first GPU,
    /// else the CPU, and says why. When cuda is asked for by name and cannot be had, that is an error. Default: auto.
    #[arg(long, value_name = "DEVICE")]
    pub device: Option<DeviceChoice>,

    /// How the model's numbers are stored: fp32, fp16, int8 or auto.
    ///
    /// auto is int8 on a CPU (if that one is not installed, one that is) and fp16 on CUDA, which takes no other.
    /// Default: auto.
    #[arg(long, value_name = "PRECISION")]
    pub precision: Option<PrecisionChoice>,

    /// Threads that compute on the CPU; 0 is one for each core that this process may use. Default: 0.
    #[arg(long, value_name = "N")]
    pub threads: Option<usize>,

    /// ONNX Runtime's shared library, such as /usr/lib/libonnxruntime.so.
    ///
    /// Default: ORT_DYLIB_PATH, else beside this program, in ../lib of it, and in the usual library folders.
    #[arg(long, value_name = "PATH")]
    pub ort_lib: Option<PathBuf>,

    /// Silero's model for voice activity detection, which requests with vad_filter need.
    ///
    /// Default: silero_vad.onnx beside ONNX Runtime's library, beside this program or in ../lib of it; without it such
    /// requests are refused with an error that says so.
    #[arg(long, value_name = "PATH")]
    pub vad_model: Option<PathBuf>,

    /// The ffmpeg program, used for audio and video that the built-in decoders cannot read.
    ///
    /// Default: ffmpeg in PATH; without it such files are refused with an error that says so.
    #[arg(long, value_name = "PATH")]
    pub ffmpeg: Option<PathBuf>,

    /// Tokens that a hard window of 30 s may cost at higher temperatures, of all candidates together; 0 is no limit.
    ///
    /// Text that is unlikely or repeats itself is tried again at higher temperatures. When this is spent, the best of what
    /// was tried is taken, and the log says so. Shorter windows have less, in proportion. Default: 2400.
    #[arg(long, value_name = "N")]
    pub fallback_tokens: Option<usize>,

    /// How long a hard window may take at higher temperatures; 0 is no limit. Default: 20s.
    ///
    /// As --fallback-tokens, for slow machines. What it cuts depends on how busy the machine is.
    #[arg(long, value_name = "DURATION")]
    pub fallback_time: Option<Span>,
}

#[derive(Args, Debug, Default)]
#[command(next_help_heading = "Log")]
pub struct LogArgs {
    /// Form of the log lines on standard error: text or json. Default: text.
    #[arg(long, value_name = "FORMAT")]
    pub log_format: Option<LogFormat>,

    /// What to log: error, warn, info, debug or trace, or a filter such as info,hush_server=debug. Default: info.
    #[arg(long, value_name = "LEVEL")]
    pub log_level: Option<LogLevel>,
}

#[derive(Args, Debug, Default)]
#[command(after_long_help = super::SERVE_NOTES)]
pub struct ServeArgs {
    /// Model to serve: an installed name (base), a model of the hub (openai/whisper-base) or a model directory.
    ///
    /// May be given several times; the first is the one that /asr uses. As a variable: names with commas between them.
    /// Default: the installed model if there is exactly one, else base.
    #[arg(long, value_name = "NAME|DIR")]
    pub model: Vec<String>,

    #[command(flatten)]
    pub store: StoreArgs,

    /// A file with these settings and those of each model, in YAML; see docs/configuration.md. Default: none.
    ///
    /// Options and variables beat it. SIGHUP reads it again.
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,

    /// Check the settings, print what they come to, and end. Default: false.
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    pub check_config: Option<Switch>,

    /// Names that mean the default model in the OpenAI API, beside its own; a date may follow them.
    ///
    /// May be given several times; as a variable, with commas. Default: whisper-1, gpt-4o-transcribe,
    /// gpt-4o-mini-transcribe, gpt-transcribe.
    #[arg(long, value_name = "NAME", value_delimiter = ',')]
    pub default_alias: Vec<String>,

    /// Whether every installed model is served when a request names it: true or false.
    ///
    /// Default: true when no model is named by --model, a variable or the configuration file, else false.
    #[arg(long, value_name = "BOOL")]
    pub serve_installed: Option<Switch>,

    /// Models that may be in memory at the same time; 0 is no limit. Default: 0.
    ///
    /// The least recently used idle one leaves before another loads.
    #[arg(long, value_name = "N", help_heading = "Residency")]
    pub max_loaded: Option<usize>,

    /// Whether a model that is not installed is downloaded from the hub and installed at start: true or false.
    ///
    /// Default: true.
    #[arg(long, value_name = "BOOL")]
    pub install_missing: Option<Switch>,

    /// Whether browsers get a page for people at /: true or false. Without it / leads to /docs. Default: true.
    #[arg(long, value_name = "BOOL", help_heading = "Listeners")]
    pub web_ui: Option<Switch>,

    /// Address of the public API. Default: 0.0.0.0:9000.
    #[arg(long, value_name = "ADDR", help_heading = "Listeners")]
    pub listen: Option<Listen>,

    /// Address of the operations port: /metrics and /admin. Default: 127.0.0.1:9001.
    #[arg(long, value_name = "ADDR", help_heading = "Listeners")]
    pub ops_listen: Option<Listen>,

    /// Origin of pages that may use the public API from a browser, such as https://app.example.com, or * for all.
    ///
    /// May be given several times; as a variable, with commas. Default: none, only the page of this server.
    #[arg(long, value_name = "ORIGIN", value_delimiter = ',', help_heading = "Listeners")]
    pub cors_origin: Vec<CorsOrigin>,

    /// When a model stays in memory: resident, idle or on-demand.
    ///
    /// resident: loaded at start and kept. idle: loaded by the first request, gone after --idle-timeout without one.
    /// on-demand: gone as soon as no request waits. Default: idle.
    #[arg(long, value_name = "MODE", help_heading = "Residency")]
    pub residency: Option<Residency>,

    /// How long an idle model stays, with --residency idle: 90s, 5m, 1h30m, or whole seconds; 0 is for ever.
    ///
    /// The clock starts when the last request ends. Default: 5m.
    #[arg(long, value_name = "DURATION", help_heading = "Residency")]
    pub idle_timeout: Option<Span>,

    /// Keep a process waiting with its libraries loaded and no model, so that a cold start pays for the model only.
    ///
    /// Costs some memory of the host and none of the GPU. Default: false.
    #[arg(
        long,
        value_name = "BOOL",
        num_args = 0..=1,
        require_equals = true,
        default_missing_value = "true",
        help_heading = "Residency"
    )]
    pub spare_runner: Option<Switch>,

    /// How long a model may take to load before its process is ended and the load counts as failed. Default: 5m.
    #[arg(long, value_name = "DURATION", help_heading = "Residency")]
    pub load_timeout: Option<Span>,

    /// How long the model's process may be silent in the middle of work before it counts as hung. Default: 2m.
    #[arg(long, value_name = "DURATION", help_heading = "Residency")]
    pub stall_timeout: Option<Span>,

    /// How long one request may hold the model; longer ones are ended with an error. Default: 0, for ever.
    ///
    /// When the model's process does not let go of it soon, the process is ended and its other requests start again.
    #[arg(long, value_name = "DURATION", help_heading = "Residency")]
    pub busy_timeout: Option<Span>,

    /// How long work in progress may go on after SIGTERM. Default: 30s.
    #[arg(long, value_name = "DURATION", help_heading = "Residency")]
    pub drain_timeout: Option<Span>,

    /// Requests that may wait for one model; more are refused. Default: 256.
    #[arg(long, value_name = "N", help_heading = "Requests")]
    pub max_queue: Option<usize>,

    /// Requests that one model works on at the same time: their decoding steps are done together.
    ///
    /// More gives more text per second and needs more memory, which a GPU holds from the load on; the others wait in the
    /// queue. Default: 8.
    #[arg(long, value_name = "N", help_heading = "Requests")]
    pub max_batch: Option<usize>,

    /// Largest upload: 4GiB, 512MiB, 100MB, or whole bytes. Larger ones are answered with 413. Default: 4GiB.
    #[arg(long, value_name = "SIZE", help_heading = "Requests")]
    pub max_upload: Option<ByteSize>,

    /// Folder for uploads that are too large for memory. Default: the system's folder for temporary files.
    #[arg(long, value_name = "DIR", help_heading = "Requests")]
    pub spool_dir: Option<PathBuf>,

    /// Size up to which an upload is kept in memory instead of in --spool-dir. Default: 1MiB.
    #[arg(long, value_name = "SIZE", help_heading = "Requests")]
    pub spool_memory: Option<ByteSize>,

    /// Shape of /asr's JSON, after the engines of whisper-asr-webservice: openai_whisper or faster_whisper.
    ///
    /// Default: openai_whisper.
    #[arg(long, value_name = "ENGINE", help_heading = "Requests")]
    pub asr_engine: Option<AsrEngine>,

    /// How long a request of the OpenAI API waits for a model that is not in memory; then it is answered with 503 and
    /// Retry-After.
    ///
    /// /asr waits as long as it takes: Bazarr would give up on the server for a day. Default: 60s.
    #[arg(long, value_name = "DURATION", help_heading = "Requests")]
    pub cold_hold: Option<Span>,

    #[command(flatten)]
    pub memory: MemoryArgs,

    #[command(flatten)]
    pub security: SecurityArgs,

    #[command(flatten)]
    pub engine: EngineArgs,

    #[command(flatten)]
    pub log: LogArgs,
}

#[derive(Args, Debug, Default)]
#[command(next_help_heading = "Device memory")]
pub struct MemoryArgs {
    /// NVIDIA's management library, which tells how much memory each GPU has and who holds it.
    ///
    /// Default: libnvidia-ml.so.1 where the loader finds it, and in the usual folders of drivers.
    #[arg(long, value_name = "PATH")]
    pub nvml_lib: Option<PathBuf>,

    /// How often the GPUs are looked at. Default: 1s.
    #[arg(long, value_name = "DURATION")]
    pub gpu_sample_interval: Option<Span>,

    /// Device memory that must stay free beside a model that loads. Without that much room it waits. Default: 256MiB.
    #[arg(long, value_name = "SIZE")]
    pub headroom: Option<ByteSize>,

    /// How long an unload waits for the device's memory to come back before it reports what is missing. Default: 5s.
    #[arg(long, value_name = "DURATION")]
    pub reclaim_timeout: Option<Span>,

    /// Unload the longest idle model when more than this share of its GPU is used: 95%, or off.
    ///
    /// For a server without a controller, which decides over all servers of a GPU and knows better. Default: off.
    #[arg(long, value_name = "PERCENT")]
    pub memory_reclaimer: Option<Percent>,

    /// Count the models against this GPU, by number or UUID, wherever they run.
    ///
    /// For tests and demonstrations: what the GPU has decides whether a model that runs on the CPU loads. Default: the
    /// GPU of --device.
    #[arg(long, value_name = "N|UUID", hide_short_help = true)]
    pub account_gpu: Option<GpuChoice>,
}

#[derive(Args, Debug, Default)]
#[command(next_help_heading = "Security")]
pub struct SecurityArgs {
    /// Certificate of the public listener, PEM, followed by its chain; makes it HTTPS. Read again when it changes.
    /// Default: none, plain HTTP.
    #[arg(long, value_name = "FILE")]
    pub tls_cert: Option<PathBuf>,

    /// Key of --tls-cert, PEM. Default: none.
    #[arg(long, value_name = "FILE")]
    pub tls_key: Option<PathBuf>,

    /// Certificate of the operations listener, PEM, followed by its chain; makes it HTTPS. Read again when it changes.
    /// Default: none, plain HTTP.
    #[arg(long, value_name = "FILE")]
    pub ops_tls_cert: Option<PathBuf>,

    /// Key of --ops-tls-cert, PEM. Default: none.
    #[arg(long, value_name = "FILE")]
    pub ops_tls_key: Option<PathBuf>,

    /// Keys for the public API, one a line, as KEY or NAME KEY; read again when the file changes.
    ///
    /// A client sends one as `Authorization: Bearer KEY` or `X-API-Key: KEY`. Default: no key is asked for.
    #[arg(long, value_name = "FILE")]
    pub api_keys_file: Option<PathBuf>,

    /// Tokens for the admin API, one a line, as TOKEN or NAME TOKEN; read again when the file changes.
    ///
    /// Without this and without --admin-token-review the admin API serves only this machine, and only when
    /// --ops-listen is on the loopback. Default: none.
    #[arg(long, value_name = "FILE")]
    pub admin_token_file: Option<PathBuf>,

    /// Let Kubernetes check the tokens of the admin API (TokenReview). Default: false.
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    pub admin_token_review: Option<Switch>,

    /// Service account that may use the admin API; may be given several times, as a variable with commas.
    /// Default: none.
    #[arg(long, value_name = "NAMESPACE:NAME")]
    pub admin_account: Vec<Account>,

    /// For whom a service account's token must have been made. Default: hush-server/NAMESPACE/UID, of --pod-namespace and
    /// --pod-uid.
    ///
    /// Servers with the same audience accept each other's tokens.
    #[arg(long, value_name = "AUDIENCE")]
    pub admin_audience: Option<String>,

    /// Namespace of the pod that this server runs in, with --admin-token-review. Default: none.
    #[arg(long, value_name = "NAMESPACE")]
    pub pod_namespace: Option<String>,

    /// UID of that pod, which the downward API tells (metadata.uid). Default: none.
    #[arg(long, value_name = "UID")]
    pub pod_uid: Option<String>,

    /// The Kubernetes API server. Default: the one of the cluster that this runs in.
    #[arg(long, value_name = "URL")]
    pub kubernetes_api: Option<ApiServer>,

    /// Who signs the API server's certificate, PEM. Default: ca.crt of this pod's service account.
    #[arg(long, value_name = "FILE")]
    pub kubernetes_ca: Option<PathBuf>,

    /// Token with which this server asks the API server. Default: that of this pod's service account.
    #[arg(long, value_name = "FILE")]
    pub kubernetes_token: Option<PathBuf>,
}

#[derive(Args, Debug, Default)]
#[command(after_long_help = super::INSTALL_NOTES)]
pub struct InstallArgs {
    /// Checkpoint (a folder of Hugging Face or CTranslate2, OpenAI's base.pt, whisper.cpp's ggml-base.bin), model of the
    /// hub (openai/whisper-base), or one of the usual short names (tiny, base.en, large-v3, turbo, distil-large-v3, ...).
    ///
    /// For a name, a copy on this machine is used before anything is downloaded: in the models folder, the caches of
    /// huggingface_hub and faster-whisper, and ~/.cache/whisper.
    #[arg(value_name = "SOURCE", required = true)]
    pub sources: Vec<String>,

    /// Name under which the model is installed; only with one SOURCE. Default: the folder's or file's name, or the short name.
    #[arg(long, value_name = "NAME")]
    pub name: Option<String>,

    /// Precisions to build: fp32, fp16, int8 or auto; several with commas or by repeating the option.
    ///
    /// auto is int8 for the CPU and fp16 for CUDA. Default: auto.
    #[arg(long, value_name = "PRECISION", value_delimiter = ',')]
    pub precision: Vec<PrecisionChoice>,

    /// The device that --precision auto builds for: cpu, cuda or auto, which is the one that `serve` would take. cuda takes
    /// fp16 only. Default: auto.
    #[arg(long, value_name = "DEVICE")]
    pub device: Option<DeviceChoice>,

    /// Branch, tag or commit of the hub's repository. Default: main.
    #[arg(long, value_name = "REVISION")]
    pub revision: Option<String>,

    /// Install again what is installed already.
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    pub force: Option<Switch>,

    /// Keep the downloaded checkpoint in .download below the models folder instead of removing it afterwards.
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    pub keep_download: Option<Switch>,

    #[command(flatten)]
    pub store: StoreArgs,

    #[command(flatten)]
    pub log: LogArgs,
}

#[derive(Args, Debug, Default)]
pub struct TranscribeArgs {
    /// Audio or video files; - is standard input.
    #[arg(value_name = "FILE", required = true)]
    pub files: Vec<PathBuf>,

    /// Format of the transcript: txt, vtt, srt, tsv or json. Default: txt.
    #[arg(long, value_name = "FORMAT")]
    pub output: Option<OutputFormat>,

    /// Folder for the transcripts, one file each, named after the input. Default: everything on standard output.
    #[arg(long, value_name = "DIR")]
    pub output_dir: Option<PathBuf>,

    /// Language that is spoken: a code (en, de-AT, yue), an English name, or auto.
    ///
    /// Default: auto, detected in the first 30 seconds.
    #[arg(long, value_name = "LANGUAGE")]
    pub language: Option<Language>,

    /// transcribe writes what is said; translate writes it in English. Default: transcribe.
    #[arg(long, value_name = "TASK")]
    pub task: Option<TaskWord>,

    /// Text that comes before the audio: names and spellings that the model should know.
    #[arg(long, value_name = "TEXT")]
    pub initial_prompt: Option<String>,

    /// Keep this many likeliest sequences side by side (beam search) instead of always the likeliest token.
    /// Default: no beams.
    #[arg(long, value_name = "N")]
    pub beam_size: Option<usize>,

    /// How long a beam search waits for sequences to end: 2 is until twice as many as beams have. Default: 1.
    #[arg(long, value_name = "FACTOR")]
    pub patience: Option<f32>,

    /// Candidates that are drawn at each temperature above zero. Default: 5.
    #[arg(long, value_name = "N")]
    pub best_of: Option<usize>,

    /// Weight of long candidates against short ones, from 0 to 1. Default: the mean per token decides.
    #[arg(long, value_name = "EXPONENT")]
    pub length_penalty: Option<f32>,

    /// Use only this temperature, from 0 to 2. Default: 0, and higher ones up to 1 where the text repeats itself or is
    /// unlikely.
    #[arg(long, value_name = "T")]
    pub temperature: Option<f32>,

    /// Find out when each word is spoken: words in json, subtitles made of words. Default: false.
    #[arg(
        long,
        value_name = "BOOL",
        num_args = 0..=1,
        require_equals = true,
        default_missing_value = "true",
        help_heading = "Words and subtitles"
    )]
    pub word_timestamps: Option<Switch>,

    /// In srt and vtt, underline each word while it is spoken. Needs --word-timestamps.
    /// Default: false.
    #[arg(
        long,
        value_name = "BOOL",
        num_args = 0..=1,
        require_equals = true,
        default_missing_value = "true",
        help_heading = "Words and subtitles"
    )]
    pub highlight_words: Option<Switch>,

    /// Characters in a line of a subtitle. Needs --word-timestamps. Default: no limit.
    #[arg(long, value_name = "N", help_heading = "Words and subtitles")]
    pub max_line_width: Option<usize>,

    /// Lines in a subtitle; takes effect with --max-line-width. Needs --word-timestamps. Default: no limit.
    #[arg(long, value_name = "N", help_heading = "Words and subtitles")]
    pub max_line_count: Option<usize>,

    /// Words in a subtitle; no effect with both of the above. Needs --word-timestamps. Default: no limit.
    #[arg(long, value_name = "N", help_heading = "Words and subtitles")]
    pub max_words_per_line: Option<usize>,

    /// Listen only where somebody speaks (voice activity detection). Default: false.
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    pub vad_filter: Option<Switch>,

    /// As --vad-filter, and stretches of up to 30 s are transcribed side by side, each without the text before it.
    /// Default: false.
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    pub vad_parallel: Option<Switch>,

    /// Shape of the json format, after the engines of whisper-asr-webservice: openai_whisper or faster_whisper.
    ///
    /// Default: openai_whisper.
    #[arg(long, value_name = "ENGINE")]
    pub asr_engine: Option<AsrEngine>,

    /// Model to use: an installed name (base), a model of the hub (openai/whisper-base) or a model directory.
    ///
    /// Default: the installed model if there is exactly one, else base.
    #[arg(long, value_name = "NAME|DIR")]
    pub model: Option<String>,

    #[command(flatten)]
    pub store: StoreArgs,

    /// Whether a model that is not installed is downloaded from the hub and installed first: true or false.
    ///
    /// Default: true.
    #[arg(long, value_name = "BOOL")]
    pub install_missing: Option<Switch>,

    #[command(flatten)]
    pub engine: EngineArgs,

    #[command(flatten)]
    pub log: LogArgs,
}

#[derive(Args, Debug, Default)]
pub struct ModelsArgs {
    /// Print JSON instead of a table.
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    pub json: Option<Switch>,

    #[command(flatten)]
    pub store: StoreArgs,

    #[command(flatten)]
    pub log: LogArgs,
}
