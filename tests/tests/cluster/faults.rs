//! The API server away, its store frozen, the definitions not there yet or not there any more: the controller says what
//! it waits for and goes on by itself.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use hush_tests::cluster::ControlPlane;
use hush_tests::wait::wait_for;
use hush_tests::{Controller, http};

use crate::stage::{App, Cast, SOON, Stage, policy, wait_until_acting, wait_until_ready};

/// Longer than the default of 15 s, so that a busy machine does not cost the leader its lease while nobody asks for it.
const LEASE: &str = "30s";

/// Waits until `/readyz` says that it waits for this.
fn wait_until_missing(controller: &Controller, part: &str) -> Result<()> {
    let mut said = String::new();
    let waited = wait_for(&format!("`/readyz` says {part:?}"), SOON, || {
        let answer = http::get(controller.ops, "/readyz")?;
        said = answer.text();
        Ok((answer.status == 503 && said.contains(part)).then_some(()))
    });
    waited.with_context(|| format!("{said}\n{}", controller.log().join("\n")))
}

/// The app's model leaves for others and comes back.
fn pulse(stage: &mut Stage<'_>, app: &App) -> Result<()> {
    app.transcribe()?;
    let before = app.server.unloads_ordered().len();
    stage.others_hold(22)?;
    app.server.wait_for_state("unloaded", SOON)?;
    stage.others_hold(0)?;
    ensure!(app.server.unloads_ordered().len() == before + 1, "by one command");
    Ok(())
}

fn apply(plane: &ControlPlane, app: &App) -> Result<()> {
    let mut spec = policy("app", 0);
    spec["holdAfterEviction"] = "0s".into();
    app.apply(plane, spec)
}

#[tokio::test]
async fn it_waits_for_what_is_missing_and_goes_on_by_itself() -> Result<()> {
    let Some(plane) = ControlPlane::start().await? else { return Ok(()) };
    let mut stage = Stage::new(&plane).await?;
    let app = stage.server(Cast::new("app", 2, 0)).await?;
    let controller = stage.controller(&["--scope", "cluster", "--lease-duration", LEASE]).await?;

    // Before the definitions.
    wait_until_missing(&controller, "knows no GpuModelPolicies: apply the definitions in `crds/`")?;
    controller.wait_for_log(&["knows no ClusterGpuModelPolicies"], SOON)?;
    plane.apply_definitions().await?;
    wait_until_ready(&controller)?;
    apply(&plane, &app)?;
    pulse(&mut stage, &app)?;

    // The API server goes, and comes back with watches that nobody remembers.
    plane.stop_api_server()?;
    wait_until_missing(&controller, "pods")?;
    plane.start_api_server().await?;
    wait_until_ready(&controller)?;
    pulse(&mut stage, &app)?;

    // The store does not answer for a while, less than the lease: whoever leads goes on to lead.
    plane.freeze_etcd(true)?;
    wait_until_missing(&controller, "the lease could not be written")?;
    plane.freeze_etcd(false)?;
    // The servers ask the API server whose token it is, and it takes a moment to wake up.
    app.transcribe()?;
    plane.kubectl_text(&["get", "pods", "--all-namespaces"], "")?;
    wait_until_acting(&controller, true)?;
    pulse(&mut stage, &app)?;

    // The definitions go, and with them every policy: nobody is governed.
    let gone = ["delete", "crd", "gpumodelpolicies.gpu.hush.dev", "clustergpumodelpolicies.gpu.hush.dev"];
    plane.kubectl_text(&gone, "")?;
    app.transcribe()?;
    wait_until_missing(&controller, "knows no GpuModelPolicies")?;
    controller.wait_for_metric("hush_controller_skipped_models{reason=\"NotGoverned\"}", 1.0, SOON)?;
    let before = app.server.unloads_ordered().len();
    plane.apply_definitions().await?;
    wait_until_ready(&controller)?;
    assert_eq!(app.server.unloads_ordered().len(), before);
    apply(&plane, &app)?;
    app.wait_for_status(&plane, "loaded", 1)?;
    pulse(&mut stage, &app)
}

/// Longer than the lease: the leader ends rather than act without it, and the next one needs nobody's help.
#[tokio::test]
async fn without_its_store_for_too_long_a_leader_ends_and_the_next_one_goes_on() -> Result<()> {
    let Some(plane) = crate::stage::own_plane().await? else { return Ok(()) };
    let mut stage = Stage::new(&plane).await?;
    let app = stage.server(Cast::new("app", 2, 0)).await?;
    apply(&plane, &app)?;
    let seat = stage.seat(crate::stage::CONTROLLER, &plane.url(), &["--scope", "cluster"]).await?;
    let mut controller = seat.start()?;
    wait_until_ready(&controller)?;
    pulse(&mut stage, &app)?;
    plane.freeze_etcd(true)?;
    let status = controller.wait_for_exit(SOON)?;
    assert!(!status.success(), "{status}");
    // As a kubelet does it, while the store is still away.
    let next = seat.start()?;
    wait_until_missing(&next, "pods")?;
    // Longer than any single request is waited for.
    tokio::time::sleep(Duration::from_secs(3)).await;
    plane.freeze_etcd(false)?;
    wait_until_ready(&next)?;
    wait_until_acting(&next, true)?;
    pulse(&mut stage, &app)
}
