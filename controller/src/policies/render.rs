//! Writes a policy of the core as YAML, which users edit to see what would change.

use hush_core as core;
use hush_crds::{
    ClusterGpuModelPolicySpec, GpuModelPolicySpec, LabelExpression, LabelOperator, LabelSelector, PolicyMode,
    WarmWindowSpec,
};
use serde::Serialize;
use serde_json::{Map, Value};

use super::spec_fields::{self, format_duration, from_core_mode};

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct PolicyYaml<T> {
    api_version: &'static str,
    kind: &'static str,
    metadata: PolicyMetadata,
    spec: T,
}

#[derive(Serialize)]
struct PolicyMetadata {
    name: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    namespace: Option<String>,
}

/// Why a policy cannot be written.
#[derive(Debug, thiserror::Error)]
pub enum RenderError {
    #[error(transparent)]
    Fields(#[from] serde_json::Error),
    #[error(transparent)]
    Yaml(#[from] serde_yaml::ser_error::Error),
}

/// The YAML of an object that reads back as the same policy.
pub fn to_yaml(policy: &core::ModelPolicy) -> Result<String, RenderError> {
    let metadata = PolicyMetadata { name: policy.name.name.clone(), namespace: policy.name.namespace.clone() };
    let api_version = hush_crds::API_VERSION;
    let mut spec = spec(policy)?;

    // The types of the definitions give the fields their order.
    let yaml = if policy.name.namespace.is_some() {
        let spec: GpuModelPolicySpec = serde_json::from_value(Value::Object(spec))?;
        serde_yaml::to_string(&PolicyYaml { api_version, kind: "GpuModelPolicy", metadata, spec })?
    } else {
        if let Some(namespaces) = &policy.namespace_selector {
            spec_fields::insert(&mut spec, "namespaceSelector", serde_json::to_value(selector(namespaces))?);
        }
        let spec: ClusterGpuModelPolicySpec = serde_json::from_value(Value::Object(spec))?;
        serde_yaml::to_string(&PolicyYaml { api_version, kind: "ClusterGpuModelPolicy", metadata, spec })?
    };
    Ok(yaml)
}

/// The fields that both kinds have.
fn spec(policy: &core::ModelPolicy) -> Result<Map<String, Value>, serde_json::Error> {
    let mut spec = spec_fields::write(&policy.asks)?;
    spec_fields::insert(&mut spec, "selector", serde_json::to_value(selector(&policy.selector))?);

    if !policy.models.is_empty() {
        let models = policy.models.iter().map(|glob| Value::from(glob.as_str())).collect();
        spec_fields::insert(&mut spec, "models", models);
    }
    if !policy.asks.schedule.is_empty() {
        let windows: Vec<WarmWindowSpec> = policy.asks.schedule.iter().map(window).collect();
        spec_fields::insert(&mut spec, "residency.schedule", serde_json::to_value(windows)?);
    }

    let mode = if policy.dry_run { PolicyMode::DryRun } else { PolicyMode::Enforce };
    spec_fields::insert(&mut spec, "mode", serde_json::to_value(mode)?);
    Ok(spec)
}

fn window(window: &core::WarmWindow) -> WarmWindowSpec {
    WarmWindowSpec {
        cron: window.cron().to_owned(),
        duration: format_duration(window.duration),
        time_zone: Some(window.time_zone().to_owned()),
        mode: from_core_mode(window.mode),
    }
}

fn selector(selector: &core::Selector) -> LabelSelector {
    let expressions: Vec<_> = selector.expressions.iter().map(expression).collect();
    LabelSelector {
        match_labels: (!selector.labels.is_empty()).then(|| selector.labels.clone()),
        match_expressions: (!expressions.is_empty()).then_some(expressions),
    }
}

fn expression(expression: &core::SelectorExpression) -> LabelExpression {
    LabelExpression {
        key: expression.key.clone(),
        operator: match expression.operator {
            core::SelectorOperator::In => LabelOperator::In,
            core::SelectorOperator::NotIn => LabelOperator::NotIn,
            core::SelectorOperator::Exists => LabelOperator::Exists,
            core::SelectorOperator::DoesNotExist => LabelOperator::DoesNotExist,
        },
        values: (!expression.values.is_empty()).then(|| expression.values.clone()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const EVERY_FIELD: &str = r#"
apiVersion: gpu.hush.dev/v1beta1
kind: GpuModelPolicy
metadata: {name: speech, namespace: media}
spec:
  selector: {matchLabels: {app: whisper}, matchExpressions: [{key: tier, operator: In, values: [gold]}, {key: a, operator: Exists}]}
  models: ["large-*"]
  residency:
    mode: Idle
    idleTimeout: 1h0m30s500ms
    minResident: 10s
    unload: Process
    schedule: [{cron: "0 8 * * 1-5", duration: 10h, timeZone: Europe/Berlin, mode: Resident}]
  pressure:
    hard: {availableBelow: 1.5Gi}
    soft: {availableBelow: 20%, gracePeriod: 0s}
    minReclaim: 1G
    transitionPeriod: 2m
  priority: -10
  budget: "1025"
  minLoaded: 2
  drainTimeout: 30s
  holdAfterEviction: 2m
  mode: DryRun
---
apiVersion: gpu.hush.dev/v1beta1
kind: ClusterGpuModelPolicy
metadata: {name: floor}
spec:
  selector: {matchLabels: {gpu.hush.dev/server: "true"}}
  namespaceSelector: {matchLabels: {team: "yes"}}
"#;

    #[test]
    fn written_yaml_reads_back_as_the_same_policy() {
        let policies = super::super::parse(EVERY_FIELD).unwrap();
        assert_eq!(policies.len(), 2);
        for policy in policies {
            let text = to_yaml(&policy).unwrap();
            assert_eq!(super::super::parse(&text).unwrap(), [policy], "{text}");
        }
    }

    /// A field that is added to the table of the core must be in the definitions, and in the example above.
    #[test]
    fn every_field_of_the_core_is_written_and_read() {
        let policies = super::super::parse(EVERY_FIELD).unwrap();
        let written: Vec<&str> = policies[0].asks.written().map(|(path, _)| path).collect();
        let mut expected: Vec<&str> = core::POLICY_FIELDS.iter().map(|field| field.path).collect();
        expected.push("budget");
        assert_eq!(written, expected);
    }
}
