//! Watches that the API server does not remember: it answers 410, and what was missed is found by a list.

use anyhow::{Context, Result};
use hush_tests::cluster::ControlPlane;
use hush_tests::process;
use hush_tests::wait::eventually;
use k8s_openapi::api::core::v1::Pod;
use kube::Api;
use kube::api::ListParams;
use rustix::process::Signal;

use crate::fixture::{AppSpec, ClusterFixture, SOON, own_plane_with, returning, wait_until_acting, wait_until_ready};

/// The API server ends its watches before it stops, as each watch ends after some minutes; clients then ask for the rest.
const ARGS: &[&str] = &["--shutdown-watch-termination-grace-period", "10s"];

const PODS: &str = "/api/v1/pods";
const POLICIES: &str = "/apis/gpu.hush.dev/v1beta1/gpumodelpolicies";

/// What a watch from this version on is told within a second.
async fn watched(plane: &ControlPlane, path: &str, version: &str) -> Result<String> {
    let path = format!("{path}?watch=true&timeoutSeconds=1&resourceVersion={version}");
    match plane.admin()?.request_text(http::Request::get(path).body(Vec::new())?).await {
        Ok(events) => Ok(events),
        Err(kube::Error::Api(status)) => Ok(serde_json::to_string(&status)?),
        Err(error) => Err(error.into()),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_watch_that_has_expired_begins_anew_and_misses_nothing() -> Result<()> {
    let Some(plane) = own_plane_with(ARGS).await? else { return Ok(()) };
    let mut stage = ClusterFixture::new(&plane).await?;
    let freed = stage.app(AppSpec::new("freed", 2, 0)).await?;
    let caught = stage.server(AppSpec::new("caught", 2, 0)).await?;
    for app in [&freed, &caught] {
        app.transcribe()?;
    }
    let scope = ["--scope", "cluster"];
    let leader = stage.controller(&scope).await?;
    wait_until_acting(&leader, true)?;
    let next = stage.controller(&scope).await?;
    wait_until_ready(&next)?;
    next.wait_for_metric("hush_controller_skipped_models{reason=\"NotGoverned\"}", 1.0, SOON)?;
    let pods = Api::<Pod>::all(plane.admin()?).list(&ListParams::default()).await?;
    let version = pods.metadata.resource_version.context("no version")?;
    for path in [PODS, POLICIES] {
        let told = watched(&plane, path, &version).await?;
        assert!(!told.contains("410"), "it is not known any more: {told}");
    }

    // It learns of nothing that happens now: its leader ends, one policy goes, one comes, and a pod with its server.
    process::send(next.pid(), Signal::STOP)?;
    process::send(leader.pid(), Signal::KILL)?;
    plane.shut_api_server_down()?;
    plane.start_api_server().await?;
    plane.kubectl_text(&["delete", "gmp", "speech", "--namespace", &freed.namespace.name], "")?;
    caught.apply(&plane, returning("caught", 0))?;
    let late = stage.server(AppSpec::new("late", 1, 0)).await?;
    let forgotten = plane.forget_history()?;
    assert!(version.parse::<u64>()? < forgotten, "{version} is not older than {forgotten}");
    // What it kept in memory is gone too.
    plane.stop_api_server()?;
    plane.start_api_server().await?;
    for path in [PODS, POLICIES] {
        // At first it may say that it is not there yet.
        eventually("the version is not known any more", SOON, async || {
            let told = watched(&plane, path, &version).await?;
            Ok((told.contains("410") && told.contains("Expired")).then_some(()))
        })
        .await?;
    }

    process::send(next.pid(), Signal::CONT)?;
    for what in ["pods", "GpuModelPolicies"] {
        next.wait_for_log(&[&format!("the watch of the {what} was too old and begins anew")], SOON)?;
    }
    wait_until_ready(&next)?;
    wait_until_acting(&next, true)?;
    next.wait_for_metric("hush_controller_targets{state=\"answering\"}", 3.0, SOON)?;
    caught.wait_for_status(&plane, "loaded", 1)?;
    stage.others_hold(14)?;
    caught.server.wait_for_state("unloaded", SOON)?;
    let orders = [&freed, &caught, &late].map(|app| app.server.unloads_ordered().len());
    assert_eq!(orders, [0, 1, 0], "by the policies of now");
    Ok(())
}
