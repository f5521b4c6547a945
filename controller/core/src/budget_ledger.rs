//! The budgets of the policies on one GPU, and how much of each is held.

use std::collections::BTreeMap;

use crate::model_table::{ModelEntry, ModelTable};
use crate::world::ObservedGpu;

/// One account for each policy with a budget.
#[derive(Debug)]
pub struct BudgetLedger(BTreeMap<usize, BudgetAccount>);

/// All in bytes.
#[derive(Clone, Copy, Debug)]
pub struct BudgetAccount {
    pub budget: u64,
    pub held: u64,
}

impl BudgetLedger {
    /// `models`: indexes of the governed models on the GPU.
    pub fn new(table: &ModelTable<'_>, gpu: Option<&ObservedGpu>, models: &[usize]) -> Self {
        let mut ledger = Self(BTreeMap::new());
        let total = gpu.map(|gpu| gpu.total_bytes);
        for &index in models {
            let entry = &table.entries[index];
            let bytes = if entry.counts_towards_budget() { entry.model.sample.vram_bytes } else { 0 };

            for &policy in table.policies_of(entry) {
                if let Some(budget) = table.policies[policy].asks.budget.and_then(|budget| budget.bytes(total)) {
                    let account = ledger.0.entry(policy).or_insert(BudgetAccount { budget, held: 0 });
                    account.held = account.held.saturating_add(bytes);
                }
            }
        }

        ledger
    }

    /// Adds a model that is about to load, if every budget of its policies allows it; `false`: one does not.
    pub fn admit(&mut self, policies: &[usize], bytes: u64) -> bool {
        let fits = |account: &BudgetAccount| account.held.saturating_add(bytes) <= account.budget;
        if !policies.iter().filter_map(|policy| self.0.get(policy)).all(fits) {
            return false;
        }

        for policy in policies {
            if let Some(account) = self.0.get_mut(policy) {
                account.held = account.held.saturating_add(bytes);
            }
        }

        true
    }

    /// Each policy whose budget is exceeded.
    pub fn exceeded(&self) -> Vec<(usize, BudgetAccount)> {
        let exceeded = self.0.iter().filter(|(_, account)| account.held > account.budget);
        exceeded.map(|(policy, account)| (*policy, *account)).collect()
    }

    /// Whether one of the policies of the model exceeds its budget. `exceeded`: see [`Self::exceeded`].
    pub fn is_over_budget(exceeded: &[(usize, BudgetAccount)], table: &ModelTable<'_>, entry: &ModelEntry<'_>) -> bool {
        let policies = table.policies_of(entry);
        exceeded.iter().any(|(policy, _)| policies.contains(policy))
    }
}
