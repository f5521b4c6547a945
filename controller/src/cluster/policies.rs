//! Policies as the API server keeps them.

use hush_core::{Policy, PolicyName};
use hush_crds::{
    ClusterGpuModelPolicy, ClusterGpuModelPolicySpec, GpuModelPolicy, GpuModelPolicySpec, Invalid, PolicyStatus,
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

/// Spec and status are read apart: a spec that cannot be read takes no status with it.
type RawPolicy = Object<Value, Value>;

/// What is wrong with a policy, for its status, an Event and the log.
const PROBLEM_MAX_CHARS: usize = 900;

/// What is kept of one.
#[derive(Clone, Debug, PartialEq)]
pub struct PolicyObject {
    pub uid: String,
    /// Grows with each change of the spec.
    pub generation: i64,
    /// `Err`: what is wrong with it, for its owner.
    pub policy: Result<Policy, String>,
    /// What holds. After an edit that is not valid: the generation before it.
    pub enforced: Option<Enforced>,
    /// As it was last written.
    pub status: PolicyStatus,
}

/// A valid generation of a policy.
#[derive(Clone, Debug, PartialEq)]
pub struct Enforced {
    pub generation: i64,
    pub policy: Policy,
    /// Its spec as JSON, from which another controller can read it again.
    pub spec: String,
}

pub fn namespaced(client: &Client) -> Mirror<RawPolicy, PolicyName, PolicyObject> {
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

pub fn cluster(client: &Client) -> Mirror<RawPolicy, PolicyName, PolicyObject> {
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

type Build<S> = fn(ObjectMeta, S) -> Result<Policy, Vec<Invalid>>;

fn keep<S: DeserializeOwned>(object: &RawPolicy, build: Build<S>) -> (PolicyName, PolicyObject) {
    let name = PolicyName { namespace: object.namespace(), name: object.name_any() };
    let status: PolicyStatus = object.status.clone().and_then(|status| read(status).ok()).unwrap_or_default();
    let generation = object.metadata.generation.unwrap_or_default();
    let policy = policy(&object.metadata, object.spec.clone(), build);
    let enforced = match &policy {
        Ok(policy) => Some(Enforced { generation, policy: policy.clone(), spec: object.spec.to_string() }),
        Err(_) => written_down(&object.metadata, &status, build),
    };
    (name, PolicyObject { uid: object.uid().unwrap_or_default(), generation, policy, enforced, status })
}

fn read<T: DeserializeOwned>(value: Value) -> Result<T, String> {
    serde_json::from_value(value).map_err(|error| error.to_string())
}

fn policy<S: DeserializeOwned>(metadata: &ObjectMeta, spec: Value, build: Build<S>) -> Result<Policy, String> {
    let metadata =
        ObjectMeta { name: metadata.name.clone(), namespace: metadata.namespace.clone(), ..ObjectMeta::default() };
    let built = read(spec).and_then(|spec| {
        build(metadata, spec).map_err(|found| found.iter().map(Invalid::to_string).collect::<Vec<_>>().join("; "))
    });
    // It repeats what the policy's owner wrote.
    built.map_err(|problem| printable(&problem, PROBLEM_MAX_CHARS))
}

/// The last valid generation as a controller before this one wrote it into the status.
fn written_down<S: DeserializeOwned>(
    metadata: &ObjectMeta,
    status: &PolicyStatus,
    build: Build<S>,
) -> Option<Enforced> {
    let spec = status.enforced_spec.clone()?;
    let policy = policy(metadata, serde_json::from_str(&spec).ok()?, build).ok()?;
    Some(Enforced { generation: status.enforced_generation?, policy, spec })
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
        let build: Build<GpuModelPolicySpec> =
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
    fn what_holds_after_an_edit_that_is_not_valid() {
        let now = kept(&valid(7), &json!({}));
        assert_eq!(now.enforced.as_ref().map(|enforced| enforced.generation), Some(3));

        let status = json!({"enforcedGeneration": 2, "enforcedSpec": valid(5).to_string()});
        // An edit that cannot be read at all takes the status with it as little as one that means nothing.
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
