//! What the last step saw and decided.

use std::collections::BTreeMap;
use std::sync::Arc;

use hush_core::{ModelPolicy, Plan, PolicyKey, ServerName, World};
use jiff::Timestamp;

use super::PausedPolicy;
use crate::act::CommandRecord;
use crate::observe::{Observation, ServerAppProblem, Targets};

/// The result of one step, for status, page and plugin. It is out of date when it is read: a decision that is based on it
/// would race with the next step.
#[derive(Clone, Debug)]
pub struct LoopSnapshot {
    pub at: Timestamp,
    pub world: World,
    pub plan: Plan,
    pub policies: Arc<Vec<ModelPolicy>>,
    pub targets: Arc<Targets>,
    pub seen: BTreeMap<ServerName, Observation>,
    /// What was left out of the world, and why.
    pub problems: Vec<String>,
    /// What sidecars report of apps that they cannot govern.
    pub app_problems: Vec<ServerAppProblem>,
    /// Policies that a user has paused; they count as dry run.
    pub paused: BTreeMap<PolicyKey, PausedPolicy>,
    /// The last commands, and those that dry-run policies would have caused; oldest first.
    pub records: Vec<CommandRecord>,
}

impl LoopSnapshot {
    /// The policies as they are enforced: a paused policy counts as a dry run.
    pub fn in_force(&self) -> Vec<ModelPolicy> {
        with_pauses(&self.policies, &self.paused)
    }

    /// The snapshot before the first step.
    pub fn empty() -> Self {
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
            app_problems: Vec::new(),
            paused: BTreeMap::new(),
            records: Vec::new(),
        }
    }
}

/// The policies with each paused one turned into a dry run.
pub fn with_pauses(policies: &[ModelPolicy], paused: &BTreeMap<PolicyKey, PausedPolicy>) -> Vec<ModelPolicy> {
    let with_pause = |policy: &ModelPolicy| {
        let dry_run = policy.dry_run || paused.contains_key(&policy.name);
        ModelPolicy { dry_run, ..policy.clone() }
    };

    policies.iter().map(with_pause).collect()
}
