//! The life of the models ([`hush_residency`]) with the Whisper runner plugged in, and the jobs that it does.

mod job;
mod runner;

pub use hush_residency::{
    AcquireError, ChangeFeed, ControllerPresence, EventStreamGuard, FailedLoad, LifecycleSettings, LoadCommand,
    LoadCommandError, LossCause, ModelChange, ModelSnapshot, PendingLoad, ReclaimReport, ReclaimVerdict,
    ResidencyMetrics, ResidencyRule, RunnerLoss, StartError, UnloadCommand, UnloadReport, lru, reclaim_memory,
};
pub use job::SpeechJobs;

use crate::runner::Runners;
use crate::runner::wire::LoadSpec;

/// The models of this server.
pub type SpeechModels = hush_residency::Models<Runners>;
/// One model of this server.
pub type SpeechModelHandle = hush_residency::ModelHandle<Runners>;
/// One model, and how it is loaded.
pub type SpeechModelSettings = hush_residency::ModelSettings<LoadSpec>;
