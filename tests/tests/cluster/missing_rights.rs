//! A controller whose role lacks something: it says what and in which role, once and where people look, does not ask again
//! and again, and goes on when it may.

use std::thread;
use std::time::Duration;

use anyhow::{Context, Result};
use hush_tests::cluster::Rights;
use hush_tests::wait::wait_for;
use serde_json::Value;

use crate::fixture::{
    AppSpec, ClusterFixture, SOON, own_plane, pulse, wait_until_acting, wait_until_missing, wait_until_ready,
};

const FORBIDDEN: &str = "hush_controller_status_write_failures_total{result=\"forbidden\"}";
/// Steps for more than this long: before, each of them tried and complained.
const WATCHED: Duration = Duration::from_secs(6);

#[tokio::test]
async fn a_status_that_may_not_be_written_is_said_once_and_in_readyz() -> Result<()> {
    let Some(plane) = own_plane().await? else { return Ok(()) };
    let mut stage = ClusterFixture::new(&plane).await?;
    let apps = [stage.app(AppSpec::new("one", 2, 0)).await?, stage.app(AppSpec::new("two", 2, 5)).await?];
    let role = format!("hush-controller-{}", stage.system.name);
    let whole = plane.kubectl_text(&["get", "clusterrole", &role, "--output", "json"], "")?;
    let mut without: Value = serde_json::from_str(&whole)?;
    without["metadata"] = serde_json::json!({"name": role});
    let with = without.to_string();
    let rules = without["rules"].as_array_mut().context("no rules")?;
    let all = rules.len();
    rules.retain(|rule| !rule["resources"].to_string().contains("/status"));
    assert_eq!(rules.len(), all - 1);
    plane.kubectl_text(&["replace", "--filename", "-"], &without.to_string())?;

    let controller = stage.controller(&["--scope", "cluster"]).await?;
    wait_until_acting(&controller, true)?;
    wait_until_missing(&controller, "does not let this account patch `gpumodelpolicies/status`: the ClusterRole")?;
    wait_for("both writes have failed", SOON, || Ok((controller.metric(FORBIDDEN)? >= Some(2.0)).then_some(())))?;
    thread::sleep(WATCHED);

    let complaints = || {
        let log = controller.log();
        log.iter().filter(|line| line.contains("the status could not be written")).count()
    };
    assert_eq!(complaints(), 1, "{:?}", controller.log());
    let tries = controller.metric(FORBIDDEN)?.context("no figure")?;
    assert!(tries <= 12.0, "each policy is tried after 1, 2, 4 and 8 seconds, and there were {tries} tries");
    let counted = "hush_controller_api_requests_total{\
        resource=\"gpumodelpolicies/status\",result=\"forbidden\",verb=\"patch\"}";
    assert!(controller.metric(counted)? >= Some(tries), "they are among the requests");
    // What matters more goes on.
    apps[1].transcribe()?;
    pulse(&mut stage, &apps[0])?;

    plane.kubectl_text(&["replace", "--filename", "-"], &with)?;
    for app in &apps {
        app.wait_for_status(&plane, "observedGeneration", 1)?;
    }
    wait_until_ready(&controller)?;
    controller.wait_for_log(&["the status of every policy is written again"], SOON)?;
    assert_eq!(complaints(), 1);
    Ok(())
}

#[tokio::test]
async fn the_role_of_each_missing_right_is_named() -> Result<()> {
    let Some(plane) = own_plane().await? else { return Ok(()) };
    let mut stage = ClusterFixture::new(&plane).await?;
    let app = stage.app(AppSpec::new("speech", 2, 0)).await?;
    let system = &stage.system.name;
    let (lease, whole) = (format!("hush-controller-lease-{system}"), format!("hush-controller-{system}"));
    plane.kubectl_text(&["delete", "rolebinding", &lease, "--namespace", "kube-system"], "")?;
    plane.kubectl_text(&["delete", "clusterrolebinding", &whole], "")?;

    let controller = stage.controller(&["--scope", "cluster"]).await?;
    for (part, role) in [
        ("lease: the lease could not be read: ", "it is called `NAMESPACE-NAME-controller-lease`"),
        (
            "pods: the API server does not let this account list and watch pods: ",
            "it is called `NAMESPACE-NAME-controller`",
        ),
        ("policies: the API server does not let", "it is called `NAMESPACE-NAME-controller`"),
    ] {
        wait_until_missing(&controller, part)?;
        let said = hush_tests::http::get(controller.ops, "/readyz")?.text();
        let line = said.lines().find(|line| line.starts_with(part)).with_context(|| said.clone())?;
        assert!(line.contains(role), "{line}");
    }

    plane.grant(&stage.system, Rights::Controller)?;
    wait_until_ready(&controller)?;
    wait_until_acting(&controller, true)?;
    pulse(&mut stage, &app)
}
