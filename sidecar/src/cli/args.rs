//! The command line as clap knows it. An option `--some-name` has the variable `HUSH_SOME_NAME`.

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use clap::parser::ValueSource;
use clap::{ArgMatches, Args, CommandFactory, FromArgMatches, Id, Parser, Subcommand, ValueEnum};
use hush_access::{ApiServer, ServiceAccount};
use hush_contract::admin::UnloadMethod;

use super::values::{AppDevice, DurationLimit, read_bytes, read_duration, read_limit};

/// A proxy in front of another model server that gives it Hush's contract: its models leave the GPU when they are idle or
/// others need the memory, and requests wait until they are back.
///
/// The app must listen where only the sidecar reaches it. With a command after `--` the sidecar starts the app itself.
#[derive(Debug, Parser)]
#[command(name = "hush-sidecar", version, max_term_width = 110, arg_required_else_help = true)]
#[command(args_conflicts_with_subcommands = true, subcommand_negates_reqs = true)]
pub struct SidecarCli {
    #[command(subcommand)]
    pub command: Option<SidecarCommand>,

    #[command(flatten)]
    pub args: SidecarArgs,
}

#[derive(Debug, Subcommand)]
pub enum SidecarCommand {
    /// List the kinds of app that are known.
    Apps,
    /// Print the description of a known app, as a beginning for one of your own.
    Describe {
        /// As `hush-sidecar apps` lists it.
        app: String,
    },
    /// Check a description of an app, and say what is wrong with it.
    Check {
        /// A file in YAML.
        file: PathBuf,
    },
    /// Starts an app in a session of its own; called by the sidecar, never by hand.
    #[command(hide = true)]
    SpawnApp {
        #[arg(trailing_var_arg = true, allow_hyphen_values = true, hide = true)]
        command: Vec<OsString>,
    },
}

/// How models are loaded and unloaded.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum ModeChoice {
    /// Through the app's API where it has one for that, else by starting and ending the app.
    #[default]
    Auto,
    /// Through the app's API.
    Api,
    /// By starting and ending the app: nothing stays on the GPU.
    Process,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum ResidencyArg {
    /// Loaded at start, and again whenever it is lost.
    Resident,
    /// Unloaded after --idle-timeout without a request.
    #[default]
    Idle,
    /// Unloaded as soon as no request is in flight.
    OnDemand,
}

/// What an unload ends, where the sidecar starts an app that unloads its models itself.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum UnloadChoice {
    /// The app unloads the model; its process goes on, with what it holds beside its models.
    #[default]
    App,
    /// The process of the app ends with its last model, and is started again for the next load.
    Process,
}

impl From<UnloadChoice> for UnloadMethod {
    fn from(choice: UnloadChoice) -> Self {
        match choice {
            UnloadChoice::App => Self::App,
            UnloadChoice::Process => Self::Process,
        }
    }
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum LogFormatArg {
    #[default]
    Text,
    Json,
}

#[derive(Args, Clone, Debug)]
pub struct SidecarArgs {
    /// The kind of app, as `hush-sidecar apps` lists it, or a file (.yaml) that describes another one.
    // Required of the sidecar itself and not of its subcommands: `run` checks it.
    #[arg(long, env = "HUSH_APP", value_name = "APP", default_value = "", hide_default_value = true)]
    pub app: String,

    /// Where the app listens, such as http://127.0.0.1:11435.
    ///
    /// Default: with a command after `--`, a free port of this machine, which the command gets as {port}.
    #[arg(long, env = "HUSH_UPSTREAM", value_name = "URL")]
    pub upstream: Option<String>,

    /// The port on which the app tells how much work it has, where that is not --upstream (Triton: 8002).
    #[arg(long, env = "HUSH_BUSY_PORT", value_name = "PORT")]
    pub busy_port: Option<u16>,

    /// File with the credential that the app wants of an administrator; the sidecar's own requests carry it.
    #[arg(long, env = "HUSH_UPSTREAM_CREDENTIAL_FILE", value_name = "FILE")]
    pub upstream_credential_file: Option<PathBuf>,

    /// Where clients connect.
    #[arg(long, env = "HUSH_LISTEN", value_name = "ADDRESS", default_value = "127.0.0.1:9000")]
    pub listen: SocketAddr,

    /// Where metrics and the admin API are served.
    #[arg(long, env = "HUSH_OPS_LISTEN", value_name = "ADDRESS", default_value = "127.0.0.1:9090")]
    pub ops_listen: SocketAddr,

    /// A model of the app, as requests name it; may be given several times. The first is the default.
    #[arg(long = "model", env = "HUSH_MODEL", value_name = "NAME", value_delimiter = ',')]
    pub models: Vec<String>,

    /// Configuration file (YAML) with the models and what differs between them.
    #[arg(long, env = "HUSH_CONFIG", value_name = "FILE")]
    pub config: Option<PathBuf>,

    /// How models are loaded and unloaded.
    #[arg(long, env = "HUSH_MODE", value_enum, default_value = "auto")]
    pub mode: ModeChoice,

    #[command(flatten)]
    pub life: LifeArgs,

    #[command(flatten)]
    pub memory: MemoryArgs,

    #[command(flatten)]
    pub process: ProcessArgs,

    #[command(flatten)]
    pub requests: RequestArgs,

    #[command(flatten)]
    pub security: SecurityArgs,

    #[command(flatten)]
    pub log: LogArgs,

    /// The options that the command line or a variable gives; they beat the configuration file.
    #[arg(skip)]
    pub given: GivenOptions,

    /// The app's program and its arguments. `{port}` is the port that the app must listen on.
    #[arg(last = true, value_name = "COMMAND")]
    pub command: Vec<OsString>,
}

#[derive(Args, Clone, Debug)]
#[command(next_help_heading = "Life of the models")]
pub struct LifeArgs {
    /// When a model stays in memory and when it leaves, where no controller decides.
    #[arg(long, env = "HUSH_RESIDENCY", value_enum, default_value = "idle")]
    pub residency: ResidencyArg,

    /// A model without requests for this long is unloaded, with --residency idle; 0: never.
    #[arg(long, env = "HUSH_IDLE_TIMEOUT", value_name = "DURATION", value_parser = read_limit, default_value = "5m")]
    pub idle_timeout: DurationLimit,

    /// What an unload ends that no controller orders, or whose command does not say.
    #[arg(long, env = "HUSH_UNLOAD", value_enum, default_value = "app")]
    pub unload: UnloadChoice,

    /// How long an unload waits for the requests in flight; then it is given up.
    #[arg(long, env = "HUSH_DRAIN_TIMEOUT", value_name = "DURATION", value_parser = read_duration, default_value = "30s")]
    pub drain_timeout: Duration,

    /// A load that takes longer has failed.
    #[arg(long, env = "HUSH_LOAD_TIMEOUT", value_name = "DURATION", value_parser = read_duration, default_value = "10m")]
    pub load_timeout: Duration,

    /// An unload through the app's API that takes longer is given up.
    #[arg(long, env = "HUSH_UNLOAD_TIMEOUT", value_name = "DURATION", value_parser = read_duration, default_value = "60s")]
    pub unload_timeout: Duration,

    /// How often the app is asked what it has in memory.
    #[arg(long, env = "HUSH_POLL_INTERVAL", value_name = "DURATION", value_parser = read_duration, default_value = "1s")]
    pub poll_interval: Duration,

    /// Unload the models when the sidecar ends, also of an app that it did not start.
    #[arg(long, env = "HUSH_UNLOAD_AT_END")]
    pub unload_at_end: bool,
}

#[derive(Args, Clone, Debug)]
#[command(next_help_heading = "Memory")]
pub struct MemoryArgs {
    /// Where the app runs its models: auto (the first GPU, where there is one), cpu, cuda:N or cuda:UUID. Its memory is
    /// counted there.
    #[arg(long, env = "HUSH_DEVICE", value_name = "DEVICE", default_value = "auto")]
    pub device: AppDevice,

    /// What a model needs before it was ever loaded; after that it is known. Default: nothing is known.
    #[arg(long, env = "HUSH_NEED_BYTES", value_name = "SIZE", value_parser = read_bytes, default_value = "0")]
    pub need_bytes: u64,

    /// What must stay free beside a model.
    #[arg(long, env = "HUSH_HEADROOM", value_name = "SIZE", value_parser = read_bytes, default_value = "256MiB")]
    pub headroom: u64,

    /// How long an unload waits for its memory to come back.
    #[arg(long, env = "HUSH_RECLAIM_TIMEOUT", value_name = "DURATION", value_parser = read_duration, default_value = "5s")]
    pub reclaim_timeout: Duration,

    /// The pause between two looks at the GPUs.
    #[arg(long, env = "HUSH_SAMPLE_INTERVAL", value_name = "DURATION", value_parser = read_duration, default_value = "1s")]
    pub sample_interval: Duration,

    /// NVIDIA's management library. Default: the usual names.
    #[arg(long, env = "HUSH_NVML_LIB", value_name = "FILE")]
    pub nvml_lib: Option<PathBuf>,

    /// Folder for what the next sidecar must know: whether an app that does not tell has its model in memory, and which
    /// sidecar governs it; with this option also what is learnt of the models' needs.
    ///
    /// Default: hush-sidecar in $XDG_STATE_HOME or ~/.local/state, else in the system's temporary folder.
    #[arg(long, env = "HUSH_STATE_DIR", value_name = "DIR")]
    pub state_dir: Option<PathBuf>,
}

#[derive(Args, Clone, Debug)]
#[command(next_help_heading = "An app that the sidecar starts")]
pub struct ProcessArgs {
    /// The port that the app listens on, {port} in its command. Default: that of --upstream, else a free one.
    #[arg(long, env = "HUSH_PORT", value_name = "PORT")]
    pub port: Option<u16>,

    /// What tells that the app is ready: a path that is answered with 200, `tcp`, or `log:TEXT` for a line of its output.
    ///
    /// Default: the path that is known of the app.
    #[arg(long, env = "HUSH_READY", value_name = "PROBE")]
    pub ready: Option<String>,

    /// From SIGTERM until SIGKILL.
    #[arg(long, env = "HUSH_STOP_TIMEOUT", value_name = "DURATION", value_parser = read_duration, default_value = "10s")]
    pub stop_timeout: Duration,

    /// An app that was ready and does not answer its probe for this long while it has no request is killed; 0: never.
    #[arg(long, env = "HUSH_HANG_TIMEOUT", value_name = "DURATION", value_parser = read_limit, default_value = "0")]
    pub hang_timeout: DurationLimit,

    /// The folder in which the app is started.
    #[arg(long, env = "HUSH_WORKING_DIR", value_name = "DIR")]
    pub working_dir: Option<PathBuf>,
}

#[derive(Args, Clone, Debug)]
#[command(next_help_heading = "Requests")]
pub struct RequestArgs {
    /// How long a request waits for a model that is not in memory, before it is answered with 503.
    #[arg(long, env = "HUSH_COLD_HOLD", value_name = "DURATION", value_parser = read_duration, default_value = "60s")]
    pub cold_hold: Duration,

    /// Requests that may wait for a model; one more is answered with 429.
    #[arg(long, env = "HUSH_MAX_QUEUE", value_name = "N", default_value = "256")]
    pub max_queue: usize,

    /// Requests that may be in flight in the app at the same time, for each model.
    #[arg(long, env = "HUSH_CONCURRENCY", value_name = "N", default_value = "1024")]
    pub concurrency: usize,

    /// How much of a request's body is held in plain memory; more goes into the spool. Each request that waits may have as
    /// much.
    #[arg(long, env = "HUSH_ATTRIBUTION_BYTES", value_name = "SIZE", value_parser = read_bytes, default_value = "1MiB")]
    pub attribution_bytes: u64,

    /// The longest request body.
    #[arg(long, env = "HUSH_MAX_BODY", value_name = "SIZE", value_parser = read_bytes, default_value = "16GiB")]
    pub max_body: u64,

    /// Folder for the bodies of requests that wait. Default: the system's temporary folder.
    #[arg(long, env = "HUSH_SPOOL_DIR", value_name = "DIR")]
    pub spool_dir: Option<PathBuf>,

    /// A request whose body stops for this long is answered with 408.
    #[arg(long, env = "HUSH_BODY_STALL", value_name = "DURATION", value_parser = read_duration, default_value = "30s")]
    pub body_stall: Duration,

    /// A client that reads nothing of what is sent to it for this long is cut off, and its request is cancelled in the app;
    /// 0: never.
    #[arg(long, env = "HUSH_CLIENT_STALL", value_name = "DURATION", value_parser = read_limit, default_value = "10m")]
    pub client_stall: DurationLimit,

    /// A websocket that works counts as idle after this long without a frame.
    #[arg(long, env = "HUSH_SOCKET_IDLE", value_name = "DURATION", value_parser = read_duration, default_value = "30s")]
    pub socket_idle: Duration,

    /// The longest wait for the first byte of an answer; 0: no limit, because prompts may take minutes.
    #[arg(long, env = "HUSH_FIRST_BYTE_TIMEOUT", value_name = "DURATION", value_parser = read_limit, default_value = "0")]
    pub first_byte_timeout: DurationLimit,

    /// The longest pause within an answer, after which it is broken off; 0: no limit.
    #[arg(long, env = "HUSH_BETWEEN_BYTES_TIMEOUT", value_name = "DURATION", value_parser = read_limit, default_value = "0")]
    pub between_bytes_timeout: DurationLimit,

    /// The longest time for a whole request; 0: no limit.
    #[arg(long, env = "HUSH_REQUEST_TIMEOUT", value_name = "DURATION", value_parser = read_limit, default_value = "0")]
    pub request_timeout: DurationLimit,

    /// Connections of clients at the same time.
    #[arg(long, env = "HUSH_MAX_CONNECTIONS", value_name = "N", default_value = "16384")]
    pub max_connections: usize,

    /// How long a client's connection is kept without a request.
    #[arg(long, env = "HUSH_KEEP_ALIVE", value_name = "DURATION", value_parser = read_duration, default_value = "120s")]
    pub keep_alive: Duration,

    /// How long a connection to the app may take.
    #[arg(long, env = "HUSH_CONNECT_TIMEOUT", value_name = "DURATION", value_parser = read_duration, default_value = "5s")]
    pub connect_timeout: Duration,

    /// How long a connection to the app is kept without a request. Must be shorter than the app's own limit, which is 5s in
    /// many.
    #[arg(long, env = "HUSH_UPSTREAM_IDLE", value_name = "DURATION", value_parser = read_duration, default_value = "3500ms")]
    pub upstream_idle: Duration,
}

#[derive(Args, Clone, Debug)]
#[command(next_help_heading = "Security")]
pub struct SecurityArgs {
    /// Certificate of --listen, PEM, followed by its chain; makes it HTTPS. Read again when it changes. Default: none, plain
    /// HTTP.
    #[arg(long, env = "HUSH_TLS_CERT", value_name = "FILE")]
    pub tls_cert: Option<PathBuf>,

    /// Key of --tls-cert, PEM. Default: none.
    #[arg(long, env = "HUSH_TLS_KEY", value_name = "FILE")]
    pub tls_key: Option<PathBuf>,

    /// Certificate of --ops-listen, PEM, followed by its chain; makes it HTTPS. Read again when it changes. Default: none,
    /// plain HTTP.
    #[arg(long, env = "HUSH_OPS_TLS_CERT", value_name = "FILE")]
    pub ops_tls_cert: Option<PathBuf>,

    /// Key of --ops-tls-cert, PEM. Default: none.
    #[arg(long, env = "HUSH_OPS_TLS_KEY", value_name = "FILE")]
    pub ops_tls_key: Option<PathBuf>,

    /// Tokens for the admin API, one a line, as TOKEN or NAME TOKEN; read again when the file changes.
    ///
    /// Without this and without --admin-token-review the admin API serves only this machine, and only when --ops-listen
    /// is on the loopback.
    #[arg(long, env = "HUSH_ADMIN_TOKEN_FILE", value_name = "FILE")]
    pub admin_token_file: Option<PathBuf>,

    /// Let Kubernetes check the tokens of the admin API (TokenReview).
    #[arg(long, env = "HUSH_ADMIN_TOKEN_REVIEW")]
    pub admin_token_review: bool,

    /// Service account that may use the admin API; may be given several times.
    #[arg(long = "admin-account", env = "HUSH_ADMIN_ACCOUNT", value_name = "NAMESPACE:NAME", value_delimiter = ',')]
    pub admin_accounts: Vec<ServiceAccount>,

    /// The audience that a service account's token must have been made for. Default: hush-server/NAMESPACE/UID, of
    /// --pod-namespace and --pod-uid.
    #[arg(long, env = "HUSH_ADMIN_AUDIENCE", value_name = "AUDIENCE")]
    pub admin_audience: Option<String>,

    /// Namespace of the pod that this sidecar runs in, with --admin-token-review.
    #[arg(long, env = "HUSH_POD_NAMESPACE", value_name = "NAMESPACE")]
    pub pod_namespace: Option<String>,

    /// UID of that pod, which the downward API tells (metadata.uid).
    #[arg(long, env = "HUSH_POD_UID", value_name = "UID")]
    pub pod_uid: Option<String>,

    /// The Kubernetes API server. Default: the one of the cluster that this runs in.
    #[arg(long, env = "HUSH_KUBERNETES_API", value_name = "URL")]
    pub kubernetes_api: Option<ApiServer>,

    /// Certificate authority of the API server, PEM. Default: ca.crt of this pod's service account.
    #[arg(long, env = "HUSH_KUBERNETES_CA", value_name = "FILE")]
    pub kubernetes_ca: Option<PathBuf>,

    /// Token with which the sidecar asks the API server. Default: that of this pod's service account.
    #[arg(long, env = "HUSH_KUBERNETES_TOKEN", value_name = "FILE")]
    pub kubernetes_token: Option<PathBuf>,
}

#[derive(Args, Clone, Debug)]
#[command(next_help_heading = "Log")]
pub struct LogArgs {
    /// Form of the log lines on standard error.
    #[arg(long = "log-format", env = "HUSH_LOG_FORMAT", value_enum, default_value = "text")]
    pub format: LogFormatArg,

    /// What to log: error, warn, info, debug or trace, or a filter such as info,hush_sidecar=debug.
    #[arg(long = "log-level", env = "HUSH_LOG_LEVEL", value_name = "LEVEL", value_parser = read_filter, default_value = "info")]
    pub level: String,
}

/// Names of the options, as fields, that are not at their default.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct GivenOptions(BTreeSet<String>);

impl GivenOptions {
    fn of(matches: &ArgMatches) -> Self {
        let is_given =
            |id: &&Id| matches!(matches.value_source(id.as_str()), Some(source) if source != ValueSource::DefaultValue);
        Self(matches.ids().filter(is_given).map(Id::to_string).collect())
    }

    pub fn contains(&self, option: &str) -> bool {
        self.0.contains(option)
    }
}

impl SidecarCli {
    /// Reads a command line whose first word is the program.
    ///
    /// # Errors
    /// If it is none; `--help` and `--version` are errors of clap, too.
    pub fn read(line: impl IntoIterator<Item = impl Into<OsString> + Clone>) -> Result<Self, clap::Error> {
        let matches = Self::command().try_get_matches_from(line)?;

        let mut cli = Self::from_arg_matches(&matches)?;
        cli.args.given = GivenOptions::of(&matches);
        Ok(cli)
    }
}

fn read_filter(text: &str) -> Result<String, hush_log::InvalidFilter> {
    hush_log::check_filter(text).map(|()| text.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_sound() {
        SidecarCli::command().debug_assert();
    }

    #[test]
    fn a_command_follows_the_options() {
        let line = ["hush-sidecar", "--app", "process", "--model", "a", "--", "server", "--port", "{port}"];
        let cli = SidecarCli::try_parse_from(line).unwrap();

        assert_eq!(cli.args.command, ["server", "--port", "{port}"]);
        assert_eq!(
            (cli.args.models, cli.args.life.idle_timeout.0),
            (vec!["a".to_owned()], Some(Duration::from_secs(300)))
        );
    }

    #[test]
    fn subcommands_need_no_app() {
        let cli = SidecarCli::try_parse_from(["hush-sidecar", "check", "mine.yaml"]).unwrap();

        assert!(matches!(cli.command, Some(SidecarCommand::Check { file }) if file.as_os_str() == "mine.yaml"));
    }
}
