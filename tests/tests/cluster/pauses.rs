//! A policy that a person has paused: everything that looks at the API sees it, and its end.

use anyhow::Result;
use hush_tests::cluster::ControlPlane;
use hush_tests::wait::wait_for;
use hush_tests::{Controller, http, process};
use rustix::process::Signal;
use serde_json::{Value, json};

use crate::fixture::{
    AppSpec, ClusterFixture, GovernedApp, SOON, own_plane, returning, wait_until_acting, wait_until_ready,
};

const TOKEN: &str = "0123456789abcdef0123456789abcdef";

fn pause(controller: &Controller, app: &GovernedApp, body: &Value) -> Result<()> {
    let body = body.to_string();
    let request = format!(
        "POST /api/v1/pause?policy={}/speech HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nX-Hush-Token: \
         {TOKEN}\r\nContent-Length: {}\r\n\r\n{body}",
        app.namespace.name,
        body.len()
    );
    let answer = http::exchange(controller.ops, request.as_bytes())?;
    anyhow::ensure!(answer.status == 200, "{}", answer.text());
    Ok(())
}

/// Waits for an Event on the policy.
fn wait_for_event(app: &GovernedApp, plane: &ControlPlane, kind: &str, reason: &str, part: &str) -> Result<()> {
    wait_for(&format!("an Event {reason} with {part:?}"), SOON, || {
        let found = app.events(plane)?.into_iter().any(|event| {
            event["involvedObject"]["kind"] == "GpuModelPolicy"
                && (&event["type"], &event["reason"]) == (&json!(kind), &json!(reason))
                && event["message"].as_str().is_some_and(|note| note.contains(part))
        });
        Ok(found.then_some(()))
    })
}

async fn start(stage: &ClusterFixture<'_>) -> Result<Controller> {
    let token = stage.path("page-token");
    std::fs::write(&token, TOKEN)?;
    let token = token.to_string_lossy().into_owned();
    let controller = stage.controller(&["--scope", "cluster", "--page-token-file", &token]).await?;
    wait_until_ready(&controller)?;
    wait_until_acting(&controller, true)?;
    Ok(controller)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pause_and_its_end_are_seen_in_the_api() -> Result<()> {
    let Some(plane) = own_plane().await? else { return Ok(()) };
    let mut stage = ClusterFixture::new(&plane).await?;
    let app = stage.app(AppSpec::new("app", 2, 0)).await?;
    let controller = start(&stage).await?;
    app.transcribe()?;
    app.wait_for_condition(&plane, "Ready", ("True", "InForce"))?;

    pause(&controller, &app, &json!({"untilResumed": true, "claimedBy": "anna\n\u{1b}[2J"}))?;
    let why = app.wait_for_condition(&plane, "Ready", ("False", "Paused"))?;
    assert!(why.starts_with("paused until it is resumed, asked for by anna��[2J as the request says; "), "{why}");
    controller.wait_for_metric("hush_controller_policies_paused", 1.0, SOON)?;
    wait_for_event(&app, &plane, "Warning", "Paused", "asked for by anna��[2J as the request says")?;
    // What it would do is told, and not done.
    stage.others_hold(26)?;
    wait_for("what it would do", SOON, || {
        let why = app.wait_for_condition(&plane, "Ready", ("False", "Paused"))?;
        Ok(why.contains("would now: Unload").then_some(()))
    })?;
    assert!(app.server.unloads_ordered().is_empty());
    stage.others_hold(0)?;

    // An edit that is not valid does not hide it.
    let mut edited = returning("app", 0);
    let window = json!({"cron": "0 8 * * *", "duration": "1h", "timeZone": "Mars/Olympus", "mode": "Idle"});
    edited["residency"] = json!({"schedule": [window]});
    app.apply(&plane, edited)?;
    let why = app.wait_for_condition(&plane, "Ready", ("False", "Invalid"))?;
    assert!(why.starts_with("generation 1 is paused until it is resumed"), "{why}");
    app.apply(&plane, returning("app", 0))?;
    app.wait_for_condition(&plane, "Ready", ("False", "Paused"))?;

    // A pause ends with its controller, and that is told too.
    process::send(controller.pid(), Signal::KILL)?;
    let controller = start(&stage).await?;
    app.wait_for_condition(&plane, "Ready", ("True", "InForce"))?;
    wait_for_event(&app, &plane, "Normal", "Resumed", "the controller that had paused it has ended")?;
    controller.wait_for_metric("hush_controller_policies_paused", 0.0, SOON)?;

    // With its time.
    pause(&controller, &app, &json!({"duration": "3s"}))?;
    let why = app.wait_for_condition(&plane, "Ready", ("False", "Paused"))?;
    assert!(why.starts_with("paused until 20") && why.contains("with the page's token and without a name"), "{why}");
    wait_for_event(&app, &plane, "Normal", "Resumed", "the time of its pause is over")?;
    app.wait_for_condition(&plane, "Ready", ("True", "InForce"))?;
    Ok(())
}
