//! The child process that holds a model. Dropping a session leaves the CUDA context and the libraries behind; ending
//! a process leaves nothing, so the model lives in one of its own.
//!
//! ```text
//! parent: Runners -> Runner -> Job        child: child::main -> Backend (hush-whisper)
//!               \-- supervisor task --- socket pair (wire) --- reader thread, a thread per job
//! ```

mod backend;
pub mod child;
mod frames;
mod process;
mod spawn;
mod supervisor;
pub mod wire;

pub use backend::EngineBackend;
pub use process::{Ending, Job, JobEvent, LoadTimings, Notify, Runner, RunnerEvent, Runners, Settings};
pub use spawn::inherited_environment;
