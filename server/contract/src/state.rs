//! The states of a model, as labels and as words of the API.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// The state of a model: `Unloaded -> Loading -> Ready -> Draining -> Unloading -> Unloaded`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum ModelState {
    Unloaded,
    Loading,
    /// In memory; idle while no request is in flight, otherwise busy.
    Ready,
    /// Requests in flight are finished; no new request is accepted.
    Draining,
    Unloading,
    /// The model is to be loaded, but the device has too little memory, or a hold is in force.
    WaitingForMemory,
    /// Loading failed; the next attempt waits.
    Failed,
}

impl ModelState {
    pub const ALL: [Self; 7] = [
        Self::Unloaded,
        Self::Loading,
        Self::Ready,
        Self::Draining,
        Self::Unloading,
        Self::WaitingForMemory,
        Self::Failed,
    ];

    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Unloaded => "unloaded",
            Self::Loading => "loading",
            Self::Ready => "ready",
            Self::Draining => "draining",
            Self::Unloading => "unloading",
            Self::WaitingForMemory => "waiting_for_memory",
            Self::Failed => "failed",
        }
    }

    /// Whether the model is in memory and can work on requests.
    pub const fn is_loaded(self) -> bool {
        matches!(self, Self::Ready | Self::Draining)
    }

    /// Whether the model may hold device memory: from the start of its runner until its memory is seen to be back.
    pub const fn holds_memory(self) -> bool {
        matches!(self, Self::Loading | Self::Ready | Self::Draining | Self::Unloading)
    }

    /// Whether the model is on its way out of memory.
    pub const fn is_leaving(self) -> bool {
        matches!(self, Self::Draining | Self::Unloading)
    }
}

/// Why a model was unloaded.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
pub enum UnloadReason {
    IdleTimeout,
    OnDemand,
    SoftPressure,
    HardPressure,
    /// Another model of the same server was loaded instead (`--max-loaded`).
    MaxLoaded,
    /// The models of one policy hold more than their budget.
    OverBudget,
    /// A model of higher priority waits for memory.
    MakeRoom,
    Manual,
    Shutdown,
    /// The model's work did not fit on the device. The model is loaded again when the memory that it is now known to need is free.
    OutOfMemory,
    /// The server's own threshold for the whole device was exceeded, while no controller decides.
    MemoryReclaimer,
    /// A reason that this version does not know.
    Other,
}

impl UnloadReason {
    pub const ALL: [Self; 12] = [
        Self::IdleTimeout,
        Self::OnDemand,
        Self::SoftPressure,
        Self::HardPressure,
        Self::MaxLoaded,
        Self::OverBudget,
        Self::MakeRoom,
        Self::Manual,
        Self::Shutdown,
        Self::OutOfMemory,
        Self::MemoryReclaimer,
        Self::Other,
    ];

    pub const fn as_str(self) -> &'static str {
        match self {
            Self::IdleTimeout => "IdleTimeout",
            Self::OnDemand => "OnDemand",
            Self::SoftPressure => "SoftPressure",
            Self::HardPressure => "HardPressure",
            Self::MaxLoaded => "MaxLoaded",
            Self::OverBudget => "OverBudget",
            Self::MakeRoom => "MakeRoom",
            Self::Manual => "Manual",
            Self::Shutdown => "Shutdown",
            Self::OutOfMemory => "OutOfMemory",
            Self::MemoryReclaimer => "MemoryReclaimer",
            Self::Other => "Other",
        }
    }
}

/// Why an unload command changed nothing: its condition did not hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum UnloadRefusal {
    /// Requests hold the model, and the command required an idle one.
    Busy,
    /// The model is idle, but not for as long as the command required.
    NotIdle,
    /// The model was loaded again after the decision.
    GenerationChanged,
    Loading,
    NotLoaded,
    /// The model is being unloaded already.
    Draining,
}

impl UnloadRefusal {
    pub const ALL: [Self; 6] =
        [Self::Busy, Self::NotIdle, Self::GenerationChanged, Self::Loading, Self::NotLoaded, Self::Draining];

    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Busy => "busy",
            Self::NotIdle => "not_idle",
            Self::GenerationChanged => "generation_changed",
            Self::Loading => "loading",
            Self::NotLoaded => "not_loaded",
            Self::Draining => "draining",
        }
    }
}
