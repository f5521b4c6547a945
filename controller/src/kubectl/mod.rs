//! `kubectl hush`: shows what the controllers of a cluster know, and sends them commands.
//!
//! ```text
//! discovery (the controllers) --> client (through the API server, or directly) --> fleet (their states merged)
//!     fleet --> top, explain, plan: text or JSON        fleet --> commands --> client (commands with their conditions)
//! ```

mod args;
mod client;
mod commands;
mod discovery;
mod explain;
mod fleet;
mod format;
mod log_level;
mod outlook;
mod plan;
mod response;
mod screen;
mod table;
mod top;

use std::process::ExitCode;

use args::PluginCommand;
pub use args::{PluginArgs, PluginCli, is_called_as_plugin};
use discovery::PluginContext;

pub fn run(plugin: PluginArgs) -> anyhow::Result<ExitCode> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;

    runtime.block_on(async {
        let context = PluginContext::new(&plugin.connection).await?;
        match plugin.command {
            PluginCommand::Top(args) => top::run(context, &args).await,
            PluginCommand::Explain(args) => explain::run(&context, &args).await,
            PluginCommand::Unload(args) => commands::unload(&context, &args).await,
            PluginCommand::Load(args) => commands::load(&context, &args).await,
            PluginCommand::Plan(args) => plan::run(&context, &args).await,
            PluginCommand::Pause(args) => commands::pause(&context, &args).await,
            PluginCommand::Resume(args) => commands::resume(&context, &args).await,
            PluginCommand::LogLevel(args) => log_level::run(&context, &args).await,
        }
    })
}
