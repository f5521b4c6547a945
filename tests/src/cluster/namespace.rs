//! A namespace of a test and what it puts there.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::sync::atomic::{AtomicUsize, Ordering};

use anyhow::{Context, Result};
use k8s_openapi::api::authentication::v1::{BoundObjectReference, TokenRequest, TokenRequestSpec};
use k8s_openapi::api::core::v1 as core;
use kube::api::{DeleteParams, Patch, PatchParams, PostParams};
use kube::{Api, Client};
use serde_json::json;

use super::plane::ControlPlane;

/// With the value `true`: a controller looks for servers in this namespace.
pub const SERVERS_LABEL: &str = "gpu.hush.dev/servers";

/// A name that no other test uses, since tests share an API server.
pub struct Namespace {
    pub name: String,
    client: Client,
}

/// A pod that runs where a process of the test listens.
pub struct PodAt<'a> {
    pub name: &'a str,
    pub node: &'a str,
    /// Its service account.
    pub account: &'a str,
    pub labels: &'a [(&'a str, &'a str)],
    /// `gpu.hush.dev/ops-port`, or whatever the test wants to be read.
    pub annotations: &'a [(&'a str, &'a str)],
    /// Name and number.
    pub ports: &'a [(&'a str, u16)],
    /// A loopback address.
    pub ip: Ipv4Addr,
}

impl ControlPlane {
    /// A new namespace whose name begins with `prefix`. The operator has chosen that it may hold servers, unless the labels
    /// say something else about it.
    pub async fn namespace(&self, prefix: &str, labels: &[(&str, &str)]) -> Result<Namespace> {
        static COUNT: AtomicUsize = AtomicUsize::new(0);
        let name = format!("{prefix}-{}", COUNT.fetch_add(1, Ordering::Relaxed));
        let client = self.admin()?;
        let labels: BTreeMap<&str, &str> =
            [(SERVERS_LABEL, "true")].into_iter().chain(labels.iter().copied()).collect();
        let object = serde_json::from_value(json!({"metadata": {"name": name, "labels": labels}}))?;
        Api::<core::Namespace>::all(client.clone()).create(&PostParams::default(), &object).await?;
        Ok(Namespace { name, client })
    }
}

impl Namespace {
    /// Gives its uid.
    pub async fn service_account(&self, name: &str) -> Result<String> {
        let object = serde_json::from_value(json!({"metadata": {"name": name}}))?;
        let created = self.api::<core::ServiceAccount>().create(&PostParams::default(), &object).await?;
        created.metadata.uid.context("no uid")
    }

    /// Without an audience it is one for the API server.
    pub async fn token(&self, account: &str, audience: Option<&str>) -> Result<String> {
        self.request_token(account, audience, None).await
    }

    /// A token as a pod gets it from a projected volume: it dies with the pod.
    pub async fn token_of_pod(&self, account: &str, audience: &str, pod: &str) -> Result<String> {
        let uid = self.api::<core::Pod>().get(pod).await?.metadata.uid;
        let pod = BoundObjectReference {
            api_version: Some("v1".to_owned()),
            kind: Some("Pod".to_owned()),
            name: Some(pod.to_owned()),
            uid,
        };
        self.request_token(account, Some(audience), Some(pod)).await
    }

    async fn request_token(
        &self,
        account: &str,
        audience: Option<&str>,
        bound_object_ref: Option<BoundObjectReference>,
    ) -> Result<String> {
        let audiences = audience.map(str::to_owned).into_iter().collect();
        let spec = TokenRequestSpec { audiences, expiration_seconds: Some(3600), bound_object_ref };
        let request = TokenRequest { spec, ..TokenRequest::default() };
        let accounts = self.api::<core::ServiceAccount>();
        let answer = accounts.create_token_request(account, &PostParams::default(), &request).await?;
        Ok(answer.status.context("no token in the answer")?.token)
    }

    /// Scheduled, running and ready, though nothing runs it but the test.
    pub async fn pod(&self, pod: &PodAt<'_>) -> Result<core::Pod> {
        self.create_pod(pod).await?;
        self.run_pod(pod.name, pod.ip).await
    }

    /// Scheduled and not yet running. Gives its UID, which the API server has made up.
    pub async fn create_pod(&self, pod: &PodAt<'_>) -> Result<String> {
        let map = |pairs: &[(&str, &str)]| -> BTreeMap<String, String> {
            pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
        };
        let ports: Vec<_> = pod.ports.iter().map(|(name, port)| json!({"name": name, "containerPort": port})).collect();
        let object = serde_json::from_value(json!({
            "metadata": {"name": pod.name, "labels": map(pod.labels), "annotations": map(pod.annotations)},
            "spec": {"nodeName": pod.node, "serviceAccountName": pod.account, "containers": [{"name": "server", "image": "hush-server", "ports": ports}]},
        }))?;
        let created = self.api::<core::Pod>().create(&PostParams::default(), &object).await?;
        created.metadata.uid.context("no uid")
    }

    /// Running and ready at this address.
    pub async fn run_pod(&self, name: &str, ip: Ipv4Addr) -> Result<core::Pod> {
        let status = json!({"status": {
            "phase": "Running",
            "podIP": ip,
            "podIPs": [{"ip": ip}],
            "conditions": [{"type": "Ready", "status": "True"}],
        }});
        Ok(self.api::<core::Pod>().patch_status(name, &PatchParams::default(), &Patch::Merge(status)).await?)
    }

    pub async fn annotate_pod(&self, name: &str, annotation: &str, value: &str) -> Result<()> {
        let patch = Patch::Merge(json!({"metadata": {"annotations": {annotation: value}}}));
        self.api::<core::Pod>().patch(name, &PatchParams::default(), &patch).await?;
        Ok(())
    }

    /// Without a kubelet it is gone at once.
    pub async fn delete_pod(&self, name: &str) -> Result<()> {
        self.api::<core::Pod>().delete(name, &DeleteParams::default().grace_period(0)).await?;
        Ok(())
    }

    /// As a user who may do everything.
    pub fn api<K>(&self) -> Api<K>
    where
        K: kube::Resource<Scope = k8s_openapi::NamespaceResourceScope>,
        K::DynamicType: Default,
    {
        Api::namespaced(self.client.clone(), &self.name)
    }
}
