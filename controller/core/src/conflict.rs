//! Where a policy is overruled: another that selects the same model is stricter.

use std::collections::{BTreeSet, HashSet};

use jiff::Timestamp;

use crate::fleet::Fleet;
use crate::memory::Work;
use crate::merge::{Merged, Pick, mode_at};
use crate::policy::{Policy, PolicyName};
use crate::world::World;

/// `field` of `policy` does not hold for some model, because that of `stricter` does.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Conflict {
    pub policy: PolicyName,
    /// As it is written in the spec.
    pub field: &'static str,
    pub stricter: PolicyName,
}

/// Everything that is overruled now. A policy in dry run overrules nobody, and is shown what would overrule it.
pub fn conflicts(now: Timestamp, world: &World, policies: &[Policy]) -> BTreeSet<Conflict> {
    let mut sorted: Vec<&Policy> = policies.iter().collect();
    sorted.sort_by(|a, b| a.name.cmp(&b.name));
    let modes: Vec<_> = sorted.iter().map(|policy| mode_at(policy, now)).collect();
    let work = Work::default();
    let fleet = Fleet::new(now, world, &sorted, &work, &HashSet::new());
    let totals: std::collections::BTreeMap<_, _> = world.gpus.iter().map(|gpu| (&gpu.uuid, gpu.total_bytes)).collect();
    let mut looked_at = BTreeSet::new();
    let mut found = BTreeSet::new();
    for member in &fleet.members {
        let (set, total) = (fleet.set(member), member.model.gpu.as_ref().and_then(|gpu| totals.get(gpu)).copied());
        if !looked_at.insert((set, total)) {
            continue;
        }
        let takes_part = |&policy: &usize| Merged::of_policy(policy, sorted[policy], modes[policy], total);
        for own in set {
            let enforced = set.iter().filter(|policy| !sorted[**policy].dry_run);
            let Some(merged) = enforced.map(takes_part).reduce(|a, b| a.merge(&b)) else { continue };
            // A default that stands in no policy is not overruled.
            let written = Merged::of(*own, &sorted[*own].asks, modes[*own], total);
            let overruled = overruled(&written, &merged.merge(&takes_part(own)));
            found.extend(overruled.into_iter().map(|(field, stricter)| Conflict {
                policy: sorted[*own].name.clone(),
                field,
                stricter: sorted[stricter].name.clone(),
            }));
        }
    }
    found
}

/// Each field that `own` asks for and of which another value holds, with the policy whose value that is.
fn overruled(own: &Merged, merged: &Merged) -> Vec<(&'static str, usize)> {
    fn other<T: PartialEq>(own: Option<Pick<T>>, merged: Option<Pick<T>>) -> Option<usize> {
        let (own, merged) = (own?, merged?);
        (own.value != merged.value).then_some(merged.policy)
    }
    let fields = [
        ("residency.mode", other(own.residency, merged.residency)),
        ("residency.idleTimeout", other(own.idle_timeout, merged.idle_timeout)),
        ("residency.minResident", other(own.min_resident, merged.min_resident)),
        ("pressure.hard.availableBelow", other(own.hard_below, merged.hard_below)),
        ("pressure.soft.availableBelow", other(own.soft_below, merged.soft_below)),
        ("pressure.soft.gracePeriod", other(own.grace_period, merged.grace_period)),
        ("pressure.minReclaim", other(own.min_reclaim, merged.min_reclaim)),
        ("pressure.transitionPeriod", other(own.transition_period, merged.transition_period)),
        ("priority", other(own.priority, merged.priority)),
        ("minLoaded", other(own.min_loaded, merged.min_loaded)),
        ("drainTimeout", other(own.drain_timeout, merged.drain_timeout)),
        ("holdAfterEviction", other(own.hold_after_eviction, merged.hold_after_eviction)),
    ];
    fields.into_iter().filter_map(|(field, policy)| Some((field, policy?))).collect()
}
