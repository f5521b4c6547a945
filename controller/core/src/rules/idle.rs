//! Rule 11: a model that has been idle for long enough leaves. The rule rests on the model's own sample, not on that of
//! its GPU.

use std::time::Duration;

use crate::adaptive::KeepReason;
use crate::duration_text::format_duration;
use crate::gpu_context::GpuContext;
use crate::plan::{DecisionReason, SkipReason, UnloadTerms};
use crate::policy_fields::{ModelRules, PickedValue};
use crate::residency::PolicyResidency;
use crate::step_context::StepContext;
use crate::time::whole_seconds;

pub fn apply<'a>(step: &mut StepContext<'a>, gpu: &mut GpuContext<'a>) {
    for index in gpu.ranked.clone() {
        let entry = step.entry(index);
        if step.decided[index] || !entry.counts_as_ready() {
            continue;
        }

        let Some(rules) = entry.rules.clone() else { continue };
        let Some(timeout) = idle_timeout(step, index, &rules) else {
            step.skip(index, SkipReason::Resident, "no idle timeout");
            continue;
        };

        if let Some((reason, detail)) = why_not(step, index, &rules, &timeout) {
            step.skip(index, reason, detail);
            continue;
        }

        let terms = UnloadTerms { if_idle: Some(timeout.as_commanded()), ..UnloadTerms::default() };
        step.unload(gpu, index, timeout.reason, timeout.after.policy, terms);
    }
}

/// Why an idle model stays.
fn why_not(
    step: &StepContext<'_>,
    index: usize,
    rules: &ModelRules,
    timeout: &IdleTimeout,
) -> Option<(SkipReason, String)> {
    let entry = step.entry(index);
    let model = entry.model;
    let after = timeout.as_commanded();

    if model.is_busy() {
        Some((SkipReason::Busy, format!("{} in flight, {} queued", model.sample.inflight, model.sample.queued)))
    } else if model.sample.idle < after {
        let why = timeout.why.map(|why| format!(": {}", why.description())).unwrap_or_default();
        let detail = format!("{} of {}{why}", format_duration(model.sample.idle), format_duration(after));
        Some((SkipReason::NotIdle, detail))
    } else if entry.used {
        Some((SkipReason::AwaitingFreshSample, "decided on this sample already".to_owned()))
    } else if !entry.is_old_enough() {
        let min_resident = rules.min_resident().value;
        let detail =
            format!("loaded for {} of {}", format_duration(model.sample.loaded_for), format_duration(min_resident));
        Some((SkipReason::MinResident, detail))
    } else if step.is_protected(index) {
        Some((SkipReason::MinLoaded, format!("{} must stay", rules.min_loaded().value)))
    } else {
        None
    }
}

/// How long a model may be idle, and why it leaves then.
#[derive(Debug)]
pub struct IdleTimeout {
    pub after: PickedValue<Duration>,
    pub reason: DecisionReason,
    /// `Some` for a timeout that adaptive residency chose for this model alone.
    pub why: Option<KeepReason>,
}

impl IdleTimeout {
    /// The command is given in whole seconds; before these have passed the server would refuse it.
    const fn as_commanded(&self) -> Duration {
        Duration::from_secs(whole_seconds(self.after.value))
    }
}

/// `None`: the model does not leave because it is idle.
pub fn idle_timeout(step: &StepContext<'_>, index: usize, rules: &ModelRules) -> Option<IdleTimeout> {
    let residency = rules.residency();
    let by_residency = |value| PickedValue { value, policy: residency.policy };

    match residency.value {
        PolicyResidency::Resident => None,
        PolicyResidency::Idle => {
            rules.idle_timeout().map(|after| IdleTimeout { after, reason: DecisionReason::IdleTimeout, why: None })
        }
        PolicyResidency::OnDemand => {
            Some(IdleTimeout { after: by_residency(Duration::ZERO), reason: DecisionReason::OnDemand, why: None })
        }
        PolicyResidency::Adaptive => {
            let (keep, why) = step.learners.keep(step.now, step.entry(index).model);
            let cap = rules.idle_timeout().filter(|cap| cap.value < keep);
            let why = cap.is_none().then_some(why);
            Some(IdleTimeout { after: cap.unwrap_or(by_residency(keep)), reason: DecisionReason::IdleTimeout, why })
        }
    }
}
