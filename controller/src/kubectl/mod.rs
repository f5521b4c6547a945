//! `kubectl hush`: what a person asks and commands from their own machine.
//!
//! ```text
//! find (controllers of the cluster) --> wire (through the API server, or directly) --> fleet (their states as one)
//!     fleet --> top, explain, plan: text or JSON        fleet --> act --> wire (commands with their condition)
//! ```

mod act;
mod args;
mod explain;
mod fate;
mod find;
mod fleet;
mod log_level;
mod plan;
mod read;
mod screen;
mod table;
mod top;
mod wire;
mod words;

use std::process::ExitCode;

use args::Verb;
pub use args::{AsPlugin, Plugin, is_called_as_plugin};

pub fn run(plugin: Plugin) -> anyhow::Result<ExitCode> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let place = find::Place::of(&plugin.reach).await?;
        match plugin.verb {
            Verb::Top(args) => top::run(place, &args).await,
            Verb::Explain(args) => explain::run(&place, &args).await,
            Verb::Unload(args) => act::unload(&place, &args).await,
            Verb::Load(args) => act::load(&place, &args).await,
            Verb::Plan(args) => plan::run(&place, &args).await,
            Verb::Pause(args) => act::pause(&place, &args).await,
            Verb::Resume(args) => act::resume(&place, &args).await,
            Verb::LogLevel(args) => log_level::run(&place, &args).await,
        }
    })
}
