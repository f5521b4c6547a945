//! `minLoaded`: how many models a policy keeps loaded, counted over every model that it selects.

use crate::model_table::{ModelEntry, ModelTable};

/// The number of ready models for each policy, without those that this step unloads.
#[derive(Debug)]
pub struct MinLoadedCounts {
    ready: Vec<u32>,
}

impl MinLoadedCounts {
    /// Only models that are known to be ready count: one whose sample is stale, or older than its last command, may be
    /// gone.
    pub fn new(table: &ModelTable<'_>) -> Self {
        let mut ready = vec![0; table.policies.len()];
        for entry in table.entries.iter().filter(|entry| entry.can_unload()) {
            for &policy in table.policies_of(entry) {
                ready[policy] += 1;
            }
        }
        Self { ready }
    }

    /// Whether unloading the model would leave fewer models than a policy asks for. Where cluster policies select the
    /// model, one of them must ask for it too: a policy of a namespace counts fewer models, and would protect each of them
    /// by the same number.
    pub fn protects(&self, table: &ModelTable<'_>, entry: &ModelEntry<'_>) -> bool {
        let Some(rules) = &entry.rules else { return false };
        let keeps_for = |policies: &[usize], min_loaded: u32| self.keeps(table, policies, min_loaded);

        keeps_for(table.policies_of(entry), rules.min_loaded().value)
            && entry.cluster_rules.as_ref().is_none_or(|cluster_rules| {
                keeps_for(table.cluster_policies_of(entry), cluster_rules.min_loaded().value)
            })
    }

    fn keeps(&self, table: &ModelTable<'_>, policies: &[usize], min_loaded: u32) -> bool {
        let asks_for_it = |policy: usize| table.policies[policy].asks.min_loaded == Some(min_loaded);
        min_loaded > 0 && policies.iter().any(|&policy| asks_for_it(policy) && self.ready[policy] <= min_loaded)
    }

    /// Counts the model as gone.
    pub fn take(&mut self, table: &ModelTable<'_>, entry: &ModelEntry<'_>) {
        for &policy in table.policies_of(entry) {
            self.ready[policy] = self.ready[policy].saturating_sub(1);
        }
    }

    /// Counts the model as ready again.
    pub fn give_back(&mut self, table: &ModelTable<'_>, entry: &ModelEntry<'_>) {
        for &policy in table.policies_of(entry) {
            self.ready[policy] += 1;
        }
    }
}
