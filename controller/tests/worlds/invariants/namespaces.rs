//! What the policies of a namespace cannot do: take memory from the models of other namespaces, and keep their own models
//! longer than the cluster policies allow. Both are checked by deciding again, on the same samples and with the same
//! memory, without some of the policies.

use std::collections::{BTreeMap, BTreeSet};

use hush_core::{Action, Decision, DecisionReason, ModelKey, ModelPolicy, Plan, ResidencyState, step};

use super::{DecisionContext, KnownModel, Violation, ensure};

pub fn check(context: &DecisionContext<'_>, known: &[KnownModel<'_>]) -> Result<(), Violation> {
    let enforced: Vec<&ModelPolicy> = context.scenario.policies.iter().filter(|policy| !policy.dry_run).collect();
    let policy_namespaces: BTreeSet<&str> =
        enforced.iter().filter_map(|policy| policy.name.namespace.as_deref()).collect();
    if policy_namespaces.is_empty() || policy_namespaces.len() == enforced.len() {
        return Ok(());
    }

    check_nothing_is_taken_from_others(context, known, &enforced, &policy_namespaces)?;
    check_cluster_policies_hold(context, known, &enforced)
}

fn plan_of(context: &DecisionContext<'_>, policies: Vec<ModelPolicy>) -> Plan {
    step(&mut context.memory.clone(), context.wall, context.world, &policies)
}

fn unloads(plan: &Plan) -> BTreeMap<ModelKey, &Decision> {
    let live = plan.decisions.iter().filter(|decision| !decision.dry_run && decision.action == Action::Unload);
    live.map(|decision| (decision.key(), decision)).collect()
}

/// A model that a cluster policy selects leaves only if it also leaves without the policies of other namespaces, or if all
/// other models that may leave are not enough for its own rules.
fn check_nothing_is_taken_from_others(
    context: &DecisionContext<'_>,
    all: &[KnownModel<'_>],
    enforced: &[&ModelPolicy],
    policy_namespaces: &BTreeSet<&str>,
) -> Result<(), Violation> {
    let has_cluster_policy =
        |known: &&KnownModel<'_>| known.expected.as_ref().is_some_and(|rules| rules.cluster.is_some());
    let leaving: Vec<&KnownModel<'_>> = all.iter().filter(|known| known.leaves()).filter(has_cluster_policy).collect();
    let namespaces: BTreeSet<&str> = leaving.iter().map(|known| known.model.key.server.namespace()).collect();
    for namespace in namespaces.into_iter().filter(|own| policy_namespaces.iter().any(|tenant| tenant != own)) {
        let own = |policy: &&&ModelPolicy| policy.name.namespace.as_deref().is_none_or(|other| other == namespace);
        let alone = plan_of(context, enforced.iter().filter(own).map(|policy| (*policy).clone()).collect());
        let alone = unloads(&alone);
        for known in leaving.iter().filter(|known| known.model.key.server.namespace() == namespace) {
            ensure(alone.contains_key(&known.model.key) || others_are_not_enough(context, known, all), || {
                format!("leaves for the policies of another namespace: {:?}", known.decision)
            })?;
        }
    }

    Ok(())
}

fn others_are_not_enough(context: &DecisionContext<'_>, known: &KnownModel<'_>, all: &[KnownModel<'_>]) -> bool {
    let (Some(decision), Some(expected), Some(gpu)) = (known.decision, &known.expected, known.gpu) else {
        return false;
    };
    let others = gpu.available_bytes() + freed_bytes(context, decision) - known.model.sample.vram_bytes;
    match decision.reason {
        DecisionReason::IdleTimeout | DecisionReason::OnDemand => true,
        DecisionReason::HardPressure => expected.hard_target().is_some_and(|target| others < target),
        DecisionReason::SoftPressure => expected.soft_target().is_some_and(|target| others < target),
        // The budget of a cluster policy; that of another namespace does not count this model.
        DecisionReason::OverBudget => decision.policy.starts_with('/'),
        DecisionReason::MakeRoom => all.iter().any(|waiting| {
            let has_cluster_policy = waiting.expected.as_ref().is_some_and(|rules| rules.cluster.is_some());
            has_cluster_policy
                && waiting.model.sample.state == ResidencyState::WaitingForMemory
                && waiting.model.sample.gpu == known.model.sample.gpu
        }),
        _ => false,
    }
}

/// A model that leaves under the cluster policies alone also leaves with those of the namespaces: for an idle timeout that
/// a cluster policy writes always, for hard pressure unless other models have relieved it. A `minLoaded` of a cluster
/// policy may keep a model when others have left, so such worlds are left out.
fn check_cluster_policies_hold(
    context: &DecisionContext<'_>,
    known: &[KnownModel<'_>],
    enforced: &[&ModelPolicy],
) -> Result<(), Violation> {
    let is_cluster = |policy: &&&ModelPolicy| policy.name.namespace.is_none();
    let cluster_policies: Vec<ModelPolicy> =
        enforced.iter().filter(is_cluster).map(|policy| (*policy).clone()).collect();
    if cluster_policies.iter().any(|policy| policy.asks.min_loaded.is_some_and(|count| count > 0)) {
        return Ok(());
    }

    let alone = plan_of(context, cluster_policies);
    for (key, decision) in unloads(&alone) {
        let Some(known) = known.iter().find(|known| known.model.key == key) else { continue };
        let relieved = || {
            let Some(gpu) = known.gpu else { return false };
            let freed = freed_bytes(context, decision);
            let policy = enforced.iter().find(|policy| policy.name.to_string() == decision.policy);
            let below = policy.and_then(|policy| policy.asks.hard_below?.bytes(Some(gpu.total_bytes)));
            below.is_some_and(|below| gpu.available_bytes() + freed >= below)
        };

        let timeout_written = || {
            let selecting = known.expected.iter().flat_map(|expected| &expected.policies);
            let mut asks = selecting.map(|&at| &context.scenario.policies[at]).filter(|p| p.name.namespace.is_none());
            asks.any(|policy| policy.asks.idle_timeout.is_some())
        };

        let stays = match decision.reason {
            DecisionReason::IdleTimeout => !known.leaves() && timeout_written(),
            DecisionReason::OnDemand => !known.leaves(),
            // A busy model may wait until a sample shows what the models that leave now have freed.
            DecisionReason::HardPressure => {
                let waits = known.model.is_busy() && freed_bytes(context, decision) > 0;
                !known.leaves() && !relieved() && !waits
            }
            _ => false,
        };

        ensure(!stays, || format!("stays against the cluster policies, which decide {decision:?}"))?;
    }

    Ok(())
}

/// The memory in bytes that the plan frees on the GPU of this decision.
fn freed_bytes(context: &DecisionContext<'_>, decision: &Decision) -> u64 {
    let here = unloads(context.plan).into_values().filter(|other| other.gpu == decision.gpu);
    here.map(|other| other.vram_bytes).sum()
}
