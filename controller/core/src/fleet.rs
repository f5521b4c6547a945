//! Every model with its rules: which policies select it, merged. Models that look alike share the work.

use std::collections::{HashMap, HashSet};
use std::rc::Rc;
use std::time::Duration;

use jiff::Timestamp;

use crate::memory::{Work, sampled_at};
use crate::merge::{Merged, Rules, mode_at};
use crate::policy::{Policy, Residency};
use crate::world::{Gpu, GpuId, Labels, Model, ModelKey, State, World};

#[derive(Debug)]
pub struct Fleet<'a> {
    /// Sorted by name.
    pub policies: &'a [&'a Policy],
    /// In the order of their keys.
    pub members: Vec<Member<'a>>,
    /// Places of policies, ascending; each different combination once.
    sets: Vec<Vec<usize>>,
}

#[derive(Debug)]
pub struct Member<'a> {
    pub model: &'a Model,
    /// `None`: no policy selects it.
    pub rules: Option<Rc<Rules>>,
    /// The rules as the operator's policies alone give them; `None`: no cluster policy selects it.
    pub operator_rules: Option<Rc<Rules>>,
    /// Without the policies of other namespaces it would stay: it leaves only where the others are not enough.
    pub kept: bool,
    set: usize,
    pub fresh: bool,
    /// A command for it is under way, or commands to its server fail.
    pub pending: bool,
    /// A decision rested on this sample already.
    pub used: bool,
    /// How long it has been idle, for the order in which models leave a card.
    pub idleness: Duration,
    /// One of its policies holds more than its budget on this card.
    pub over_budget: bool,
}

impl Member<'_> {
    /// Of two models that no policy governs, neither is ever ranked.
    pub fn priority(&self) -> i32 {
        self.rules.as_ref().map_or(0, |rules| rules.priority.value)
    }

    pub const fn counts_as_ready(&self) -> bool {
        self.fresh && !self.pending && self.model.ready()
    }

    /// May be named by a decision to unload, as far as its own state goes.
    pub const fn nameable(&self) -> bool {
        self.counts_as_ready() && !self.used
    }

    pub fn old_enough(&self) -> bool {
        self.rules.as_ref().is_some_and(|rules| self.model.loaded_for >= rules.min_resident)
    }

    /// Whether its memory counts towards budgets.
    pub const fn holds_memory(&self) -> bool {
        matches!(self.model.state, State::Ready | State::Loading | State::Draining)
    }
}

impl<'a> Fleet<'a> {
    /// `policies` sorted by name; `kept`: see [`Member::kept`].
    pub fn new(
        now: Timestamp,
        world: &'a World,
        policies: &'a [&'a Policy],
        work: &Work,
        kept: &HashSet<ModelKey>,
    ) -> Self {
        let modes: Vec<Option<(Residency, bool)>> = policies.iter().map(|policy| mode_at(policy, now)).collect();
        let totals: HashMap<&GpuId, u64> = world.gpus.iter().map(|gpu| (&gpu.uuid, gpu.total_bytes)).collect();
        let mut fleet = Self { policies, members: Vec::with_capacity(world.models.len()), sets: Vec::new() };
        let mut alike: HashMap<(&str, &Labels, &str), usize> = HashMap::new();
        let mut known_sets: HashMap<Vec<usize>, usize> = HashMap::new();
        let mut known_rules: HashMap<(usize, Option<u64>), MemberRules> = HashMap::new();
        let nothing = Labels::new();
        let clocks = clocks(world);
        let mut models: Vec<&Model> = world.models.iter().collect();
        models.sort_by(|a, b| a.key.cmp(&b.key));
        for model in models {
            let namespace = model.key.server.namespace();
            let set = *alike.entry((namespace, &model.labels, &model.key.model)).or_insert_with(|| {
                let labels = world.namespaces.get(namespace).unwrap_or(&nothing);
                let set: Vec<usize> = (0..policies.len()).filter(|&p| policies[p].selects(model, labels)).collect();
                *known_sets.entry(set).or_insert_with_key(|set| {
                    fleet.sets.push(set.clone());
                    fleet.sets.len() - 1
                })
            });
            let total = model.gpu.as_ref().and_then(|gpu| totals.get(gpu)).copied();
            let MemberRules { all, operator } = known_rules
                .entry((set, total))
                .or_insert_with(|| member_rules(policies, &modes, &fleet.sets[set], total))
                .clone();
            fleet.members.push(Member {
                model,
                rules: all,
                operator_rules: operator,
                kept: kept.contains(&model.key),
                set,
                fresh: model.sample_age <= world.stale_after,
                pending: work.pending(&model.key) || model.back_off,
                used: work.used(&model.key, sampled_at(now, model.sample_age)),
                idleness: idleness(model, &clocks),
                over_budget: false,
            });
        }
        fleet
    }

    pub fn set(&self, member: &Member<'_>) -> &[usize] {
        &self.sets[member.set]
    }

    /// Those of [`Self::set`] that are the operator's.
    pub fn operator_set(&self, member: &Member<'_>) -> &[usize] {
        operator_part(self.policies, self.set(member))
    }

    pub fn policy_name(&self, policy: usize) -> String {
        self.policies[policy].name.to_string()
    }
}

/// The time on each card's node now, as its models tell it.
fn clocks(world: &World) -> HashMap<&GpuId, Duration> {
    let mut clocks = HashMap::new();
    for model in &world.models {
        if let (Some(gpu), Some(since)) = (&model.gpu, model.idle_since) {
            let clock = since.saturating_add(model.idle).saturating_add(model.sample_age);
            let latest = clocks.entry(gpu).or_insert(clock);
            *latest = clock.max(*latest);
        }
    }
    clocks
}

/// Whoever looked earlier or later, or was answered more slowly, comes to the same order: with times of one clock its
/// differences are exact, else they are right to within what an answer takes.
fn idleness(model: &Model, clocks: &HashMap<&GpuId, Duration>) -> Duration {
    let clock = model.gpu.as_ref().and_then(|gpu| clocks.get(gpu));
    match (model.idle, model.idle_since, clock) {
        (Duration::ZERO, ..) => Duration::ZERO,
        (_, Some(since), Some(clock)) => clock.saturating_sub(since),
        (idle, ..) => idle.saturating_add(model.sample_age),
    }
}

#[derive(Clone)]
struct MemberRules {
    all: Option<Rc<Rules>>,
    operator: Option<Rc<Rules>>,
}

fn member_rules(
    policies: &[&Policy],
    modes: &[Option<(Residency, bool)>],
    set: &[usize],
    total_bytes: Option<u64>,
) -> MemberRules {
    let operator = operator_part(policies, set);
    let all = rules(policies, modes, set, total_bytes).map(Rc::new);
    let operator = if operator.len() == set.len() {
        all.clone()
    } else {
        rules(policies, modes, operator, total_bytes).map(Rc::new)
    };
    MemberRules { all, operator }
}

/// Cluster policies come first.
fn operator_part<'a>(policies: &[&Policy], set: &'a [usize]) -> &'a [usize] {
    &set[..set.partition_point(|&policy| policies[policy].is_cluster())]
}

fn rules(
    policies: &[&Policy],
    modes: &[Option<(Residency, bool)>],
    set: &[usize],
    total_bytes: Option<u64>,
) -> Option<Rules> {
    let merged = set
        .iter()
        .map(|&policy| Merged::of_policy(policy, policies[policy], modes[policy], total_bytes))
        .reduce(|a, b| a.merge(&b))?;
    Some(Rules::fill(&merged, *set.first()?))
}

/// Whether a card's sample may be acted on.
pub fn gpu_fresh(gpu: &Gpu, stale_after: Duration) -> bool {
    gpu.sample_age <= stale_after && !gpu.disputed
}
