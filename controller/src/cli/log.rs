//! The options of the log. Its lines go to standard error, so that standard output holds results alone. Lines that cannot
//! be written are dropped and counted.

use anyhow::Context;
use clap::{Args, ValueEnum};
use hush_log::LogSetup;

#[derive(Debug, Args)]
pub struct ControllerLogArgs {
    /// Format of the log's lines.
    #[arg(long, value_enum, default_value_t = LogLineFormat::Text, env = "HUSH_CONTROLLER_LOG_FORMAT")]
    pub log_format: LogLineFormat,
    /// What is logged: `error`, `warn`, `info`, `debug`, `trace`, or directives as of `RUST_LOG`.
    #[arg(long, value_name = "LEVEL", default_value = "info", env = "HUSH_CONTROLLER_LOG_LEVEL")]
    pub log_level: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum LogLineFormat {
    Text,
    Json,
}

impl ControllerLogArgs {
    /// Sets up the log of the process. A second call changes nothing.
    pub fn init(&self) -> anyhow::Result<()> {
        hush_log::check_filter(&self.log_level).context("--log-level")?;

        let json = self.log_format == LogLineFormat::Json;
        hush_log::init_log(&LogSetup { json, with_target: false, base: "", filter: &self.log_level });
        Ok(())
    }
}
