//! From a checkpoint to graphs that compute what the reference computes.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test that cannot go on fails")]

mod checkpoint;
mod formats;
mod golden;
mod graphs;
mod install;
mod support;
