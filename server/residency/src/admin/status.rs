//! A snapshot of a model in the words of the contract.

use hush_contract::admin::{LoadFailure, ModelStatus, ReportedResidency};

use super::AdminState;
use crate::machine::ResidencyRule;
use crate::runner::RunnerFactory;
use crate::snapshot::ModelSnapshot;

impl<F: RunnerFactory> AdminState<F> {
    /// The status of every model, in the order of their names.
    pub(super) fn model_statuses(&self) -> Vec<ModelStatus> {
        self.models.iter().map(|model| model_status(model.snapshot())).collect()
    }
}

pub(super) fn model_status(model: ModelSnapshot) -> ModelStatus {
    let (residency, idle_timeout) = match model.residency {
        ResidencyRule::Resident => (ReportedResidency::Resident, None),
        ResidencyRule::Idle(timeout) => (ReportedResidency::Idle, timeout),
        ResidencyRule::OnDemand => (ReportedResidency::OnDemand, None),
    };

    ModelStatus {
        model: model.model,
        state: model.state,
        generation: model.generation,
        residency,
        idle_timeout_seconds: idle_timeout.map(|timeout| timeout.as_secs_f64()),
        idle_seconds: model.idle.as_secs_f64(),
        loaded_seconds: model.loaded_for.as_secs_f64(),
        inflight: model.inflight as u64,
        queued: model.queued as u64,
        device: model.device,
        precision: model.precision,
        vram_bytes: model.memory.as_ref().map(|memory| match memory.vram_bytes {
            0 => memory.need_bytes,
            held => held,
        }),
        gpu_uuid: model.memory.and_then(|memory| memory.gpu_uuid),
        memory_demand_bytes: model.demand_bytes,
        hold_remaining_seconds: model.hold.map(|hold| hold.as_secs_f64()),
        last_load_seconds: model.last_load.map(|took| took.as_secs_f64()),
        failure: model
            .failure
            .map(|failed| LoadFailure { message: failed.cause, retry_after_seconds: failed.retry_after.as_secs_f64() }),
    }
}
