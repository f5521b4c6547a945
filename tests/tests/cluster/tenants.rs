//! Several policies on one server: the strictest value applies, every policy shows it in its status, and no policy affects
//! another namespace.

use anyhow::Result;
use hush_tests::cluster::ControlPlane;
use hush_tests::wait::wait_for;
use serde_json::{Value, json};

use crate::fixture::{
    AppSpec, CONTROLLER, ClusterFixture, GovernedApp, POD, SOON, own_plane, policy, wait_until_calm, wait_until_ready,
};

/// The operator's policy for a team.
fn floor(plane: &ControlPlane, team: &str, spec: &Value) -> Result<()> {
    let mut spec = spec.clone();
    spec["selector"] = json!({"matchLabels": {"gpu.hush.dev/server": "true"}});
    spec["namespaceSelector"] = json!({"matchLabels": {"team": team}});
    let policy = json!({
        "apiVersion": "gpu.hush.dev/v1beta1",
        "kind": "ClusterGpuModelPolicy",
        "metadata": {"name": "floor"},
        "spec": spec,
    });
    plane.kubectl_text(&["apply", "--filename", "-"], &policy.to_string()).map(drop)
}

fn with(mut spec: Value, field: &str, value: Value) -> Value {
    spec[field] = value;
    spec
}

/// The first command that was carried out for an app, by its reason.
fn reasons(app: &GovernedApp, plane: &ControlPlane) -> Result<Vec<Value>> {
    let actions = app.policy(plane)?["status"]["lastActions"].as_array().cloned().unwrap_or_default();
    Ok(actions.into_iter().map(|action| action["reason"].clone()).collect())
}

/// A selector that matches all servers matches those of its own namespace.
fn selects_only_its_own_namespace(plane: &ControlPlane, tenant: &GovernedApp, other: &GovernedApp) -> Result<()> {
    let all_servers = json!({"matchLabels": {"gpu.hush.dev/server": "true"}});
    let spec = with(policy("tenant", 0), "selector", all_servers);
    tenant.apply(plane, with(spec, "residency", json!({"mode": "OnDemand"})))?;
    tenant.wait_for_status(plane, "observedGeneration", 4)?;
    tenant.wait_for_status(plane, "matched", 1)?;
    tenant.wait_for_condition(plane, "Selecting", ("True", "Selected"))?;

    tenant.transcribe()?;
    tenant.server.wait_for_state("unloaded", SOON)?;
    other.server.wait_for_state("ready", SOON)?;
    assert!(other.server.unloads_ordered().is_empty());
    assert!(other.events(plane)?.is_empty());
    Ok(())
}

#[tokio::test]
async fn a_tenant_tightens_the_floor_and_never_loosens_it() -> Result<()> {
    let Some(plane) = own_plane().await? else { return Ok(()) };
    let mut stage = ClusterFixture::new(&plane).await?;
    let controller = stage.controller(&["--scope", "cluster"]).await?;
    let tenant = stage.app(AppSpec::new("tenant", 2, 0)).await?;
    let other = stage.app(AppSpec::new("other", 2, 0)).await?;
    wait_until_ready(&controller)?;
    tenant.transcribe()?;
    other.transcribe()?;
    for app in [&tenant, &other] {
        app.wait_for_status(&plane, "loaded", 1)?;
        app.wait_for_condition(&plane, "Conflicted", ("False", "NoConflict"))?;
    }

    // The tenant wants its model to stay; the operator does not.
    floor(&plane, "tenant", &json!({"residency": {"mode": "Idle", "idleTimeout": "2s"}}))?;
    tenant.server.wait_for_state("unloaded", SOON)?;
    let why = tenant.wait_for_condition(&plane, "Conflicted", ("True", "StricterPolicy"))?;
    assert!(why.contains("`residency.mode` of `/floor`"), "{why}");
    let status: Value = serde_json::from_str(&plane.kubectl_text(&["get", "cgmp", "floor", "--output", "json"], "")?)?;
    assert_eq!(status["status"]["matched"], 1, "its own namespaces and no other: {status}");

    // An hour is not as strict as two seconds: nothing is loosened by it.
    let loose = json!({"mode": "Idle", "idleTimeout": "1h"});
    tenant.apply(&plane, with(policy("tenant", 0), "residency", loose))?;
    tenant.wait_for_status(&plane, "observedGeneration", 2)?;
    let why = tenant.wait_for_condition(&plane, "Conflicted", ("True", "StricterPolicy"))?;
    assert!(why.contains("`residency.idleTimeout` of `/floor`"), "{why}");
    tenant.transcribe()?;
    tenant.server.wait_for_state("unloaded", SOON)?;

    // Stricter than an hour: the tenant's own word holds, and is the operator's conflict to read about.
    floor(&plane, "tenant", &json!({"residency": {"mode": "Idle", "idleTimeout": "1h"}}))?;
    tenant.apply(&plane, with(policy("tenant", 0), "residency", json!({"mode": "OnDemand"})))?;
    tenant.wait_for_status(&plane, "observedGeneration", 3)?;
    tenant.transcribe()?;
    tenant.server.wait_for_state("unloaded", SOON)?;
    tenant.wait_for_condition(&plane, "Conflicted", ("False", "NoConflict"))?;
    wait_for("the policy tells of it", SOON, || {
        Ok(reasons(&tenant, &plane)?.contains(&json!("OnDemand")).then_some(()))
    })?;

    selects_only_its_own_namespace(&plane, &tenant, &other)?;

    // No policy governs a pod that is gone; a pod that comes back is governed again.
    tenant.namespace.delete_pod(POD).await?;
    tenant.wait_for_status(&plane, "matched", 0)?;
    tenant.wait_for_condition(&plane, "Ready", ("True", "NothingSelected"))?;
    tenant.wait_for_condition(&plane, "Selecting", ("False", "NothingSelected"))?;
    Ok(())
}

/// A tenant asks for all that could protect its model, and for a target that cannot be reached: under the floor the model
/// leaves as without it, and that of the other tenant stays.
#[tokio::test]
async fn a_hostile_tenant_keeps_nothing_at_the_cost_of_another() -> Result<()> {
    let Some(plane) = own_plane().await? else { return Ok(()) };
    let mut stage = ClusterFixture::new(&plane).await?;
    let controller = stage.controller(&["--scope", "cluster"]).await?;
    let hostile = stage.server(AppSpec::new("hostile", 2, 0)).await?;
    let other = stage.server(AppSpec::new("other", 2, 0)).await?;
    wait_until_ready(&controller)?;
    let floor = json!({
        "apiVersion": "gpu.hush.dev/v1beta1",
        "kind": "ClusterGpuModelPolicy",
        "metadata": {"name": "floor"},
        "spec": {
            "selector": {"matchLabels": {"gpu.hush.dev/server": "true"}},
            "residency": {"mode": "Resident"},
            "pressure": {"hard": {"availableBelow": "1Gi"}, "minReclaim": "512Mi", "transitionPeriod": "1s"},
        },
    });
    plane.kubectl_text(&["apply", "--filename", "-"], &floor.to_string())?;
    hostile.apply(
        &plane,
        json!({
            "selector": {"matchLabels": {"app": "hostile"}},
            "residency": {"mode": "Resident", "minResident": "168h"},
            "pressure": {"hard": {"availableBelow": "1Gi"}},
            "minLoaded": 1,
            "priority": 1_000_000,
        }),
    )?;
    // The hostile one has been idle for longer, so that its turn is first.
    hostile.transcribe()?;
    other.transcribe()?;
    hostile.wait_for_status(&plane, "loaded", 1)?;
    let why = hostile.wait_for_condition(&plane, "Conflicted", ("True", "StricterPolicy"))?;
    assert!(why.contains("`minLoaded`, `priority`, `residency.minResident` of `/floor`"), "{why}");

    stage.others_hold(14)?;
    hostile.server.wait_for_state("unloaded", SOON)?;
    wait_until_calm(&controller)?;
    assert_eq!(hostile.server.unloads_ordered().len(), 1);
    assert!(other.server.unloads_ordered().is_empty());
    Ok(())
}

#[tokio::test]
async fn a_policy_may_be_edited_or_deleted_at_any_moment() -> Result<()> {
    let Some(plane) = own_plane().await? else { return Ok(()) };
    let mut stage = ClusterFixture::new(&plane).await?;
    let controller = stage.controller(&["--scope", "cluster"]).await?;
    wait_until_ready(&controller)?;
    let app = stage.server(AppSpec::new("app", 2, 0)).await?;
    let soft = |grace: &str| {
        let pressure = json!({"soft": {"availableBelow": "1Gi", "gracePeriod": grace}, "transitionPeriod": "1s"});
        with(with(policy("app", 0), "pressure", pressure), "holdAfterEviction", json!("0s"))
    };
    app.apply(&plane, soft("1h"))?;
    app.transcribe()?;
    app.wait_for_status(&plane, "loaded", 1)?;
    stage.others_hold(22)?;
    app.wait_for_condition(&plane, "Pressure", ("True", "SoftPressure"))?;
    controller.wait_for_metric("hush_controller_skipped_models{reason=\"GracePeriod\"}", 1.0, SOON)?;

    // Deleted in the middle of its grace period: nothing is left of it.
    plane.kubectl_text(&["delete", "gmp", "speech", "--namespace", &app.namespace.name], "")?;
    controller.wait_for_metric("hush_controller_skipped_models{reason=\"NotGoverned\"}", 1.0, SOON)?;
    app.apply(&plane, soft("1h"))?;
    controller.wait_for_metric("hush_controller_skipped_models{reason=\"GracePeriod\"}", 1.0, SOON)?;
    assert!(app.server.unloads_ordered().is_empty());

    // Edited in the middle of it: what has been waited for counts.
    app.apply(&plane, soft("1s"))?;
    app.server.wait_for_state("unloaded", SOON)?;
    app.wait_for_status(&plane, "observedGeneration", 2)?;
    wait_for("the policy tells of it", SOON, || Ok((reasons(&app, &plane)? == ["SoftPressure"]).then_some(())))?;

    // Deleted while its command is on its way or has just been carried out: the loop goes on.
    stage.others_hold(0)?;
    app.transcribe()?;
    wait_until_calm(&controller)?;
    stage.others_hold(22)?;
    wait_for("the second command", SOON, || Ok((app.server.unloads_ordered().len() == 2).then_some(())))?;
    plane.kubectl_text(&["delete", "gmp", "speech", "--namespace", &app.namespace.name], "")?;
    controller.wait_for_metric("hush_controller_skipped_models{reason=\"NotGoverned\"}", 1.0, SOON)?;
    app.server.wait_for_state("unloaded", SOON)?;
    wait_until_ready(&controller)?;
    assert!(!controller.log().join("\n").contains("panicked"));
    Ok(())
}

#[tokio::test]
async fn a_waiting_model_gets_room_from_another_namespace() -> Result<()> {
    let Some(plane) = own_plane().await? else { return Ok(()) };
    let mut stage = ClusterFixture::new(&plane).await?;
    let controller = stage.controller(&["--scope", "cluster"]).await?;
    wait_until_ready(&controller)?;
    // Half a GiB is left with the one, and more than enough without it.
    stage.others_hold(14)?;
    let low = stage.server(AppSpec::new("low", 4, 0)).await?;
    let high = stage.server(AppSpec::new("high", 3, 10)).await?;
    for (app, name, priority) in [(&low, "low", 0), (&high, "high", 10)] {
        let spec = json!({"selector": {"matchLabels": {"app": name}}, "residency": {"mode": "Resident"}, "priority": priority});
        app.apply(&plane, spec)?;
    }
    low.transcribe()?;
    low.wait_for_status(&plane, "loaded", 1)?;
    high.wait_for_status(&plane, "matched", 1)?;
    // Waits in the server until there is room, and is answered then.
    high.transcribe()?;
    low.server.wait_for_state("unloaded", SOON)?;
    wait_for("the policy tells of it", SOON, || Ok((reasons(&low, &plane)? == ["MakeRoom"]).then_some(())))?;
    assert_eq!(low.server.unloads_ordered(), [stage.caller(CONTROLLER)]);
    Ok(())
}
