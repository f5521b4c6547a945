//! Replays requests through `hush_core::step` in virtual time: one GPU, its models, one server.
//!
//! Time jumps from event to event. A request finds its model loaded, or loads it and waits; the model then is busy for as
//! long as the request takes. Between requests the core decides at a fixed interval, as it does for real servers.

pub mod adaptive;
mod figures;
pub mod measured;
mod replay;
pub mod trace;

pub use figures::SimulationFigures;
pub use replay::{Hardware, replay};
pub use trace::TraceRequest;
