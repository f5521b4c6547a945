//! Where each value that governs a model comes from: what every policy that selects it asks for, and what holds.

use jiff::Timestamp;
use serde::Serialize;

use crate::merge::residency_at;
use crate::policy::ModelPolicy;
use crate::policy_fields::{DEFAULT_RESIDENCY, FieldValue, MergedSpec, POLICY_FIELDS, PolicyField};
use crate::world::{Labels, ObservedModel, World};

/// Every policy that selects a model, and for each field the value that holds.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct RuleExplanation {
    /// Ordered by name.
    pub policies: Vec<MatchingPolicy>,
    /// Empty when no policy selects the model, or only policies in dry run do.
    pub terms: Vec<FieldExplanation>,
}

/// A policy that selects the model.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct MatchingPolicy {
    pub policy: String,
    /// The policy does not take part in what holds.
    pub dry_run: bool,
    /// One of its windows is open and sets its residency.
    pub window_open: bool,
    /// The policy's own budget: budgets are not merged.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub budget_bytes: Option<u64>,
}

/// One field of the rules.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct FieldExplanation {
    /// As it is written in the spec.
    pub field: &'static str,
    /// The value that holds.
    pub value: FieldValue,
    /// The policy whose value holds; `None`: no policy sets the field, and the default holds.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub policy: Option<String>,
    /// The policy is a cluster policy and does not write the field: its default bounds what other policies ask for.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub by_default: bool,
    /// What the other policies ask for, those in dry run too, ordered by name.
    pub others: Vec<RequestedValue>,
}

/// The value that one policy asks for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct RequestedValue {
    pub value: FieldValue,
    pub policy: String,
}

/// `model` is one of `world`.
pub fn explain_rules(
    now: Timestamp,
    world: &World,
    policies: &[ModelPolicy],
    model: &ObservedModel,
) -> RuleExplanation {
    let no_labels = Labels::new();
    let labels = world.namespaces.get(model.key.server.namespace()).unwrap_or(&no_labels);
    let gpu = model.sample.gpu.as_ref().and_then(|gpu| world.gpus.iter().find(|other| other.uuid == *gpu));
    let total = gpu.map(|gpu| gpu.total_bytes);

    let mut matching: Vec<&ModelPolicy> = policies.iter().filter(|policy| policy.selects(model, labels)).collect();
    matching.sort_by(|a, b| a.name.cmp(&b.name));
    let residencies: Vec<_> = matching.iter().map(|policy| residency_at(policy, now)).collect();

    let written = matching.iter().enumerate();
    let written: Vec<MergedSpec> =
        written.map(|(index, policy)| MergedSpec::of_spec(index, &policy.asks, residencies[index], total)).collect();
    let enforced = (0..matching.len()).filter(|&index| !matching[index].dry_run);
    let merged = enforced
        .map(|index| MergedSpec::of_policy(index, matching[index], residencies[index], total))
        .reduce(|a, b| a.merge(&b));
    let terms = merged.map(|merged| explain_fields(&matching, &written, &merged)).unwrap_or_default();

    let policies = matching.iter().zip(&residencies).map(|(policy, residency)| MatchingPolicy {
        policy: policy.name.to_string(),
        dry_run: policy.dry_run,
        window_open: residency.is_some_and(|residency| residency.by_window),
        budget_bytes: policy.asks.budget.and_then(|budget| budget.bytes(total)),
    });
    RuleExplanation { policies: policies.collect(), terms }
}

/// `written`: what each of the matching policies asks for. `merged`: what holds.
fn explain_fields(matching: &[&ModelPolicy], written: &[MergedSpec], merged: &MergedSpec) -> Vec<FieldExplanation> {
    let residency = merged.residency.map_or(DEFAULT_RESIDENCY, |residency| residency.value);
    let name = |index: usize| matching[index].name.to_string();

    let explain_field = |field: &PolicyField| {
        let winner = (field.picked)(merged);
        let value = winner.map(|winner| winner.value).or_else(|| (field.default)(residency))?;
        let by_default = winner.is_some_and(|winner| (field.picked)(&written[winner.policy]).is_none());

        let requested = written.iter().filter_map(field.picked);
        let others = requested.filter(|requested| winner.is_none_or(|winner| winner.policy != requested.policy));
        let others = others.map(|other| RequestedValue { value: other.value, policy: name(other.policy) }).collect();

        let policy = winner.map(|winner| name(winner.policy));
        Some(FieldExplanation { field: field.path, value, policy, by_default, others })
    };

    POLICY_FIELDS.iter().filter_map(explain_field).collect()
}
