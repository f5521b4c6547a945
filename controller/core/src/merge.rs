//! Several policies on one model: the strictest value of each field holds.
//!
//! The merge is commutative, associative and idempotent. Each value keeps the policy it came from, the first by name
//! among equals, so that a decision can name the policy that caused it.
//!
//! A cluster policy sets the operator's bounds. In the fields that protect a model, or give it the memory of others
//! (`minResident`, `minLoaded`, `priority`), it takes part with the default where it writes no value. So its value,
//! written or default, bounds what the policies of a namespace ask for. Which fields these are stands in
//! [`crate::policy_fields`].

use jiff::Timestamp;

use crate::policy::ModelPolicy;
use crate::policy_fields::{DEFAULT_RESIDENCY, MergedSpec, ModelRules, PickedValue, PolicySpec};
use crate::residency::PolicyResidency;

/// The residency that a policy asks for at one point in time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ResidencyNow {
    pub mode: PolicyResidency,
    /// An open window of the policy sets the mode.
    pub by_window: bool,
}

impl MergedSpec {
    /// The values with which one policy takes part: those that it asks for, and the defaults by which a cluster policy
    /// bounds others. `index` is its index in the sorted list of policies.
    pub fn of_policy(
        index: usize,
        policy: &ModelPolicy,
        residency: Option<ResidencyNow>,
        total_bytes: Option<u64>,
    ) -> Self {
        let mut merged = Self::of_spec(index, &policy.asks, residency, total_bytes);
        if policy.is_cluster() {
            merged.add_cluster_defaults(index);
        }

        merged
    }

    /// The values that one policy asks for. `residency` is what [`residency_at`] gives.
    pub fn of_spec(index: usize, spec: &PolicySpec, residency: Option<ResidencyNow>, total_bytes: Option<u64>) -> Self {
        let mode = residency.map(|residency| PickedValue { value: residency.mode, policy: index });
        let by_window = residency.is_some_and(|residency| residency.by_window);

        Self { residency: mode, window: by_window.then_some(index), ..Self::written(index, spec, total_bytes) }
    }

    #[must_use]
    pub fn merge(&self, other: &Self) -> Self {
        let merged = self.merge_fields(other);

        // A window counts only if it asks for the residency that holds, not for a more lenient one.
        let mode = merged.residency.map(|residency| residency.value);
        let asks_for_mode = |spec: &&Self| spec.residency.map(|residency| residency.value) == mode;
        let window = [self, other].into_iter().filter(asks_for_mode).filter_map(|spec| spec.window).min();

        Self { window, ..merged }
    }
}

impl ModelRules {
    /// `first_policy` stands for the policy wherever a default decides.
    pub const fn new(merged: MergedSpec, first_policy: usize) -> Self {
        Self { merged, first_policy }
    }
}

/// What a policy asks for at `now`: the mode of its strictest open window, or else its own mode. A cluster policy that
/// gives only an idle timeout implies the mode `Idle`: otherwise a policy of a namespace that asks for `Resident` would
/// make the timeout void.
pub fn residency_at(policy: &ModelPolicy, now: Timestamp) -> Option<ResidencyNow> {
    let spec = &policy.asks;
    let open_windows = spec.schedule.iter().filter(|window| window.is_open(now));
    if let Some(mode) = open_windows.map(|window| window.mode).max() {
        return Some(ResidencyNow { mode, by_window: true });
    }

    let implied = (policy.is_cluster() && spec.idle_timeout.is_some()).then_some(DEFAULT_RESIDENCY);
    spec.residency.or(implied).map(|mode| ResidencyNow { mode, by_window: false })
}
