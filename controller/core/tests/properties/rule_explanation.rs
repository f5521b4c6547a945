//! The explanation of the rules agrees with the plan.

use hush_core::{FieldValue, RuleExplanation, StepMemory, explain_rules, step};
use proptest::prelude::*;

use crate::support::{at, policies, worlds};

fn value(explanation: &RuleExplanation, field: &str) -> Option<(FieldValue, Option<String>)> {
    explanation.terms.iter().find(|term| term.field == field).map(|term| (term.value, term.policy.clone()))
}

proptest! {
    #[test]
    fn an_explanation_agrees_with_the_plan(world in worlds(), policies in policies()) {
        let plan = step(&mut StepMemory::default(), at(0), &world, &policies);
        for planned in &plan.models {
            let model = world.models.iter().find(|m| m.key.server == planned.server && m.key.model == planned.model);
            let explained = explain_rules(at(0), &world, &policies, model.unwrap());
            let in_force: Vec<_> = explained.policies.iter().filter(|p| !p.dry_run).map(|p| p.policy.clone()).collect();
            let Some(rules) = planned.rules.map(|rules| &plan.rules[rules]) else {
                prop_assert!(in_force.is_empty() && explained.terms.is_empty());
                continue;
            };

            prop_assert_eq!(&rules.policies, &in_force);
            for (field, expected, by) in [
                ("residency.mode", FieldValue::Mode(rules.residency.value), &rules.residency.policy),
                ("priority", FieldValue::Number(rules.priority.value.into()), &rules.priority.policy),
            ] {
                let (value, policy) = value(&explained, field).unwrap();
                prop_assert_eq!(value, expected);
                prop_assert!(policy.is_none_or(|policy| policy == *by));
            }

            let expected = [FieldValue::Milliseconds(rules.min_resident_ms), FieldValue::Number(rules.min_loaded.into())];
            let found = ["residency.minResident", "minLoaded"].map(|field| value(&explained, field).unwrap().0);
            prop_assert_eq!(found, expected);
        }
    }

    #[test]
    fn every_policy_that_asks_is_named(world in worlds(), policies in policies()) {
        for model in &world.models {
            let explained = explain_rules(at(0), &world, &policies, model);
            for term in &explained.terms {
                let mut named: Vec<_> = term.others.iter().map(|asked| &asked.policy).chain(&term.policy).collect();
                named.sort();
                let before = named.len();
                named.dedup();
                prop_assert_eq!(before, named.len(), "each policy is named once");
                prop_assert!(named.iter().all(|name| explained.policies.iter().any(|policy| policy.policy == **name)));
            }

            let asking = policies.iter().filter(|policy| policy.asks.priority.is_some());
            let asking = asking.filter(|p| explained.policies.iter().any(|matching| matching.policy == p.name.to_string())).count();
            let priority = explained.terms.iter().find(|term| term.field == "priority");

            // A cluster policy whose default holds is named although it does not ask.
            let named = priority.map_or(asking, |term| {
                term.others.len() + usize::from(term.policy.is_some() && !term.by_default)
            });
            prop_assert_eq!(named, asking);
        }
    }
}
