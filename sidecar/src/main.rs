//! `hush-sidecar`: reads the command line and runs the sidecar.

use std::process::ExitCode;

use hush_log::{errorln, explain, outln};
use hush_sidecar::app::App;
use hush_sidecar::cli::{self, SidecarCli, SidecarCommand};
use hush_sidecar::process;

fn main() -> ExitCode {
    hush_log::install_panic_hook();
    // The process that keeps an app, which `spawn-app` names.
    if let Some(code) = process::run_hidden_role() {
        return code;
    }

    let cli = SidecarCli::read(std::env::args_os()).unwrap_or_else(|error| error.exit());
    match run(cli) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            errorln!("error: {}", explain(error.as_ref()));
            ExitCode::FAILURE
        }
    }
}

fn run(cli: SidecarCli) -> anyhow::Result<()> {
    match cli.command {
        None => cli::run(cli.args),
        Some(SidecarCommand::Apps) => {
            for app in App::known() {
                outln!("{app}");
            }
            Ok(())
        }
        Some(SidecarCommand::Describe { app }) => cli::describe(&app),
        Some(SidecarCommand::Check { file }) => cli::check_description(&file),
        Some(SidecarCommand::SpawnApp { .. }) => anyhow::bail!("spawn-app is called by the sidecar itself"),
    }
}
