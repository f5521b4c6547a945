//! `hush-server`: reads the command line and hands over to the command.

use std::process::ExitCode;

use anyhow::Context;
use hush_log::{errorln, explain, outln};
use hush_server::app;
use hush_server::cli::{self, Env, Settings};
use hush_server::runner;
use hush_whisper::runtime;

fn main() -> ExitCode {
    hush_log::install_panic_hook();
    let arguments = match cli::parse(std::env::args_os()) {
        Ok(arguments) => arguments,
        // Help and versions are such errors too; clap knows which status each has.
        Err(error) => error.exit(),
    };
    let env = Env::from_process();
    let settings = match cli::settle(arguments, &env) {
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

fn run(settings: Settings, env: &Env) -> anyhow::Result<ExitCode> {
    if settings.opens_runtime() {
        runtime::restart_without_telemetry().context("starting without the telemetry of ONNX Runtime")?;
    }
    match settings {
        Settings::Runner(log) => {
            app::log_setup::init(&log);
            return Ok(runner::child::main::<runner::EngineBackend>());
        }
        Settings::ProbeCuda { library, index } => return Ok(app::cuda::answer_probe(&library, index)),
        Settings::Serve(settings) => {
            app::log_setup::init(&settings.log);
            app::server::run(&settings, env)?;
        }
        Settings::Transcribe(settings) => {
            app::log_setup::init(&settings.log);
            return cli::transcribe::run(&settings, env);
        }
        Settings::Install(settings) => {
            app::log_setup::init(&settings.log);
            let program = std::env::current_exe().context("finding this program")?;
            // Without the library the models are for the CPU.
            let library = app::ort_library::find(env.path("HUSH_ORT_LIB").as_deref(), env, &program).ok();
            let device = app::cuda::placement(settings.device, &program, library.as_deref(), env).device;
            for dir in app::model_install::run(&settings, env, device)? {
                outln!("{}", dir.display());
            }
        }
        Settings::Models(settings) => {
            app::log_setup::init(&settings.log);
            cli::models::run(&settings).context("listing the models")?;
        }
    }
    Ok(ExitCode::SUCCESS)
}
