//! Rule 13: a model that waits for memory gets it from idle models of lower priority: all that it needs, or nothing.

use std::cmp::Reverse;
use std::time::Duration;

use crate::gpu_context::GpuContext;
use crate::model_table::ModelEntry;
use crate::plan::{DecisionReason, SkipReason, UnloadTerms};
use crate::step_context::StepContext;
use crate::world::ResidencyState;

pub fn apply<'a>(step: &mut StepContext<'a>, gpu: &mut GpuContext<'a>) {
    let mut waiting: Vec<usize> = gpu.ranked.iter().copied().filter(|&index| is_waiting(step.entry(index))).collect();
    waiting.sort_by_key(|&index| (Reverse(step.entry(index).priority()), &step.entry(index).model.key));

    // What the waiting models before this one will take.
    let mut promised: u64 = 0;
    for index in waiting {
        let wanted = promised.saturating_add(step.entry(index).model.sample.demand_bytes);
        if !gpu.fresh {
            let (reason, detail) = gpu.why_unknown();
            step.skip(index, reason, detail);
        } else if gpu.expected() >= wanted {
            promised = wanted;
            step.skip(index, SkipReason::RoomComing, "there is memory for it");
        } else if gpu.awaiting {
            step.skip(index, SkipReason::AwaitingFreshSample, "the last unload is newer than the sample");
        } else if make_room(step, gpu, index, wanted) {
            promised = wanted;
            step.skip(index, SkipReason::RoomComing, "others leave for it");
        } else {
            step.skip(index, SkipReason::CannotMakeRoom, "idle models of lower priority do not hold enough");
        }
    }
}

fn is_waiting(entry: &ModelEntry<'_>) -> bool {
    entry.model.sample.state == ResidencyState::WaitingForMemory && entry.fresh && !entry.pending
}

/// Whether `wanted` bytes can be reached; if not, nothing is decided.
fn make_room<'a>(step: &mut StepContext<'a>, gpu: &mut GpuContext<'a>, waiting: usize, wanted: u64) -> bool {
    let priority = step.entry(waiting).priority();

    // A priority that no cluster policy bounds takes nothing from models that stay by the cluster policies.
    let is_bounded = step.entry(waiting).cluster_rules.is_some();

    let mut expected = gpu.expected();
    let mut victims = Vec::new();
    let mut held_back = Vec::new();
    for index in step.leaving_order(&gpu.ranked) {
        let entry = step.entry(index);
        if expected >= wanted || step.decided[index] || !entry.can_unload() || entry.priority() >= priority {
            continue;
        }

        if entry.model.is_busy() {
            held_back.push((index, SkipReason::Busy));
        } else if !entry.is_old_enough() {
            held_back.push((index, SkipReason::MinResident));
        } else if step.is_protected(index) {
            held_back.push((index, SkipReason::MinLoaded));
        } else if entry.leaves_last && !is_bounded {
            held_back.push((index, SkipReason::NotNeeded));
        } else {
            expected = expected.saturating_add(entry.model.sample.vram_bytes);
            step.count_as_gone(index);
            victims.push(index);
        }
    }

    for (index, reason) in held_back {
        step.skip(index, reason, "another model waits for memory");
    }

    if expected < wanted {
        victims.into_iter().for_each(|index| step.count_as_ready(index));
        return false;
    }

    for index in victims {
        let Some(rules) = step.entry(index).rules.clone() else { continue };
        let hold = Some(rules.hold_after_eviction().value);
        let terms = UnloadTerms { if_idle: Some(Duration::ZERO), hold, drain: None };
        step.unload_counted(gpu, index, DecisionReason::MakeRoom, rules.priority().policy, terms);
    }

    true
}
