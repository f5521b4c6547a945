//! What must be decided: no model is left alone that a rule names.

use hush_core::{PolicyResidency, PressureLevel, ResidencyState};

use super::watch::Watch;
use super::{Broken, Known, Moment, ensure};
use crate::expected::Expected;

pub fn check(watch: &Watch, moment: &Moment<'_>, known: &[Known<'_>]) -> Result<(), Broken> {
    let scenario = moment.scenario;
    let since = watch.known_since(moment.host);
    // Who has just begun, or whose clock was set, may take its time.
    if since > 0 && moment.now - since <= 2 * (scenario.stale_after_ms + scenario.interval_ms) {
        return Ok(());
    }
    let duty = Duty { watch, moment };
    for known_here in known {
        let Some(expected) = &known_here.expected else { continue };
        if !known_here.fresh || known_here.decision.is_some() || watch.may_spare(moment, known_here) {
            continue;
        }
        match known_here.model.state {
            ResidencyState::Ready if !duty.protected(known, expected) => {
                duty.idle(known_here, expected)?;
                duty.hard(known, known_here, expected)?;
                duty.soft(known, known_here, expected)?;
                duty.budget(known, known_here, expected)?;
            }
            ResidencyState::WaitingForMemory => duty.room(known, known_here, expected)?,
            ResidencyState::Unloaded => duty.warm(known, known_here, expected)?,
            _ => {}
        }
    }
    Ok(())
}

struct Duty<'a> {
    watch: &'a Watch,
    moment: &'a Moment<'a>,
}

impl Duty<'_> {
    /// A policy may need it for its `minLoaded`.
    fn protected(&self, all: &[Known<'_>], expected: &Expected) -> bool {
        let ready = |policy: usize| {
            let counts = |other: &&Known<'_>| {
                let selected = other.expected.as_ref().is_some_and(|expected| expected.policies.contains(&policy));
                let sure = other.fresh && !self.watch.may_spare(self.moment, other);
                selected && sure && other.model.is_ready() && !other.leaves()
            };
            all.iter().filter(counts).count()
        };
        let least = expected.min_loaded as usize;
        least > 0 && expected.policies.iter().any(|&policy| ready(policy) <= least)
    }

    fn idle(&self, known: &Known<'_>, expected: &Expected) -> Result<(), Broken> {
        let Some(timeout) = expected.idle_timeout else { return Ok(()) };
        let due =
            !known.model.is_busy() && known.model.idle >= timeout && known.model.loaded_for >= expected.min_resident;
        ensure(!due, || format!("idle for {:?} of {timeout:?}, and stays: {}", known.model.idle, known.model.key))
    }

    /// The card can be acted on; what is available there when this plan is carried out.
    fn card(&self, all: &[Known<'_>], known: &Known<'_>) -> Option<u64> {
        let gpu = known.gpu.filter(|_| known.card_fresh(self.moment.world))?;
        // Who was named and has not been seen since may leave yet, or have left.
        let named = |other: &&Known<'_>| {
            let here = other.model.gpu == known.model.gpu && other.fresh && other.model.is_ready();
            here && self.watch.may_spare(self.moment, other)
        };
        if self.watch.may_wait(self.moment, known) || all.iter().any(|other| named(&other)) {
            return None;
        }
        let leave = all.iter().filter(|other| other.model.gpu == known.model.gpu && other.leaves());
        Some(gpu.available_bytes() + leave.map(|other| other.model.vram_bytes).sum::<u64>())
    }

    /// The highest target of a victim: whoever is asked for less may have been spared for it.
    fn highest(all: &[Known<'_>], known: &Known<'_>, target: fn(&Expected) -> Option<u64>) -> Option<u64> {
        let victims = all.iter().filter(|other| other.model.gpu == known.model.gpu && other.leaves());
        victims.filter_map(|victim| victim.expected.as_ref().and_then(target)).max()
    }

    fn hard(&self, all: &[Known<'_>], known: &Known<'_>, expected: &Expected) -> Result<(), Broken> {
        let (Some(available), Some(below)) = (self.card(all, known), expected.hard_below) else { return Ok(()) };
        // Work goes on where stopping it would not help.
        if known.model.is_busy() || Self::highest(all, known, Expected::hard_target) < expected.hard_target() {
            return Ok(());
        }
        ensure(available >= below, || format!("under hard pressure, {available} of {below}: {}", known.model.key))
    }

    fn soft(&self, all: &[Known<'_>], known: &Known<'_>, expected: &Expected) -> Result<(), Broken> {
        let (Some(available), Some(below)) = (self.card(all, known), expected.soft_below) else { return Ok(()) };
        let watched = self.watch.crossings.watched(known, Some(below), expected.grace);
        let ripe = watched.is_some_and(|watched| watched >= expected.grace);
        // Hard pressure comes first; what is left to do for soft pressure is seen in the next sample.
        let hard = known.gpu.zip(expected.hard_target()).is_some_and(|(gpu, target)| gpu.available_bytes() < target);
        let free = known.model.is_busy() || known.model.loaded_for < expected.min_resident;
        if !ripe || hard || free || Self::highest(all, known, Expected::soft_target) < expected.soft_target() {
            return Ok(());
        }
        ensure(available >= below, || format!("under soft pressure, {available} of {below}: {}", known.model.key))
    }

    fn budget(&self, all: &[Known<'_>], known: &Known<'_>, expected: &Expected) -> Result<(), Broken> {
        if self.card(all, known).is_none() || known.model.is_busy() || known.model.loaded_for < expected.min_resident {
            return Ok(());
        }
        let total = known.gpu.map(|gpu| gpu.total_bytes);
        for &policy in &expected.policies {
            let budget = self.moment.scenario.policies[policy].asks.budget;
            let Some(budget) = budget.and_then(|budget| budget.bytes(total)) else { continue };
            let holds = |other: &&Known<'_>| {
                other.model.gpu == known.model.gpu
                    && matches!(
                        other.model.state,
                        ResidencyState::Ready | ResidencyState::Loading | ResidencyState::Draining
                    )
                    && !other.leaves()
                    && other.expected.as_ref().is_some_and(|expected| expected.policies.contains(&policy))
            };
            let held: u64 = all.iter().filter(holds).map(|other| other.model.vram_bytes).sum();
            ensure(held <= budget, || format!("over budget, {held} of {budget}: {}", known.model.key))?;
        }
        Ok(())
    }

    fn room(&self, all: &[Known<'_>], known: &Known<'_>, expected: &Expected) -> Result<(), Broken> {
        let Some(available) = self.card(all, known) else { return Ok(()) };
        let here = |other: &&Known<'_>| other.model.gpu == known.model.gpu;
        // A priority that the operator does not bound takes nothing from models of other namespaces that it does.
        let bounded_by_the_operator = |other: &Known<'_>, rules: &Expected| {
            let apart = other.model.key.server.namespace() != known.model.key.server.namespace();
            apart && rules.operator.is_some() && expected.operator.is_none()
        };
        let waiting =
            all.iter().filter(here).filter(|other| other.model.state == ResidencyState::WaitingForMemory).count();
        let could = |other: &&Known<'_>| {
            let Some(rules) = &other.expected else { return false };
            other.fresh
                && !self.watch.may_spare(self.moment, other)
                && other.model.is_ready()
                && !other.leaves()
                && !other.model.is_busy()
                && other.model.loaded_for >= rules.min_resident
                && rules.priority < expected.priority
                && !self.protected(all, rules)
                && !bounded_by_the_operator(other, rules)
        };
        let could: u64 = all.iter().filter(here).filter(could).map(|other| other.model.vram_bytes).sum();
        let demand = known.model.demand_bytes;
        let left_alone = waiting == 1 && available < demand && available + could >= demand;
        // With a minimum of models to keep, the sum says more than can be had.
        let plain = self.moment.scenario.policies.iter().all(|policy| policy.asks.min_loaded.unwrap_or(0) == 0);
        ensure(!(left_alone && plain), || format!("nobody makes room, {available} of {demand}: {}", known.model.key))
    }

    fn warm(&self, all: &[Known<'_>], known: &Known<'_>, expected: &Expected) -> Result<(), Broken> {
        if expected.mode != PolicyResidency::Resident || !expected.warm || !known.card_fresh(self.moment.world) {
            return Ok(());
        }
        let here = |other: &&Known<'_>| other.model.gpu == known.model.gpu;
        let alone = all.iter().filter(here).filter(|other| other.model.state == ResidencyState::Unloaded).count() == 1;
        let report = self.moment.plan.gpus.iter().find(|gpu| Some(&gpu.uuid) == known.model.gpu.as_ref());
        let free = report.is_some_and(|gpu| gpu.pressure == PressureLevel::None);
        let limits = all.iter().filter(here).filter_map(|other| other.expected.as_ref());
        let limit = limits.flat_map(|rules| [rules.hard_below, rules.soft_below]).flatten().max().unwrap_or(0);
        let available = known.gpu.map_or(0, hush_core::ObservedGpu::available_bytes);
        let fits = available.checked_sub(known.model.vram_bytes).is_some_and(|left| left >= limit);
        let budgets = self.moment.scenario.policies.iter().any(|policy| policy.asks.budget.is_some());
        ensure(!(alone && free && fits && !budgets), || format!("cold in its window: {}", known.model.key))
    }
}
