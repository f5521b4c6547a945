//! Writes a policy of the core as YAML, which users edit to see what would change.

use std::fmt::Write;
use std::time::Duration;

use hush_core as core;
use hush_crds::{
    AmountText, ClusterGpuModelPolicySpec, DurationText, GpuModelPolicySpec, Hard, LabelExpression, LabelOperator,
    LabelSelector, Mode, Pressure, Residency, ResidencyMode, Soft, Window,
};
use serde::Serialize;

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

/// The YAML of an object that reads back as the same policy.
pub fn to_yaml(policy: &core::Policy) -> Result<String, serde_yaml::ser_error::Error> {
    let metadata = PolicyMetadata { name: policy.name.name.clone(), namespace: policy.name.namespace.clone() };
    let api_version = hush_crds::API_VERSION;
    let spec = spec(policy);

    if policy.name.namespace.is_some() {
        return serde_yaml::to_string(&PolicyYaml { api_version, kind: "GpuModelPolicy", metadata, spec });
    }

    let spec = ClusterGpuModelPolicySpec {
        selector: spec.selector,
        namespace_selector: policy.namespace_selector.as_ref().map(selector),
        models: spec.models,
        residency: spec.residency,
        pressure: spec.pressure,
        priority: spec.priority,
        budget: spec.budget,
        min_loaded: spec.min_loaded,
        drain_timeout: spec.drain_timeout,
        hold_after_eviction: spec.hold_after_eviction,
        mode: spec.mode,
    };
    serde_yaml::to_string(&PolicyYaml { api_version, kind: "ClusterGpuModelPolicy", metadata, spec })
}

fn spec(policy: &core::Policy) -> GpuModelPolicySpec {
    let asks = &policy.asks;
    let models = policy.models.iter().map(|glob| glob.as_str().to_owned()).collect::<Vec<_>>();

    GpuModelPolicySpec {
        selector: selector(&policy.selector),
        models: (!models.is_empty()).then_some(models),
        residency: residency(asks),
        pressure: pressure(asks),
        priority: asks.priority,
        budget: asks.budget.map(amount),
        // The definitions allow no larger values.
        min_loaded: asks.min_loaded.and_then(|count| i32::try_from(count).ok()),
        drain_timeout: asks.drain_timeout.map(duration),
        hold_after_eviction: asks.hold_after_eviction.map(duration),
        mode: if policy.dry_run { Mode::DryRun } else { Mode::Enforce },
    }
}

fn residency(asks: &core::Asks) -> Option<Residency> {
    let windows: Vec<Window> = asks.schedule.iter().map(window).collect();
    let residency = Residency {
        mode: asks.residency.map(mode),
        idle_timeout: asks.idle_timeout.map(duration),
        min_resident: asks.min_resident.map(duration),
        schedule: (!windows.is_empty()).then_some(windows),
    };

    (residency != Residency::default()).then_some(residency)
}

fn pressure(asks: &core::Asks) -> Option<Pressure> {
    let grace_period = asks.grace_period.map(duration);
    let pressure = Pressure {
        hard: asks.hard_below.map(|below| Hard { available_below: amount(below) }),
        soft: asks.soft_below.map(|below| Soft { available_below: amount(below), grace_period }),
        min_reclaim: asks.min_reclaim.map(amount),
        transition_period: asks.transition_period.map(duration),
    };

    (pressure != Pressure::default()).then_some(pressure)
}

fn window(window: &core::Window) -> Window {
    Window {
        cron: window.cron().to_owned(),
        duration: duration(window.duration),
        time_zone: Some(window.time_zone().to_owned()),
        mode: mode(window.mode),
    }
}

const fn mode(mode: core::Residency) -> ResidencyMode {
    match mode {
        core::Residency::Resident => ResidencyMode::Resident,
        core::Residency::Idle => ResidencyMode::Idle,
        core::Residency::OnDemand => ResidencyMode::OnDemand,
        core::Residency::Adaptive => ResidencyMode::Adaptive,
    }
}

fn selector(selector: &core::Selector) -> LabelSelector {
    let expressions: Vec<_> = selector.expressions.iter().map(expression).collect();
    LabelSelector {
        match_labels: (!selector.labels.is_empty()).then(|| selector.labels.clone()),
        match_expressions: (!expressions.is_empty()).then_some(expressions),
    }
}

fn expression(expression: &core::Expression) -> LabelExpression {
    LabelExpression {
        key: expression.key.clone(),
        operator: match expression.operator {
            core::Operator::In => LabelOperator::In,
            core::Operator::NotIn => LabelOperator::NotIn,
            core::Operator::Exists => LabelOperator::Exists,
            core::Operator::DoesNotExist => LabelOperator::DoesNotExist,
        },
        values: (!expression.values.is_empty()).then(|| expression.values.clone()),
    }
}

/// Bytes in the largest unit that divides them.
fn amount(amount: core::Amount) -> AmountText {
    let bytes = match amount {
        core::Amount::Percent(share) => return AmountText(format!("{share}%")),
        core::Amount::Bytes(bytes) => bytes,
    };
    let units = [("Ti", 40), ("Gi", 30), ("Mi", 20), ("Ki", 10), ("", 0)];
    let whole = units.into_iter().find(|(_, shift)| bytes % (1 << shift) == 0);
    let (unit, shift) = whole.unwrap_or(("", 0));

    AmountText(format!("{}{unit}", bytes >> shift))
}

/// Such as `1h30m`.
fn duration(duration: Duration) -> DurationText {
    let mut rest = duration.as_millis();
    let mut text = String::new();

    for (unit, millis) in [("h", 3_600_000), ("m", 60_000), ("s", 1000), ("ms", 1)] {
        if rest >= millis {
            // Writing to a string does not fail.
            let _ = write!(text, "{}{unit}", rest / millis);
            rest %= millis;
        }
    }
    DurationText(if text.is_empty() { "0s".to_owned() } else { text })
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
}
