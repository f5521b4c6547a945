//! `hush-server`: a Whisper speech-to-text server that gives the memory of its models back.
//!
//! ```text
//! bytes -> api -> spool -> audio -> residency -> runner (child process) -> hush-whisper -> segments -> api
//! ```
//!
//! # The order of the modules
//! A module imports only modules of its own line and of lines below. The parts of `cli` that have a line of their own do not
//! count as `cli`. The test in `module_order` compares this table with the sources.
//!
//! ```text
//! cli                            parses the command line, calls app, prints
//! app                            prepares, starts, reloads and ends the server; installs models
//! cli::settings cli::args cli::command_line cli::config cli::env cli::values    the options and their values
//! api                            the public API
//! web                            the page
//! ops                            the open routes of the operations listener
//! admin                          the admin API
//! residency                      the life of the models, with the Whisper runner plugged in
//! runner                         the child process that holds a model
//! gpu                            the memory of GPUs
//! serve                          connections, and the record of each request
//! metrics                        the registry of metrics
//! hub                            downloads of models
//! recording                      an upload that is decoded when its turn comes
//! job                            the work that a runner does
//! audio                          audio files to samples
//! format request trust          small parts that import nothing of this crate
//! ```

pub mod admin;
pub mod api;
pub mod app;
pub mod audio;
pub mod cli;
pub mod format;
pub mod gpu;
pub mod hub;
pub mod job;
pub mod metrics;
#[cfg(test)]
mod module_order;
pub mod ops;
pub mod recording;
pub mod request;
pub mod residency;
pub mod runner;
pub mod serve;
mod trust;
pub mod web;
