//! What every test and benchmark of a controller in the cluster begins with.

use std::time::Duration;

use anyhow::{Context, Result};
use hush_crds::{ClusterGpuModelPolicy, GpuModelPolicy};
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::runtime::wait::{await_condition, conditions};
use kube::{Api, CustomResourceExt};
use serde_json::json;

use super::namespace::Namespace;
use super::plane::ControlPlane;

const SOON: Duration = Duration::from_secs(60);

impl ControlPlane {
    /// Both kinds of policies, as a person applies them, and until they can be used.
    pub async fn apply_definitions(&self) -> Result<()> {
        let folder = crate::fixtures::workspace().join("crds");
        let folder = folder.to_str().context("the path is not UTF-8")?;
        self.kubectl_text(&["apply", "--filename", folder], "")?;
        let definitions = Api::<CustomResourceDefinition>::all(self.admin()?);
        for name in [GpuModelPolicy::crd_name(), ClusterGpuModelPolicy::crd_name()] {
            let established = await_condition(definitions.clone(), name, conditions::is_crd_established());
            tokio::time::timeout(SOON, established).await.with_context(|| format!("{name} is not established"))??;
        }
        Ok(())
    }

    /// A kubeconfig of an account of this namespace, on the way to the API server that `url` is.
    pub async fn kubeconfig(&self, namespace: &Namespace, account: &str, url: &str) -> Result<String> {
        let token = namespace.token(account, None).await?;
        let ca = self.ca_file().to_string_lossy().into_owned();
        let kubeconfig = json!({
            "apiVersion": "v1",
            "kind": "Config",
            "current-context": "test",
            "contexts": [{"name": "test", "context": {"cluster": "test", "user": "test", "namespace": namespace.name}}],
            "clusters": [{"name": "test", "cluster": {"server": url, "certificate-authority": ca}}],
            "users": [{"name": "test", "user": {"token": token}}],
        });
        Ok(kubeconfig.to_string())
    }
}
