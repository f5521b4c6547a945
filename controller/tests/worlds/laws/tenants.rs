//! What the policies of a namespace cannot do: take from the models of others, and keep their own beyond the operator's
//! floor. Each is seen by deciding again, on the same samples and with the same memory, without some policies.

use std::collections::{BTreeMap, BTreeSet};

use hush_core::{Action, Decision, ModelKey, ModelPolicy, Plan, Reason, ResidencyState, step};

use super::{Broken, Known, Moment, ensure};

pub fn check(moment: &Moment<'_>, known: &[Known<'_>]) -> Result<(), Broken> {
    let enforced: Vec<&ModelPolicy> = moment.scenario.policies.iter().filter(|policy| !policy.dry_run).collect();
    let tenants: BTreeSet<&str> = enforced.iter().filter_map(|policy| policy.name.namespace.as_deref()).collect();
    if tenants.is_empty() || tenants.len() == enforced.len() {
        return Ok(());
    }
    nothing_is_taken_from_others(moment, known, &enforced, &tenants)?;
    nothing_outlives_the_floor(moment, known, &enforced)
}

fn plan_of(moment: &Moment<'_>, policies: Vec<ModelPolicy>) -> Plan {
    step(&mut moment.memory.clone(), moment.wall, moment.world, &policies)
}

fn unloads(plan: &Plan) -> BTreeMap<ModelKey, &Decision> {
    let live = plan.decisions.iter().filter(|decision| !decision.dry_run && decision.action == Action::Unload);
    live.map(|decision| (decision.key(), decision)).collect()
}

/// A model under the floor leaves only if it leaves too without the policies of other namespaces, or if all others that
/// may leave are not enough for what its own rules ask.
fn nothing_is_taken_from_others(
    moment: &Moment<'_>,
    all: &[Known<'_>],
    enforced: &[&ModelPolicy],
    tenants: &BTreeSet<&str>,
) -> Result<(), Broken> {
    let under_the_floor = |known: &&Known<'_>| known.expected.as_ref().is_some_and(|rules| rules.operator.is_some());
    let leaving: Vec<&Known<'_>> = all.iter().filter(|known| known.leaves()).filter(under_the_floor).collect();
    let namespaces: BTreeSet<&str> = leaving.iter().map(|known| known.model.key.server.namespace()).collect();
    for namespace in namespaces.into_iter().filter(|own| tenants.iter().any(|tenant| tenant != own)) {
        let own = |policy: &&&ModelPolicy| policy.name.namespace.as_deref().is_none_or(|other| other == namespace);
        let alone = plan_of(moment, enforced.iter().filter(own).map(|policy| (*policy).clone()).collect());
        let alone = unloads(&alone);
        for known in leaving.iter().filter(|known| known.model.key.server.namespace() == namespace) {
            ensure(alone.contains_key(&known.model.key) || others_are_not_enough(moment, known, all), || {
                format!("leaves for the policies of another namespace: {:?}", known.decision)
            })?;
        }
    }
    Ok(())
}

fn others_are_not_enough(moment: &Moment<'_>, known: &Known<'_>, all: &[Known<'_>]) -> bool {
    let (Some(decision), Some(expected), Some(gpu)) = (known.decision, &known.expected, known.gpu) else {
        return false;
    };
    let others = gpu.available_bytes() + freed_bytes(moment, decision) - known.model.vram_bytes;
    match decision.reason {
        Reason::IdleTimeout | Reason::OnDemand => true,
        Reason::HardPressure => expected.hard_target().is_some_and(|target| others < target),
        Reason::SoftPressure => expected.soft_target().is_some_and(|target| others < target),
        // The operator's own budget; that of another namespace does not count this model.
        Reason::OverBudget => decision.policy.starts_with('/'),
        Reason::MakeRoom => all.iter().any(|waiting| {
            let under_the_floor = waiting.expected.as_ref().is_some_and(|rules| rules.operator.is_some());
            under_the_floor
                && waiting.model.state == ResidencyState::WaitingForMemory
                && waiting.model.gpu == known.model.gpu
        }),
        _ => false,
    }
}

/// What leaves under the operator's policies alone leaves with those of the namespaces too: for an idle timeout that one of
/// them writes in any case, for hard pressure unless others have relieved it. A `minLoaded` of the operator's may keep a
/// model when others have left.
fn nothing_outlives_the_floor(
    moment: &Moment<'_>,
    known: &[Known<'_>],
    enforced: &[&ModelPolicy],
) -> Result<(), Broken> {
    let cluster = |policy: &&&ModelPolicy| policy.name.namespace.is_none();
    let floor: Vec<ModelPolicy> = enforced.iter().filter(cluster).map(|policy| (*policy).clone()).collect();
    if floor.iter().any(|policy| policy.asks.min_loaded.is_some_and(|count| count > 0)) {
        return Ok(());
    }
    let alone = plan_of(moment, floor);
    for (key, decision) in unloads(&alone) {
        let Some(known) = known.iter().find(|known| known.model.key == key) else { continue };
        let relieved = || {
            let Some(gpu) = known.gpu else { return false };
            let freed = freed_bytes(moment, decision);
            let policy = enforced.iter().find(|policy| policy.name.to_string() == decision.policy);
            let below = policy.and_then(|policy| policy.asks.hard_below?.bytes(Some(gpu.total_bytes)));
            below.is_some_and(|below| gpu.available_bytes() + freed >= below)
        };
        let timeout_written = || {
            let selecting = known.expected.iter().flat_map(|expected| &expected.policies);
            let mut asks = selecting.map(|&at| &moment.scenario.policies[at]).filter(|p| p.name.namespace.is_none());
            asks.any(|policy| policy.asks.idle_timeout.is_some())
        };
        let stays = match decision.reason {
            Reason::IdleTimeout => !known.leaves() && timeout_written(),
            Reason::OnDemand => !known.leaves(),
            // A busy model may wait for what the next sample shows of others that leave now.
            Reason::HardPressure => {
                let waits = known.model.is_busy() && freed_bytes(moment, decision) > 0;
                !known.leaves() && !relieved() && !waits
            }
            _ => false,
        };
        ensure(!stays, || format!("outlives the floor, which says {decision:?}"))?;
    }
    Ok(())
}

/// What the plan frees on the card of this decision.
fn freed_bytes(moment: &Moment<'_>, decision: &Decision) -> u64 {
    let here = unloads(moment.plan).into_values().filter(|other| other.gpu == decision.gpu);
    here.map(|other| other.vram_bytes).sum()
}
