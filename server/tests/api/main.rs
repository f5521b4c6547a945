//! The public listener over real sockets, with a model that stands in for the engine.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "test support, though no test itself")]

mod abilities;
mod cors;
mod errors;
mod hostile_http;
mod hostile_uploads;
mod keys;
mod lifetime;
mod live;
mod openai;
mod openai_stream;
mod openapi;
mod routes;
mod support;
mod transcripts;
mod uploads;
mod web;
