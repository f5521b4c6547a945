//! `hush-server`: reads the command line and calls the subcommand.

use std::process::ExitCode;

use anyhow::Context;
use hush_log::{errorln, explain};
use hush_server::app::{cuda_probe, log_setup};
use hush_server::cli::{self, CommandSettings, Env};
use hush_server::runner;
use hush_whisper::runtime;

fn main() -> ExitCode {
    hush_log::install_panic_hook();

    let arguments = match cli::parse(std::env::args_os()) {
        Ok(arguments) => arguments,
        // `--help` and `--version` are such errors too; clap knows the exit status of each.
        Err(error) => error.exit(),
    };
    let env = Env::from_process();
    let settings = match cli::resolve(arguments, &env) {
        Ok(settings) => settings,
        Err(error) => {
            errorln!("error: {}", explain(&error));
            return ExitCode::from(2);
        }
    };

    match run(settings, &env) {
        Ok(status) => status,
        Err(error) => {
            errorln!("error: {}", explain(error.as_ref()));
            ExitCode::FAILURE
        }
    }
}

fn run(settings: CommandSettings, env: &Env) -> anyhow::Result<ExitCode> {
    if settings.opens_runtime() {
        runtime::restart_without_telemetry().context("starting without the telemetry of ONNX Runtime")?;
    }

    match settings {
        CommandSettings::Runner(log) => {
            log_setup::init(&log);
            return Ok(runner::child::main::<runner::EngineBackend>());
        }
        CommandSettings::ProbeCuda { library, index } => return Ok(cuda_probe::answer_probe(&library, index)),
        CommandSettings::Serve(settings) => {
            log_setup::init(&settings.log);
            cli::serve::run(&settings, env)?;
        }
        CommandSettings::Transcribe(settings) => {
            log_setup::init(&settings.log);
            return cli::transcribe::run(&settings, env);
        }
        CommandSettings::Install(settings) => {
            log_setup::init(&settings.log);
            cli::install::run(&settings, env)?;
        }
        CommandSettings::Models(settings) => {
            log_setup::init(&settings.log);
            cli::models::run(&settings).context("listing the models")?;
        }
    }
    Ok(ExitCode::SUCCESS)
}
