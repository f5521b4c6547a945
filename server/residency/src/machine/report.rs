//! What the machine learns of runners and devices, and what it reports.

use std::fmt;
use std::time::Duration;

use hush_contract::admin::{ProcessOutcome, UnloadOutcome};
use hush_contract::{UnloadReason, UnloadRefusal};

/// How a runner was lost, as metrics count it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LossCause {
    /// The runner ended by itself, or broke the protocol and was ended.
    Exited,
    /// The runner was ended by a signal that the server did not send: most often the kernel, out of memory.
    Killed,
    /// The runner gave no sign of life while it worked.
    Hung,
    LoadTimeout,
}

impl LossCause {
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Exited => "exited",
            Self::Killed => "killed",
            Self::Hung => "hung",
            Self::LoadTimeout => "load_timeout",
        }
    }
}

/// The loss of a runner.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RunnerLoss {
    pub cause: LossCause,
    /// A sentence for log lines and error messages.
    pub detail: String,
}

impl fmt::Display for RunnerLoss {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.detail)
    }
}

/// Whether the next load fits on the device, as it was measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MemoryAvailability {
    /// Free bytes, less what other loads in progress will take; `None`: not known, which forbids no load.
    pub available_bytes: Option<u64>,
    /// What the model needs, and what must stay free beside it.
    pub demand_bytes: u64,
}

impl MemoryAvailability {
    pub fn is_sufficient(&self) -> bool {
        self.available_bytes.is_none_or(|available| available >= self.demand_bytes)
    }
}

/// What an unload gave back, as the figures of the device prove it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ReclaimReport {
    /// What the model held before the unload.
    pub vram_before_bytes: u64,
    /// How much of that is free again.
    pub reclaimed_bytes: u64,
    /// How much of that is not.
    pub residual_bytes: u64,
    /// What other processes took meanwhile.
    pub taken_bytes: u64,
    pub verdict: ReclaimVerdict,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReclaimVerdict {
    /// All of the memory is back.
    Returned,
    /// All of the memory is back, and other processes took some of it.
    Taken,
    /// Some memory is not back although the process is gone.
    Residual,
    /// Less memory is free than should be, and no list of processes says which of them holds it.
    Unattributed,
}

impl ReclaimVerdict {
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Returned => "returned",
            Self::Taken => "taken",
            Self::Residual => "residual",
            Self::Unattributed => "unattributed",
        }
    }
}

/// How an accepted unload went.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct UnloadReport {
    pub outcome: UnloadOutcome,
    pub generation: u64,
    /// From the command until no request was in flight.
    pub drain: Duration,
    /// From there until the runner was reaped.
    pub exit: Duration,
    /// From there until the device memory was back, or the wait for it ended.
    pub reclaim: Duration,
    /// `None`: the model's device is not measured.
    pub memory: Option<ReclaimReport>,
    /// What became of the process that held the model; `None`: the model was not in memory.
    pub process: Option<ProcessOutcome>,
}

/// Something that metrics count.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MetricEvent {
    Loaded {
        total: Duration,
    },
    LoadFailed,
    /// The model was in memory although nothing loaded it from here.
    Appeared,
    Unloaded {
        reason: UnloadReason,
        total: Duration,
    },
    Reclaimed {
        memory: ReclaimReport,
        took: Duration,
    },
    OutOfMemory,
    UnloadRefused(UnloadRefusal),
    RunnerLost(LossCause),
    /// The time between two arrivals.
    Interarrival(Duration),
    /// How long a request waited that found the model not loaded.
    ColdStart(Duration),
}
