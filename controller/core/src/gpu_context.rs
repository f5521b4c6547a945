//! One GPU in one step: its models in rank order, and what the rules have decided for it so far.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::budget_ledger::BudgetLedger;
use crate::model_table::ModelTable;
use crate::plan::SkipReason;
use crate::pressure_timers::{PressureSignal, SignalReading};
use crate::rank;
use crate::world::{GpuId, ObservedGpu};

/// Models are known by their index in the [`ModelTable`].
#[derive(Debug)]
pub struct GpuContext<'a> {
    /// `None`: the models here are on no GPU.
    pub id: Option<&'a GpuId>,
    /// `None`: no server reported the GPU.
    pub gpu: Option<&'a ObservedGpu>,
    /// A decision may rest on the sample of the GPU.
    pub fresh: bool,
    /// The sample is not newer than the last unload here, or an unload is under way, or a model that a decision named has
    /// not been sampled since: no other model leaves in its place.
    pub awaiting: bool,
    /// The governed models, in rank order.
    pub ranked: Vec<usize>,
    pub budgets: BudgetLedger,
    /// Every threshold that matters here, those of the cluster policies alone included.
    pub readings: BTreeMap<PressureSignal, SignalReading>,
    /// Available memory in bytes, as sampled.
    pub available: u64,
    /// The memory in bytes that this step's decisions free.
    pub freed: u64,
}

impl<'a> GpuContext<'a> {
    /// Ranks the models, and marks those that are over a budget. `models`: the governed models on the GPU. `awaiting`: its
    /// sample is too old to be acted on, or an unload is under way.
    pub fn new(
        table: &mut ModelTable<'_>,
        id: Option<&'a GpuId>,
        gpu: Option<&'a ObservedGpu>,
        models: Vec<usize>,
        awaiting: bool,
        stale_after: Duration,
    ) -> Self {
        let budgets = BudgetLedger::new(table, gpu, &models);
        mark_over_budget(table, &budgets, &models);

        let awaits_sample = |&index: &usize| table.entries[index].used && table.entries[index].counts_as_ready();
        let awaiting = awaiting || models.iter().any(awaits_sample);
        let mut ranked = models;
        ranked.sort_by(|&a, &b| rank::compare(&table.entries[a], &table.entries[b]));

        Self {
            id,
            gpu,
            fresh: gpu.is_some_and(|gpu| gpu.is_trusted(stale_after)),
            awaiting,
            ranked,
            budgets,
            readings: BTreeMap::new(),
            available: gpu.map_or(0, ObservedGpu::available_bytes),
            freed: 0,
        }
    }

    /// Why no decision may rest on the memory of the GPU.
    pub fn why_unknown(&self) -> (SkipReason, &'static str) {
        if self.gpu.is_some_and(|gpu| gpu.disputed) {
            (SkipReason::ReportsDisagree, "the servers of its GPU do not agree on its memory")
        } else {
            (SkipReason::MetricsStale, "the sample of its GPU is too old")
        }
    }

    /// The memory in bytes that will be available after this step's decisions.
    pub const fn expected(&self) -> u64 {
        self.available.saturating_add(self.freed)
    }
}

/// Models of policies that exceed their budget rank first.
fn mark_over_budget(table: &mut ModelTable<'_>, budgets: &BudgetLedger, models: &[usize]) {
    let exceeded = budgets.exceeded();
    if exceeded.is_empty() {
        return;
    }

    for &index in models {
        let over_budget = BudgetLedger::is_over_budget(&exceeded, table, &table.entries[index]);
        table.entries[index].over_budget = over_budget;
    }
}
