//! What governs each model, whether there is a decision on it or not: the part of the plan for people who ask why.

use std::collections::BTreeMap;
use std::rc::Rc;

use crate::plan::{ModelPlan, RuleSet, SourcedValue};
use crate::policy_fields::{ModelRules, PickedValue};
use crate::rules::idle;
use crate::step_context::StepContext;
use crate::time::whole_milliseconds;

/// Every model in the order of its name, and each different set of rules once.
pub fn explain(step: &StepContext<'_>) -> (Vec<RuleSet>, Vec<ModelPlan>) {
    let entries = &step.table.entries;
    let mut by_name: Vec<usize> = (0..entries.len()).collect();
    by_name.sort_by_key(|&index| &entries[index].model.key);

    let mut known: BTreeMap<*const ModelRules, usize> = BTreeMap::new();
    let mut sets = Vec::new();
    let mut models = Vec::with_capacity(by_name.len());
    for index in by_name {
        let entry = step.entry(index);
        let rules = entry.rules.as_ref().map(|rules| {
            *known.entry(Rc::as_ptr(rules)).or_insert_with(|| {
                sets.push(rule_set(step, index, rules));
                sets.len() - 1
            })
        });

        let timeout = entry.rules.as_ref().and_then(|rules| idle::idle_timeout(step, index, rules));
        let idle_timeout_ms = timeout.map(|timeout| {
            let milliseconds =
                PickedValue { value: whole_milliseconds(timeout.after.value), policy: timeout.after.policy };
            sourced(step, milliseconds)
        });

        let key = &entry.model.key;
        let unload = entry.rules.as_ref().map(|rules| rules.unload().value).unwrap_or_default();
        models.push(ModelPlan {
            server: key.server.clone(),
            model: key.model.clone(),
            rules,
            idle_timeout_ms,
            process_stays: unload.is_out_of_reach(entry.model.process_ending),
        });
    }

    (sets, models)
}

fn rule_set(step: &StepContext<'_>, index: usize, rules: &ModelRules) -> RuleSet {
    let name = |policy: usize| step.table.policy_name(policy);
    RuleSet {
        policies: step.table.policies_of(step.entry(index)).iter().map(|&policy| name(policy)).collect(),
        residency: sourced(step, rules.residency()),
        window: rules.window().map(name),
        priority: sourced(step, rules.priority()),
        unload: sourced(step, rules.unload()),
        min_resident_ms: whole_milliseconds(rules.min_resident().value),
        min_loaded: rules.min_loaded().value,
    }
}

fn sourced<T>(step: &StepContext<'_>, picked: PickedValue<T>) -> SourcedValue<T> {
    SourcedValue { value: picked.value, policy: step.table.policy_name(picked.policy) }
}
