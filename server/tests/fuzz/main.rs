//! Properties for arbitrary bytes from outside: the program gives a response or an error, soon and in bounded memory, and
//! never panics.
//!
//! `cargo test` runs each property over some hundred inputs; `make fuzz SECONDS=600` runs each for that long. An input that
//! fails is shrunk and stored in `corpus/`, from where it is tried first the next time.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "test support, though no test itself")]

mod admin;
#[path = "../api/support.rs"]
#[allow(dead_code, reason = "the other part is for the tests of the API")]
mod api_support;
mod audio;
#[path = "../audio_support/mod.rs"]
mod audio_support;
mod bodies;
mod checkpoint;
mod checkpoint_formats;
mod config;
mod damage;
mod frames;
mod harness;
mod model_support;
