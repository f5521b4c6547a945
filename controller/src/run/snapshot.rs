//! What the last step saw and decided.

use std::collections::BTreeMap;
use std::sync::Arc;

use hush_core::{Plan, Policy, PolicyName, ServerName, World};
use jiff::Timestamp;

use super::Paused;
use crate::act::Record;
use crate::observe::{Observation, Targets};

/// For status, page and plugin; to decide by it would be a race.
#[derive(Clone, Debug)]
pub struct Snapshot {
    pub at: Timestamp,
    pub world: World,
    pub plan: Plan,
    pub policies: Arc<Vec<Policy>>,
    pub targets: Arc<Targets>,
    pub seen: BTreeMap<ServerName, Observation>,
    /// What was left out of the world, and why.
    pub problems: Vec<String>,
    /// Policies that count as dry run, because a person said so.
    pub paused: BTreeMap<PolicyName, Paused>,
    /// The last commands and what would have been commanded, oldest first.
    pub records: Vec<Record>,
}

impl Snapshot {
    /// The policies, those that are paused in dry run.
    pub fn in_force(&self) -> Vec<Policy> {
        in_force(&self.policies, &self.paused)
    }

    /// Before the first step.
    pub fn nothing() -> Self {
        Self {
            at: Timestamp::UNIX_EPOCH,
            world: World {
                stale_after: std::time::Duration::ZERO,
                gpus: Vec::new(),
                models: Vec::new(),
                namespaces: BTreeMap::new(),
            },
            plan: Plan::default(),
            policies: Arc::default(),
            targets: Arc::default(),
            seen: BTreeMap::new(),
            problems: Vec::new(),
            paused: BTreeMap::new(),
            records: Vec::new(),
        }
    }
}

/// The policies, those that are paused in dry run.
pub fn in_force(policies: &[Policy], paused: &BTreeMap<PolicyName, Paused>) -> Vec<Policy> {
    let pause =
        |policy: &Policy| Policy { dry_run: policy.dry_run || paused.contains_key(&policy.name), ..policy.clone() };
    policies.iter().map(pause).collect()
}
