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
pub type Models = hush_residency::Models<Runners>;
/// One model of this server.
pub type ModelHandle = hush_residency::ModelHandle<Runners>;
/// One model, and how it is loaded.
pub type ModelSettings = hush_residency::ModelSettings<LoadSpec>;

// The names that these types had in this module.
pub use hush_residency::{
    ControllerPresence as Governor, FailedLoad as Failure, LifecycleSettings as Policy, LoadCommand as Load,
    LoadCommandError as LoadError, ModelSnapshot as Snapshot, ReclaimReport as Reclaimed, ReclaimVerdict as Verdict,
    ResidencyRule as Residency, UnloadCommand as Unload,
};

pub mod machine {
    //! The state machine of one model.

    pub use hush_residency::machine::*;

    // The names that these types had in this module.
    pub use hush_residency::machine::{
        ColdReason as Cold, LeaseLossCause as LostWhy, LifecycleSettings as Policy, LoadCommand as Load,
        MachineEffect as Effect, MachineEvent as Event, MachineTime as Moment, MemoryAvailability as DeviceMemory,
        MetricEvent as Count, ModelMachine as Machine, ModelRefusal as Refusal, ReclaimReport as Reclaimed,
        ReclaimVerdict as Verdict, ResidencyRule as Residency, RunnerLoss as Loss, UnloadCommand as Unload,
    };
}
