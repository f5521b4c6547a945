//! From a checkpoint to graphs that compute the same values as the reference.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test that cannot go on fails")]

mod checkpoint;
mod formats;
mod golden;
mod graphs;
mod install;
mod support;
