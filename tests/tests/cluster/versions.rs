//! The versions of the API over live objects: the definitions come, go and store in another version by the very lines of
//! the documentation, and no object is lost or changed.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use hush_crds::{ClusterGpuModelPolicy, GpuModelPolicy};
use hush_tests::cluster::{ControlPlane, Namespace};
use hush_tests::wait::eventually;
use hush_tests::{fixtures, http};
use kube::CustomResourceExt;
use serde_json::{Value, json};

use crate::fixture::{AppSpec, ClusterFixture, SOON, pulse, returning, wait_until_missing, wait_until_ready};

const ALPHA: &str = "v1alpha1";
const BETA: &str = "v1beta1";
const KINDS: [&str; 2] = ["gpumodelpolicies", "clustergpumodelpolicies"];
/// The pause between two looks at an API server that publishes definitions a moment after it takes them.
const LOOK: Duration = Duration::from_millis(200);
/// For the lines of the documentation: definitions of the current release, of the earlier one, and of a later one that
/// stores objects in the other version.
const HELM: &str = "helm() { for file in \"$3\"/*.yaml; do cat \"$file\"; echo ---; done; }";
const CURRENT: &str = "charts/hush/crds";
const EARLIER: &str = "crds/tests/released/v1alpha1";

/// The block of commands below a heading of the page, the first one that the tests run.
fn lines_of(heading: &str) -> Result<String> {
    let page = std::fs::read_to_string(fixtures::workspace().join("docs/api-versions.md"))?;
    let section = page.split_once(&format!("\n{heading}\n")).with_context(|| format!("no heading {heading}"))?.1;
    let marked = section
        .split_once("versions.rs runs these lines over live objects -->")
        .context("no block that the tests run")?
        .1;
    let block = marked.split_once("```sh\n").context("no block")?.1.split_once("```").context("no end")?.0;
    Ok(block.to_owned())
}

/// Runs them. `current` is the folder that stands for `CHART`.
fn run(plane: &ControlPlane, heading: &str, current: &str) -> Result<String> {
    let lines = lines_of(heading)?.replace("EARLIER_CHART", EARLIER).replace("CHART", current);
    plane.shell(HELM, &lines)
}

/// Every field that a policy may have.
fn full_spec(cluster: bool) -> Value {
    let mut spec = json!({
        "selector": {
            "matchLabels": {"app": "whisper"},
            "matchExpressions": [{"key": "team", "operator": "In", "values": ["a", "b"]}],
        },
        "models": ["large-*"],
        "residency": {
            "mode": "Idle", "idleTimeout": "10m", "minResident": "1m",
            "schedule": [{"cron": "0 8 * * 1-5", "duration": "10h", "timeZone": "Europe/Berlin", "mode": "Resident"}],
        },
        "pressure": {
            "hard": {"availableBelow": "1Gi"},
            "soft": {"availableBelow": "20%", "gracePeriod": "2m"},
            "minReclaim": "1Gi", "transitionPeriod": "5m",
        },
        "priority": 10, "budget": "8Gi", "minLoaded": 1, "drainTimeout": "30s", "holdAfterEviction": "2m",
        "mode": "DryRun",
    });
    if cluster {
        spec["namespaceSelector"] = json!({"matchLabels": {"team": "a"}});
    }
    spec
}

fn full_status() -> Value {
    json!({
        "observedGeneration": 1, "enforcedGeneration": 1, "enforcedSpec": "{}", "matched": 2, "loaded": 1,
        "conditions": [{
            "type": "Ready", "status": "True", "reason": "InForce", "message": "", "observedGeneration": 1,
            "lastTransitionTime": "2026-11-23T12:00:00Z",
        }],
        "lastActions": [{
            "time": "2026-11-23T12:00:00Z", "server": "a/whisper-0", "model": "large-v3", "action": "Unload",
            "reason": "Idle", "outcome": "Unloaded",
        }],
    })
}

/// One object of each kind, in a namespace of its own.
struct PolicyObjects<'a> {
    plane: &'a ControlPlane,
    namespace: Namespace,
    name: String,
}

impl<'a> PolicyObjects<'a> {
    async fn create(plane: &'a ControlPlane, name: &str, version: &str) -> Result<Self> {
        let objects = Self { plane, namespace: plane.namespace("versions", &[]).await?, name: name.to_owned() };
        for (kind, cluster) in [("GpuModelPolicy", false), ("ClusterGpuModelPolicy", true)] {
            let object = json!({
                "apiVersion": format!("gpu.hush.dev/{version}"), "kind": kind,
                "metadata": {"name": name}, "spec": full_spec(cluster),
            });
            objects.kubectl(&["apply", "--validate=strict", "--filename", "-"], &object.to_string())?;
        }
        for kind in KINDS {
            let resource = format!("{kind}.{version}.gpu.hush.dev");
            let patch = json!({"status": full_status()}).to_string();
            let args = ["patch", &resource, name, "--subresource=status", "--type=merge", "--patch", &patch];
            objects.kubectl(&args, "")?;
        }
        Ok(objects)
    }

    fn kubectl(&self, args: &[&str], input: &str) -> Result<String> {
        self.plane.kubectl_text(&[args, &["--namespace", &self.namespace.name]].concat(), input)
    }

    /// Both objects in a version, without what every write changes.
    fn read(&self, version: &str) -> Result<Vec<Value>> {
        let read = |kind: &&str| {
            let resource = format!("{kind}.{version}.gpu.hush.dev");
            let text = self.kubectl(&["get", &resource, &self.name, "--output", "json"], "")?;
            let mut object: Value = serde_json::from_str(&text)?;
            ensure!(object["apiVersion"] == format!("gpu.hush.dev/{version}"), "{object}");
            object.as_object_mut().context("no object")?.remove("apiVersion");
            let metadata = object["metadata"].as_object_mut().context("no metadata")?;
            metadata.remove("resourceVersion");
            metadata.remove("annotations");
            Ok(object)
        };
        KINDS.iter().map(read).collect()
    }

    /// In which version the API server keeps them.
    fn stored_in(&self) -> Result<Vec<String>> {
        let place = |kind: &str| match kind {
            "gpumodelpolicies" => format!("gpu.hush.dev/{kind}/{}/{}", self.namespace.name, self.name),
            _ => format!("gpu.hush.dev/{kind}/{}", self.name),
        };
        let version = |kind: &&str| -> Result<String> {
            let object = self.plane.stored(&place(kind))?;
            Ok(object["apiVersion"].as_str().unwrap_or_default().replace("gpu.hush.dev/", ""))
        };
        KINDS.iter().map(version).collect()
    }
}

fn definition(plane: &ControlPlane, kind: &str) -> Result<Value> {
    let text = plane.kubectl_text(&["get", "crd", &format!("{kind}.gpu.hush.dev"), "--output", "json"], "")?;
    Ok(serde_json::from_str(&text)?)
}

fn stored_versions(plane: &ControlPlane) -> Result<Vec<Value>> {
    KINDS.iter().map(|kind| Ok(definition(plane, kind)?["status"]["storedVersions"].clone())).collect()
}

/// The API server takes up a changed definition a moment after it has answered.
async fn wait_until_served(plane: &ControlPlane, version: &str, served: bool) -> Result<()> {
    for kind in KINDS {
        let resource = format!("{kind}.{version}.gpu.hush.dev");
        eventually(&format!("{resource} is served: {served}"), SOON, async || {
            let output = plane.kubectl(&["get", &resource, "--all-namespaces"], "")?;
            if output.status.success() == served {
                return Ok(Some(()));
            }
            tokio::time::sleep(LOOK).await;
            Ok(None)
        })
        .await?;
    }
    Ok(())
}

fn apply_folder(plane: &ControlPlane, folder: &str) -> Result<()> {
    let folder = fixtures::workspace().join(folder);
    let folder = folder.to_str().context("the path is not UTF-8")?;
    plane.kubectl_text(&["apply", "--server-side", "--force-conflicts", "--filename", folder], "").map(drop)
}

#[tokio::test]
async fn definitions_are_upgraded_and_downgraded_over_live_objects() -> Result<()> {
    let Some(plane) = ControlPlane::start().await? else { return Ok(()) };
    apply_folder(&plane, EARLIER)?;
    wait_until_served(&plane, ALPHA, true).await?;
    let old = PolicyObjects::create(&plane, "before", ALPHA).await?;
    let before = old.read(ALPHA)?;
    assert_eq!((&before[0]["spec"], &before[0]["status"]), (&full_spec(false), &full_status()));
    assert_eq!(before[1]["spec"], full_spec(true));

    run(&plane, "## Upgrade", CURRENT)?;
    wait_until_served(&plane, BETA, true).await?;
    assert_eq!(old.read(BETA)?, before, "the same objects: uid, generation, spec, status");
    assert_eq!(old.read(ALPHA)?, before);
    assert_eq!(stored_versions(&plane)?, [json!([ALPHA]), json!([ALPHA])]);

    // What is written in one version is read in the other, down to the last field, and stored in the one.
    let new = PolicyObjects::create(&plane, "after", BETA).await?;
    let written = new.read(BETA)?;
    assert_eq!((&written[0]["spec"], &written[0]["status"]), (&full_spec(false), &full_status()));
    assert_eq!(written[1]["spec"], full_spec(true));
    assert_eq!(new.read(ALPHA)?, written);
    assert_eq!(new.stored_in()?, [ALPHA, ALPHA]);

    // An earlier controller goes on to write the status.
    let status = json!({"status": {"matched": 7}}).to_string();
    let resource = format!("gpumodelpolicies.{ALPHA}.gpu.hush.dev");
    old.kubectl(&["patch", &resource, "before", "--subresource=status", "--type=merge", "--patch", &status], "")?;
    assert_eq!(old.read(BETA)?[0]["status"]["matched"], 7);
    let before = old.read(BETA)?;

    run(&plane, "## Downgrade", CURRENT)?;
    wait_until_served(&plane, BETA, false).await?;
    assert_eq!(old.read(ALPHA)?, before);
    assert_eq!(new.read(ALPHA)?, written);
    assert_eq!(stored_versions(&plane)?, [json!([ALPHA]), json!([ALPHA])]);
    Ok(())
}

/// The release after this one stores objects in the recommended version: there is a way back from it too.
#[tokio::test]
async fn objects_come_back_from_the_other_storage_version() -> Result<()> {
    let Some(plane) = ControlPlane::start().await? else { return Ok(()) };
    plane.apply_definitions().await?;
    let objects = PolicyObjects::create(&plane, "live", BETA).await?;
    let before = objects.read(BETA)?;

    let later = tempfile::tempdir()?;
    for kind in KINDS {
        let text = std::fs::read_to_string(fixtures::workspace().join(CURRENT).join(format!("{kind}.yaml")))?;
        let mut definition: Value = serde_yaml::from_str(&text)?;
        for version in definition["spec"]["versions"].as_array_mut().context("no versions")? {
            version["storage"] = json!(version["name"] == BETA);
        }
        std::fs::write(later.path().join(format!("{kind}.yaml")), definition.to_string())?;
    }
    let later = later.path().to_str().context("the path is not UTF-8")?;
    run(&plane, "## Upgrade", later)?;
    assert_eq!(stored_versions(&plane)?, [json!([ALPHA, BETA]), json!([ALPHA, BETA])]);
    eventually("a change is stored in the other version", SOON, async || {
        for kind in KINDS {
            objects.kubectl(&["label", &format!("{kind}.gpu.hush.dev"), "live", "touched=a"], "")?;
            objects.kubectl(&["label", &format!("{kind}.gpu.hush.dev"), "live", "touched-"], "")?;
        }
        Ok((objects.stored_in()? == [BETA, BETA]).then_some(()))
    })
    .await?;
    assert_eq!(objects.read(ALPHA)?, before, "nothing but the version is another");

    // The earlier definitions would make stored objects unreadable, and the API server knows it.
    let refused = run(&plane, "## Downgrade", CURRENT).map_err(|error| error.to_string());
    assert!(refused.as_ref().is_err_and(|error| error.contains("must remain in spec.versions")), "{refused:?}");

    run(&plane, "### From a release that stores `v1beta1`", CURRENT)?;
    assert_eq!(objects.stored_in()?, [ALPHA, ALPHA]);
    run(&plane, "## Downgrade", CURRENT)?;
    wait_until_served(&plane, BETA, false).await?;
    assert_eq!(objects.read(ALPHA)?, before);
    Ok(())
}

/// What the API server publishes, and not only what was sent to it.
#[tokio::test]
async fn both_versions_have_one_schema_and_one_is_deprecated() -> Result<()> {
    let Some(plane) = crate::definitions::with_definitions().await? else { return Ok(()) };
    for kind in [GpuModelPolicy::crd_name(), ClusterGpuModelPolicy::crd_name()] {
        let definition = definition(plane, kind.split('.').next().unwrap_or_default())?;
        assert_eq!(definition["spec"]["conversion"], json!({"strategy": "None"}), "{kind}");
        let versions = definition["spec"]["versions"].as_array().context("no versions")?;
        let of = |name: &str| {
            let found = versions.iter().find(|version| version["name"] == name);
            found.with_context(|| format!("{kind}: {name} is not served"))
        };
        assert!(of(ALPHA)?["schema"] == of(BETA)?["schema"], "{kind}: the conversion `None` would lose what differs");
        assert_eq!((&of(ALPHA)?["storage"], &of(BETA)?["storage"]), (&json!(true), &json!(false)), "{kind}");
    }

    // kubectl without a version means the recommended one; who names the other is told so.
    let output = plane.kubectl(&["get", "gpumodelpolicies.v1alpha1.gpu.hush.dev", "--all-namespaces"], "")?;
    let warning = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(warning.contains("v1alpha1 GpuModelPolicy is deprecated; use gpu.hush.dev/v1beta1"), "{warning}");
    let output = plane.kubectl(&["get", "gmp", "--all-namespaces"], "")?;
    assert!(!String::from_utf8_lossy(&output.stderr).contains("deprecated"));
    Ok(())
}

/// helm does not upgrade definitions: a controller over earlier ones says what is missing, does nothing, and then governs
/// the objects that were there all the time.
#[tokio::test]
async fn a_controller_over_earlier_definitions_waits_for_the_new_ones() -> Result<()> {
    let Some(plane) = ControlPlane::start().await? else { return Ok(()) };
    apply_folder(&plane, EARLIER)?;
    wait_until_served(&plane, ALPHA, true).await?;
    let mut stage = ClusterFixture::new(&plane).await?;
    let app = stage.server(AppSpec::new("app", 2, 0)).await?;
    let policy = json!({
        "apiVersion": "gpu.hush.dev/v1alpha1", "kind": "GpuModelPolicy",
        "metadata": {"name": "speech", "namespace": app.namespace.name}, "spec": returning("app", 0),
    });
    plane.kubectl_text(&["apply", "--filename", "-"], &policy.to_string())?;

    let controller = stage.controller(&["--scope", "cluster"]).await?;
    wait_until_missing(&controller, "has no GpuModelPolicies at `/apis/gpu.hush.dev/v1beta1/gpumodelpolicies`")?;
    app.transcribe()?;
    stage.others_hold(22)?;
    controller.wait_for_metric("hush_controller_skipped_models{reason=\"NotGoverned\"}", 1.0, SOON)?;
    assert_eq!(app.server.unloads_ordered().len(), 0);
    assert_eq!(http::get(controller.ops, "/healthz")?.status, 200);
    stage.others_hold(0)?;

    run(&plane, "## Upgrade", CURRENT)?;
    wait_until_ready(&controller)?;
    app.wait_for_status(&plane, "loaded", 1)?;
    pulse(&mut stage, &app)
}
