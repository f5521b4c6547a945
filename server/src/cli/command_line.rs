//! The command line with its help, parsed.

use std::ffi::OsString;

use clap::CommandFactory;

use super::args::{CommandLine, ServerCli};

pub(super) const SERVE_NOTES: &str = "\
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

pub(super) const INSTALL_NOTES: &str = "\
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

/// Parses the arguments; [`super::resolve`] reads the environment.
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
