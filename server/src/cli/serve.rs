//! `hush-server serve`.

use std::sync::Arc;

use anyhow::{Context, bail};

use super::Env;
use super::check;
use super::progress::TerminalProgress;
use super::settings::{CommandSettings, ServeSettings};
use super::{parse, resolve};
use crate::app::reload::ReadSettings;
use crate::app::server::PreparedServer;

/// Runs until SIGTERM or SIGINT; with `--check-config`, prints the settings and returns.
///
/// # Errors
/// If the server cannot be started with these settings.
pub fn run(settings: &ServeSettings, env: &Env) -> anyhow::Result<()> {
    // Sends the last traces when the server has ended.
    #[cfg(feature = "otel")]
    let _traces = crate::app::traces::start(env)?;

    let server = PreparedServer::new(settings, env, Arc::new(TerminalProgress))?;
    if settings.check_config {
        return check::print(settings, server.specs()).context("printing the settings");
    }
    server.run(settings_reader(env.clone()))
}

/// Reads the same arguments and the same environment again, and the configuration file as it is then.
fn settings_reader(env: Env) -> ReadSettings {
    let arguments: Vec<_> = std::env::args_os().collect();
    Arc::new(move || {
        let CommandSettings::Serve(settings) = resolve(parse(arguments.clone())?, &env)? else {
            bail!("these are not the settings of a server");
        };
        Ok(*settings)
    })
}
