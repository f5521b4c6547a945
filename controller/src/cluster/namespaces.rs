//! The labels of namespaces, for the `namespaceSelector` of cluster policies.

use hush_core::Labels;
use k8s_openapi::api::core::v1::Namespace;
use kube::core::PartialObjectMeta;
use kube::runtime::watcher;
use kube::{Api, Client, ResourceExt};

use super::mirror::Mirror;

pub fn mirror(client: &Client) -> Mirror<PartialObjectMeta<Namespace>, String, Labels> {
    Mirror {
        part: "namespaces",
        what: "namespaces",
        api: Api::all(client.clone()),
        config: watcher::Config::default(),
        keep: |namespace| (namespace.name_any(), namespace.labels().clone()),
    }
}
