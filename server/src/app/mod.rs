//! What runs the server and the engine for the commands of the command line: which models are served and where they
//! run, the start, the reload and the end of the server, and the installation of models.

pub mod cuda;
pub mod device_environment;
pub mod log_setup;
pub mod model_install;
pub mod model_placement;
pub mod model_registry;
pub mod model_store;
pub mod ort_library;
pub mod reload;
mod security;
pub mod server;
#[cfg(feature = "otel")]
mod traces;
pub mod vad_model;
