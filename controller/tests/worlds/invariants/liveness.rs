//! What must be decided: no model that a rule names is left alone.

use hush_core::{PolicyResidency, PressureLevel, ResidencyState};

use super::tracker::InvariantTracker;
use super::{DecisionContext, KnownModel, Violation, ensure};
use crate::expected_rules::ExpectedRules;

pub fn check(
    tracker: &InvariantTracker,
    context: &DecisionContext<'_>,
    known: &[KnownModel<'_>],
) -> Result<(), Violation> {
    let scenario = context.scenario;
    let since = tracker.known_since(context.controller);

    // A controller that has just started, or whose clock was set, may need some time.
    if since > 0 && context.now - since <= 2 * (scenario.stale_after_ms + scenario.interval_ms) {
        return Ok(());
    }

    let liveness = LivenessCheck { tracker, context };
    for model_here in known {
        let Some(expected) = &model_here.expected else { continue };
        if !model_here.fresh || model_here.decision.is_some() || tracker.may_spare(context, model_here) {
            continue;
        }

        match model_here.model.sample.state {
            ResidencyState::Ready if !liveness.is_protected(known, expected) => {
                liveness.check_idle(model_here, expected)?;
                liveness.check_hard(known, model_here, expected)?;
                liveness.check_soft(known, model_here, expected)?;
                liveness.check_budget(known, model_here, expected)?;
            }
            ResidencyState::WaitingForMemory => liveness.check_room(known, model_here, expected)?,
            ResidencyState::Unloaded => liveness.check_warm(known, model_here, expected)?,
            _ => {}
        }
    }

    Ok(())
}

struct LivenessCheck<'a> {
    tracker: &'a InvariantTracker,
    context: &'a DecisionContext<'a>,
}

impl LivenessCheck<'_> {
    /// Whether a policy may need the model for its `minLoaded`.
    fn is_protected(&self, all: &[KnownModel<'_>], expected: &ExpectedRules) -> bool {
        let ready = |policy: usize| {
            let counts = |other: &&KnownModel<'_>| {
                let selected = other.expected.as_ref().is_some_and(|expected| expected.policies.contains(&policy));
                let sure = other.fresh && !self.tracker.may_spare(self.context, other);
                selected && sure && other.model.is_ready() && !other.leaves()
            };

            all.iter().filter(counts).count()
        };

        let least = expected.min_loaded as usize;
        least > 0 && expected.policies.iter().any(|&policy| ready(policy) <= least)
    }

    fn check_idle(&self, known: &KnownModel<'_>, expected: &ExpectedRules) -> Result<(), Violation> {
        let Some(timeout) = expected.idle_timeout else { return Ok(()) };
        let due = !known.model.is_busy()
            && known.model.sample.idle >= timeout
            && known.model.sample.loaded_for >= expected.min_resident;
        ensure(!due, || {
            format!("idle for {:?} of {timeout:?}, and stays: {}", known.model.sample.idle, known.model.key)
        })
    }

    /// The memory in bytes that is available on the GPU once this plan is carried out; `None`: the GPU cannot be acted on.
    fn available_on_gpu(&self, all: &[KnownModel<'_>], known: &KnownModel<'_>) -> Option<u64> {
        let gpu = known.gpu.filter(|_| known.is_gpu_fresh(self.context.world))?;

        // A model that a decision named and that has not been sampled since may still leave, or has left.
        let named = |other: &&KnownModel<'_>| {
            let here = other.model.sample.gpu == known.model.sample.gpu && other.fresh && other.model.is_ready();
            here && self.tracker.may_spare(self.context, other)
        };

        if self.tracker.may_wait(self.context, known) || all.iter().any(|other| named(&other)) {
            return None;
        }

        let leave = all.iter().filter(|other| other.model.sample.gpu == known.model.sample.gpu && other.leaves());
        Some(gpu.available_bytes() + leave.map(|other| other.model.sample.vram_bytes).sum::<u64>())
    }

    /// The highest target of a model that leaves: a model with a lower target may have been spared because of it.
    fn highest_target(
        all: &[KnownModel<'_>],
        known: &KnownModel<'_>,
        target: fn(&ExpectedRules) -> Option<u64>,
    ) -> Option<u64> {
        let victims = all.iter().filter(|other| other.model.sample.gpu == known.model.sample.gpu && other.leaves());
        victims.filter_map(|victim| victim.expected.as_ref().and_then(target)).max()
    }

    fn check_hard(
        &self,
        all: &[KnownModel<'_>],
        known: &KnownModel<'_>,
        expected: &ExpectedRules,
    ) -> Result<(), Violation> {
        let (Some(available), Some(below)) = (self.available_on_gpu(all, known), expected.hard_below) else {
            return Ok(());
        };

        // Requests go on where stopping them would not help.
        if known.model.is_busy()
            || Self::highest_target(all, known, ExpectedRules::hard_target) < expected.hard_target()
        {
            return Ok(());
        }
        ensure(available >= below, || format!("under hard pressure, {available} of {below}: {}", known.model.key))
    }

    fn check_soft(
        &self,
        all: &[KnownModel<'_>],
        known: &KnownModel<'_>,
        expected: &ExpectedRules,
    ) -> Result<(), Violation> {
        let (Some(available), Some(below)) = (self.available_on_gpu(all, known), expected.soft_below) else {
            return Ok(());
        };
        let watched = self.tracker.crossings.crossed_for(known, Some(below), expected.grace);
        let grace_is_over = watched.is_some_and(|watched| watched >= expected.grace);

        // Hard pressure comes first; the next sample shows what is left to do for soft pressure.
        let hard = known.gpu.zip(expected.hard_target()).is_some_and(|(gpu, target)| gpu.available_bytes() < target);
        let free = known.model.is_busy() || known.model.sample.loaded_for < expected.min_resident;
        if !grace_is_over
            || hard
            || free
            || Self::highest_target(all, known, ExpectedRules::soft_target) < expected.soft_target()
        {
            return Ok(());
        }
        ensure(available >= below, || format!("under soft pressure, {available} of {below}: {}", known.model.key))
    }

    fn check_budget(
        &self,
        all: &[KnownModel<'_>],
        known: &KnownModel<'_>,
        expected: &ExpectedRules,
    ) -> Result<(), Violation> {
        if self.available_on_gpu(all, known).is_none()
            || known.model.is_busy()
            || known.model.sample.loaded_for < expected.min_resident
        {
            return Ok(());
        }
        let total = known.gpu.map(|gpu| gpu.total_bytes);
        for &policy in &expected.policies {
            let budget = self.context.scenario.policies[policy].asks.budget;
            let Some(budget) = budget.and_then(|budget| budget.bytes(total)) else { continue };
            let holds = |other: &&KnownModel<'_>| {
                other.model.sample.gpu == known.model.sample.gpu
                    && matches!(
                        other.model.sample.state,
                        ResidencyState::Ready | ResidencyState::Loading | ResidencyState::Draining
                    )
                    && !other.leaves()
                    && other.expected.as_ref().is_some_and(|expected| expected.policies.contains(&policy))
            };

            let held: u64 = all.iter().filter(holds).map(|other| other.model.sample.vram_bytes).sum();
            ensure(held <= budget, || format!("over budget, {held} of {budget}: {}", known.model.key))?;
        }

        Ok(())
    }

    fn check_room(
        &self,
        all: &[KnownModel<'_>],
        known: &KnownModel<'_>,
        expected: &ExpectedRules,
    ) -> Result<(), Violation> {
        let Some(available) = self.available_on_gpu(all, known) else { return Ok(()) };
        let here = |other: &&KnownModel<'_>| other.model.sample.gpu == known.model.sample.gpu;

        // A priority that no cluster policy bounds takes nothing from models of other namespaces that one does bound.
        let is_bounded_apart = |other: &KnownModel<'_>, rules: &ExpectedRules| {
            let apart = other.model.key.server.namespace() != known.model.key.server.namespace();
            apart && rules.cluster.is_some() && expected.cluster.is_none()
        };

        let waiting = all
            .iter()
            .filter(here)
            .filter(|other| other.model.sample.state == ResidencyState::WaitingForMemory)
            .count();
        let could_leave = |other: &&KnownModel<'_>| {
            let Some(rules) = &other.expected else { return false };
            other.fresh
                && !self.tracker.may_spare(self.context, other)
                && other.model.is_ready()
                && !other.leaves()
                && !other.model.is_busy()
                && other.model.sample.loaded_for >= rules.min_resident
                && rules.priority < expected.priority
                && !self.is_protected(all, rules)
                && !is_bounded_apart(other, rules)
        };

        let could_free: u64 =
            all.iter().filter(here).filter(could_leave).map(|other| other.model.sample.vram_bytes).sum();
        let demand = known.model.sample.demand_bytes;
        let left_alone = waiting == 1 && available < demand && available + could_free >= demand;

        // With a minimum of models to keep, less can be freed than the sum.
        let no_minimum = self.context.scenario.policies.iter().all(|policy| policy.asks.min_loaded.unwrap_or(0) == 0);
        ensure(!(left_alone && no_minimum), || {
            format!("no model leaves for it, {available} of {demand}: {}", known.model.key)
        })
    }

    fn check_warm(
        &self,
        all: &[KnownModel<'_>],
        known: &KnownModel<'_>,
        expected: &ExpectedRules,
    ) -> Result<(), Violation> {
        if expected.mode != PolicyResidency::Resident || !expected.warm || !known.is_gpu_fresh(self.context.world) {
            return Ok(());
        }

        let here = |other: &&KnownModel<'_>| other.model.sample.gpu == known.model.sample.gpu;
        let alone =
            all.iter().filter(here).filter(|other| other.model.sample.state == ResidencyState::Unloaded).count() == 1;

        let report = self.context.plan.gpus.iter().find(|gpu| Some(&gpu.uuid) == known.model.sample.gpu.as_ref());
        let free = report.is_some_and(|gpu| gpu.pressure == PressureLevel::None);
        let limits = all.iter().filter(here).filter_map(|other| other.expected.as_ref());
        let limit = limits.flat_map(|rules| [rules.hard_below, rules.soft_below]).flatten().max().unwrap_or(0);

        let available = known.gpu.map_or(0, hush_core::ObservedGpu::available_bytes);
        let fits = available.checked_sub(known.model.sample.vram_bytes).is_some_and(|left| left >= limit);
        let budgets = self.context.scenario.policies.iter().any(|policy| policy.asks.budget.is_some());
        ensure(!(alone && free && fits && !budgets), || format!("cold in its window: {}", known.model.key))
    }
}
