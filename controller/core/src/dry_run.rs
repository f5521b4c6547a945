//! What a policy in dry run would change.

use std::collections::{HashMap, HashSet};

use crate::plan::{Decision, Plan, Skip, SkipReason};
use crate::policy::ModelPolicy;
use crate::world::ServerName;

/// Adds to `plan` how `with_policy`, the plan in which the policy is enforced, differs from it: the decisions that only
/// the latter has, marked as dry run, and for each decision that it lacks a skip.
pub fn add_differences(plan: &mut Plan, policy: &ModelPolicy, with_policy: &Plan) {
    let enforced = || plan.decisions.iter().filter(|decision| !decision.dry_run);

    let named: HashSet<_> = with_policy.decisions.iter().map(key).collect();
    let spared = enforced().filter(|decision| !named.contains(&key(decision)));
    let spared: Vec<Skip> = spared
        .map(|decision| Skip {
            server: decision.server.clone(),
            model: decision.model.clone(),
            reason: SkipReason::DryRun,
            detail: format!("would not be named with {}", policy.name),
        })
        .collect();

    let in_force: HashMap<_, &Decision> = enforced().map(|decision| (key(decision), decision)).collect();
    let differs = |decision: &&Decision| in_force.get(&key(decision)).is_none_or(|live| !is_same(live, decision));
    let differing = with_policy.decisions.iter().filter(differs);
    let differing: Vec<Decision> = differing.map(|decision| Decision { dry_run: true, ..decision.clone() }).collect();

    plan.decisions.extend(differing);
    plan.skips.extend(spared);
}

fn key(decision: &Decision) -> (&ServerName, &str) {
    (&decision.server, &decision.model)
}

/// Whether two decisions differ in nothing but the policy that is named.
fn is_same(a: &Decision, b: &Decision) -> bool {
    let without_policy = |decision: &Decision| Decision { policy: String::new(), ..decision.clone() };
    without_policy(a) == without_policy(b)
}
