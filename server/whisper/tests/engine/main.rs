//! The engine against the reference: the bundled model on the bundled recordings.

// Clippy's leave for tests covers test functions, not the helpers beside them.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "test support, though no test itself")]

mod behaviour;
mod numbers;
mod support;
mod timing;
mod transcripts;
mod vad;
mod words;
