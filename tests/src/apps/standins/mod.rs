//! Stand-ins for other model servers: they speak the documented routes of the original, with its bad manners, and hold
//! memory of a scripted GPU. Each writes a journal of the requests that reached it and of violations, such as a request that
//! an unload cut, so that a test can assert that there were none. No model computes anything.
//!
//! Which program and which version each follows stands at the head of its file. What a real one does is tested with the real
//! one where it can be had: llama-server, Ollama and Triton.

mod a1111;
mod comfyui;
mod core;
mod incoming;
mod journal;
mod llama_router;
mod localai;
mod memory;
mod ollama;
mod openai;
mod options;
mod runner_process;
mod serve;
mod sglang;
mod speaches;
mod stream;
mod triton;
mod vllm;
mod websocket;
mod work;

pub use journal::{JournalEntry, JournalEvent, ViolationKind};
pub use options::{Manner, ModelSpec, StandInKind, StandInOptions};
pub use serve::run;
