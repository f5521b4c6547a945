//! What runs the server and the engine for the commands of the command line.
//!
//! | module | holds |
//! |---|---|
//! | `server` | the life of a server: preparation, start, reload on SIGHUP, end |
//! | `served_model_spec`, `model_registry` | which models are served and how, and the models of a running server |
//! | `model_store`, `model_install` | the installed models, and how one is installed |
//! | `device_placement`, `device_environment` | the device of a model, and what all models of a server share |
//! | `cuda_binding`, `cuda_probe` | the variables that bind a process to a GPU, and whether CUDA works |
//! | `ort_library`, `vad_model` | where the files of the engine are |
//! | `local_engine` | an engine in this process, for `transcribe` |
//! | `api_config`, `security`, `log_setup`, `traces`, `signals`, `reload` | parts of the start |

pub mod api_config;
mod cuda_binding;
pub mod cuda_probe;
mod device_environment;
pub mod device_placement;
pub mod local_engine;
pub mod log_setup;
pub mod model_install;
mod model_registry;
pub mod model_store;
pub mod ort_library;
pub mod reload;
mod security;
pub mod served_model_spec;
pub mod server;
mod signals;
#[cfg(feature = "otel")]
pub mod traces;
mod vad_model;
