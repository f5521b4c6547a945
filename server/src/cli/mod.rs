//! The command line: its options and variables, and its subcommands, which call [`crate::app`] and print.
//!
//! ```text
//! argv -> args (clap) -----+
//! environment -> env ------+-> settings (pure: flag > HUSH_ > ASR_ > file > default) -> serve, transcribe, ... -> app
//! --config FILE -> config -+
//! ```

pub mod args;
mod check;
pub mod config;
pub mod env;
pub mod install;
pub mod models;
pub mod progress;
pub mod serve;
pub mod settings;
pub mod transcribe;
pub mod values;

use std::ffi::OsString;

use clap::CommandFactory;

pub use args::{CommandLine, ServerCli};
pub use env::Env;
pub use settings::{
    EngineSettings, InstallSettings, LegacyUse, LogSettings, MemorySettings, ModelsSettings, ServeSettings,
    SettingError, Settings, TranscribeSettings,
};

const SERVE_NOTES: &str = "\
Precedence: the flag, then the HUSH_ variable, then the variable of whisper-asr-webservice, then the file of --config,
then the default. An empty variable counts as not set.

Variables of whisper-asr-webservice that are understood:
  ASR_MODEL            --model
  ASR_MODEL_PATH       --models-dir
  ASR_DEVICE           --device: cuda or cpu
  ASR_QUANTIZATION     --precision: float32, float16 or int8
  ASR_ENGINE           --asr-engine: openai_whisper or faster_whisper (the shape of the JSON)
  MODEL_IDLE_TIMEOUT   --idle-timeout: whole seconds, 0 is for ever

Variables of the Hugging Face hub, for models that are not installed: HF_ENDPOINT, HF_TOKEN, HF_TOKEN_PATH, HF_HOME,
HF_HUB_OFFLINE.

Variables of OpenTelemetry, for a trace of each request: OTEL_EXPORTER_OTLP_ENDPOINT or OTEL_EXPORTER_OTLP_TRACES_ENDPOINT
(a collector's URL; http/protobuf), and the others of its specification.

Example:
  hush-server serve --model base --idle-timeout 10m
  curl -F audio_file=@talk.mp3 'localhost:9000/asr?output=srt'";

const INSTALL_NOTES: &str = "\
Variables of the Hugging Face hub: HF_ENDPOINT (another hub), HF_TOKEN or HF_TOKEN_PATH (a token; else the file that
`huggingface-cli login` writes), HF_HOME, HF_HUB_OFFLINE (1: never download).

Examples:
  hush-server install base
  hush-server install openai/whisper-large-v3 --precision fp16 --name large
  hush-server install ./my-fine-tune --precision int8,fp32";

/// The variable of an option: `idle-timeout` -> `HUSH_IDLE_TIMEOUT`.
pub fn variable(option: &str) -> String {
    format!("HUSH_{}", option.to_ascii_uppercase().replace('-', "_"))
}

/// The command line with each option's variable in its help.
pub fn command() -> clap::Command {
    ServerCli::command().mut_subcommands(|subcommand| {
        if subcommand.get_name() == "runner" {
            return subcommand;
        }
        subcommand.mut_args(with_variable_in_help)
    })
}

fn with_variable_in_help(arg: clap::Arg) -> clap::Arg {
    let Some(option) = arg.get_long() else { return arg };

    let note = format!("[env: {}]", variable(option));
    let help = arg.get_help().map(|help| format!("{help} {note}"));
    let long_help = arg.get_long_help().map(|help| format!("{help}\n\n{note}"));

    let arg = match help {
        Some(text) => arg.help(text),
        None => arg,
    };
    match long_help {
        Some(text) => arg.long_help(text),
        None => arg,
    }
}

/// The settings that the arguments, the environment and the configuration file that they name come to.
///
/// # Errors
/// If a value is not valid, or the configuration file cannot be read.
pub fn settle(arguments: CommandLine, env: &Env) -> Result<Settings, SettingError> {
    let file = match settings::config_path(&arguments, env) {
        Some(path) => config::read(&path)?,
        None => config::ConfigFile::default(),
    };
    settings::resolve_with(arguments, env, &file)
}

/// Parses the arguments; [`settle`] reads the environment.
///
/// # Errors
/// If clap does not understand the arguments, and for `--help` and `--version`.
pub fn parse<I, T>(argv: I) -> Result<CommandLine, clap::Error>
where
    I: IntoIterator<Item = T>,
    T: Into<OsString> + Clone,
{
    CommandLine::read(command(), argv.into_iter().map(Into::into).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clap_is_consistent() {
        command().debug_assert();
    }

    #[test]
    fn every_option_is_explained_and_names_its_variable() {
        for subcommand in command().get_subcommands().filter(|c| c.get_name() != "runner") {
            for arg in subcommand.get_arguments() {
                let Some(long) = arg.get_long() else { continue };
                let help = arg.get_long_help().or(arg.get_help()).map(ToString::to_string).unwrap_or_default();
                let name = format!("{} --{long}", subcommand.get_name());
                assert!(help.len() > 30, "{name} is not explained");
                assert!(help.contains(&format!("[env: {}]", variable(long))), "{name} does not name its variable");
                // The default of a switch or of a text need not be in its help.
                let free = ["name", "initial-prompt", "force", "keep-download", "json"];
                let has_default = help.contains("Default: ") || !arg.get_default_values().is_empty();
                assert!(has_default || free.contains(&long), "{name} does not say its default");
            }
        }
    }

    #[test]
    fn the_runner_is_hidden_but_there() {
        let help = command().render_long_help().to_string();
        assert!(help.contains("transcribe") && !help.contains("runner"), "{help}");
        assert!(parse(["hush-server", "runner", "--fd", "3"]).is_ok());
    }

    #[test]
    fn the_error_of_a_bad_flag_names_what_is_expected() {
        let error = parse(["hush-server", "serve", "--idle-timeout", "soon"]).unwrap_err().to_string();
        assert!(error.contains("--idle-timeout") && error.contains("1h30m"), "{error}");
        assert!(parse(["hush-server", "install"]).is_err());
        assert!(parse(["hush-server", "transcribe"]).is_err());
    }

    #[test]
    fn switches_take_an_optional_value() {
        let spare_runner = |argv: &[&str]| {
            let arguments = parse([&["hush-server", "serve"], argv].concat()).unwrap();
            // Whatever the flag says, the variable says otherwise.
            let other = argv.iter().all(|flag| flag.ends_with("false")).to_string();
            let env: Env = [("HOME", "/home/u"), ("HUSH_SPARE_RUNNER", &other)].into_iter().collect();
            match settle(arguments, &env).unwrap() {
                Settings::Serve(settings) => settings.spare_runner,
                other => panic!("{other:?}"),
            }
        };
        assert!(spare_runner(&[]), "not on the command line");
        assert!(spare_runner(&["--spare-runner"]));
        assert!(!spare_runner(&["--spare-runner=false"]));
    }

    #[test]
    fn a_runner_gets_the_log_settings_under_the_names_of_the_variables() {
        assert_eq!(crate::app::log_setup::FORMAT_VARIABLE, variable("log-format"));
        assert_eq!(crate::app::log_setup::LEVEL_VARIABLE, variable("log-level"));
    }
}
