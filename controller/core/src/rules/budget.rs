//! Rule 12: the models of one policy on one GPU hold no more than its budget. A model that the controller loads must fit
//! into it, or it would leave again at once.

use std::time::Duration;

use crate::gpu_context::GpuContext;
use crate::plan::{DecisionReason, SkipReason, UnloadTerms};
use crate::step_context::StepContext;

pub fn apply<'a>(step: &mut StepContext<'a>, gpu: &mut GpuContext<'a>) {
    for (policy, account) in gpu.budgets.exceeded() {
        let mut held = account.held;
        for index in step.leaving_order(&gpu.ranked) {
            let entry = step.entry(index);
            if !step.table.policies_of(entry).contains(&policy) || !entry.model.is_ready() {
                continue;
            }

            let vram_bytes = entry.model.sample.vram_bytes;
            if step.decided[index] {
                // The budget of another policy has unloaded the model.
                held = held.saturating_sub(vram_bytes);
                continue;
            }

            if held <= account.budget || !entry.counts_as_ready() {
                continue;
            }

            let Some(rules) = entry.rules.clone() else { continue };
            if let Some((reason, detail)) = why_not(step, gpu, index) {
                step.skip(index, reason, detail);
                continue;
            }

            held = held.saturating_sub(vram_bytes);
            let hold = Some(rules.hold_after_eviction().value);
            let terms = UnloadTerms { if_idle: Some(Duration::ZERO), hold, drain: None };
            step.unload(gpu, index, DecisionReason::OverBudget, policy, terms);
        }
    }
}

/// Why a model over its budget stays nevertheless.
fn why_not(step: &StepContext<'_>, gpu: &GpuContext<'_>, index: usize) -> Option<(SkipReason, &'static str)> {
    let entry = step.entry(index);
    if !gpu.fresh {
        return Some(gpu.why_unknown());
    }

    let reason = if gpu.awaiting || entry.used {
        SkipReason::AwaitingFreshSample
    } else if entry.model.is_busy() {
        SkipReason::Busy
    } else if !entry.is_old_enough() {
        SkipReason::MinResident
    } else if step.is_protected(index) {
        SkipReason::MinLoaded
    } else {
        return None;
    };

    Some((reason, "over budget"))
}
