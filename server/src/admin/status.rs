//! A snapshot of a model as the contract says it.

use hush_contract::admin::{LoadFailure, ModelStatus, ResidencyMode};

use super::AdminState;
use crate::residency::{Residency, Snapshot};

impl AdminState {
    /// Every model, in the order of their names.
    pub(super) fn listing(&self) -> Vec<ModelStatus> {
        self.models.iter().map(|model| status(model.snapshot())).collect()
    }
}

pub(super) fn status(now: Snapshot) -> ModelStatus {
    let (residency, idle_timeout) = match now.residency {
        Residency::Resident => (ResidencyMode::Resident, None),
        Residency::Idle(timeout) => (ResidencyMode::Idle, timeout),
        Residency::OnDemand => (ResidencyMode::OnDemand, None),
    };
    ModelStatus {
        model: now.model,
        state: now.state,
        generation: now.generation,
        residency,
        idle_timeout_seconds: idle_timeout.map(|timeout| timeout.as_secs_f64()),
        idle_seconds: now.idle.as_secs_f64(),
        loaded_seconds: now.loaded_for.as_secs_f64(),
        inflight: now.inflight as u64,
        queued: now.queued as u64,
        device: now.device,
        precision: now.precision,
        gpu_uuid: None,
        vram_bytes: None,
        memory_demand_bytes: None,
        hold_remaining_seconds: now.hold.map(|hold| hold.as_secs_f64()),
        last_load_seconds: now.last_load.map(|took| took.as_secs_f64()),
        failure: now.failure.map(|failure| LoadFailure {
            message: failure.cause,
            retry_after_seconds: failure.retry_after.as_secs_f64(),
        }),
    }
}
