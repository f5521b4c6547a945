//! Log lines, on standard error so that standard output stays clean. Those that cannot be written are dropped and counted.

use anyhow::Context;
use clap::{Args, ValueEnum};
use tracing_subscriber::EnvFilter;

#[derive(Debug, Args)]
pub struct LogArgs {
    /// Form of the log's lines.
    #[arg(long, value_enum, default_value_t = Format::Text, env = "HUSH_CONTROLLER_LOG_FORMAT")]
    pub log_format: Format,
    /// What is logged: `error`, `warn`, `info`, `debug`, `trace`, or directives as of `RUST_LOG`.
    #[arg(long, value_name = "LEVEL", default_value = "info", env = "HUSH_CONTROLLER_LOG_LEVEL")]
    pub log_level: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Format {
    Text,
    Json,
}

impl LogArgs {
    /// A second call changes nothing.
    pub fn init(&self) -> anyhow::Result<()> {
        use std::io::IsTerminal;
        let filter = EnvFilter::try_new(&self.log_level).context("--log-level")?;
        // What the log reports of itself would go to standard error with a panic where that cannot be written.
        let lines =
            tracing_subscriber::fmt().with_env_filter(filter).log_internal_errors(false).with_writer(hush_log::writer);
        let _ = match self.log_format {
            Format::Text => lines.with_ansi(std::io::stderr().is_terminal()).with_target(false).try_init(),
            Format::Json => lines.json().flatten_event(true).try_init(),
        };
        Ok(())
    }
}
