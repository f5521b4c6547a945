//! Policies as the API server keeps them.

use hush_core::{Policy, PolicyName};
use hush_crds::{ClusterGpuModelPolicy, GpuModelPolicy, Invalid, PolicyStatus};
use kube::core::DeserializeGuard;
use kube::runtime::watcher;
use kube::{Api, Client, Resource, ResourceExt};

use super::mirror::Mirror;
use crate::policies;

/// What is kept of one.
#[derive(Clone, Debug, PartialEq)]
pub struct PolicyObject {
    pub uid: String,
    /// Grows with each change of the spec.
    pub generation: i64,
    /// `Err`: what is wrong with it, for its owner.
    pub policy: Result<Policy, String>,
    /// As it was last written.
    pub status: PolicyStatus,
}

pub fn namespaced(client: &Client) -> Mirror<DeserializeGuard<GpuModelPolicy>, PolicyName, PolicyObject> {
    Mirror {
        part: "policies",
        what: "GpuModelPolicies",
        api: Api::all(client.clone()),
        config: watcher::Config::default(),
        keep: |object| keep(object, policies::namespaced, |policy| policy.status.clone()),
    }
}

pub fn cluster(client: &Client) -> Mirror<DeserializeGuard<ClusterGpuModelPolicy>, PolicyName, PolicyObject> {
    Mirror {
        part: "cluster policies",
        what: "ClusterGpuModelPolicies",
        api: Api::all(client.clone()),
        config: watcher::Config::default(),
        keep: |object| keep(object, policies::cluster, |policy| policy.status.clone()),
    }
}

fn keep<K: Resource>(
    object: &DeserializeGuard<K>,
    read: fn(&K) -> Result<Policy, Vec<Invalid>>,
    status: fn(&K) -> Option<PolicyStatus>,
) -> (PolicyName, PolicyObject)
where
    DeserializeGuard<K>: ResourceExt,
{
    let name = PolicyName { namespace: object.namespace(), name: object.name_any() };
    let (policy, status) = match &object.0 {
        Ok(whole) => {
            let complaints = |found: Vec<Invalid>| found.iter().map(Invalid::to_string).collect::<Vec<_>>().join("; ");
            (read(whole).map_err(complaints), status(whole).unwrap_or_default())
        }
        // Its status was not read either: it is written anew.
        Err(error) => (Err(error.to_string()), PolicyStatus::default()),
    };
    let meta = object.meta();
    let generation = meta.generation.unwrap_or_default();
    (name, PolicyObject { uid: meta.uid.clone().unwrap_or_default(), generation, policy, status })
}
