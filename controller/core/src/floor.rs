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

    /// Whether its unload would leave fewer than a policy asks for.
    pub fn protects(&self, fleet: &Fleet<'_>, member: &Member<'_>) -> bool {
        let Some(rules) = &member.rules else { return false };
        let asks = |policy: usize| fleet.policies[policy].asks.min_loaded == Some(rules.min_loaded);
        rules.min_loaded > 0 && fleet.set(member).iter().any(|&p| asks(p) && self.ready[p] <= rules.min_loaded)
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
