//! `minLoaded`: how many models a policy keeps, counted over everything that it selects.

use crate::fleet::{Fleet, Member};

/// Ready models by policy, after the victims already taken.
#[derive(Debug)]
pub struct Floor {
    ready: Vec<u32>,
}

impl Floor {
    /// Only models that are known to be ready count: one whose sample is stale, or older than its last command, may be
    /// gone.
    pub fn new(fleet: &Fleet<'_>) -> Self {
        let mut ready = vec![0; fleet.policies.len()];
        for member in fleet.members.iter().filter(|member| member.nameable()) {
            for &policy in fleet.set(member) {
                ready[policy] += 1;
            }
        }
        Self { ready }
    }

    /// Whether its unload would leave fewer than a policy asks for. Where cluster policies select the model, one of them
    /// must ask for it too: a policy of a namespace counts fewer models, and would protect each of them by the same number.
    pub fn protects(&self, fleet: &Fleet<'_>, member: &Member<'_>) -> bool {
        let Some(rules) = &member.rules else { return false };
        let operator = member.operator_rules.as_ref();
        self.keeps(fleet, fleet.set(member), rules.min_loaded)
            && operator.is_none_or(|rules| self.keeps(fleet, fleet.operator_set(member), rules.min_loaded))
    }

    fn keeps(&self, fleet: &Fleet<'_>, policies: &[usize], min_loaded: u32) -> bool {
        let asks = |policy: usize| fleet.policies[policy].asks.min_loaded == Some(min_loaded);
        min_loaded > 0 && policies.iter().any(|&policy| asks(policy) && self.ready[policy] <= min_loaded)
    }

    pub fn take(&mut self, fleet: &Fleet<'_>, member: &Member<'_>) {
        for &policy in fleet.set(member) {
            self.ready[policy] = self.ready[policy].saturating_sub(1);
        }
    }

    pub fn give_back(&mut self, fleet: &Fleet<'_>, member: &Member<'_>) {
        for &policy in fleet.set(member) {
            self.ready[policy] += 1;
        }
    }
}
