//! The controller around `hush-core`: it reads policies, watches servers and carries out the decisions of the core.
//!
//! ```text
//! sources --> targets --> observe (a scrape a second) --> world --+
//!        \-> policies ------------------------------------------- +--> hush_core::step --> act --> servers
//! ```
//! `kubectl` is a client of such controllers: it shows what they know, and sends them commands.

pub mod act;
mod amount;
mod api_server;
pub mod cli;
pub mod cluster;
pub mod control_loop;
mod http;
pub mod kubectl;
pub mod lease;
pub mod listen;
pub mod metrics;
pub mod observe;
pub mod ops;
mod option_values;
pub mod policies;
pub mod simulate;
mod sources;
pub mod status;
pub mod web;
pub mod world;
