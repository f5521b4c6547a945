//! `hush-server`: a Whisper speech-to-text server that gives the memory of its models back.
//!
//! ```text
//! bytes -> api -> spool -> audio -> residency -> runner (child process) -> hush-whisper -> segments -> api
//! ```
//!
//! # The order of the modules
//! A module imports only modules of lines below its own. A line such as `cli::env` counts apart from `cli`. The test in
//! `module_order` compares this table with the sources.
//!
//! ```text
//! cli                                                          parses the command line, calls app, prints
//! app                                                          starts, reloads and ends the server; installs models
//! cli::args cli::config cli::env cli::settings cli::values     the options and what they come to
//! api                                                          the public API
//! web                                                          the page
//! ops                                                          the open routes of the operations listener
//! admin                                                        the admin API
//! residency                                                    the life of the models, with the Whisper runner plugged in
//! runner                                                       the child process that holds a model
//! serve gpu                                                    connections; the memory of GPUs
//! metrics                                                      the registry of metrics
//! auth hub                                                     keys and tokens; downloads of models
//! recording                                                    an upload that is decoded when its turn comes
//! job                                                          the work that a runner does
//! audio                                                        audio files to samples
//! spool                                                        uploads and samples in memory or on the disk
//! budget format request trust watch                            small parts without imports
//! ```

pub mod admin;
pub mod api;
pub mod app;
pub mod audio;
pub mod auth;
pub mod budget;
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
pub mod spool;
mod trust;
pub mod watch;
pub mod web;
