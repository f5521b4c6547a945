//! One step over the whole world.

use jiff::Timestamp;

use crate::dry_run::add_differences;
use crate::evaluate::EvaluationInput;
use crate::memory::StepMemory;
use crate::namespaces::evaluate_apart;
use crate::plan::Plan;
use crate::policy::ModelPolicy;
use crate::world::World;

/// Decides what is to be done now. Every model is in the plan, with a decision or with the reason why there is none.
///
/// The caller carries out the decisions that are not `dry_run` and tells [`StepMemory::settle`] how each ended. The order
/// in which GPUs, models and policies are given does not matter.
pub fn step(memory: &mut StepMemory, now: Timestamp, world: &World, policies: &[ModelPolicy]) -> Plan {
    memory.commands.advance(now, world.stale_after);
    memory.learners.observe(now, world);

    let mut sorted: Vec<&ModelPolicy> = policies.iter().collect();
    sorted.sort_by(|a, b| a.name.cmp(&b.name));
    let enforced: Vec<&ModelPolicy> = sorted.iter().copied().filter(|policy| !policy.dry_run).collect();
    let dry_run: Vec<&ModelPolicy> = sorted.iter().copied().filter(|policy| policy.dry_run).collect();

    // How long a threshold has been crossed does not depend on a policy: a new dry run begins with the present timers.
    let timers_before = (!dry_run.is_empty()).then(|| memory.timers.clone());
    let (commands, learners) = (&memory.commands, &memory.learners);
    let input = |explained| EvaluationInput { now, world, commands, learners, explained };
    let mut plan = evaluate_apart(input(true), &enforced, &mut memory.timers);

    memory.dry_run.retain(|name, _| dry_run.iter().any(|policy| policy.name == *name));
    let mut plans_with = Vec::new();
    for policy in dry_run {
        let timers =
            memory.dry_run.entry(policy.name.clone()).or_insert_with(|| timers_before.clone().unwrap_or_default());
        let mut with_policy: Vec<&ModelPolicy> = enforced.clone();
        with_policy.push(policy);
        with_policy.sort_by(|a, b| a.name.cmp(&b.name));
        plans_with.push((policy, evaluate_apart(input(false), &with_policy, timers)));
    }

    memory.commands.record(now, &plan.decisions);
    memory.learners.record(&plan.decisions);
    for (policy, with_policy) in plans_with {
        add_differences(&mut plan, policy, &with_policy);
    }

    plan
}
