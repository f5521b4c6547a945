//! One step over the whole world.

use std::collections::{HashMap, HashSet};

use jiff::Timestamp;

use crate::adaptive::Learners;
use crate::card::{Card, Turn, WhyNot};
use crate::explain::explain;
use crate::fleet::{Fleet, gpu_fresh};
use crate::floor::Floor;
use crate::memory::{Memory, Work, sampled_at};
use crate::plan::{Decision, Plan, Skip, SkipReason};
use crate::policy::Policy;
use crate::signal::Timers;
use crate::world::{Gpu, GpuId, ModelKey, ServerName, State, World};
use crate::{budget, idle, pressure, room, tenants, warm};

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
    let situation = |explained| Situation { now, world, work: &memory.work, learners: &memory.learners, explained };
    let mut plan = tenants::evaluate_apart(situation(true), &enforced, &mut memory.timers);
    memory.dry_run.retain(|name, _| dry_run.iter().any(|policy| policy.name == *name));
    let mut differences = Vec::new();
    for policy in dry_run {
        let timers =
            memory.dry_run.entry(policy.name.clone()).or_insert_with(|| timers_before.clone().unwrap_or_default());
        let mut with: Vec<&Policy> = enforced.clone();
        with.push(policy);
        with.sort_by(|a, b| a.name.cmp(&b.name));
        let other = tenants::evaluate_apart(situation(false), &with, timers);
        differences.push((policy, other));
    }
    memory.work.record(now, &plan.decisions);
    memory.learners.record(&plan.decisions);
    for (policy, other) in differences {
        difference(&mut plan, policy, &other);
    }
    plan
}

/// Adds what a dry-run policy would change.
fn difference(plan: &mut Plan, policy: &Policy, other: &Plan) {
    fn key(decision: &Decision) -> (&ServerName, &str) {
        (&decision.server, &decision.model)
    }
    let same = |a: &Decision, b: &Decision| {
        Decision { policy: String::new(), ..a.clone() } == Decision { policy: String::new(), ..b.clone() }
    };
    let enforced = || plan.decisions.iter().filter(|decision| !decision.dry_run);
    let others: HashSet<_> = other.decisions.iter().map(key).collect();
    let spared = enforced().filter(|decision| !others.contains(&key(decision)));
    let spared: Vec<Skip> = spared
        .map(|decision| Skip {
            server: decision.server.clone(),
            model: decision.model.clone(),
            reason: SkipReason::DryRun,
            detail: format!("would not be named with {}", policy.name),
        })
        .collect();
    let in_force: HashMap<_, &Decision> = enforced().map(|decision| (key(decision), decision)).collect();
    let differs = |decision: &&Decision| in_force.get(&key(decision)).is_none_or(|live| !same(live, decision));
    let differing = other.decisions.iter().filter(differs);
    let differing: Vec<Decision> = differing.map(|decision| Decision { dry_run: true, ..decision.clone() }).collect();
    plan.decisions.extend(differing);
    plan.skips.extend(spared);
}

/// What a plan is made from, beside the policies and the timers.
#[derive(Clone, Copy)]
pub struct Situation<'a> {
    pub now: Timestamp,
    pub world: &'a World,
    pub work: &'a Work,
    pub learners: &'a Learners,
    pub explained: bool,
}

/// The plan of these policies as they are. `kept`: models that are taken last.
pub fn evaluate(situation: Situation<'_>, policies: &[&Policy], timers: &mut Timers, kept: &HashSet<ModelKey>) -> Plan {
    let Situation { now, world, work, learners, explained } = situation;
    let fleet = Fleet::new(now, world, policies, work, kept);
    let floor = Floor::new(&fleet);
    let decided = vec![false; fleet.members.len()];
    let (skips, plan) = (Vec::new(), Plan::default());
    let mut turn = Turn { now, stale_after: world.stale_after, fleet, floor, learners, decided, skips, plan };
    let fresh = world.gpus.iter().filter(|gpu| gpu_fresh(gpu, world.stale_after)).map(|gpu| &gpu.uuid).collect();
    timers.freeze_all_but(&fresh);
    let unloading = work.unloading();
    for Site { id, gpu, places } in sites(&mut turn, world) {
        let used = |gpu: &Gpu| work.gpu_used(&gpu.uuid, sampled_at(now, gpu.sample_age));
        let awaiting = gpu.is_some_and(|gpu| used(gpu) || unloading.contains(&gpu.uuid));
        let mut card = Card::new(&mut turn, id, gpu, places, awaiting);
        budget::apply(&mut turn, &mut card);
        idle::apply(&mut turn, &mut card);
        pressure::apply(&mut turn, &mut card, timers);
        room::apply(&mut turn, &mut card);
        warm::apply(&mut turn, &mut card);
    }
    if explained {
        (turn.plan.rules, turn.plan.models) = explain(&turn);
    }
    finish(turn)
}

/// A card, and the places in the fleet of the governed models on it. `None`: those that are on no card.
struct Site<'a> {
    id: Option<&'a GpuId>,
    gpu: Option<&'a Gpu>,
    places: Vec<usize>,
}

/// In the order of their ids.
fn sites<'a>(turn: &mut Turn<'a>, world: &'a World) -> Vec<Site<'a>> {
    let mut sites: Vec<Site<'a>> = Vec::with_capacity(world.gpus.len());
    let mut known: HashMap<Option<&GpuId>, usize> = HashMap::with_capacity(world.gpus.len());
    let mut site = |sites: &mut Vec<Site<'a>>, id: Option<&'a GpuId>| {
        *known.entry(id).or_insert_with(|| {
            sites.push(Site { id, gpu: None, places: Vec::new() });
            sites.len() - 1
        })
    };
    for gpu in &world.gpus {
        let at = site(&mut sites, Some(&gpu.uuid));
        sites[at].gpu = Some(gpu);
    }
    for place in 0..turn.fleet.members.len() {
        if governed(turn, place) {
            let at = site(&mut sites, turn.member(place).model.gpu.as_ref());
            sites[at].places.push(place);
        }
    }
    sites.sort_unstable_by_key(|site| site.id);
    sites
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
    let Turn { fleet, decided, mut skips, mut plan, .. } = turn;
    skips.retain(|skip| !decided[skip.place]);
    skips.sort_unstable();
    skips.dedup_by(|a, b| (a.place, a.reason) == (b.place, b.reason));
    let named = |WhyNot { place, reason, detail }| {
        let ModelKey { server, model } = fleet.members[place].model.key.clone();
        Skip { server, model, reason, detail }
    };
    plan.skips = skips.into_iter().map(named).collect();
    plan
}
