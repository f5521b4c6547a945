//! What each command is told: its options, with variables, the configuration file and defaults.
//!
//! An option is declared once, as a field of one of the structs here. [`merge`] combines the sources in the order of
//! their precedence: flag, `HUSH_` variable, variable of whisper-asr-webservice, configuration file, default. Nothing
//! here reads the disk or the process's environment: both are arguments.

mod install;
mod limits;
mod memory;
mod merge;
mod model;
mod security;
mod serve;
mod shared;
#[cfg(test)]
mod tests;
mod transcribe;
mod variables;

use std::path::PathBuf;
use std::time::Duration;

use super::args::CommandLine;
use super::command_line::variable;
use super::config::{ConfigError, ConfigFile};
use super::env::Env;

pub use install::{InstallSettings, ModelsSettings};
pub use limits::LimitSettings;
pub use memory::MemorySettings;
pub use merge::{OptionSource, check_value, is_list, is_path};
pub use model::ModelOverrides;
pub use security::{SecurityOptions, SecuritySettings, TlsFiles};
pub use serve::ServeSettings;
pub use shared::{EngineSettings, FallbackSettings, LogSettings, StoreSettings};
pub use transcribe::{SearchSettings, TranscribeSettings};
pub use variables::LegacyUse;

use merge::merge;
use variables::{DataFolder, HushVariables, LegacyVariables};

/// The first argument of a runner that loads nothing and only tries CUDA.
pub const PROBE_CUDA: &str = "probe-cuda";

/// A variable, a configuration file or a combination of options that cannot be used. It ends the program with the exit
/// status of a usage error.
#[derive(Debug, thiserror::Error)]
pub enum SettingError {
    #[error("the variable {variable} is {value:?}: {problem}")]
    Variable { variable: String, value: String, problem: String },
    #[error("{0}")]
    Combination(String),
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// An argument is missing, once all sources have been asked.
    #[error(transparent)]
    Arguments(#[from] clap::Error),
}

/// The settings of the command that the command line names.
#[derive(Debug)]
pub enum CommandSettings {
    Serve(Box<ServeSettings>),
    Install(InstallSettings),
    Transcribe(Box<TranscribeSettings>),
    Models(ModelsSettings),
    Runner(LogSettings),
    /// Whether CUDA works on this GPU with this ONNX Runtime; `serve` asks that in a process of its own.
    ProbeCuda {
        library: PathBuf,
        index: u32,
    },
}

impl CommandSettings {
    /// Whether the process itself opens ONNX Runtime. `serve` leaves that to its runners.
    pub fn opens_runtime(&self) -> bool {
        match self {
            Self::Transcribe(_) | Self::Runner(_) | Self::ProbeCuda { .. } => true,
            Self::Serve(_) | Self::Install(_) | Self::Models(_) => false,
        }
    }
}

/// The configuration file that the command line or a variable names.
pub fn config_path(line: &CommandLine, env: &Env) -> Option<PathBuf> {
    let is_serve = line.command == "serve";
    let path = line.value("config").or_else(|| env.path(&variable("config")));
    path.filter(|_| is_serve)
}

/// What the command line and the variables come to, with defaults filled in.
pub fn resolve(line: CommandLine, env: &Env) -> Result<CommandSettings, SettingError> {
    resolve_with(line, env, &ConfigFile::default())
}

/// As [`resolve`], with the configuration file of `serve`.
pub fn resolve_with(line: CommandLine, env: &Env, file: &ConfigFile) -> Result<CommandSettings, SettingError> {
    let mut variables = HushVariables(env);
    let mut legacy = LegacyVariables::new(env);
    let mut data_folder = DataFolder(env);
    let sources: &mut [&mut dyn OptionSource] = &mut [&mut variables, &mut legacy, &mut data_folder];

    Ok(match line.command.as_str() {
        "install" => {
            let merged = merge(&line, sources)?;
            CommandSettings::Install(InstallSettings::complete(merged, legacy.used)?)
        }
        "transcribe" => {
            let merged = merge(&line, sources)?;
            CommandSettings::Transcribe(Box::new(TranscribeSettings::complete(merged, legacy.used)?))
        }
        "models" => {
            let settings: ModelsSettings = merge(&line, sources)?.settings;
            CommandSettings::Models(ModelsSettings { legacy: legacy.used, ..settings })
        }
        "runner" => runner(&line, env)?,
        _ => CommandSettings::Serve(Box::new(serve(&line, env, file)?)),
    })
}

fn serve(line: &CommandLine, env: &Env, file: &ConfigFile) -> Result<ServeSettings, SettingError> {
    let (mut variables, mut legacy) = (HushVariables(env), LegacyVariables::new(env));
    let (mut from_file, mut data_folder) = (file, DataFolder(env));

    let merged = merge(line, &mut [&mut variables, &mut legacy, &mut from_file, &mut data_folder])?;
    ServeSettings::complete(merged, env, file, legacy.used)
}

/// A runner has no options; its log is set by variables.
fn runner(line: &CommandLine, env: &Env) -> Result<CommandSettings, SettingError> {
    let is_probe = line.arguments.first().is_some_and(|word| word == PROBE_CUDA);
    if !is_probe {
        let merged = merge(&CommandLine::default(), &mut [&mut HushVariables(env)])?;
        return Ok(CommandSettings::Runner(merged.settings));
    }

    let usage =
        || SettingError::Combination(format!("{PROBE_CUDA} wants ONNX Runtime's library and the number of a GPU"));
    let [_, library, index] = line.arguments.as_slice() else { return Err(usage()) };
    let index = index.to_str().and_then(|index| index.parse().ok()).ok_or_else(usage)?;
    Ok(CommandSettings::ProbeCuda { library: library.into(), index })
}

/// Zero, or an empty text, stands for no limit or no value.
fn none_if_zero<T: Default + PartialEq>(value: &mut Option<T>) {
    if value.as_ref() == Some(&T::default()) {
        *value = None;
    }
}

/// For a limit of zero bytes, which no request would fit into.
fn must_be_above_zero(option: &str, bytes: u64) -> Result<(), SettingError> {
    if bytes == 0 {
        let problem = format!("--{option} must be more than 0 bytes: with this limit every request would be refused");
        return Err(SettingError::Combination(problem));
    }
    Ok(())
}

fn must_be_longer_than_zero(option: &str, duration: Duration) -> Result<(), SettingError> {
    if duration.is_zero() {
        return Err(SettingError::Combination(format!("--{option} must be longer than 0")));
    }
    Ok(())
}
