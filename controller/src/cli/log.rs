//! Log lines, on standard error so that standard output stays clean. Those that cannot be written are dropped and counted.

use anyhow::Context;
use clap::{Args, ValueEnum};
use hush_log::LogSetup;

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
        hush_log::check_filter(&self.log_level).context("--log-level")?;
        let json = self.log_format == Format::Json;
        hush_log::init_log(&LogSetup { json, with_target: false, base: "", filter: &self.log_level });
        Ok(())
    }
}
