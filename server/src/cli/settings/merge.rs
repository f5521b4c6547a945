//! One value for each option: the command line has it, or else the first source that has it, or else it is the default.
//!
//! Whatever a source says is turned into arguments of the command line, so that one parser reads all of them.

use std::error::Error;
use std::ffi::{OsStr, OsString};

use clap::builder::Resettable;
use clap::error::ErrorKind;
use clap::parser::ValueSource;
use clap::{Arg, ArgAction, ArgMatches, Args, ValueHint};

use super::SettingError;
use crate::cli::args::CommandLine;
use crate::cli::values::ValueError;

/// Where values of options come from, besides the command line.
pub trait OptionSource {
    /// The values of an option, `None` where this source does not have it. An empty list stands for no value at all, in
    /// place of the default.
    fn values(&mut self, option: &Arg) -> Result<Option<Vec<OsString>>, SettingError>;
}

/// The settings with the values of all sources.
pub struct MergedSettings<T> {
    pub settings: T,
    matches: ArgMatches,
}

impl<T> MergedSettings<T> {
    /// Whether any source has the option with clap's id `id`, which is the name of its field.
    pub fn is_given(&self, id: &str) -> bool {
        self.matches.value_source(id) == Some(ValueSource::CommandLine)
    }
}

/// Sources come in the order of their precedence. A source is not asked for what one before it has.
pub fn merge<T: Args>(
    line: &CommandLine,
    sources: &mut [&mut dyn OptionSource],
) -> Result<MergedSettings<T>, SettingError> {
    let declared = T::augment_args(clap::Command::new("settings").no_binary_name(true));
    let mut command = declared.clone();
    let mut arguments = Vec::new();

    for option in declared.get_opts().filter(|option| !line.has(option.get_id().as_str())) {
        let Some(values) = first_values(option, sources)? else { continue };
        if values.is_empty() {
            command = command.mut_arg(option.get_id(), |arg| arg.default_value(Resettable::Reset));
        }
        arguments.extend(values.iter().map(|value| argument(option, value)));
    }
    arguments.extend(line.arguments.iter().cloned());

    // Each value has been checked, so this only fails where an argument is missing.
    let matches = command.try_get_matches_from(arguments)?;
    let settings = T::from_arg_matches(&matches)?;
    Ok(MergedSettings { settings, matches })
}

fn first_values(option: &Arg, sources: &mut [&mut dyn OptionSource]) -> Result<Option<Vec<OsString>>, SettingError> {
    for source in sources {
        let values = source.values(option)?;
        if values.is_some() {
            return Ok(values);
        }
    }
    Ok(None)
}

/// Parses one value of an option as clap does on the command line.
pub fn check_value(option: &Arg, value: &OsStr) -> Result<(), ValueError> {
    let command = clap::Command::new("value").no_binary_name(true).arg(option.clone());
    let Err(error) = command.try_get_matches_from([argument(option, value)]) else { return Ok(()) };

    Err(ValueError(match error.source() {
        Some(problem) => problem.to_string(),
        None if error.kind() == ErrorKind::InvalidUtf8 => "it is not valid UTF-8".to_owned(),
        None => error.to_string(),
    }))
}

fn argument(option: &Arg, value: &OsStr) -> OsString {
    let mut argument = OsString::from(format!("--{}=", option.get_long().unwrap_or_default()));
    argument.push(value);
    argument
}

/// Whether an option may be given several times.
pub fn is_list(option: &Arg) -> bool {
    matches!(option.get_action(), ArgAction::Append)
}

/// Whether the value of an option is a path, which need not be valid UTF-8.
pub fn is_path(option: &Arg) -> bool {
    option.get_value_hint() == ValueHint::AnyPath
}
