//! Other model servers for the tests of the sidecar: real ones where they can be had, and stand-ins for the others. A
//! scenario sees all of them as a [`TestedApp`].

mod client;
mod gguf;
mod llama;
mod ollama;
mod real;
mod sidecar;
mod standin_app;
pub mod standins;
mod tested_app;
mod triton;
mod websocket;

pub use client::{LiveAnswer, post, post_bytes};
pub use gguf::{TinyLlama, write_tiny_llama};
pub use llama::{LlamaProcess, LlamaRouter};
pub use ollama::OllamaServer;
pub use real::{RealApp, find_real_app};
pub use sidecar::{ModelUnloader, RunningSidecar, SidecarOptions};
pub use standin_app::StandInApp;
pub use tested_app::{AppCall, LongCall, TestedApp};
pub use triton::{TRITON_MODEL, TritonServer};
pub use websocket::ClientSocket;
