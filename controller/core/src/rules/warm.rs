//! Rule 14 and pre-warming: models that should be loaded before a request asks for them, where that takes nothing from
//! other models.

use std::cmp::Reverse;

use crate::gpu_context::GpuContext;
use crate::model_table::ModelEntry;
use crate::plan::{DecisionReason, SkipReason};
use crate::residency::PolicyResidency;
use crate::rules::pressure;
use crate::step_context::StepContext;
use crate::world::ResidencyState;

pub fn apply<'a>(step: &mut StepContext<'a>, gpu: &mut GpuContext<'a>) {
    let mut wanted = wanted_loads(step, gpu);
    if wanted.is_empty() {
        return;
    }

    wanted.sort_by_key(|load| (Reverse(step.entry(load.index).priority()), &step.entry(load.index).model.key));
    let mut available = gpu.available;
    for WantedLoad { index, reason, policy } in wanted {
        let entry = step.entry(index);
        let vram_bytes = entry.model.sample.vram_bytes;
        let LoadLimits { highest_threshold, pressed } = load_limits(step, gpu, index);
        let fits = available >= vram_bytes && available - vram_bytes >= highest_threshold;

        if entry.used {
            step.skip(index, SkipReason::AwaitingFreshSample, "decided on this sample already");
        } else if gpu.id.is_none() {
            step.load(index, reason, policy);
        } else if !gpu.fresh {
            let (reason, detail) = gpu.why_unknown();
            step.skip(index, reason, detail);
        } else if !fits {
            step.skip(index, SkipReason::NoRoom, "it would cross a threshold, or not fit");
        } else if pressed {
            step.skip(index, SkipReason::NoRoom, "the GPU is under pressure");
        } else if !gpu.budgets.admit(step.table.policies_of(entry), vram_bytes) {
            step.skip(index, SkipReason::NoRoom, "it would exceed a budget");
        } else {
            available -= vram_bytes;
            step.load(index, reason, policy);
        }
    }
}

/// A model that should be loaded now, why, and the policy that says so.
struct WantedLoad {
    index: usize,
    reason: DecisionReason,
    policy: usize,
}

fn wanted_loads(step: &mut StepContext<'_>, gpu: &GpuContext<'_>) -> Vec<WantedLoad> {
    let mut wanted = Vec::new();
    for &index in &gpu.ranked {
        let entry = step.entry(index);
        if entry.model.sample.state != ResidencyState::Unloaded || !entry.fresh || entry.pending {
            continue;
        }

        match wanted_load(step, index) {
            Some(load) => wanted.push(load),
            None => step.skip(index, SkipReason::NotLoaded, "no warm window is open and no request is expected"),
        }
    }

    wanted
}

fn wanted_load(step: &StepContext<'_>, index: usize) -> Option<WantedLoad> {
    let entry = step.entry(index);
    let rules = entry.rules.as_ref()?;
    let residency = rules.residency();
    match (residency.value, rules.window()) {
        (PolicyResidency::Resident, Some(policy)) => {
            Some(WantedLoad { index, reason: DecisionReason::WarmWindow, policy })
        }
        (PolicyResidency::Adaptive, _) => {
            let expected = step.learners.expects_request(step.now, entry.model);
            expected.then_some(WantedLoad { index, reason: DecisionReason::PreWarm, policy: residency.policy })
        }
        _ => None,
    }
}

/// What a load must respect on its GPU.
struct LoadLimits {
    /// This much must stay available, in bytes.
    highest_threshold: u64,
    pressed: bool,
}

/// Policies of other namespaces do not keep a model away that a cluster policy selects.
fn load_limits(step: &StepContext<'_>, gpu: &GpuContext<'_>, index: usize) -> LoadLimits {
    let loaded = step.entry(index);
    let namespace = loaded.model.key.server.namespace();
    let is_apart = |entry: &ModelEntry<'_>| {
        loaded.cluster_rules.is_some()
            && entry.cluster_rules.is_some()
            && entry.model.key.server.namespace() != namespace
    };

    let signals = pressure::signals(step, gpu, |entry| {
        if is_apart(entry) { entry.cluster_rules.as_deref() } else { entry.rules.as_deref() }
    });
    LoadLimits {
        highest_threshold: signals.iter().map(|signal| signal.below_bytes).max().unwrap_or(0),
        pressed: signals.iter().any(|signal| gpu.readings.get(signal).is_some_and(|reading| reading.pressed)),
    }
}
