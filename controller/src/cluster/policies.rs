//! Policies as the API server stores them.

use hush_core::{ModelPolicy, PolicyKey};
use hush_crds::{
    ClusterGpuModelPolicy, ClusterGpuModelPolicySpec, GpuModelPolicy, GpuModelPolicySpec, InvalidField, PolicyStatus,
};
use hush_log::printable;
use kube::api::ObjectMeta;
use kube::core::{ApiResource, Object};
use kube::runtime::watcher;
use kube::{Api, Client, ResourceExt};
use serde::de::DeserializeOwned;
use serde_json::Value;

use super::mirror::Mirror;
use crate::policies;

/// A policy whose spec and status are not parsed yet. They are parsed apart, so that the status of a policy whose spec
/// cannot be read is still known.
type RawPolicy = Object<Value, Value>;

/// The longest problem of a policy, which goes to its status, an Event and the log.
const PROBLEM_MAX_CHARS: usize = 900;

/// The part of a policy object that is kept.
#[derive(Clone, Debug, PartialEq)]
pub struct PolicyObject {
    pub uid: String,
    /// Grows with each change of the spec.
    pub generation: i64,
    /// `Err`: what is wrong with the policy, as a text for its owner.
    pub policy: Result<ModelPolicy, String>,
    /// The generation that is enforced. After an edit that is not valid, it is the generation before it.
    pub enforced: Option<EnforcedPolicy>,
    /// The status as it was last written.
    pub status: PolicyStatus,
}

/// A valid generation of a policy.
#[derive(Clone, Debug, PartialEq)]
pub struct EnforcedPolicy {
    pub generation: i64,
    pub policy: ModelPolicy,
    /// Its spec as JSON, from which another controller can read it again.
    pub spec: String,
}

/// What is wrong with a policy.
#[derive(Debug, thiserror::Error)]
enum PolicyProblem {
    #[error(transparent)]
    Unreadable(#[from] serde_json::Error),
    #[error("{}", .0.iter().map(InvalidField::to_string).collect::<Vec<_>>().join("; "))]
    Invalid(Vec<InvalidField>),
}

pub fn namespaced(client: &Client) -> Mirror<RawPolicy, PolicyKey, PolicyObject> {
    Mirror {
        part: "policies",
        what: "GpuModelPolicies",
        api: Api::all_with(client.clone(), &ApiResource::erase::<GpuModelPolicy>(&())),
        config: watcher::Config::default(),
        keep: |object| {
            keep(object, |metadata, spec: GpuModelPolicySpec| {
                policies::namespaced(&GpuModelPolicy { metadata, spec, status: None })
            })
        },
    }
}

pub fn cluster(client: &Client) -> Mirror<RawPolicy, PolicyKey, PolicyObject> {
    Mirror {
        part: "cluster policies",
        what: "ClusterGpuModelPolicies",
        api: Api::all_with(client.clone(), &ApiResource::erase::<ClusterGpuModelPolicy>(&())),
        config: watcher::Config::default(),
        keep: |object| {
            keep(object, |metadata, spec: ClusterGpuModelPolicySpec| {
                policies::cluster(&ClusterGpuModelPolicy { metadata, spec, status: None })
            })
        },
    }
}

/// Builds and checks a policy from its metadata and its spec.
type BuildPolicy<S> = fn(ObjectMeta, S) -> Result<ModelPolicy, Vec<InvalidField>>;

fn keep<S: DeserializeOwned>(object: &RawPolicy, build: BuildPolicy<S>) -> (PolicyKey, PolicyObject) {
    let name = PolicyKey { namespace: object.namespace(), name: object.name_any() };
    let status = object.status.clone().and_then(|status| serde_json::from_value::<PolicyStatus>(status).ok());
    let status = status.unwrap_or_default();

    let generation = object.metadata.generation.unwrap_or_default();
    let policy = read_policy(&object.metadata, object.spec.clone(), build);
    let enforced = match &policy {
        Ok(policy) => Some(EnforcedPolicy { generation, policy: policy.clone(), spec: object.spec.to_string() }),
        Err(_) => enforced_in_status(&object.metadata, &status, build),
    };

    // The problem repeats text of the policy's owner.
    let policy = policy.map_err(|problem| printable(&problem.to_string(), PROBLEM_MAX_CHARS));
    (name, PolicyObject { uid: object.uid().unwrap_or_default(), generation, policy, enforced, status })
}

fn read_policy<S: DeserializeOwned>(
    metadata: &ObjectMeta,
    spec: Value,
    build: BuildPolicy<S>,
) -> Result<ModelPolicy, PolicyProblem> {
    let spec = serde_json::from_value(spec)?;
    let metadata =
        ObjectMeta { name: metadata.name.clone(), namespace: metadata.namespace.clone(), ..ObjectMeta::default() };

    build(metadata, spec).map_err(PolicyProblem::Invalid)
}

/// The last valid generation, as an earlier controller wrote it into the status.
fn enforced_in_status<S: DeserializeOwned>(
    metadata: &ObjectMeta,
    status: &PolicyStatus,
    build: BuildPolicy<S>,
) -> Option<EnforcedPolicy> {
    let spec = status.enforced_spec.clone()?;
    let policy = read_policy(metadata, serde_json::from_str(&spec).ok()?, build).ok()?;
    Some(EnforcedPolicy { generation: status.enforced_generation?, policy, spec })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn object(spec: &Value, status: &Value) -> RawPolicy {
        serde_json::from_value(json!({
            "apiVersion": "gpu.hush.dev/v1beta1", "kind": "GpuModelPolicy",
            "metadata": {"name": "p", "namespace": "a", "uid": "u", "generation": 3},
            "spec": spec, "status": status,
        }))
        .unwrap()
    }

    fn kept(spec: &Value, status: &Value) -> PolicyObject {
        let build: BuildPolicy<GpuModelPolicySpec> =
            |metadata, spec| policies::namespaced(&GpuModelPolicy { metadata, spec, status: None });
        keep(&object(spec, status), build).1
    }

    fn valid(priority: i32) -> Value {
        json!({"selector": {"matchLabels": {"app": "w"}}, "priority": priority})
    }

    fn invalid() -> Value {
        let window = json!({"cron": "0 8 * * *", "duration": "1h", "timeZone": "Mars/Olympus", "mode": "Idle"});
        json!({"selector": {"matchLabels": {"app": "w"}}, "residency": {"schedule": [window]}})
    }

    #[test]
    fn the_generation_before_an_invalid_edit_stays_enforced() {
        let now = kept(&valid(7), &json!({}));
        assert_eq!(now.enforced.as_ref().map(|enforced| enforced.generation), Some(3));

        let status = json!({"enforcedGeneration": 2, "enforcedSpec": valid(5).to_string()});
        // The status is read whether the edit can be read but is not valid, or cannot be read at all.
        for spec in [invalid(), json!({"selector": 7}), json!({"selector": {"matchLabels": {"app": "w"}}, "new": 1})] {
            let now = kept(&spec, &status);
            assert!(now.policy.is_err());
            let enforced = now.enforced.unwrap();
            assert_eq!((enforced.generation, enforced.policy.asks.priority), (2, Some(5)), "{spec}");
        }

        for status in [
            json!({}),
            json!({"enforcedGeneration": 2, "enforcedSpec": "{"}),
            json!({"enforcedGeneration": 2, "enforcedSpec": invalid().to_string()}),
        ] {
            assert_eq!(kept(&invalid(), &status).enforced, None, "{status}");
        }
    }
}
