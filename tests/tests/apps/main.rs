//! Other model servers: stand-ins with the bad manners of the originals, real ones where they can be had, and the sidecar in
//! front of both.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "test support, though no test itself")]

mod llama_server;
mod ollama;
mod one_model_standins;
mod other_standins;
mod scenarios;
mod support;
mod tls;
mod triton;
