//! `hush-controller`: reads the command line and hands over to the command.

use std::process::ExitCode;

use clap::Parser;
use hush_controller::cli::{Cli, run};

fn main() -> ExitCode {
    match run(Cli::parse()) {
        Ok(status) => status,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}
