//! The command line of the plugin.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::{ArgGroup, Args, Parser, Subcommand};

use crate::cli::{Output, span};

/// The program under the name by which kubectl finds plugins.
#[derive(Debug, Parser)]
#[command(
    name = "kubectl-hush",
    bin_name = "kubectl hush",
    version,
    about = "GPUs and models, as the controllers of Hush see them."
)]
pub struct AsPlugin {
    #[command(flatten)]
    pub plugin: Plugin,
}

/// `name` is what the program was called by.
pub fn is_called_as_plugin(name: Option<&OsStr>) -> bool {
    name.and_then(|name| Path::new(name).file_stem()).is_some_and(|name| name == "kubectl-hush")
}

#[derive(Debug, Args)]
pub struct Plugin {
    #[command(flatten)]
    pub reach: ReachArgs,
    #[command(subcommand)]
    pub verb: Verb,
}

/// Where controllers are, and how they are reached.
#[derive(Debug, Args)]
pub struct ReachArgs {
    /// The namespace of pods and policies. Default: that of the context, or with --controller any.
    #[arg(short, long, value_name = "NAMESPACE", global = true)]
    pub namespace: Option<String>,
    /// Which context of the kubeconfig.
    #[arg(long, value_name = "NAME", global = true)]
    pub context: Option<String>,
    /// Which clusters there are, and as whom. Default: as for kubectl, `$KUBECONFIG` or `~/.kube/config`.
    #[arg(long, value_name = "FILE", global = true)]
    pub kubeconfig: Option<PathBuf>,
    /// Where to look for controllers. Default: everywhere, and where that is not allowed in --namespace and that of the
    /// context.
    #[arg(long, value_name = "NAMESPACE", global = true)]
    pub controller_namespace: Option<String>,
    /// Speak to this controller directly, without a cluster: its own listener, such as http://127.0.0.1:9002.
    #[arg(
        long, value_name = "URL", global = true, env = "HUSH_CONTROLLER_URL",
        conflicts_with_all = ["context", "kubeconfig", "controller_namespace"]
    )]
    pub controller: Option<String>,
    /// File with the token of those who may act. Default: the Secret that the controller's pod names, if you may read it.
    #[arg(long, value_name = "FILE", global = true, env = "HUSH_TOKEN_FILE")]
    pub token_file: Option<PathBuf>,
}

#[derive(Debug, Subcommand)]
pub enum Verb {
    /// Show GPUs and models, live; `q` ends it.
    Top(TopArgs),
    /// Tell why the models of a pod are where they are: which policies select it, whose values hold, when it unloads.
    Explain(ExplainArgs),
    /// Take models off the GPU, unless they have changed or are busy.
    Unload(UnloadArgs),
    /// Load models.
    Load(LoadArgs),
    /// Show what would be done now, also with edited policies. Does nothing.
    Plan(PlanArgs),
    /// From now on a policy only shows what it would do.
    Pause(PauseArgs),
    /// Put a paused policy in force again.
    Resume(ResumeArgs),
    /// Show what the controllers log, or change it without a restart.
    LogLevel(LogLevelArgs),
}

#[derive(Debug, Args)]
pub struct TopArgs {
    /// Print it once and end, as when the output is no terminal.
    #[arg(long)]
    pub once: bool,
    /// Time between two looks.
    #[arg(long, value_name = "TIME", default_value = "2s", value_parser = span)]
    pub interval: Duration,
    /// How to print it; JSON is printed once.
    #[arg(short, long, value_enum, default_value_t = Output::Text)]
    pub output: Output,
}

#[derive(Debug, Args)]
pub struct ExplainArgs {
    /// A pod, `NAMESPACE/POD`, or a model.
    #[arg(value_name = "POD|MODEL")]
    pub target: String,
    /// How to print it.
    #[arg(short, long, value_enum, default_value_t = Output::Text)]
    pub output: Output,
}

/// Which models a command is for.
#[derive(Debug, Args)]
pub struct TargetArgs {
    /// A pod, `NAMESPACE/POD`, or a model.
    #[arg(value_name = "POD|MODEL")]
    pub target: String,
    /// Of a pod with several models.
    #[arg(value_name = "MODEL")]
    pub model: Option<String>,
    /// All models of the pod, or the model wherever it is.
    #[arg(long)]
    pub all: bool,
    /// Only say what would be sent.
    #[arg(long)]
    pub dry_run: bool,
    /// Do not ask before a command to several models, or one that may break off requests.
    #[arg(short, long)]
    pub yes: bool,
}

#[derive(Debug, Args)]
pub struct UnloadArgs {
    #[command(flatten)]
    pub target: TargetArgs,
    /// Also a busy model: requests in flight may go on for so long; what is not done then begins again after the next
    /// load.
    #[arg(long, value_name = "TIME", value_parser = drain)]
    pub drain: Option<Duration>,
    /// How long it stays away, even if somebody asks for it.
    #[arg(long, value_name = "TIME", value_parser = span)]
    pub hold: Option<Duration>,
}

#[derive(Debug, Args)]
pub struct LoadArgs {
    #[command(flatten)]
    pub target: TargetArgs,
}

#[derive(Debug, Args)]
pub struct PlanArgs {
    /// Policies that take the place of those of the same name, or are added, to see what they would change. May be repeated.
    #[arg(long, value_name = "FILE")]
    pub policy: Vec<PathBuf>,
    /// How to print it.
    #[arg(short, long, value_enum, default_value_t = Output::Text)]
    pub output: Output,
}

#[derive(Debug, Args)]
#[command(group(ArgGroup::new("end").required(true).args(["span", "until_resumed"])))]
pub struct PauseArgs {
    /// A policy: `NAME`, `NAMESPACE/NAME`, or `/NAME` of the cluster kind.
    pub policy: String,
    /// For how long; it ends earlier when the controller restarts.
    #[arg(long = "for", value_name = "TIME", value_parser = span)]
    pub span: Option<Duration>,
    /// Until it is resumed, or the controller restarts: nothing else ends it.
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
    /// `error`, `warn`, `info`, `debug`, `trace`, or directives as of `RUST_LOG`. Default: only show what is logged now.
    #[arg(value_name = "LEVEL", value_parser = log_filter)]
    pub level: Option<String>,
    /// For how long. Default: until it is changed, or the controller restarts.
    #[arg(long = "for", value_name = "TIME", value_parser = span, requires = "level")]
    pub span: Option<Duration>,
    /// Go back to what the controller was started with.
    #[arg(long, conflicts_with = "level")]
    pub reset: bool,
}

fn log_filter(text: &str) -> Result<String, String> {
    hush_log::check_filter(text).map(|()| text.to_owned()).map_err(|error| error.to_string())
}

fn drain(text: &str) -> Result<Duration, String> {
    let most = Duration::from_secs(crate::web::DRAIN_MAX_SECONDS);
    span(text).and_then(
        |span| {
            if span <= most { Ok(span) } else { Err(format!("must be at most {} s", most.as_secs())) }
        },
    )
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn clap_is_consistent() {
        AsPlugin::command().debug_assert();
    }

    #[test]
    fn by_its_name_it_is_a_plugin() {
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
    fn options_stand_before_or_after_the_verb() {
        let read = |line: &str| AsPlugin::try_parse_from(line.split(' ')).map(|read| read.plugin);
        let plugin = read("kubectl-hush unload -n media whisper-0 large-v3 --drain 30s --hold 10m").unwrap();
        assert_eq!(plugin.reach.namespace.as_deref(), Some("media"));
        let Verb::Unload(args) = plugin.verb else { panic!("another verb") };
        assert_eq!((args.target.model.as_deref(), args.drain), (Some("large-v3"), Some(Duration::from_secs(30))));
        assert!(read("kubectl-hush --context lab top --once").is_ok());
        assert!(read("kubectl-hush unload x --drain 11m").unwrap_err().to_string().contains("at most 600 s"));
        assert!(read("kubectl-hush --controller http://h:1 --context lab top").is_err());
    }
}
