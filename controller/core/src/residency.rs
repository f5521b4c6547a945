//! The residency modes of the policies.

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
