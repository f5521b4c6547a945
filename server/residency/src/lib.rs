//! The life of a model on a device that it shares with others: when it loads, which requests hold it, when it leaves, and
//! the proof that its memory is back. What a model is, and how its work is done, is known only to the program that
//! plugs in a runner ([`RunnerFactory`]) and the jobs for it ([`ModelJob`]).
//!
//! ```text
//! ModelHandle --messages--> ModelActor --events--> ModelMachine (pure)
//!                                      <-effects--      -> runner, leases, replies, metrics
//! gpu: NVML -> GpuSampler -> Accounts -> room for loads, proof of unloads
//! admin: the admin API on the handles
//! ```
//! Only the actor of a model reads its state in order to change it. Everything else sends the actor a message, or reads a
//! [`ModelSnapshot`].

pub mod admin;
mod change_feed;
mod collector;
mod controller_presence;
pub mod gpu;
mod job;
mod load_slots;
pub mod lru;
pub mod machine;
mod memory;
mod metrics;
mod model_actor;
mod model_handle;
mod models;
mod reclaimer;
mod record_metrics;
mod runner;
mod scrape;
mod snapshot;

pub use change_feed::{ChangeFeed, ModelChange};
pub use collector::ResidencyCollector;
pub use controller_presence::{ControllerPresence, EventStreamGuard};
pub use job::{AcquireError, AttemptError, ModelJob, ModelLease};
pub use machine::{
    DrainEnd, LifecycleSettings, LoadCommand, LossCause, ReclaimReport, ReclaimVerdict, ResidencyRule, RunnerLoss,
    UnloadCommand, UnloadReport,
};
pub use metrics::ResidencyMetrics;
pub use model_handle::{LoadCommandError, LoadProgress, ModelHandle, PendingLoad};
pub use models::{ModelSettings, Models, StartError};
pub use reclaimer::reclaim_memory;
pub use runner::{LoadTimings, ModelRunner, OnRunnerEvent, RunnerEvent, RunnerFactory, RunnerSpec};
pub use scrape::{encode_metrics, scrape};
pub use snapshot::{FailedLoad, ModelSnapshot};
