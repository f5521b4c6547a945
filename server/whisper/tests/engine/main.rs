//! The engine compared with the reference: the bundled model on the bundled recordings.

// Clippy's exemption for tests covers test functions, but not the helpers beside them.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "test support, though no test itself")]

mod behaviour;
mod numbers;
mod short_windows;
mod support;
mod timing;
mod transcripts;
mod vad;
mod words;
