//! `--memory-reclaimer`: the server's own answer to a full device, for where no controller decides over several servers;
//! where one does, it stands back.
//! After LocalAI's watchdog: over the threshold the least recently used idle model leaves, one at a time. Unlike there,
//! each device is looked at by itself (a sum over all hides a full one), and nothing happens twice on one measurement.

use std::sync::Arc;
use std::time::{Duration, Instant};

use hush_contract::{ModelState, UnloadReason};

use super::governor::Governor;
use super::machine::Unload;
use super::models::Models;
use super::snapshot::Snapshot;
use crate::gpu::{Accounts, Device};

/// Runs until the sampler ends. `threshold`: used memory over the whole, from 0 to 1.
pub async fn reclaim_memory(models: Arc<Models>, accounts: Accounts, threshold: f64, governor: Governor) {
    let mut stands_back = false;
    let mut views = accounts.sampler().follow();
    // Only what was measured after the last unload says whether another is needed.
    let mut newer_than = Instant::now();
    while views.changed().await.is_ok() {
        let view = views.borrow_and_update().clone();
        if view.begun < newer_than || view.fault.is_some() {
            continue;
        }
        if governor.is_present(Instant::now()) != stands_back {
            stands_back = !stands_back;
            let why = if stands_back { "a controller governs this server" } else { "no controller is there any more" };
            tracing::info!(stands_back, "the memory reclaimer: {why}");
        }
        if stands_back {
            continue;
        }
        for device in view.devices.iter().filter(|device| device.fault.is_none() && is_over(device, threshold)) {
            let snapshots: Vec<Snapshot> = models.iter().map(|model| model.snapshot()).collect();
            let Some(victim) = victim(&snapshots, &device.uuid) else { continue };
            let Some(handle) = models.get(&victim.model) else { continue };
            let unload = Unload {
                if_generation: Some(victim.generation),
                if_idle: Some(Duration::ZERO),
                ..Unload::now(UnloadReason::MemoryReclaimer)
            };
            match handle.unload(unload).await {
                Ok(_) => tracing::info!(model = victim.model, gpu_uuid = device.uuid, "left a device that is too full"),
                Err(refusal) => {
                    tracing::debug!(
                        model = victim.model,
                        refusal = refusal.as_str(),
                        "stays on a device that is too full"
                    );
                }
            }
            newer_than = Instant::now();
        }
    }
}

fn is_over(device: &Device, threshold: f64) -> bool {
    let memory = device.memory;
    memory.total_bytes > 0 && memory.used_bytes as f64 / memory.total_bytes as f64 > threshold
}

/// The longest idle of those that hold memory of this device; by name where two are the same.
fn victim<'a>(snapshots: &'a [Snapshot], gpu_uuid: &str) -> Option<&'a Snapshot> {
    let idle = snapshots.iter().filter(|now| {
        let on_device = now.memory.as_ref().is_some_and(|memory| memory.gpu_uuid.as_deref() == Some(gpu_uuid));
        on_device && now.state == ModelState::Ready && now.inflight == 0 && now.queued == 0
    });
    idle.max_by(|one, other| one.idle.cmp(&other.idle).then_with(|| other.model.cmp(&one.model)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gpu::ModelMemory;
    use crate::residency::Residency;

    fn model(name: &str, idle_seconds: u64, gpu: &str) -> Snapshot {
        Snapshot {
            model: name.to_owned(),
            state: ModelState::Ready,
            generation: 1,
            inflight: 0,
            queued: 0,
            idle: Duration::from_secs(idle_seconds),
            loaded_for: Duration::from_secs(idle_seconds),
            device: "cuda:0".to_owned(),
            precision: None,
            residency: Residency::Idle(None),
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
        let busy = Snapshot { inflight: 1, idle: Duration::ZERO, ..model("busy", 0, "a") };
        let wanted = Snapshot { queued: 1, ..model("wanted", 90, "a") };
        let gone = Snapshot { state: ModelState::Unloaded, ..model("gone", 99, "a") };
        let cpu = Snapshot { memory: None, ..model("cpu", 99, "a") };
        let all = [busy, wanted, gone, cpu, model("young", 5, "a"), model("old", 60, "a"), model("older", 70, "b")];
        assert_eq!(victim(&all, "a").map(|now| now.model.as_str()), Some("old"));
        assert_eq!(victim(&all, "b").map(|now| now.model.as_str()), Some("older"));
        assert_eq!(victim(&all, "c"), None);
        let same = [model("b", 5, "a"), model("a", 5, "a")];
        assert_eq!(victim(&same, "a").map(|now| now.model.as_str()), Some("a"));
    }
}
