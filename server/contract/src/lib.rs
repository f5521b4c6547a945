//! The names and types that `hush-server`, `hush-sidecar` and `hush-controller` share: metric names, label names, states, reasons, and
//! the requests and answers of the admin API. Both use this crate, so that no name is written twice.

pub mod admin;
mod app;
pub mod browser;
pub mod bytes;
pub mod duration;
pub mod metrics;
pub mod percent;
mod state;

pub use app::{AppGovernance, AppMode, WHISPER};
pub use state::{ModelState, UnloadReason, UnloadRefusal};
