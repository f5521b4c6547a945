//! Who may use a model, and when it comes and goes.
//!
//! ```text
//! ModelHandle --messages--> owner task --events--> machine (pure)
//!                                      <-effects--        -> Runner, grants, replies, metrics
//! ```
//! Only the owner reads the state to change it; everybody else sends it a message, or looks at a [`Snapshot`].

mod collector;
mod feed;
mod handle;
mod job;
pub mod machine;
mod models;
mod owner;
mod snapshot;

pub use collector::ResidencyCollector;
pub use feed::{Change, Feed};
pub use handle::{LoadError, Loading, ModelHandle, PendingLoad};
pub use machine::{Load, LossCause, Policy, Residency, Unload, UnloadReport};
pub use models::{ModelSettings, Models, StartError};
pub use snapshot::{Failure, Snapshot};
