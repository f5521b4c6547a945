//! Every model with its rules: which policies select it, merged. Models that look alike share the work.

use std::collections::{HashMap, HashSet};
use std::rc::Rc;
use std::time::Duration;

use jiff::Timestamp;

use crate::command_log::CommandLog;
use crate::merge::{ResidencyNow, residency_at};
use crate::policy::ModelPolicy;
use crate::policy_fields::{MergedSpec, ModelRules};
use crate::time::sampled_at;
use crate::world::{GpuId, Labels, ModelKey, ObservedModel, ResidencyState, World};

/// All models of the world. Policies and models are known by their index.
#[derive(Debug)]
pub struct ModelTable<'a> {
    /// Sorted by name.
    pub policies: &'a [&'a ModelPolicy],
    /// In the order of their keys.
    pub entries: Vec<ModelEntry<'a>>,
    /// Indexes of policies, ascending; each different combination once.
    policy_sets: Vec<Vec<usize>>,
}

/// One model and what this step needs to know of it.
#[derive(Debug)]
pub struct ModelEntry<'a> {
    pub model: &'a ObservedModel,
    /// `None`: no policy selects the model.
    pub rules: Option<Rc<ModelRules>>,
    /// The rules that the cluster policies alone give; `None`: no cluster policy selects the model.
    pub cluster_rules: Option<Rc<ModelRules>>,
    /// The model would stay without the policies of other namespaces: it leaves only where the others are not enough.
    pub leaves_last: bool,
    policy_set: usize,
    pub fresh: bool,
    /// A command for the model is under way, or commands to its server fail.
    pub pending: bool,
    /// A decision rested on this sample already.
    pub used: bool,
    /// How long the model has been idle, for the order in which models leave a GPU.
    pub idleness: Duration,
    /// One of its policies holds more than its budget on this GPU.
    pub over_budget: bool,
}

impl ModelEntry<'_> {
    /// 0 for a model that no policy selects: such models are never ranked.
    pub fn priority(&self) -> i32 {
        self.rules.as_ref().map_or(0, |rules| rules.priority().value)
    }

    /// Whether the model is known to be ready, with no command under way.
    pub const fn counts_as_ready(&self) -> bool {
        self.fresh && !self.pending && self.model.is_ready()
    }

    /// Whether a decision may unload the model, as far as its own state is concerned.
    pub const fn can_unload(&self) -> bool {
        self.counts_as_ready() && !self.used
    }

    /// Whether the model has been loaded for its `minResident`.
    pub fn is_old_enough(&self) -> bool {
        self.rules.as_ref().is_some_and(|rules| self.model.sample.loaded_for >= rules.min_resident().value)
    }

    /// Whether the memory of the model counts towards budgets. A model that is unloading does not count, because
    /// its memory is being freed already.
    pub const fn counts_towards_budget(&self) -> bool {
        matches!(self.model.sample.state, ResidencyState::Ready | ResidencyState::Loading | ResidencyState::Draining)
    }
}

impl<'a> ModelTable<'a> {
    /// `policies` are sorted by name. `leaving_last`: the models with [`ModelEntry::leaves_last`].
    pub fn new(
        now: Timestamp,
        world: &'a World,
        policies: &'a [&'a ModelPolicy],
        commands: &CommandLog,
        leaving_last: &HashSet<ModelKey>,
    ) -> Self {
        let mut models: Vec<&ObservedModel> = world.models.iter().collect();
        models.sort_by(|a, b| a.key.cmp(&b.key));

        let totals: HashMap<&GpuId, u64> = world.gpus.iter().map(|gpu| (&gpu.uuid, gpu.total_bytes)).collect();
        let node_clocks = node_clocks(world);
        let mut selections = PolicySelections::new(world, policies);
        let mut rules_cache = RulesCache::new(now, policies);

        let mut entries = Vec::with_capacity(models.len());
        for model in models {
            let policy_set = selections.policy_set_of(model);
            let total = model.sample.gpu.as_ref().and_then(|gpu| totals.get(gpu)).copied();
            let rules = rules_cache.rules_of(policy_set, &selections.policy_sets[policy_set], total);

            entries.push(ModelEntry {
                model,
                rules: rules.all,
                cluster_rules: rules.cluster,
                leaves_last: leaving_last.contains(&model.key),
                policy_set,
                fresh: model.sample_age <= world.stale_after,
                pending: commands.is_pending(&model.key) || model.back_off,
                used: commands.is_used(&model.key, sampled_at(now, model.sample_age)),
                idleness: idleness(model, &node_clocks),
                over_budget: false,
            });
        }

        Self { policies, entries, policy_sets: selections.policy_sets }
    }

    /// The indexes of the policies that select the model, ascending.
    pub fn policies_of(&self, entry: &ModelEntry<'_>) -> &[usize] {
        &self.policy_sets[entry.policy_set]
    }

    /// Those of [`Self::policies_of`] that are cluster policies.
    pub fn cluster_policies_of(&self, entry: &ModelEntry<'_>) -> &[usize] {
        cluster_part(self.policies, self.policies_of(entry))
    }

    pub fn policy_name(&self, policy: usize) -> String {
        self.policies[policy].name.to_string()
    }
}

/// Which policies select which models. Models of one namespace with the same labels and the same name are selected by the
/// same policies, which are looked up once.
struct PolicySelections<'a> {
    world: &'a World,
    policies: &'a [&'a ModelPolicy],
    no_labels: Labels,
    /// By namespace, labels and model name.
    alike: HashMap<(&'a str, &'a Labels, &'a str), usize>,
    known_sets: HashMap<Vec<usize>, usize>,
    policy_sets: Vec<Vec<usize>>,
}

impl<'a> PolicySelections<'a> {
    fn new(world: &'a World, policies: &'a [&'a ModelPolicy]) -> Self {
        Self {
            world,
            policies,
            no_labels: Labels::new(),
            alike: HashMap::new(),
            known_sets: HashMap::new(),
            policy_sets: Vec::new(),
        }
    }

    /// An index in [`Self::policy_sets`].
    fn policy_set_of(&mut self, model: &'a ObservedModel) -> usize {
        let namespace = model.key.server.namespace();
        *self.alike.entry((namespace, &model.labels, &model.key.model)).or_insert_with(|| {
            let labels = self.world.namespaces.get(namespace).unwrap_or(&self.no_labels);
            let selects = |policy: &usize| self.policies[*policy].selects(model, labels);
            let selecting: Vec<usize> = (0..self.policies.len()).filter(selects).collect();

            *self.known_sets.entry(selecting).or_insert_with_key(|selecting| {
                self.policy_sets.push(selecting.clone());
                self.policy_sets.len() - 1
            })
        })
    }
}

/// The merged rules of each set of policies on each size of GPU.
struct RulesCache<'a> {
    policies: &'a [&'a ModelPolicy],
    residencies: Vec<Option<ResidencyNow>>,
    known: HashMap<(usize, Option<u64>), RulesPair>,
}

#[derive(Clone)]
struct RulesPair {
    all: Option<Rc<ModelRules>>,
    cluster: Option<Rc<ModelRules>>,
}

impl<'a> RulesCache<'a> {
    fn new(now: Timestamp, policies: &'a [&'a ModelPolicy]) -> Self {
        let residencies = policies.iter().map(|policy| residency_at(policy, now)).collect();
        Self { policies, residencies, known: HashMap::new() }
    }

    fn rules_of(&mut self, policy_set: usize, selecting: &[usize], total_bytes: Option<u64>) -> RulesPair {
        if let Some(rules) = self.known.get(&(policy_set, total_bytes)) {
            return rules.clone();
        }

        let cluster_policies = cluster_part(self.policies, selecting);
        let all = self.merge(selecting, total_bytes).map(Rc::new);
        let cluster = if cluster_policies.len() == selecting.len() {
            all.clone()
        } else {
            self.merge(cluster_policies, total_bytes).map(Rc::new)
        };

        let rules = RulesPair { all, cluster };
        self.known.insert((policy_set, total_bytes), rules.clone());
        rules
    }

    fn merge(&self, policies: &[usize], total_bytes: Option<u64>) -> Option<ModelRules> {
        let merged = policies
            .iter()
            .map(|&index| MergedSpec::of_policy(index, self.policies[index], self.residencies[index], total_bytes))
            .reduce(|a, b| a.merge(&b))?;
        Some(ModelRules::new(merged, *policies.first()?))
    }
}

/// The cluster policies among these, which come first.
fn cluster_part<'a>(policies: &[&ModelPolicy], selecting: &'a [usize]) -> &'a [usize] {
    &selecting[..selecting.partition_point(|&policy| policies[policy].is_cluster())]
}

/// The present time on the node of each GPU, as the samples of its models give it.
fn node_clocks(world: &World) -> HashMap<&GpuId, Duration> {
    let mut clocks = HashMap::new();
    for model in &world.models {
        if let (Some(gpu), Some(since)) = (&model.sample.gpu, model.sample.idle_since) {
            let clock = since.saturating_add(model.sample.idle).saturating_add(model.sample_age);
            let latest = clocks.entry(gpu).or_insert(clock);
            *latest = clock.max(*latest);
        }
    }

    clocks
}

/// Controllers that observe at different times, or get slower answers, come to the same order: with times of one clock
/// the differences are exact; without them, they are right to within the time that an answer takes.
fn idleness(model: &ObservedModel, node_clocks: &HashMap<&GpuId, Duration>) -> Duration {
    let clock = model.sample.gpu.as_ref().and_then(|gpu| node_clocks.get(gpu));
    match (model.sample.idle, model.sample.idle_since, clock) {
        (Duration::ZERO, ..) => Duration::ZERO,
        (_, Some(since), Some(clock)) => clock.saturating_sub(since),
        (idle, ..) => idle.saturating_add(model.sample_age),
    }
}
