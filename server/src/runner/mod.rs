//! The child process that holds a model. When a process drops its sessions, the CUDA context and the libraries stay; when
//! the process ends, nothing stays. So each loaded model is in a process of its own.
//!
//! ```text
//! parent: Runners -> RunnerHandle -> RunnerJob      child: child::main -> RunnerBackend (hush-whisper)
//!               \-- supervisor task ------ socket pair (wire) ------ command reader, workers
//! ```

mod backend;
pub mod child;
mod frames;
mod process;
mod spawn;
mod supervisor;
pub mod wire;

pub use backend::EngineBackend;
pub use process::{
    JobEvent, LoadTimings, OnRunnerEvent, RunnerEnding, RunnerEvent, RunnerHandle, RunnerJob, RunnerSettings, Runners,
};
pub use spawn::inherited_environment;
