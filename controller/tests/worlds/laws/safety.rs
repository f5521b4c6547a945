//! What a decision must never be.

use std::collections::BTreeSet;
use std::time::Duration;

use hush_core::{
    Action, Decision, ModelKey, ModelPolicy, ObservedGpu, PolicyResidency, Reason, ResidencyState, World, step,
};

use super::watch::Watch;
use super::{Broken, Known, Moment, ensure};
use crate::expected::Expected;

pub fn check(watch: &Watch, moment: &Moment<'_>, all: &[Known<'_>]) -> Result<(), Broken> {
    complete(moment)?;
    for known in all {
        let Some(decision) = known.decision else { continue };
        ensure(known.expected.is_some(), || format!("not governed, and named: {decision:?}"))?;
        fresh(moment, known, decision)?;
        once(watch, moment, known, decision)?;
        match decision.action {
            Action::Load => {
                ensure(known.model.state == ResidencyState::Unloaded, || format!("not unloaded: {decision:?}"))?
            }
            Action::Unload => unload(watch, moment, known, all)?,
        }
    }
    for known in all.iter().filter(|known| known.leaves()) {
        min_loaded(watch, moment, known, all)?;
    }
    moment.world.gpus.iter().try_for_each(|gpu| spared(gpu, all))
}

/// Every model is in the plan: named once, or with a reason.
fn complete(moment: &Moment<'_>) -> Result<(), Broken> {
    let named: Vec<ModelKey> = live(&moment.plan.decisions).map(Decision::key).collect();
    let unique: BTreeSet<&ModelKey> = named.iter().collect();
    ensure(named.len() == unique.len(), || format!("named twice: {named:?}"))?;
    for model in &moment.world.models {
        let skipped = moment.plan.skips.iter().any(|s| s.server == model.key.server && s.model == model.key.model);
        ensure(skipped || unique.contains(&model.key), || format!("{} is not in the plan", model.key))?;
    }
    Ok(())
}

fn live(decisions: &[Decision]) -> impl Iterator<Item = &Decision> {
    decisions.iter().filter(|decision| !decision.dry_run)
}

const fn rests_on_the_card(decision: &Decision) -> bool {
    !matches!(decision.reason, Reason::IdleTimeout | Reason::OnDemand)
}

fn fresh(moment: &Moment<'_>, known: &Known<'_>, decision: &Decision) -> Result<(), Broken> {
    ensure(known.fresh, || format!("rests on a stale model: {decision:?}"))?;
    let card = known.card_fresh(moment.world) || !rests_on_the_card(decision);
    ensure(card, || format!("rests on a stale card: {decision:?}"))
}

/// No second decision on one sample, and none while a command is under way.
fn once(watch: &Watch, moment: &Moment<'_>, known: &Known<'_>, decision: &Decision) -> Result<(), Broken> {
    let since = watch.known_since(moment.host);
    let remembered = |at: Option<&u64>| at.copied().filter(|at| *at > since);
    if let Some(at) = remembered(watch.decided.get(&known.guest)) {
        ensure(known.sampled_at > at, || format!("named again on the same sample: {decision:?}"))?;
    }
    for flight in moment.host.unsettled().filter(|flight| flight.guest == known.guest && flight.decided_at > since) {
        let old = moment.now - flight.decided_at > 60_000 || flight.decided_at == moment.now;
        ensure(old, || format!("a command is under way: {decision:?} {flight:?}"))?;
    }
    let (Some(gpu), Action::Unload, true) = (known.gpu, decision.action, rests_on_the_card(decision)) else {
        return Ok(());
    };
    let sampled_at = moment.now - u64::try_from(gpu.sample_age.as_millis()).unwrap();
    for at in [&watch.card_decided, &watch.card_settled] {
        if let Some(at) = remembered(at.get(&gpu.uuid)) {
            ensure(sampled_at > at, || format!("the sample does not show the last unload: {decision:?}"))?;
        }
    }
    Ok(())
}

fn unload(watch: &Watch, moment: &Moment<'_>, known: &Known<'_>, all: &[Known<'_>]) -> Result<(), Broken> {
    let (Some(decision), Some(expected)) = (known.decision, &known.expected) else { return Ok(()) };
    let (model, hard) = (known.model, decision.reason == Reason::HardPressure);
    ensure(model.state == ResidencyState::Ready, || format!("not ready: {decision:?}"))?;
    ensure(decision.if_generation == Some(model.generation), || format!("another generation: {decision:?}"))?;
    ensure(hard || !model.is_busy(), || format!("busy: {decision:?}"))?;
    ensure(hard || model.loaded_for >= expected.min_resident, || format!("too young: {decision:?}"))?;
    let asked = decision.if_idle_seconds.map(Duration::from_secs);
    // The server judges again, by the same condition.
    ensure(hard || asked.is_some_and(|asked| model.idle >= asked), || format!("without its condition: {decision:?}"))?;
    let evicted = !matches!(decision.reason, Reason::IdleTimeout | Reason::OnDemand);
    let hold = evicted.then_some(expected.hold.as_secs());
    ensure(decision.hold_seconds == hold, || format!("must stay away {hold:?}: {decision:?}"))?;
    match decision.reason {
        Reason::IdleTimeout if expected.mode == PolicyResidency::Adaptive => Ok(()),
        Reason::IdleTimeout | Reason::OnDemand => {
            let right = expected.idle_timeout.is_some_and(|timeout| model.idle >= timeout && asked == Some(timeout));
            ensure(right, || format!("not idle for {:?}: {decision:?}", expected.idle_timeout))
        }
        Reason::HardPressure => {
            let drain = decision.drain_seconds == Some(expected.drain.as_secs());
            ensure(drain, || format!("must drain {:?}: {decision:?}", expected.drain))?;
            watch.crossings.ripe(moment, known, expected.hard_below, Duration::ZERO)
        }
        Reason::SoftPressure => watch.crossings.ripe(moment, known, expected.soft_below, expected.grace),
        Reason::MakeRoom => {
            let lower = |other: &&Known<'_>| {
                other.model.gpu == model.gpu
                    && other.model.state == ResidencyState::WaitingForMemory
                    && other.expected.as_ref().is_some_and(|waiting| waiting.priority > expected.priority)
            };
            ensure(all.iter().any(|other| lower(&other)), || format!("makes room for nobody: {decision:?}"))
        }
        _ => Ok(()),
    }
}

/// Of those that are known to be there, enough stay when it leaves, after those named before it. One whom no policy
/// protects may then leave all the same.
fn min_loaded(watch: &Watch, moment: &Moment<'_>, known: &Known<'_>, all: &[Known<'_>]) -> Result<(), Broken> {
    let Some(expected) = known.expected.as_ref().filter(|expected| expected.min_loaded > 0) else { return Ok(()) };
    let turn = |known: &Known<'_>| {
        moment.plan.decisions.iter().position(|decision| Some(decision) == known.decision && known.leaves())
    };
    let own_turn = turn(known);
    let stay = |policy: usize| {
        let stays = |other: &&Known<'_>| {
            let selected = other.expected.as_ref().is_some_and(|expected| expected.policies.contains(&policy));
            let gone = watch.accepted.get(&other.guest).is_some_and(|at| other.sampled_at <= *at);
            let before = turn(other).is_some_and(|turn| Some(turn) <= own_turn);
            let going = before || watch.on_its_way(moment, other.guest);
            selected && other.fresh && other.model.is_ready() && !gone && !going
        };
        all.iter().filter(stays).count()
    };
    let enough = |policies: &[usize], min_loaded: u32| {
        let mut asking =
            policies.iter().filter(|&&at| moment.scenario.policies[at].asks.min_loaded == Some(min_loaded));
        asking.all(|&policy| stay(policy) >= min_loaded as usize)
    };
    // A policy of a namespace keeps nothing that the operator's policies let go.
    let released = expected.operator.as_ref().is_some_and(|operator| enough(&operator.policies, operator.min_loaded));
    ensure(released || enough(&expected.policies, expected.min_loaded), || {
        format!("fewer than {} stay: {:?}", expected.min_loaded, known.decision)
    })
}

/// What must become available, as a policy has it.
type Target = fn(&Expected) -> Option<u64>;

/// No victim of pressure but is needed: without any of them a target would not be met.
fn spared(card: &ObservedGpu, known: &[Known<'_>]) -> Result<(), Broken> {
    let here = |known: &&Known<'_>| known.model.gpu.as_ref() == Some(&card.uuid) && known.leaves();
    let here: Vec<&Known<'_>> = known.iter().filter(here).collect();
    let of = |reasons: &[Reason]| -> Vec<&Known<'_>> {
        here.iter().copied().filter(|k| k.decision.is_some_and(|d| reasons.contains(&d.reason))).collect()
    };
    let sum = |of: &[&Known<'_>]| of.iter().map(|known| known.model.vram_bytes).sum::<u64>();
    let mut before = card.available_bytes() + sum(&of(&[Reason::OverBudget, Reason::IdleTimeout, Reason::OnDemand]));
    let targets: [(Reason, Target); 2] =
        [(Reason::HardPressure, Expected::hard_target), (Reason::SoftPressure, Expected::soft_target)];
    for (reason, target) in targets {
        let victims = of(&[reason]);
        let highest = victims.iter().filter_map(|known| known.expected.as_ref().and_then(target)).max();
        for victim in &victims {
            let without = before + sum(&victims) - victim.model.vram_bytes;
            ensure(highest.is_some_and(|highest| without < highest), || {
                format!("not needed, {without} of {highest:?} without it: {:?}", victim.decision)
            })?;
        }
        before += sum(&victims);
    }
    Ok(())
}

/// The same in another order is the same; dry runs change nothing.
pub fn again(moment: &Moment<'_>) -> Result<(), Broken> {
    let mixed = World {
        gpus: moment.world.gpus.iter().rev().cloned().collect(),
        models: moment.world.models.iter().rev().cloned().collect(),
        ..moment.world.clone()
    };
    let policies: Vec<ModelPolicy> = moment.scenario.policies.iter().rev().cloned().collect();
    let mut memory = moment.memory.clone();
    let other = step(&mut memory, moment.wall, &mixed, &policies);
    ensure(other == *moment.plan, || format!("in another order {other:?} instead of {:?}", moment.plan))?;
    let enforced: Vec<ModelPolicy> = policies.into_iter().filter(|policy| !policy.dry_run).collect();
    let other = step(&mut moment.memory.clone(), moment.wall, moment.world, &enforced);
    let same = other.decisions.iter().eq(live(&moment.plan.decisions)) && other.gpus == moment.plan.gpus;
    ensure(same, || format!("without dry runs {other:?} instead of {:?}", moment.plan))
}
