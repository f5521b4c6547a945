//! The residency modes of the policies, and what an unload ends.

use serde::{Deserialize, Serialize};

/// When an idle model leaves the GPU. Ordered from the most lenient to the strictest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum PolicyResidency {
    /// The model never leaves because it is idle.
    Resident,
    /// The model leaves after the idle timeout.
    Idle,
    /// The model leaves after a timeout that is learned from the gaps between its requests.
    Adaptive,
    /// The model leaves as soon as it is idle.
    OnDemand,
}

/// What an unload ends. Ordered from the most lenient to the strictest.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum PolicyUnload {
    /// The model, by the unload of its app.
    #[default]
    App,
    /// The process of the app too, once no other model is in it.
    Process,
}

impl PolicyUnload {
    pub(crate) const fn is_app(&self) -> bool {
        matches!(self, Self::App)
    }
}

/// What a server can do about the process of its app at an unload.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum ProcessEnding {
    /// Every unload ends it.
    Always,
    /// An unload that asks for it ends the process.
    OnRequest,
    /// The server did not start the app and cannot end it.
    Unavailable,
}

impl PolicyUnload {
    /// What the command of an unload asks for, where this is what the rules ask for.
    pub const fn commanded(self, ending: ProcessEnding) -> Self {
        match (self, ending) {
            (Self::Process, ProcessEnding::OnRequest) => Self::Process,
            (Self::Process, ProcessEnding::Always | ProcessEnding::Unavailable) | (Self::App, _) => Self::App,
        }
    }

    /// Whether the rules ask for the end of a process that the server cannot end.
    pub const fn is_out_of_reach(self, ending: ProcessEnding) -> bool {
        matches!((self, ending), (Self::Process, ProcessEnding::Unavailable))
    }
}
