//! The command line as clap knows it. What each command takes is declared in [`super::settings`], one struct for each
//! group of options; an option `--some-name` has the variable `HUSH_SOME_NAME`.

use std::ffi::OsString;

use clap::parser::ValueSource;
use clap::{ArgMatches, Args, Parser, Subcommand};

use super::settings::{InstallSettings, ModelsSettings, ServeSettings, TranscribeSettings};

/// A Whisper speech-to-text server that gives the GPU back when it is idle.
///
/// The model runs in a child process. When no request needs it, the process ends and all of its memory is free; the next
/// request loads it again.
#[derive(Debug, Parser)]
#[command(name = "hush-server", version, max_term_width = 110, arg_required_else_help = true)]
#[command(subcommand_required = true)]
pub struct ServerCli {
    #[command(subcommand)]
    pub command: ServerCommand,
}

#[derive(Debug, Subcommand)]
pub enum ServerCommand {
    /// Serve the HTTP API: /asr, /detect-language, /status, and the operations port.
    Serve(Box<ServeSettings>),
    /// Turn a checkpoint (a folder, or a model of the Hugging Face hub) into a model directory.
    Install(InstallSettings),
    /// Transcribe files without a server.
    Transcribe(Box<TranscribeSettings>),
    /// List the installed models.
    Models(ModelsSettings),
    /// The process that holds a model; started by `serve` and `transcribe`, never by hand.
    #[command(hide = true)]
    Runner(RunnerArgs),
}

#[derive(Args, Debug)]
pub struct RunnerArgs {
    /// Passed on to the runner as they are.
    #[arg(trailing_var_arg = true, allow_hyphen_values = true, hide = true)]
    pub args: Vec<OsString>,
}

/// A command line that clap has accepted. Variables, the configuration file and defaults are not in it yet.
#[derive(Clone, Debug, Default)]
pub struct CommandLine {
    /// The name of the command.
    pub command: String,
    /// What follows the name of the command.
    pub arguments: Vec<OsString>,
    matches: ArgMatches,
}

impl CommandLine {
    /// `argv` begins with the name of the program.
    pub fn read(command: clap::Command, argv: Vec<OsString>) -> Result<Self, clap::Error> {
        // The program has no options of its own, so the command follows its name.
        let arguments = argv.iter().skip(2).cloned().collect();
        let mut program_matches = command.try_get_matches_from(argv)?;

        Ok(match program_matches.remove_subcommand() {
            Some((command, matches)) => Self { command, arguments, matches },
            None => Self::default(),
        })
    }

    /// Whether the command line itself has the option or argument with clap's id `id`.
    pub fn has(&self, id: &str) -> bool {
        self.matches.try_contains_id(id).unwrap_or(false)
            && self.matches.value_source(id) == Some(ValueSource::CommandLine)
    }

    /// The value of an option, if the command line has it.
    pub fn value<T: Clone + Send + Sync + 'static>(&self, id: &str) -> Option<T> {
        self.matches.try_get_one(id).ok().flatten().cloned()
    }
}
