//! `--memory-reclaimer`: what the server itself does about a full device, where no controller decides over several
//! servers. Where one does, the reclaimer stands back.
//! After LocalAI's watchdog: over the threshold the least recently used idle model is unloaded, one at a time. Unlike
//! there, each device is judged by itself (a sum over all hides a full one), and no two unloads follow from one
//! measurement.

use std::sync::Arc;
use std::time::{Duration, Instant};

use hush_contract::{ModelState, UnloadReason};

use crate::controller_presence::ControllerPresence;
use crate::gpu::{Accounts, GpuDevice};
use crate::machine::UnloadCommand;
use crate::models::Models;
use crate::runner::RunnerFactory;
use crate::snapshot::ModelSnapshot;

/// Runs until the sampler ends. `threshold`: used memory over the whole, from 0 to 1.
pub async fn reclaim_memory<F: RunnerFactory>(
    models: Arc<Models<F>>,
    accounts: Accounts,
    threshold: f64,
    presence: ControllerPresence,
) {
    let mut stands_back = false;
    let mut readings = accounts.sampler().follow();
    // Only a reading that began after the last unload says whether another is needed.
    let mut last_unload = Instant::now();

    while readings.changed().await.is_ok() {
        let reading = readings.borrow_and_update().clone();
        if reading.begun < last_unload || reading.fault.is_some() {
            continue;
        }

        if presence.is_present(Instant::now()) != stands_back {
            stands_back = !stands_back;
            let why = if stands_back { "a controller governs this server" } else { "no controller is there any more" };
            tracing::info!(stands_back, "the memory reclaimer: {why}");
        }
        if stands_back {
            continue;
        }

        for device in reading.devices.iter().filter(|device| device.fault.is_none() && is_over(device, threshold)) {
            if unload_from(device, &models).await {
                last_unload = Instant::now();
            }
        }
    }
}

/// Asks the longest idle model of the device to leave; `false`: there is none.
async fn unload_from<F: RunnerFactory>(device: &GpuDevice, models: &Models<F>) -> bool {
    let snapshots: Vec<ModelSnapshot> = models.iter().map(|model| model.snapshot()).collect();
    let Some(victim) = longest_idle(&snapshots, &device.uuid) else { return false };
    let Some(handle) = models.get(&victim.model) else { return false };

    let unload = UnloadCommand {
        if_generation: Some(victim.generation),
        if_idle: Some(Duration::ZERO),
        ..UnloadCommand::now(UnloadReason::MemoryReclaimer)
    };

    let (model, gpu_uuid) = (&victim.model, &device.uuid);
    match handle.unload(unload).await {
        Ok(_) => tracing::info!(model, gpu_uuid, "left a device that is too full"),
        Err(refusal) => {
            tracing::debug!(model, refusal = refusal.as_str(), "stays on a device that is too full");
        }
    }
    true
}

fn is_over(device: &GpuDevice, threshold: f64) -> bool {
    let memory = device.memory;

    memory.total_bytes > 0 && memory.used_bytes as f64 / memory.total_bytes as f64 > threshold
}

/// The longest idle of the models that hold memory of this device; the first by name where two are the same.
fn longest_idle<'a>(snapshots: &'a [ModelSnapshot], gpu_uuid: &str) -> Option<&'a ModelSnapshot> {
    let idle = snapshots.iter().filter(|model| {
        let is_on_device = model.memory.as_ref().is_some_and(|memory| memory.gpu_uuid.as_deref() == Some(gpu_uuid));
        is_on_device && model.state == ModelState::Ready && model.inflight == 0 && model.queued == 0
    });

    idle.max_by(|one, other| one.idle.cmp(&other.idle).then_with(|| other.model.cmp(&one.model)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gpu::ModelMemory;
    use crate::machine::ResidencyRule;

    fn model(name: &str, idle_seconds: u64, gpu: &str) -> ModelSnapshot {
        ModelSnapshot {
            model: name.to_owned(),
            state: ModelState::Ready,
            generation: 1,
            inflight: 0,
            queued: 0,
            idle: Duration::from_secs(idle_seconds),
            loaded_for: Duration::from_secs(idle_seconds),
            device: "cuda:0".to_owned(),
            precision: None,
            residency: ResidencyRule::Idle(None),
            hold: None,
            last_load: None,
            runner_pid: Some(1),
            failure: None,
            demand_bytes: None,
            memory: Some(ModelMemory { gpu_uuid: Some(gpu.to_owned()), ..ModelMemory::default() }),
        }
    }

    #[test]
    fn the_longest_idle_of_the_full_device_leaves() {
        let busy = ModelSnapshot { inflight: 1, idle: Duration::ZERO, ..model("busy", 0, "a") };
        let wanted = ModelSnapshot { queued: 1, ..model("wanted", 90, "a") };
        let gone = ModelSnapshot { state: ModelState::Unloaded, ..model("gone", 99, "a") };
        let cpu = ModelSnapshot { memory: None, ..model("cpu", 99, "a") };
        let all = [busy, wanted, gone, cpu, model("young", 5, "a"), model("old", 60, "a"), model("older", 70, "b")];

        let victim_of = |gpu: &str| longest_idle(&all, gpu).map(|model| model.model.as_str());
        assert_eq!(victim_of("a"), Some("old"));
        assert_eq!(victim_of("b"), Some("older"));
        assert_eq!(victim_of("c"), None);

        let same = [model("b", 5, "a"), model("a", 5, "a")];
        assert_eq!(longest_idle(&same, "a").map(|model| model.model.as_str()), Some("a"));
    }
}
