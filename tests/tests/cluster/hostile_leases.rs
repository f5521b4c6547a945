//! A tenant who may do everything in a namespace of its own tries to keep the cluster's controller from leading, or to take
//! its lease.

use std::time::Duration;

use anyhow::{Context, Result};
use hush_tests::cluster::{ControlPlane, Namespace};
use k8s_openapi::api::coordination::v1::Lease;
use kube::Api;
use kube::api::{DeleteParams, Patch, PatchParams, PostParams};
use serde_json::json;

use crate::fixture::{AppSpec, ClusterFixture, own_plane, pulse, wait_until_acting, wait_until_ready};

/// More than the lease lasts: whatever the leader believes has been renewed since.
const LEASES: Duration = Duration::from_secs(13);

/// What the roles `edit` and `admin` are made of, which nothing puts together where there is no controller manager.
async fn tenant(plane: &ControlPlane) -> Result<(Namespace, kube::Client)> {
    let namespace = plane.namespace("tenant", &[]).await?;
    namespace.service_account("tenant").await?;
    let account = format!("--serviceaccount={}:tenant", namespace.name);
    for role in ["system:aggregate-to-admin", "system:aggregate-to-edit", "system:aggregate-to-view"] {
        let name = role.replace(':', "-");
        let role = format!("--clusterrole={role}");
        let args = ["create", "rolebinding", &name, &role, &account, "--namespace", &namespace.name];
        plane.kubectl_text(&args, "")?;
    }
    let client = plane.client(&namespace.token("tenant", None).await?)?;
    Ok((namespace, client))
}

fn stolen(name: &str) -> Result<Lease> {
    Ok(serde_json::from_value(json!({
        "metadata": {"name": name, "annotations": {"gpu.hush.dev/installation": "tenant/mine"}},
        "spec": {
            "holderIdentity": "tenant", "leaseDurationSeconds": 3600, "renewTime": "2100-01-01T00:00:00.000000Z",
        },
    }))?)
}

#[tokio::test]
async fn a_tenant_neither_blocks_the_controller_nor_takes_its_lease() -> Result<()> {
    let Some(plane) = own_plane().await? else { return Ok(()) };
    let mut stage = ClusterFixture::new(&plane).await?;
    let app = stage.app(AppSpec::new("speech", 2, 0)).await?;
    let (namespace, client) = tenant(&plane).await?;
    // In its own namespace it may: no controller looks there.
    let own: Api<Lease> = Api::namespaced(client.clone(), &namespace.name);
    own.create(&PostParams::default(), &stolen("hush-controller")?).await.context("a tenant has leases of its own")?;
    // Where the lease is it may nothing, neither before there is one nor afterwards.
    let system: Api<Lease> = Api::namespaced(client, "kube-system");
    let refused = |what: &str, answer: Result<(), kube::Error>| match answer {
        Err(kube::Error::Api(status)) if status.code == 403 => Ok(()),
        answer => Err(anyhow::anyhow!("{what}: {answer:?}")),
    };
    refused("create", system.create(&PostParams::default(), &stolen("hush-controller")?).await.map(drop))?;

    let controller = stage.controller(&["--scope", "cluster"]).await?;
    wait_until_acting(&controller, true)?;
    wait_until_ready(&controller)?;
    let patch = Patch::Merge(json!({"spec": {"holderIdentity": "tenant"}}));
    refused("patch", system.patch("hush-controller", &PatchParams::default(), &patch).await.map(drop))?;
    refused("delete", system.delete("hush-controller", &DeleteParams::default()).await.map(drop))?;

    tokio::time::sleep(LEASES).await;
    wait_until_acting(&controller, true)?;
    pulse(&mut stage, &app)?;
    assert_eq!(controller.metric("hush_controller_leader_transitions_total")?, Some(1.0), "it led all the time");
    Ok(())
}
