//! The command line: its options and variables, and its subcommands, which call [`crate::app`] and print.
//!
//! ```text
//! argv -> args (clap) -----+
//! environment -> env ------+-> settings (pure: flag > HUSH_ > ASR_ > file > default) -> serve, transcribe, ... -> app
//! --config FILE -> config -+
//! ```

pub mod args;
mod check;
pub mod command_line;
pub mod config;
pub mod env;
pub mod install;
pub mod models;
pub mod progress;
pub mod serve;
pub mod settings;
pub mod transcribe;
pub mod values;

pub use args::{CommandLine, ServerCli};
pub use command_line::{command, parse, variable};
pub use env::Env;
pub use settings::{
    CommandSettings, EngineSettings, InstallSettings, LegacyUse, LogSettings, MemorySettings, ModelsSettings,
    ServeSettings, SettingError, TranscribeSettings,
};

/// The settings that the arguments, the environment and the configuration file that they name come to.
///
/// # Errors
/// If a value is not valid, or the configuration file cannot be read.
pub fn resolve(arguments: CommandLine, env: &Env) -> Result<CommandSettings, SettingError> {
    let file = match settings::config_path(&arguments, env) {
        Some(path) => config::read(&path)?,
        None => config::ConfigFile::default(),
    };
    settings::resolve_with(arguments, env, &file)
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
            // The variable has the opposite value of the flag, which takes precedence.
            let other = argv.iter().all(|flag| flag.ends_with("false")).to_string();
            let env: Env = [("HOME", "/home/u"), ("HUSH_SPARE_RUNNER", &other)].into_iter().collect();
            match resolve(arguments, &env).unwrap() {
                CommandSettings::Serve(settings) => settings.spare_runner,
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
