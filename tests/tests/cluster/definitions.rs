//! The definitions of the policies as a person meets them with kubectl.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use hush_crds::{ClusterGpuModelPolicy, GpuModelPolicy};
use hush_tests::cluster::ControlPlane;
use hush_tests::wait::eventually;
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::api::{Patch, PatchParams};
use kube::{Api, CustomResourceExt};
use serde_json::json;
use tokio::sync::OnceCell;

const SOON: Duration = Duration::from_secs(60);

/// The shared control plane with both definitions, applied as a person does it.
pub async fn with_definitions() -> Result<Option<&'static ControlPlane>> {
    static APPLIED: OnceCell<()> = OnceCell::const_new();
    let Some(plane) = ControlPlane::shared().await? else { return Ok(None) };
    APPLIED.get_or_try_init(|| plane.apply_definitions()).await?;
    Ok(Some(plane))
}

#[tokio::test]
async fn they_are_established_without_a_warning() -> Result<()> {
    let Some(plane) = with_definitions().await? else { return Ok(()) };
    let definitions = Api::<CustomResourceDefinition>::all(plane.admin()?);
    for name in [GpuModelPolicy::crd_name(), ClusterGpuModelPolicy::crd_name()] {
        let status = definitions.get(name).await?.status.context("no status")?;
        for condition in status.conditions.unwrap_or_default() {
            let good = matches!(condition.type_.as_str(), "NamesAccepted" | "Established" | "StorageMigrating");
            ensure!(good, "{name}: {condition:?}");
        }
    }
    Ok(())
}

#[tokio::test]
async fn explain_reads_well() -> Result<()> {
    let Some(plane) = with_definitions().await? else { return Ok(()) };
    // What can be explained is published a moment after the definition is established.
    let explain = |args: &[&str]| plane.kubectl_text(&[&["explain"], args].concat(), "");
    let tree = eventually("the definitions can be explained", SOON, async || {
        Ok(explain(&["gmp.spec", "--recursive"]).ok().filter(|text| text.contains("residency")))
    })
    .await?;
    for line in [
        "selector\t<Object> -required-",
        "mode\t<string>",
        "enum: Enforce, DryRun",
        "enum: Resident, Idle, OnDemand, Adaptive",
        "schedule\t<[]Object>",
        "cron\t<string> -required-",
        "availableBelow\t<string> -required-",
        "priority\t<integer>",
    ] {
        assert!(tree.contains(line), "{line}: {tree}");
    }
    let one = explain(&["gmp.spec.residency.idleTimeout"])?;
    assert!(one.contains("How long a model may be idle") && one.contains("`5m` where no"), "{one}");
    let kind = eventually("the cluster kind can be explained", SOON, async || {
        Ok(explain(&["cgmp"]).ok().filter(|text| text.contains("ClusterGpuModelPolicy")))
    })
    .await?;
    assert!(kind.contains("the operator's floor"), "{kind}");
    Ok(())
}

#[tokio::test]
async fn get_shows_what_matters() -> Result<()> {
    let Some(plane) = with_definitions().await? else { return Ok(()) };
    let namespace = plane.namespace("columns", &[]).await?;
    let in_namespace = ["--namespace", &namespace.name];
    let policy = "{apiVersion: gpu.hush.dev/v1beta1, kind: GpuModelPolicy, metadata: {name: speech},
        spec: {selector: {matchLabels: {app: whisper}}}}";
    plane.kubectl_text(&[&["apply", "--filename", "-"], &in_namespace[..]].concat(), policy)?;
    let list = || plane.kubectl_text(&[&["get", "gmp"], &in_namespace[..]].concat(), "");
    let rows = |text: &str| -> Vec<Vec<String>> {
        text.lines().map(|line| line.split_whitespace().map(str::to_owned).collect()).collect()
    };
    let table = rows(&list()?);
    assert_eq!(table[0], ["NAME", "MODE", "SELECTING", "MATCHED", "LOADED", "PRESSURE", "READY", "AGE"]);
    // The default of `mode` is filled in; no controller has written the status yet.
    assert_eq!(table[1][..2], ["speech", "Enforce"]);
    let condition = |kind: &str, status: &str| {
        json!({"type": kind, "status": status, "reason": "Tested", "message": "",
        "lastTransitionTime": "2026-11-23T12:00:00Z", "observedGeneration": 1})
    };
    let status = json!({"status": {
        "observedGeneration": 1, "matched": 4, "loaded": 3,
        "conditions": [condition("Ready", "True"), condition("Selecting", "True"), condition("Pressure", "False")],
    }});
    let policies = namespace.api::<GpuModelPolicy>();
    policies.patch_status("speech", &PatchParams::default(), &Patch::Merge(&status)).await?;
    let table = rows(&list()?);
    assert_eq!(table[1][..7], ["speech", "Enforce", "True", "4", "3", "False", "True"]);
    assert_eq!(table[1].len(), 8, "the age: {:?}", table[1]);
    let all = plane.kubectl_text(&[&["get", "hush"], &in_namespace[..]].concat(), "")?;
    assert!(all.contains("speech"), "the category: {all}");
    Ok(())
}

#[tokio::test]
async fn conditions_are_kept_by_type_and_belong_to_the_status() -> Result<()> {
    let Some(plane) = with_definitions().await? else { return Ok(()) };
    let namespace = plane.namespace("conditions", &[]).await?;
    let policies = namespace.api::<GpuModelPolicy>();
    let (now, kind) = ("2026-11-23T12:00:00Z", "GpuModelPolicy");
    let condition = |kind: &str| json!({"type": kind, "status": "True", "reason": "Tested", "message": "", "lastTransitionTime": now});
    let object = |part: &str, content: serde_json::Value| json!({"apiVersion": hush_crds::API_VERSION, "kind": kind, "metadata": {"name": "p"}, part: content});
    let spec = object("spec", json!({"selector": {"matchLabels": {"app": "whisper"}}}));
    policies.patch("p", &PatchParams::apply("a"), &Patch::Apply(&spec)).await?;
    // Each manager has its own condition, and neither takes away the other's.
    for (manager, kind) in [("a", "Ready"), ("b", "Pressure")] {
        let status = object("status", json!({"conditions": [condition(kind)]}));
        policies.patch_status("p", &PatchParams::apply(manager), &Patch::Apply(&status)).await?;
    }
    let policy = policies.get("p").await?;
    let types: Vec<String> =
        policy.status.and_then(|status| status.conditions).unwrap_or_default().into_iter().map(|c| c.type_).collect();
    assert_eq!(types, ["Ready", "Pressure"]);
    let twice = json!({"status": {"conditions": [condition("Ready"), condition("Ready")]}});
    let refused = policies.patch_status("p", &PatchParams::default(), &Patch::Merge(&twice)).await;
    assert!(refused.is_err_and(|error| error.to_string().contains("Duplicate value")));
    // A spec is changed without the status, and the other way round.
    let both = json!({"spec": {"priority": 5}, "status": {"matched": 9}});
    let policy = policies.patch("p", &PatchParams::default(), &Patch::Merge(&both)).await?;
    assert_eq!((policy.spec.priority, policy.metadata.generation), (Some(5), Some(2)));
    assert_eq!(policy.status.and_then(|status| status.matched), None);
    Ok(())
}
