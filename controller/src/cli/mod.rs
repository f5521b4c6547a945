//! The command line of `hush-controller`.

mod check;
mod control_sources;
mod kubernetes;
mod log;
mod plan;
mod run;
mod simulate;
mod values;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, Parser, Subcommand};

use crate::cluster::NamespaceSelector;
use crate::kubectl;
use crate::option_values::OutputFormat;

#[derive(Debug, Parser)]
#[command(name = "hush-controller", version, about = "Decides when a model leaves the GPU and when it may come back.")]
pub struct ControllerCli {
    #[command(subcommand)]
    pub command: ControllerSubcommand,
}

#[derive(Debug, Subcommand)]
pub enum ControllerSubcommand {
    /// Watch servers and carry out what policies decide, until SIGTERM.
    Run(Box<run::RunArgs>),
    /// Check policies without a cluster, by the rules of their definitions; errors name the line and the fix.
    Check(CheckArgs),
    /// Show what would be done now with real servers, or in a world from a file, and for every other model the reason
    /// why not. Sends no command. Without --world, --policy and targets it reads the cluster of the current kubeconfig.
    Plan(PlanArgs),
    /// Replay requests with the same decisions in virtual time, and print what each policy costs.
    Simulate(SimulateArgs),
    /// GPUs and models as the controllers of a cluster see them, and commands to them. As a program with the name
    /// `kubectl-hush` it is a plugin of kubectl.
    Kubectl(Box<kubectl::PluginArgs>),
}

#[derive(Debug, Args)]
pub struct CheckArgs {
    /// YAML files with one or more policies, or lists of them as `kubectl get -o yaml` writes them; `-` is standard
    /// input.
    #[arg(required = true, value_name = "FILE")]
    pub files: Vec<PathBuf>,
}

#[derive(Debug, Args)]
pub struct PlanArgs {
    /// A file with a world: samples, what the controller remembers, and policies. Instead of --target and --targets.
    #[arg(long, value_name = "FILE", conflicts_with_all = ["target", "targets"])]
    pub world: Option<PathBuf>,
    #[command(flatten)]
    pub fleet: run::FleetArgs,
    /// Namespaces of a cluster whose pods may be servers, as for `run`. Default: all.
    #[arg(long, value_name = "SELECTOR", value_delimiter = ';')]
    pub server_namespaces: Vec<NamespaceSelector>,
    /// How to print the plan.
    #[arg(short, long, value_enum, default_value_t = OutputFormat::Text)]
    pub output: OutputFormat,
}

#[derive(Debug, Args)]
pub struct SimulateArgs {
    /// Policies. Each file is simulated by itself, so that two can be compared. May be repeated.
    #[arg(long, value_name = "FILE", required = true)]
    pub policy: Vec<PathBuf>,
    /// Requests: CSV or JSON lines with `at` (seconds), `model`, `busy` (seconds); or a generated trace: `poisson`,
    /// `bursty`, `office` or `adversarial`.
    #[arg(long, value_name = "FILE|NAME")]
    pub trace: String,
    /// Seed of a generated trace.
    #[arg(long, default_value_t = 1)]
    pub seed: u64,
    /// Days of a generated trace.
    #[arg(long, default_value_t = 7, value_parser = clap::value_parser!(u32).range(1..=365))]
    pub days: u32,
    /// Labels of the simulated server's pod, as in `app=whisper,tier=gold`. Default: those that the policies select.
    #[arg(long, value_name = "LABELS")]
    pub labels: Option<String>,
    /// Memory that each model holds, in GiB.
    #[arg(long, default_value_t = 3)]
    pub vram_gib: u64,
    /// Memory of the GPU, in GiB.
    #[arg(long, default_value_t = 24)]
    pub gpu_gib: u64,
    /// How long a load takes, in milliseconds.
    #[arg(long, default_value_t = 1500)]
    pub reload_ms: u64,
    /// How to print the figures.
    #[arg(short, long, value_enum, default_value_t = OutputFormat::Text)]
    pub output: OutputFormat,
}

pub fn run(cli: ControllerCli) -> anyhow::Result<ExitCode> {
    match cli.command {
        ControllerSubcommand::Run(args) => run::run(&args),
        ControllerSubcommand::Check(args) => Ok(check::run(&args)),
        ControllerSubcommand::Plan(args) => plan::run(&args),
        ControllerSubcommand::Simulate(args) => simulate::run(&args),
        ControllerSubcommand::Kubectl(plugin) => kubectl::run(*plugin),
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn clap_is_consistent() {
        ControllerCli::command().debug_assert();
    }
}
