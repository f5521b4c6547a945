//! One step over the whole world.

use std::collections::BTreeMap;

use jiff::Timestamp;

use crate::adaptive::Learners;
use crate::card::{Card, Turn};
use crate::explain::explain;
use crate::fleet::{Fleet, gpu_fresh};
use crate::floor::Floor;
use crate::memory::{Memory, Work};
use crate::plan::{Decision, Plan, Skip, SkipReason};
use crate::policy::Policy;
use crate::signal::Timers;
use crate::world::{GpuId, State, World};
use crate::{budget, idle, pressure, room, warm};

/// Decides what is to be done now. Every model is in the plan, with a decision or with the reason why there is none.
///
/// The caller carries out the decisions that are not `dry_run` and tells [`Memory::settle`] how each ended. The order of
/// the cards, models and policies given does not matter.
pub fn step(memory: &mut Memory, now: Timestamp, world: &World, policies: &[Policy]) -> Plan {
    memory.work.advance(now, world.stale_after);
    memory.learners.observe(now, world);
    let mut sorted: Vec<&Policy> = policies.iter().collect();
    sorted.sort_by(|a, b| a.name.cmp(&b.name));
    let enforced: Vec<&Policy> = sorted.iter().copied().filter(|policy| !policy.dry_run).collect();
    let dry_run: Vec<&Policy> = sorted.iter().copied().filter(|policy| policy.dry_run).collect();

    // How long a threshold has been crossed is a fact, whoever asks: a new dry run begins with the timers that are there.
    let timers_before = (!dry_run.is_empty()).then(|| memory.timers.clone());
    let mut plan = evaluate(now, world, &enforced, &mut memory.timers, &memory.work, &memory.learners, true);
    memory.dry_run.retain(|name, _| dry_run.iter().any(|policy| policy.name == *name));
    let mut differences = Vec::new();
    for policy in dry_run {
        let timers =
            memory.dry_run.entry(policy.name.clone()).or_insert_with(|| timers_before.clone().unwrap_or_default());
        let mut with: Vec<&Policy> = enforced.clone();
        with.push(policy);
        with.sort_by(|a, b| a.name.cmp(&b.name));
        let other = evaluate(now, world, &with, timers, &memory.work, &memory.learners, false);
        differences.push((policy, other));
    }
    memory.work.record(now, &plan.decisions);
    for (policy, other) in differences {
        difference(&mut plan, policy, other);
    }
    plan
}

/// Adds what a dry-run policy would change.
fn difference(plan: &mut Plan, policy: &Policy, other: Plan) {
    let enforced: Vec<Decision> = plan.decisions.iter().filter(|decision| !decision.dry_run).cloned().collect();
    let spared = enforced.iter().filter(|decision| !other.decisions.iter().any(|o| o.key() == decision.key()));
    let spared = spared.map(|decision| Skip {
        server: decision.server.clone(),
        model: decision.model.clone(),
        reason: SkipReason::DryRun,
        detail: format!("would not be named with {}", policy.name),
    });
    plan.skips.extend(spared);
    let same = |a: &Decision, b: &Decision| {
        Decision { policy: String::new(), ..a.clone() } == Decision { policy: String::new(), ..b.clone() }
    };
    let differing = other.decisions.into_iter().filter(|decision| !enforced.iter().any(|e| same(e, decision)));
    plan.decisions.extend(differing.map(|decision| Decision { dry_run: true, ..decision }));
}

fn evaluate(
    now: Timestamp,
    world: &World,
    policies: &[&Policy],
    timers: &mut Timers,
    work: &Work,
    learners: &Learners,
    explained: bool,
) -> Plan {
    let fleet = Fleet::new(now, world, policies, work);
    let floor = Floor::new(&fleet);
    let decided = vec![false; fleet.members.len()];
    let mut turn = Turn { now, stale_after: world.stale_after, fleet, floor, learners, decided, plan: Plan::default() };
    let mut cards: BTreeMap<Option<&GpuId>, Vec<usize>> = BTreeMap::new();
    for gpu in &world.gpus {
        cards.entry(Some(&gpu.uuid)).or_default();
    }
    for place in 0..turn.fleet.members.len() {
        if governed(&mut turn, place) {
            cards.entry(turn.member(place).model.gpu.as_ref()).or_default().push(place);
        }
    }
    let fresh = world.gpus.iter().filter(|gpu| gpu_fresh(gpu, world.stale_after)).map(|gpu| &gpu.uuid).collect();
    timers.freeze_all_but(&fresh);
    let gpus: BTreeMap<&GpuId, _> = world.gpus.iter().map(|gpu| (&gpu.uuid, gpu)).collect();
    for (id, places) in cards {
        let gpu = id.and_then(|id| gpus.get(id)).copied();
        let mut card = Card::new(&mut turn, id, gpu, places, work);
        budget::apply(&mut turn, &mut card);
        idle::apply(&mut turn, &mut card);
        let pressure = pressure::apply(&mut turn, &mut card, timers);
        room::apply(&mut turn, &mut card);
        warm::apply(&mut turn, &card, pressure);
    }
    if explained {
        (turn.plan.rules, turn.plan.models) = explain(&turn);
    }
    finish(turn)
}

/// Whether the rules look at a model at all; if not, says why.
fn governed(turn: &mut Turn<'_>, place: usize) -> bool {
    let member = turn.member(place);
    let (fresh, pending, state) = (member.fresh, member.pending, member.model.state);
    let back_off = member.model.back_off;
    if member.rules.is_none() {
        turn.skip(place, SkipReason::NotGoverned, "no policy selects it");
        return false;
    }
    if !fresh {
        turn.skip(place, SkipReason::MetricsStale, "its sample is too old");
    } else if back_off {
        turn.skip(place, SkipReason::BackOff, "commands to its server failed lately");
    } else if pending {
        turn.skip(place, SkipReason::Transition, "a command for it is under way");
    } else if matches!(state, State::Draining | State::Unloading | State::Loading | State::Failed) {
        turn.skip(place, SkipReason::Transition, format!("{state:?}"));
    }
    true
}

/// A model that is decided on needs no reason; of several reasons each is said once.
fn finish(turn: Turn<'_>) -> Plan {
    let mut plan = turn.plan;
    let named: std::collections::BTreeSet<_> = plan.decisions.iter().map(|d| (&d.server, &d.model)).collect();
    plan.skips.retain(|skip| !named.contains(&(&skip.server, &skip.model)));
    plan.skips.sort();
    plan.skips.dedup_by(|a, b| (&a.server, &a.model, a.reason) == (&b.server, &b.model, b.reason));
    plan
}
