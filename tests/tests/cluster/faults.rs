//! The API server away, its store frozen, the definitions not there yet or not there any more: the controller says what
//! it waits for and goes on by itself.

use std::time::{Duration, Instant};

use anyhow::Result;
use hush_tests::cluster::ControlPlane;
use hush_tests::http;

use crate::fixture::{
    AppSpec, CONTROLLER, ClusterFixture, SOON, own_plane, pulse, returning, wait_until_acting, wait_until_missing,
    wait_until_ready,
};

/// Longer than the default of 15 s, so that a busy machine does not cost the leader its lease while no other candidate asks for it.
const LEASE: &str = "30s";

#[tokio::test]
async fn it_waits_for_what_is_missing_and_goes_on_by_itself() -> Result<()> {
    let Some(plane) = ControlPlane::start().await? else { return Ok(()) };
    let mut stage = ClusterFixture::new(&plane).await?;
    let app = stage.server(AppSpec::new("app", 2, 0)).await?;
    let controller = stage.controller(&["--scope", "cluster", "--lease-duration", LEASE]).await?;

    // Before the definitions.
    wait_until_missing(
        &controller,
        "has no GpuModelPolicies at `/apis/gpu.hush.dev/v1beta1/gpumodelpolicies`: apply the definitions in `crds/`",
    )?;
    controller.wait_for_log(&["has no ClusterGpuModelPolicies"], SOON)?;
    plane.apply_definitions().await?;
    wait_until_ready(&controller)?;
    app.apply(&plane, returning("app", 0))?;
    pulse(&mut stage, &app)?;

    // The API server restarts, and knows nothing of the earlier watches.
    plane.stop_api_server()?;
    wait_until_missing(&controller, "pods")?;
    plane.start_api_server().await?;
    wait_until_ready(&controller)?;
    pulse(&mut stage, &app)?;

    // The store does not answer for a while, less than the lease: the leader goes on to lead.
    plane.freeze_etcd(true)?;
    wait_until_missing(&controller, "the lease could not be written")?;
    plane.freeze_etcd(false)?;
    // The servers ask the API server whose token it is, and it takes a moment to wake up.
    app.transcribe()?;
    plane.kubectl_text(&["get", "pods", "--all-namespaces"], "")?;
    wait_until_acting(&controller, true)?;
    pulse(&mut stage, &app)?;

    // The definitions are deleted, and with them every policy: no model is governed.
    let gone = ["delete", "crd", "gpumodelpolicies.gpu.hush.dev", "clustergpumodelpolicies.gpu.hush.dev"];
    plane.kubectl_text(&gone, "")?;
    app.transcribe()?;
    wait_until_missing(&controller, "has no GpuModelPolicies")?;
    controller.wait_for_metric("hush_controller_skipped_models{reason=\"NotGoverned\"}", 1.0, SOON)?;
    let before = app.server.unloads_ordered().len();
    plane.apply_definitions().await?;
    wait_until_ready(&controller)?;
    assert_eq!(app.server.unloads_ordered().len(), before);
    app.apply(&plane, returning("app", 0))?;
    app.wait_for_status(&plane, "loaded", 1)?;
    pulse(&mut stage, &app)
}

/// Longer than the lease: the leader ends rather than act without it, and the next one starts without help.
#[tokio::test]
async fn without_its_store_for_too_long_a_leader_ends_and_the_next_one_goes_on() -> Result<()> {
    let Some(plane) = own_plane().await? else { return Ok(()) };
    let mut stage = ClusterFixture::new(&plane).await?;
    let app = stage.server(AppSpec::new("app", 2, 0)).await?;
    app.apply(&plane, returning("app", 0))?;
    let command = stage.controller_command(CONTROLLER, &plane.url(), &["--scope", "cluster"]).await?;
    let mut controller = command.start()?;
    wait_until_ready(&controller)?;
    pulse(&mut stage, &app)?;
    plane.freeze_etcd(true)?;
    let status = controller.wait_for_exit(SOON)?;
    assert!(!status.success(), "{status}");
    // As a kubelet does it, while the store is still away.
    let next = command.start()?;
    wait_until_missing(&next, "pods")?;
    // Longer than any single request is waited for.
    tokio::time::sleep(Duration::from_secs(3)).await;
    plane.freeze_etcd(false)?;
    wait_until_ready(&next)?;
    wait_until_acting(&next, true)?;
    pulse(&mut stage, &app)
}

/// The store is away for a minute while memory is short: no controller acts, and the servers go on by themselves.
#[tokio::test]
async fn a_minute_without_its_store_is_waited_out() -> Result<()> {
    let Some(plane) = own_plane().await? else { return Ok(()) };
    let mut stage = ClusterFixture::new(&plane).await?;
    let app = stage.server(AppSpec::new("app", 2, 0)).await?;
    app.apply(&plane, returning("app", 0))?;
    let command =
        stage.controller_command(CONTROLLER, &plane.url(), &["--scope", "cluster", "--lease-duration", "15s"]).await?;
    let mut first = command.start()?;
    wait_until_ready(&first)?;
    wait_until_acting(&first, true)?;
    pulse(&mut stage, &app)?;
    app.transcribe()?;

    plane.stop_etcd()?;
    let stopped = Instant::now();
    wait_until_missing(&first, "the lease could not be written")?;
    let status = first.wait_for_exit(SOON)?;
    assert!(!status.success(), "{status}");
    // As a kubelet does it.
    let next = command.start()?;
    wait_until_missing(&next, "pods")?;
    wait_until_missing(&next, "the lease could not be")?;
    stage.others_hold(22)?;
    let rest = Duration::from_secs(60).saturating_sub(stopped.elapsed());
    tokio::time::sleep(rest).await;
    wait_until_acting(&next, false)?;
    assert_eq!(
        http::get(next.ops, "/healthz")?.status,
        200,
        "it lives, and is not to be restarted for what others lack"
    );
    assert_eq!(app.server.unloads_ordered().len(), 1);

    plane.start_etcd()?;
    wait_until_ready(&next)?;
    wait_until_acting(&next, true)?;
    app.server.wait_for_state("unloaded", SOON)?;
    assert_eq!(app.server.unloads_ordered().len(), 2, "for what was short meanwhile, once");
    stage.others_hold(0)?;
    app.wait_for_status(&plane, "loaded", 0)?;
    pulse(&mut stage, &app)
}
