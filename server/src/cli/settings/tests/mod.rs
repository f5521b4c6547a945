//! Tests of the settings of all commands.

mod combinations;
mod commands;
mod every_option;
mod security;
mod sources;

use super::*;
use crate::cli::command_line::parse;

fn env(variables: &[(&str, &str)]) -> Env {
    [("HOME", "/home/u")].iter().chain(variables).copied().collect()
}

fn try_serve(argv: &[&str], variables: &[(&str, &str)]) -> Result<ServeSettings, SettingError> {
    let cli = parse([&["hush-server", "serve"], argv].concat()).expect("arguments parse");
    match resolve(cli, &env(variables))? {
        CommandSettings::Serve(settings) => Ok(*settings),
        other => panic!("{other:?}"),
    }
}

/// The settings of `serve` without arguments.
fn with_file(env: &Env, file: &ConfigFile) -> Result<ServeSettings, SettingError> {
    serve(&parse(["hush-server", "serve"]).unwrap(), env, file)
}

fn resolved(argv: &[&str], variables: &[(&str, &str)]) -> ServeSettings {
    try_serve(argv, variables).expect("settings")
}
