//! `hush-server`: a Whisper speech-to-text server whose model is a guest on the GPU.
//!
//! ```text
//! bytes -> api -> spool -> audio -> residency -> runner (child process) -> hush-whisper -> segments -> api
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
pub mod recording;
pub mod request;
pub mod residency;
pub mod runner;
pub mod serve;
pub mod spool;
mod trust;
pub mod watch;
pub mod web;
