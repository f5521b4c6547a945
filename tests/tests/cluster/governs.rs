//! A controller for the whole cluster: it finds servers by their pods and policies by their kind, relieves a GPU with a
//! token that the servers have looked at, and tells of it in status and Events.

use std::process::Command;

use anyhow::{Context, Result, ensure};
use hush_tests::wait::{eventually, wait_for};
use hush_tests::{fixtures, process};
use rustix::process::Signal;
use serde_json::{Value, json};

use crate::fixture::{AppSpec, CONTROLLER, ClusterFixture, GovernedApp, SOON, condition, own_plane, wait_until_ready};

/// `hush-controller plan` as a person runs it, with nothing but a kubeconfig.
async fn plan(stage: &ClusterFixture<'_>, args: &[&str]) -> Result<String> {
    let file = stage.path("kubeconfig-of-a-person");
    std::fs::write(&file, stage.kubeconfig(CONTROLLER, &stage.plane.url()).await?)?;
    let output = Command::new(fixtures::controller()?).arg("plan").args(args).env("KUBECONFIG", file).output()?;
    ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    Ok(String::from_utf8(output.stdout)?)
}

/// The plan, as JSON and as text, has one decision: to unload this app's model for lack of memory.
async fn expect_plan_to_unload(stage: &ClusterFixture<'_>, app: &GovernedApp) -> Result<()> {
    // The servers look at the GPU ten times a second.
    let said = eventually("the plan names the victim", SOON, async || {
        let plan: Value = serde_json::from_str(&plan(stage, &["--output", "json"]).await?)?;
        Ok((plan["decisions"].as_array().map(Vec::len) == Some(1)).then_some(plan))
    });
    let said = said.await?;
    let decision = &said["decisions"][0];
    assert_eq!((&decision["server"], &decision["reason"]), (&json!(app.pod()), &json!("HardPressure")), "{said}");
    assert_eq!(decision["policy"], json!(format!("{}/speech", app.namespace.name)));

    let text = plan(stage, &[]).await?;
    assert!(text.contains(&format!("Unload {} hush-tiny: HardPressure", app.pod())), "{text}");
    Ok(())
}

#[tokio::test]
async fn the_right_model_leaves_and_the_reason_is_published() -> Result<()> {
    let Some(plane) = own_plane().await? else { return Ok(()) };
    let mut stage = ClusterFixture::new(&plane).await?;
    let dear = stage.app(AppSpec::new("dear", 3, 10)).await?;
    let cheap = stage.app(AppSpec::new("cheap", 2, 0)).await?;
    dear.transcribe()?;
    cheap.transcribe()?;

    // Before a controller acts: what it would do.
    assert!(plan(&stage, &[]).await?.contains("nothing to do"));
    stage.others_hold(10)?;
    expect_plan_to_unload(&stage, &cheap).await?;
    stage.others_hold(0)?;
    assert!(cheap.server.unloads_ordered().is_empty(), "a plan sends nothing");

    let mut controller = stage.controller(&["--scope", "cluster"]).await?;
    wait_until_ready(&controller)?;
    for app in [&dear, &cheap] {
        app.wait_for_status(&plane, "matched", 1)?;
        app.wait_for_status(&plane, "loaded", 1)?;
        let object = app.policy(&plane)?;
        let ready = condition(&object, "Ready").context("no condition Ready")?;
        assert_eq!((&ready["status"], &ready["observedGeneration"]), (&json!("True"), &json!(1)), "{object}");
    }

    stage.others_hold(10)?;
    cheap.server.wait_for_state("unloaded", SOON)?;
    cheap.wait_for_status(&plane, "loaded", 0)?;
    let record = wait_for("the audit says so", SOON, || Ok(controller.sent()?.into_iter().next()))?;
    assert_eq!((&record["server"], &record["reason"]), (&json!(cheap.pod()), &json!("HardPressure")), "{record}");
    wait_for("Events on policy and pod", SOON, || {
        let kinds: Vec<_> = cheap.events(&plane)?.iter().map(|event| event["involvedObject"]["kind"].clone()).collect();
        Ok((kinds.contains(&json!("Pod")) && kinds.contains(&json!("GpuModelPolicy"))).then_some(()))
    })?;
    assert!(dear.events(&plane)?.is_empty(), "nothing was done to it");
    dear.server.wait_for_state("ready", SOON)?;
    assert_eq!(controller.sent()?.len(), 1, "one command was enough");
    assert_eq!(cheap.server.unloads_ordered(), [stage.caller(CONTROLLER)]);

    // A deleted policy governs no model.
    plane.kubectl_text(&["delete", "gmp", "speech", "--namespace", &dear.namespace.name], "")?;
    controller.wait_for_metric("hush_controller_skipped_models{reason=\"NotGoverned\"}", 1.0, SOON)?;

    process::send(controller.pid(), Signal::TERM)?;
    assert!(controller.wait_for_exit(SOON)?.success());
    let lease = ["get", "lease", "hush-controller", "--namespace", "kube-system", "--output", "json"];
    let lease: Value = serde_json::from_str(&plane.kubectl_text(&lease, "")?)?;
    assert!(lease["spec"]["holderIdentity"].as_str().is_none_or(str::is_empty), "it was given back: {lease}");
    // The role is enough for all of that.
    let asked = plane.requests_of(&stage.system.name, CONTROLLER)?;
    assert!(asked.len() > 5, "{asked:?}");
    let forbidden: Vec<_> = asked.iter().filter(|entry| entry["responseStatus"]["code"] == 403).collect();
    assert!(forbidden.is_empty(), "{forbidden:?}");
    Ok(())
}
