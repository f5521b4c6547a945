//! The command line of the plugin.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::{ArgGroup, Args, Parser, Subcommand};
use hush_log::{InvalidFilter, check_filter};

use crate::option_values::{InvalidDuration, OutputFormat, parse_positive_duration};
use crate::web::DRAIN_MAX_SECONDS;

/// The command line under the name by which kubectl finds plugins.
#[derive(Debug, Parser)]
#[command(
    name = "kubectl-hush",
    bin_name = "kubectl hush",
    version,
    about = "GPUs and models, as the controllers of Hush see them."
)]
pub struct PluginCli {
    #[command(flatten)]
    pub plugin: PluginArgs,
}

/// Whether the program was called as the plugin; `name` is the first argument of the process.
pub fn is_called_as_plugin(name: Option<&OsStr>) -> bool {
    name.and_then(|name| Path::new(name).file_stem()).is_some_and(|name| name == "kubectl-hush")
}

#[derive(Debug, Args)]
pub struct PluginArgs {
    #[command(flatten)]
    pub connection: ConnectionArgs,
    #[command(subcommand)]
    pub command: PluginCommand,
}

/// Where controllers are, and how they are reached.
#[derive(Debug, Args)]
pub struct ConnectionArgs {
    /// The namespace of pods and policies. Default: that of the context, or with --controller any.
    #[arg(short, long, value_name = "NAMESPACE", global = true)]
    pub namespace: Option<String>,
    /// Which context of the kubeconfig.
    #[arg(long, value_name = "NAME", global = true)]
    pub context: Option<String>,
    /// The kubeconfig to use. Default: as for kubectl, `$KUBECONFIG` or `~/.kube/config`.
    #[arg(long, value_name = "FILE", global = true)]
    pub kubeconfig: Option<PathBuf>,
    /// The namespace to look for controllers in. Default: all namespaces; where that is not allowed, --namespace and
    /// the namespace of the context.
    #[arg(long, value_name = "NAMESPACE", global = true)]
    pub controller_namespace: Option<String>,
    /// Send requests to this controller directly, without a cluster: the URL of its listener, such as
    /// http://127.0.0.1:9002.
    #[arg(
        long, value_name = "URL", global = true, env = "HUSH_CONTROLLER_URL",
        conflicts_with_all = ["context", "kubeconfig", "controller_namespace"]
    )]
    pub controller: Option<String>,
    /// File with the controller's page token, which commands need. Default: the Secret that the controller's pod names,
    /// if you may read it.
    #[arg(long, value_name = "FILE", global = true, env = "HUSH_TOKEN_FILE")]
    pub token_file: Option<PathBuf>,
}

#[derive(Debug, Subcommand)]
pub enum PluginCommand {
    /// Show GPUs and models, live; `q` ends it.
    Top(TopArgs),
    /// Explain the state of a pod's models: which policies select them, whose values apply, when they are unloaded.
    Explain(ExplainArgs),
    /// Unload models, unless they have changed or are busy.
    Unload(UnloadArgs),
    /// Load models.
    Load(LoadArgs),
    /// Show what would be done now, also with edited policies. Sends no command.
    Plan(PlanPolicyArgs),
    /// Pause a policy: it only shows what it would do.
    Pause(PauseArgs),
    /// Put a paused policy in force again.
    Resume(ResumeArgs),
    /// Show the log level of the controllers, or change it without a restart.
    LogLevel(LogLevelArgs),
}

#[derive(Debug, Args)]
pub struct TopArgs {
    /// Print it once and end, as when the output is not a terminal.
    #[arg(long)]
    pub once: bool,
    /// Time between two updates.
    #[arg(long, value_name = "TIME", default_value = "2s", value_parser = parse_positive_duration)]
    pub interval: Duration,
    /// How to print it; JSON is printed once.
    #[arg(short, long, value_enum, default_value_t = OutputFormat::Text)]
    pub output: OutputFormat,
}

#[derive(Debug, Args)]
pub struct ExplainArgs {
    /// A pod, `NAMESPACE/POD`, or a model.
    #[arg(value_name = "POD|MODEL")]
    pub target: String,
    /// How to print it.
    #[arg(short, long, value_enum, default_value_t = OutputFormat::Text)]
    pub output: OutputFormat,
}

/// Which models a command is for.
#[derive(Debug, Args)]
pub struct TargetArgs {
    /// A pod, `NAMESPACE/POD`, or a model.
    #[arg(value_name = "POD|MODEL")]
    pub target: String,
    /// The model, for a pod with several models.
    #[arg(value_name = "MODEL")]
    pub model: Option<String>,
    /// All models of the pod, or the model wherever it is.
    #[arg(long)]
    pub all: bool,
    /// Only print what would be sent.
    #[arg(long)]
    pub dry_run: bool,
    /// Do not ask before a command to several models, or one that may interrupt requests.
    #[arg(short, long)]
    pub yes: bool,
}

#[derive(Debug, Args)]
pub struct UnloadArgs {
    #[command(flatten)]
    pub target: TargetArgs,
    /// Also unload a busy model. Requests in flight may go on for this long; requests that have not ended by then begin again
    /// after the next load.
    #[arg(long, value_name = "TIME", value_parser = parse_drain)]
    pub drain: Option<Duration>,
    /// How long the model is not loaded again, even if a request asks for it.
    #[arg(long, value_name = "TIME", value_parser = parse_positive_duration)]
    pub hold: Option<Duration>,
}

#[derive(Debug, Args)]
pub struct LoadArgs {
    #[command(flatten)]
    pub target: TargetArgs,
}

#[derive(Debug, Args)]
pub struct PlanPolicyArgs {
    /// A file with policies. They replace the policies of the same name, or are added, to show what they would change.
    /// May be repeated.
    #[arg(long, value_name = "FILE")]
    pub policy: Vec<PathBuf>,
    /// How to print it.
    #[arg(short, long, value_enum, default_value_t = OutputFormat::Text)]
    pub output: OutputFormat,
}

#[derive(Debug, Args)]
#[command(group(ArgGroup::new("end").required(true).args(["duration", "until_resumed"])))]
pub struct PauseArgs {
    /// A policy: `NAME`, `NAMESPACE/NAME`, or `/NAME` of the cluster kind.
    pub policy: String,
    /// For how long; the pause ends earlier when the controller restarts.
    #[arg(long = "for", value_name = "TIME", value_parser = parse_positive_duration)]
    pub duration: Option<Duration>,
    /// Until the policy is resumed, or the controller restarts.
    #[arg(long)]
    pub until_resumed: bool,
}

#[derive(Debug, Args)]
pub struct ResumeArgs {
    /// A policy: `NAME`, `NAMESPACE/NAME`, or `/NAME` of the cluster kind.
    pub policy: String,
}

#[derive(Debug, Args)]
pub struct LogLevelArgs {
    /// `error`, `warn`, `info`, `debug`, `trace`, or directives as of `RUST_LOG`. Default: only show the current level.
    #[arg(value_name = "LEVEL", value_parser = parse_log_filter)]
    pub level: Option<String>,
    /// For how long. Default: until it is changed, or the controller restarts.
    #[arg(long = "for", value_name = "TIME", value_parser = parse_positive_duration, requires = "level")]
    pub duration: Option<Duration>,
    /// Go back to the level that the controller was started with.
    #[arg(long, conflicts_with = "level")]
    pub reset: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InvalidDrain {
    #[error(transparent)]
    Duration(#[from] InvalidDuration),
    #[error("must be at most {DRAIN_MAX_SECONDS} s")]
    TooLong,
}

fn parse_drain(text: &str) -> Result<Duration, InvalidDrain> {
    let drain = parse_positive_duration(text)?;
    if drain > Duration::from_secs(DRAIN_MAX_SECONDS) {
        return Err(InvalidDrain::TooLong);
    }
    Ok(drain)
}

fn parse_log_filter(text: &str) -> Result<String, InvalidFilter> {
    check_filter(text).map(|()| text.to_owned())
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn clap_is_consistent() {
        PluginCli::command().debug_assert();
    }

    #[test]
    fn the_program_is_a_plugin_by_its_name() {
        for (name, plugin) in [
            ("kubectl-hush", true),
            ("/usr/local/bin/kubectl-hush", true),
            ("kubectl-hush.exe", true),
            ("hush-controller", false),
            ("/opt/kubectl-hush/hush-controller", false),
            ("", false),
        ] {
            assert_eq!(is_called_as_plugin(Some(OsStr::new(name))), plugin, "{name}");
        }
        assert!(!is_called_as_plugin(None));
    }

    #[test]
    fn options_stand_before_or_after_the_command() {
        let parse = |line: &str| PluginCli::try_parse_from(line.split(' ')).map(|cli| cli.plugin);
        let plugin = parse("kubectl-hush unload -n media whisper-0 large-v3 --drain 30s --hold 10m").unwrap();

        assert_eq!(plugin.connection.namespace.as_deref(), Some("media"));
        let PluginCommand::Unload(args) = plugin.command else { panic!("another command") };
        assert_eq!((args.target.model.as_deref(), args.drain), (Some("large-v3"), Some(Duration::from_secs(30))));

        assert!(parse("kubectl-hush --context lab top --once").is_ok());
        assert!(parse("kubectl-hush unload x --drain 11m").unwrap_err().to_string().contains("at most 600 s"));
        assert!(parse("kubectl-hush --controller http://h:1 --context lab top").is_err());
    }
}
