//! What `hush-server` and `hush-controller` say to each other: metric names, label names, states and reasons, and the
//! admin API's requests and answers.
//! Both sides use this crate; neither spells a name twice.

pub mod admin;
pub mod browser;
pub mod duration;
pub mod metrics;
pub mod percent;
mod state;

pub use state::{ModelState, UnloadReason, UnloadRefusal};
