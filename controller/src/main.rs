//! `hush-controller`, or under the name `kubectl-hush` a plugin of kubectl: reads the command line and hands over to the
//! command.

use std::process::ExitCode;

use clap::Parser;
use hush_controller::cli::{Cli, run};
use hush_controller::kubectl::{self, AsPlugin, is_called_as_plugin};
use hush_log::{errorln, explain};

fn main() -> ExitCode {
    hush_log::install_panic_hook();
    let ended = if is_called_as_plugin(std::env::args_os().next().as_deref()) {
        kubectl::run(AsPlugin::parse().plugin)
    } else {
        run(Cli::parse())
    };
    match ended {
        Ok(status) => status,
        Err(error) => {
            errorln!("error: {}", explain(error.as_ref()));
            ExitCode::FAILURE
        }
    }
}
