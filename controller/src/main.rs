//! The program `hush-controller`; under the name `kubectl-hush` it is a plugin of kubectl. Parses the command line and runs
//! the command.

use std::process::ExitCode;

use clap::Parser;
use hush_controller::cli::{ControllerCli, run};
use hush_controller::kubectl::{self, PluginCli, is_called_as_plugin};
use hush_log::{errorln, explain, printable_lines};

/// Errors may quote servers and objects of the API, so that their lines are cut.
const LINE_MAX_CHARS: usize = 2000;

fn main() -> ExitCode {
    hush_log::install_panic_hook();
    let result = if is_called_as_plugin(std::env::args_os().next().as_deref()) {
        kubectl::run(PluginCli::parse().plugin)
    } else {
        run(ControllerCli::parse())
    };

    match result {
        Ok(status) => status,
        Err(error) => {
            errorln!("error: {}", printable_lines(&explain(error.as_ref()), LINE_MAX_CHARS));
            ExitCode::FAILURE
        }
    }
}
