//! The life of a model, as labels and as words.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Where a model is in its life: `Unloaded -> Loading -> Ready -> Draining -> Unloading -> Unloaded`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum ModelState {
    Unloaded,
    Loading,
    /// In memory; idle when nothing is in flight, busy otherwise.
    Ready,
    /// Finishing what is in flight; takes nothing new.
    Draining,
    Unloading,
    /// Wants to load, but the device has no room or a hold is in force.
    WaitingForMemory,
    /// Loading failed; waits before it tries again.
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

    /// Whether what the model holds has been measured. While it loads, only what it needs is known.
    pub const fn has_measured_memory(self) -> bool {
        self.holds_memory() && !matches!(self, Self::Loading)
    }

    /// Whether the model is on its way out of memory.
    pub const fn is_leaving(self) -> bool {
        matches!(self, Self::Draining | Self::Unloading)
    }
}

/// Why a model left.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
pub enum UnloadReason {
    IdleTimeout,
    OnDemand,
    SoftPressure,
    HardPressure,
    /// Another model of its server took its place (`--max-loaded`).
    MaxLoaded,
    /// The models of one policy hold more than their budget.
    OverBudget,
    /// A model of higher priority waits for memory.
    MakeRoom,
    Manual,
    Shutdown,
    /// Its work did not fit on the device; it comes back with the room that it is now known to need.
    OutOfMemory,
    /// The server's own threshold for the whole device, where no controller decides.
    MemoryReclaimer,
    /// A word that this version does not know.
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

/// Why an unload command changed nothing: its condition did not hold at the moment it was judged.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum UnloadRefusal {
    /// Requests hold the model, and the command asked for an idle one.
    Busy,
    /// Idle, but not for as long as the command asked.
    NotIdle,
    /// Loaded again since the command was decided.
    GenerationChanged,
    Loading,
    NotLoaded,
    /// Already on its way out.
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_meaning_of_in_memory_names_its_states() {
        let states =
            |is: fn(ModelState) -> bool| ModelState::ALL.into_iter().filter(|state| is(*state)).collect::<Vec<_>>();

        use ModelState::{Draining, Loading, Ready, Unloading};
        assert_eq!(states(ModelState::is_loaded), [Ready, Draining]);
        assert_eq!(states(ModelState::holds_memory), [Loading, Ready, Draining, Unloading]);
        assert_eq!(states(ModelState::has_measured_memory), [Ready, Draining, Unloading]);
        assert_eq!(states(ModelState::is_leaving), [Draining, Unloading]);
    }
}
