//! What the rules of one step share: the models, and the decisions made so far.

use jiff::Timestamp;

use crate::adaptive::Learners;
use crate::gpu_context::GpuContext;
use crate::min_loaded::MinLoadedCounts;
use crate::model_table::{ModelEntry, ModelTable};
use crate::plan::{Decision, DecisionReason, GpuPlan, SkipReason, UnloadTerms};
use crate::world::World;

/// Models are known by their index in the table.
#[derive(Debug)]
pub struct StepContext<'a> {
    pub now: Timestamp,
    pub world: &'a World,
    pub table: ModelTable<'a>,
    pub min_loaded: MinLoadedCounts,
    pub learners: &'a Learners,
    /// For each model whether a decision names it.
    pub decided: Vec<bool>,
    pub decisions: Vec<Decision>,
    pub skips: Vec<PendingSkip>,
    pub gpus: Vec<GpuPlan>,
}

/// Why a model is left alone, unless another rule decides on it.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct PendingSkip {
    pub index: usize,
    pub reason: SkipReason,
    pub detail: String,
}

impl<'a> StepContext<'a> {
    pub fn new(now: Timestamp, world: &'a World, table: ModelTable<'a>, learners: &'a Learners) -> Self {
        let min_loaded = MinLoadedCounts::new(&table);
        let decided = vec![false; table.entries.len()];
        let (decisions, skips, gpus) = (Vec::new(), Vec::new(), Vec::new());
        Self { now, world, table, min_loaded, learners, decided, decisions, skips, gpus }
    }

    pub fn entry(&self, index: usize) -> &ModelEntry<'a> {
        &self.table.entries[index]
    }

    /// Whether `minLoaded` keeps the model loaded.
    pub fn is_protected(&self, index: usize) -> bool {
        self.min_loaded.protects(&self.table, self.entry(index))
    }

    /// The ranked models in the order in which they may leave: those that leave last are at the end.
    pub fn leaving_order(&self, ranked: &[usize]) -> Vec<usize> {
        let (last, first): (Vec<usize>, Vec<usize>) = ranked.iter().partition(|&&index| self.entry(index).leaves_last);
        [first, last].concat()
    }

    /// Counts the model as gone for `minLoaded`; [`Self::unload`] does it too.
    pub fn count_as_gone(&mut self, index: usize) {
        self.min_loaded.take(&self.table, &self.table.entries[index]);
    }

    /// Undoes [`Self::count_as_gone`].
    pub fn count_as_ready(&mut self, index: usize) {
        self.min_loaded.give_back(&self.table, &self.table.entries[index]);
    }

    /// Decides to unload the model; `policy` is the index of the policy whose value decided.
    pub fn unload(
        &mut self,
        gpu: &mut GpuContext<'a>,
        index: usize,
        reason: DecisionReason,
        policy: usize,
        terms: UnloadTerms,
    ) {
        self.count_as_gone(index);
        self.unload_counted(gpu, index, reason, policy, terms);
    }

    /// The same for a model that counts as gone already.
    pub fn unload_counted(
        &mut self,
        gpu: &mut GpuContext<'a>,
        index: usize,
        reason: DecisionReason,
        policy: usize,
        terms: UnloadTerms,
    ) {
        let entry = self.entry(index);
        let model = entry.model;
        let unload = entry.rules.as_ref().map(|rules| rules.unload().value).unwrap_or_default();
        let unload = unload.commanded(model.process_ending);

        gpu.freed = gpu.freed.saturating_add(model.sample.vram_bytes);
        self.decided[index] = true;
        let decision = Decision::unload(model, reason, self.table.policy_name(policy), terms);
        self.decisions.push(Decision { unload, ..decision });
    }

    /// Decides to load the model; `policy` is the index of the policy whose value decided.
    pub fn load(&mut self, index: usize, reason: DecisionReason, policy: usize) {
        let model = self.entry(index).model;
        self.decided[index] = true;
        self.decisions.push(Decision::load(model, reason, self.table.policy_name(policy)));
    }

    /// Notes why the model is left alone.
    pub fn skip(&mut self, index: usize, reason: SkipReason, detail: impl Into<String>) {
        self.skips.push(PendingSkip { index, reason, detail: detail.into() });
    }
}
