//! Who may use a model, and when it comes and goes.
//!
//! ```text
//! ModelHandle --messages--> owner task --events--> machine (pure)
//!                                      <-effects--        -> Runner, grants, replies, metrics
//! ```
//! Only the owner reads the state to change it; everybody else sends it a message, or looks at a [`Snapshot`].

mod collector;
mod feed;
mod governor;
mod handle;
mod job;
pub mod lru;
pub mod machine;
mod models;
mod owner;
mod places;
mod reclaimer;
mod snapshot;
mod tally;

pub use collector::ResidencyCollector;
pub use feed::{Change, Feed};
pub use governor::{Following, Governor};
pub use handle::{LoadError, Loading, ModelHandle, PendingLoad};
pub use machine::{Load, LossCause, Policy, Reclaimed, Residency, Unload, UnloadReport, Verdict};
pub use models::{ModelSettings, Models, StartError};
pub use reclaimer::reclaim_memory;
pub use snapshot::{Failure, Snapshot};
