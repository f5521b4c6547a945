//! `hush-controller`, or under the name `kubectl-hush` a plugin of kubectl: reads the command line and hands over to the
//! command.

use std::process::ExitCode;

use clap::Parser;
use hush_controller::cli::{ControllerCli, run};
use hush_controller::kubectl::{self, PluginCli, is_called_as_plugin};
use hush_log::{errorln, explain, printable_lines};

/// The longest line of an error: some of it may come from servers and objects of the API.
const LINE_MAX_CHARS: usize = 2000;

fn main() -> ExitCode {
    hush_log::install_panic_hook();
    let ended = if is_called_as_plugin(std::env::args_os().next().as_deref()) {
        kubectl::run(PluginCli::parse().plugin)
    } else {
        run(ControllerCli::parse())
    };
    match ended {
        Ok(status) => status,
        Err(error) => {
            errorln!("error: {}", printable_lines(&explain(error.as_ref()), LINE_MAX_CHARS));
            ExitCode::FAILURE
        }
    }
}
