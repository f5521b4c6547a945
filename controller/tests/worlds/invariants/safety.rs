//! What must never be decided.

use std::collections::BTreeSet;
use std::time::Duration;

use hush_core::{
    Action, Decision, DecisionReason, ModelKey, ModelPolicy, ObservedGpu, PolicyResidency, PolicyUnload, ProcessEnding,
    ResidencyState, World, step,
};

use super::tracker::InvariantTracker;
use super::{DecisionContext, KnownModel, Violation, ensure};
use crate::expected_rules::ExpectedRules;

pub fn check(
    tracker: &InvariantTracker,
    context: &DecisionContext<'_>,
    all: &[KnownModel<'_>],
) -> Result<(), Violation> {
    check_complete(context)?;
    for known in all {
        let Some(decision) = known.decision else { continue };
        ensure(known.expected.is_some(), || format!("not governed, and named: {decision:?}"))?;
        check_fresh(context, known, decision)?;
        check_once(tracker, context, known, decision)?;
        match decision.action {
            Action::Load => {
                ensure(known.model.sample.state == ResidencyState::Unloaded, || format!("not unloaded: {decision:?}"))?
            }
            Action::Unload => check_unload(tracker, context, known, all)?,
        }
    }

    for known in all.iter().filter(|known| known.leaves()) {
        check_min_loaded(tracker, context, known, all)?;
    }

    context.world.gpus.iter().try_for_each(|gpu| check_needed(gpu, all))
}

/// Every model is in the plan: with one decision, or with a reason.
fn check_complete(context: &DecisionContext<'_>) -> Result<(), Violation> {
    let named: Vec<ModelKey> = live(&context.plan.decisions).map(Decision::key).collect();
    let unique: BTreeSet<&ModelKey> = named.iter().collect();
    ensure(named.len() == unique.len(), || format!("named twice: {named:?}"))?;
    for model in &context.world.models {
        let skipped = context.plan.skips.iter().any(|s| s.server == model.key.server && s.model == model.key.model);
        ensure(skipped || unique.contains(&model.key), || format!("{} is not in the plan", model.key))?;
    }

    Ok(())
}

fn live(decisions: &[Decision]) -> impl Iterator<Item = &Decision> {
    decisions.iter().filter(|decision| !decision.dry_run)
}

const fn rests_on_the_gpu(decision: &Decision) -> bool {
    !matches!(decision.reason, DecisionReason::IdleTimeout | DecisionReason::OnDemand)
}

fn check_fresh(context: &DecisionContext<'_>, known: &KnownModel<'_>, decision: &Decision) -> Result<(), Violation> {
    ensure(known.fresh, || format!("rests on a stale model: {decision:?}"))?;
    let gpu = known.is_gpu_fresh(context.world) || !rests_on_the_gpu(decision);
    ensure(gpu, || format!("rests on a stale card: {decision:?}"))
}

/// No second decision rests on one sample, none on a sample from before the end of the model's unload, and there is none while a
/// command is under way.
fn check_once(
    tracker: &InvariantTracker,
    context: &DecisionContext<'_>,
    known: &KnownModel<'_>,
    decision: &Decision,
) -> Result<(), Violation> {
    let since = tracker.known_since(context.controller);
    let remembered = |at: Option<&u64>| at.copied().filter(|at| *at > since);
    if let Some(at) = remembered(tracker.decided.get(&known.model_index)) {
        ensure(known.sampled_at > at, || format!("named again on the same sample: {decision:?}"))?;
    }
    if let Some(at) = remembered(tracker.settled.get(&known.model_index)) {
        ensure(known.sampled_at > at, || format!("rests on a sample from before its unload ended: {decision:?}"))?;
    }

    for sent in
        context.controller.unsettled().filter(|sent| sent.model_index == known.model_index && sent.decided_at > since)
    {
        let old = context.now - sent.decided_at > 60_000 || sent.decided_at == context.now;
        ensure(old, || format!("a command is under way: {decision:?} {sent:?}"))?;
    }

    let (Some(gpu), Action::Unload, true) = (known.gpu, decision.action, rests_on_the_gpu(decision)) else {
        return Ok(());
    };
    let sampled_at = context.now - u64::try_from(gpu.sample_age.as_millis()).unwrap();
    for at in [&tracker.gpu_decided, &tracker.gpu_settled] {
        if let Some(at) = remembered(at.get(&gpu.uuid)) {
            ensure(sampled_at > at, || format!("the sample does not show the last unload: {decision:?}"))?;
        }
    }

    Ok(())
}

fn check_unload(
    tracker: &InvariantTracker,
    context: &DecisionContext<'_>,
    known: &KnownModel<'_>,
    all: &[KnownModel<'_>],
) -> Result<(), Violation> {
    let (Some(decision), Some(expected)) = (known.decision, &known.expected) else { return Ok(()) };
    let (model, hard) = (known.model, decision.reason == DecisionReason::HardPressure);
    ensure(model.sample.state == ResidencyState::Ready, || format!("not ready: {decision:?}"))?;
    ensure(decision.if_generation == Some(model.sample.generation), || format!("another generation: {decision:?}"))?;
    ensure(hard || !model.is_busy(), || format!("busy: {decision:?}"))?;
    ensure(hard || model.sample.loaded_for >= expected.min_resident, || format!("too young: {decision:?}"))?;
    let asked = decision.if_idle_seconds.map(Duration::from_secs);

    // The server checks the same condition again.
    ensure(hard || asked.is_some_and(|asked| model.sample.idle >= asked), || {
        format!("without its condition: {decision:?}")
    })?;

    let evicted = !matches!(decision.reason, DecisionReason::IdleTimeout | DecisionReason::OnDemand);
    let hold = evicted.then_some(expected.hold.as_secs());
    ensure(decision.hold_seconds == hold, || format!("must stay away {hold:?}: {decision:?}"))?;

    let asks_for_process = expected.unload == PolicyUnload::Process && model.process_ending == ProcessEnding::OnRequest;
    ensure((decision.unload == PolicyUnload::Process) == asks_for_process, || {
        format!("must end the process: {asks_for_process}: {decision:?}")
    })?;

    match decision.reason {
        DecisionReason::IdleTimeout if expected.mode == PolicyResidency::Adaptive => Ok(()),
        DecisionReason::IdleTimeout | DecisionReason::OnDemand => {
            let right =
                expected.idle_timeout.is_some_and(|timeout| model.sample.idle >= timeout && asked == Some(timeout));
            ensure(right, || format!("not idle for {:?}: {decision:?}", expected.idle_timeout))
        }
        DecisionReason::HardPressure => {
            let drain = decision.drain_seconds == Some(expected.drain.as_secs());
            ensure(drain, || format!("must drain {:?}: {decision:?}", expected.drain))?;
            tracker.crossings.check_grace(context, known, expected.hard_below, Duration::ZERO)
        }
        DecisionReason::SoftPressure => {
            tracker.crossings.check_grace(context, known, expected.soft_below, expected.grace)
        }
        DecisionReason::MakeRoom => {
            let lower = |other: &&KnownModel<'_>| {
                other.model.sample.gpu == model.sample.gpu
                    && other.model.sample.state == ResidencyState::WaitingForMemory
                    && other.expected.as_ref().is_some_and(|waiting| waiting.priority > expected.priority)
            };

            ensure(all.iter().any(|other| lower(&other)), || format!("no model waits for the memory: {decision:?}"))
        }
        _ => Ok(()),
    }
}

/// When the model leaves, after those that the plan names before it, enough of the models that are known to be loaded
/// stay. A model that no policy protects may then leave all the same.
fn check_min_loaded(
    tracker: &InvariantTracker,
    context: &DecisionContext<'_>,
    known: &KnownModel<'_>,
    all: &[KnownModel<'_>],
) -> Result<(), Violation> {
    let Some(expected) = known.expected.as_ref().filter(|expected| expected.min_loaded > 0) else { return Ok(()) };
    let order = |known: &KnownModel<'_>| {
        context.plan.decisions.iter().position(|decision| Some(decision) == known.decision && known.leaves())
    };
    let own_order = order(known);
    let stay = |policy: usize| {
        let stays = |other: &&KnownModel<'_>| {
            let selected = other.expected.as_ref().is_some_and(|expected| expected.policies.contains(&policy));
            let gone = tracker.accepted.get(&other.model_index).is_some_and(|at| other.sampled_at <= *at);
            let leaves_before = order(other).is_some_and(|order| Some(order) <= own_order);
            let is_leaving = leaves_before || tracker.is_leaving(context, other.model_index);
            selected && other.fresh && other.model.is_ready() && !gone && !is_leaving
        };

        all.iter().filter(stays).count()
    };

    let enough = |policies: &[usize], min_loaded: u32| {
        let mut asking =
            policies.iter().filter(|&&at| context.scenario.policies[at].asks.min_loaded == Some(min_loaded));
        asking.all(|&policy| stay(policy) >= min_loaded as usize)
    };

    // A policy of a namespace keeps no model that the cluster policies release.
    let released = expected.cluster.as_ref().is_some_and(|cluster| enough(&cluster.policies, cluster.min_loaded));
    ensure(released || enough(&expected.policies, expected.min_loaded), || {
        format!("fewer than {} stay: {:?}", expected.min_loaded, known.decision)
    })
}

/// The memory in bytes that must become available by the rules of a model.
type TargetOf = fn(&ExpectedRules) -> Option<u64>;

/// Every model that leaves under pressure is needed: without any one of them a target would not be met.
fn check_needed(gpu: &ObservedGpu, known: &[KnownModel<'_>]) -> Result<(), Violation> {
    let here = |known: &&KnownModel<'_>| known.model.sample.gpu.as_ref() == Some(&gpu.uuid) && known.leaves();
    let here: Vec<&KnownModel<'_>> = known.iter().filter(here).collect();
    let leaving_for = |reasons: &[DecisionReason]| -> Vec<&KnownModel<'_>> {
        here.iter().copied().filter(|k| k.decision.is_some_and(|d| reasons.contains(&d.reason))).collect()
    };
    let sum = |models: &[&KnownModel<'_>]| models.iter().map(|known| known.model.sample.vram_bytes).sum::<u64>();
    let mut before = gpu.available_bytes()
        + sum(&leaving_for(&[DecisionReason::OverBudget, DecisionReason::IdleTimeout, DecisionReason::OnDemand]));

    let targets: [(DecisionReason, TargetOf); 2] = [
        (DecisionReason::HardPressure, ExpectedRules::hard_target),
        (DecisionReason::SoftPressure, ExpectedRules::soft_target),
    ];
    for (reason, target) in targets {
        let victims = leaving_for(&[reason]);
        let highest = victims.iter().filter_map(|known| known.expected.as_ref().and_then(target)).max();
        for victim in &victims {
            let without = before + sum(&victims) - victim.model.sample.vram_bytes;
            ensure(highest.is_some_and(|highest| without < highest), || {
                format!("not needed, {without} of {highest:?} without it: {:?}", victim.decision)
            })?;
        }

        before += sum(&victims);
    }

    Ok(())
}

/// The order of the input does not change the plan, and dry runs do not change what is done.
pub fn check_other_order(context: &DecisionContext<'_>) -> Result<(), Violation> {
    let mixed = World {
        gpus: context.world.gpus.iter().rev().cloned().collect(),
        models: context.world.models.iter().rev().cloned().collect(),
        ..context.world.clone()
    };

    let policies: Vec<ModelPolicy> = context.scenario.policies.iter().rev().cloned().collect();
    let mut memory = context.memory.clone();
    let other = step(&mut memory, context.wall, &mixed, &policies);
    ensure(other == *context.plan, || format!("in another order {other:?} instead of {:?}", context.plan))?;

    let enforced: Vec<ModelPolicy> = policies.into_iter().filter(|policy| !policy.dry_run).collect();
    let other = step(&mut context.memory.clone(), context.wall, context.world, &enforced);
    let same = other.decisions.iter().eq(live(&context.plan.decisions)) && other.gpus == context.plan.gpus;
    ensure(same, || format!("without dry runs {other:?} instead of {:?}", context.plan))
}
