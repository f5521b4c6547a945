//! Where a policy is overruled: another policy that selects the same model is stricter.

use std::collections::{BTreeMap, BTreeSet, HashSet};

use jiff::Timestamp;

use crate::command_log::CommandLog;
use crate::merge::residency_at;
use crate::model_table::ModelTable;
use crate::policy::{ModelPolicy, PolicyKey};
use crate::policy_fields::{MergedSpec, POLICY_FIELDS};
use crate::world::World;

/// The value of `field` that `policy` writes does not hold for some model, because that of `stricter` does.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct PolicyConflict {
    pub policy: PolicyKey,
    /// As it is written in the spec.
    pub field: &'static str,
    pub stricter: PolicyKey,
}

/// Every value that is overruled now. A policy in dry run overrules no other policy; for it the result says what would
/// overrule it.
pub fn conflicts(now: Timestamp, world: &World, policies: &[ModelPolicy]) -> BTreeSet<PolicyConflict> {
    let mut sorted: Vec<&ModelPolicy> = policies.iter().collect();
    sorted.sort_by(|a, b| a.name.cmp(&b.name));

    let residencies: Vec<_> = sorted.iter().map(|policy| residency_at(policy, now)).collect();
    let no_commands = CommandLog::default();
    let table = ModelTable::new(now, world, &sorted, &no_commands, &HashSet::new());
    let totals: BTreeMap<_, _> = world.gpus.iter().map(|gpu| (&gpu.uuid, gpu.total_bytes)).collect();

    let mut compared = BTreeSet::new();
    let mut found = BTreeSet::new();
    for entry in &table.entries {
        let selecting = table.policies_of(entry);
        let total = entry.model.sample.gpu.as_ref().and_then(|gpu| totals.get(gpu)).copied();
        if !compared.insert((selecting, total)) {
            continue;
        }

        let values_of = |index: usize| MergedSpec::of_policy(index, sorted[index], residencies[index], total);
        let enforced = selecting.iter().filter(|index| !sorted[**index].dry_run);
        let Some(in_force) = enforced.map(|index| values_of(*index)).reduce(|a, b| a.merge(&b)) else { continue };

        for &own in selecting {
            // A default that the policy does not write cannot be overruled.
            let written = MergedSpec::of_spec(own, &sorted[own].asks, residencies[own], total);
            let merged = in_force.merge(&values_of(own));
            let overruled =
                POLICY_FIELDS.iter().filter_map(|field| Some((field.path, (field.overruled_by)(&written, &merged)?)));

            found.extend(overruled.map(|(field, stricter)| PolicyConflict {
                policy: sorted[own].name.clone(),
                field,
                stricter: sorted[stricter].name.clone(),
            }));
        }
    }

    found
}
