//! A policy that is changed or deleted while a model leaves by it: what was ordered stands, once, and nothing follows from
//! what does not hold any more.

use std::net::SocketAddr;
use std::thread::JoinHandle;

use anyhow::{Context, Result, ensure};
use hush_tests::cluster::ControlPlane;
use hush_tests::wait::wait_for;
use hush_tests::{Controller, fixtures, http, process};
use rustix::process::Signal;
use serde_json::{Value, json};

use crate::fixture::{
    AppSpec, CONTROLLER, ClusterFixture, GovernedApp, POD, SOON, own_plane, returning, wait_until_acting,
    wait_until_calm, wait_until_ready,
};

const DRAIN: &str = "120s";

/// A request that lasts until it is let go on.
struct PausedRequest {
    runner: u32,
    request: JoinHandle<Result<http::Response>>,
}

impl PausedRequest {
    fn begin(app: &GovernedApp) -> Result<Self> {
        app.transcribe()?;
        let [runner] = app.server.runners()?[..] else { anyhow::bail!("not one runner") };
        process::send(runner, Signal::STOP)?;
        let (api, audio): (SocketAddr, _) = (app.server.api, fixtures::audio("en-1.wav")?);
        let request = std::thread::spawn(move || http::upload(api, "/asr?language=en", "en-1.wav", &audio));
        app.server.wait_for_metric(&in_flight(), 1.0, SOON)?;
        Ok(Self { runner, request })
    }

    fn end(self) -> Result<()> {
        process::send(self.runner, Signal::CONT)?;
        let answer = self.request.join().map_err(|_| anyhow::anyhow!("the client panicked"))??;
        ensure!(answer.status == 200, "a request was lost: {}", answer.text());
        Ok(())
    }
}

fn in_flight() -> String {
    format!("hush_model_inflight_requests{{model=\"{}\"}}", fixtures::MODEL)
}

fn orders(app: &GovernedApp) -> usize {
    app.server.unloads_ordered().len()
}

fn patient(app: &str, priority: i32) -> Value {
    let mut spec = returning(app, priority);
    spec["drainTimeout"] = json!(DRAIN);
    spec
}

/// Reasons and notes of the Events on one kind of object.
fn told(app: &GovernedApp, plane: &ControlPlane, kind: &str) -> Result<Vec<(String, String)>> {
    let events = app.events(plane)?;
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let these = events.iter().filter(|event| event["involvedObject"]["kind"] == kind);
    Ok(these.map(|event| (text(&event["reason"]), text(&event["message"]))).collect())
}

/// A live policy is edited to a time zone that does not exist: what was valid goes on, also in a controller that has seen
/// nothing else, and everything says so.
#[tokio::test(flavor = "multi_thread")]
async fn an_edit_that_is_not_valid_takes_nothing_out_of_force() -> Result<()> {
    let Some(plane) = own_plane().await? else { return Ok(()) };
    let mut stage = ClusterFixture::new(&plane).await?;
    let app = stage.app(AppSpec::new("app", 2, 0)).await?;
    let invalid =
        json!({"schedule": [{"cron": "0 8 * * *", "duration": "1h", "timeZone": "Mars/Olympus", "mode": "Idle"}]});
    let controller = stage.controller(&["--scope", "cluster"]).await?;
    wait_until_ready(&controller)?;
    app.wait_for_status(&plane, "enforcedGeneration", 1)?;
    app.wait_for_condition(&plane, "Ready", ("True", "InForce"))?;

    let mut edited = returning("app", 0);
    edited["residency"] = invalid;
    app.apply(&plane, edited)?;
    let why = app.wait_for_condition(&plane, "Ready", ("False", "Invalid"))?;
    assert!(why.contains("generation 1 stays in force") && why.contains("schedule[0].timeZone"), "{why}");
    app.wait_for_status(&plane, "observedGeneration", 2)?;
    app.wait_for_status(&plane, "enforcedGeneration", 1)?;
    app.wait_for_status(&plane, "matched", 1)?;
    controller.wait_for_metric("hush_controller_policies_invalid", 1.0, SOON)?;
    controller.wait_for_metric("hush_controller_policies", 1.0, SOON)?;
    let warned = || {
        let told = told(&app, &plane, "GpuModelPolicy")?;
        Ok(told.iter().any(|(reason, note)| reason == "Invalid" && note.contains("timeZone")).then_some(()))
    };
    wait_for("the Event of the edit", SOON, warned)?;

    // Another controller knows the last valid generation from the status alone.
    process::send(controller.pid(), Signal::KILL)?;
    let controller = stage.controller(&["--scope", "cluster"]).await?;
    wait_until_ready(&controller)?;
    wait_until_acting(&controller, true)?;
    controller.wait_for_metric("hush_controller_policies", 1.0, SOON)?;
    app.transcribe()?;
    stage.others_hold(22)?;
    app.server.wait_for_state("unloaded", SOON)?;
    stage.others_hold(0)?;

    // Mended, it is in force itself.
    app.apply(&plane, returning("app", 5))?;
    app.wait_for_condition(&plane, "Ready", ("True", "InForce"))?;
    app.wait_for_status(&plane, "enforcedGeneration", 3)?;
    controller.wait_for_metric("hush_controller_policies_invalid", 0.0, SOON)?;
    let invalid_told =
        told(&app, &plane, "GpuModelPolicy")?.into_iter().filter(|(reason, _)| reason == "Invalid").count();
    assert_eq!(invalid_told, 1, "once for each generation, whichever controller leads");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_command_stands_and_nothing_follows_from_what_has_changed() -> Result<()> {
    let Some(plane) = own_plane().await? else { return Ok(()) };
    let mut stage = ClusterFixture::new(&plane).await?;
    // A runner that stands still is not taken for one that hangs.
    let patience = ["--stall-timeout", "600s"];
    let edited = stage.server(AppSpec { args: &patience, ..AppSpec::new("edited", 2, 0) }).await?;
    let deleted = stage.server(AppSpec { args: &patience, ..AppSpec::new("deleted", 2, 0) }).await?;
    // Higher priority: this model is unloaded only where no other one is.
    let witness = stage.server(AppSpec::new("witness", 2, 9)).await?;
    edited.apply(&plane, patient("edited", 0))?;
    deleted.apply(&plane, patient("deleted", 0))?;
    witness.apply(&plane, returning("witness", 9))?;
    let controller = stage.controller(&["--scope", "cluster", "--lease-duration", "30s"]).await?;
    wait_until_ready(&controller)?;
    wait_until_acting(&controller, true)?;

    for (app, change) in [(&edited, PolicyChange::Edited), (&deleted, PolicyChange::Deleted)] {
        let long = PausedRequest::begin(app)?;
        app.wait_for_status(&plane, "loaded", 1)?;
        stage.others_hold(22)?;
        app.server.wait_for_state("draining", SOON)?;
        change_policy(app, &plane, &controller, change)?;

        assert_eq!(app.server.metric(&in_flight())?, Some(1.0), "it is still answering");
        ensure!(controller.sent()?.iter().all(|record| record["server"] != app.pod()), "the command has not ended");
        long.end()?;
        app.server.wait_for_state("unloaded", SOON)?;
        wait_until_calm(&controller)?;
        assert_eq!(orders(app), 1, "one command, though memory was short all the time");

        expect_end_of_command(app, &controller)?;
        expect_reports(app, &plane, change)?;

        // The model is loaded and memory is short again: the other model is unloaded.
        stage.others_hold(0)?;
        app.transcribe()?;
        witness.transcribe()?;
        let before = orders(&witness);
        witness.wait_for_status(&plane, "loaded", 1)?;
        stage.others_hold(14)?;
        witness.server.wait_for_state("unloaded", SOON)?;
        wait_until_calm(&controller)?;
        assert_eq!((orders(app), orders(&witness)), (1, before + 1));
        assert_eq!(controller.sent()?.iter().filter(|record| record["server"] == app.pod()).count(), 1);
        app.server.wait_for_state("ready", SOON)?;

        // The next round needs the memory.
        stage.others_hold(0)?;
        unload(&stage, app).await?;
    }
    Ok(())
}

/// What happens to a policy while a model leaves because of it.
#[derive(Clone, Copy, PartialEq, Eq)]
enum PolicyChange {
    Edited,
    Deleted,
}

fn change_policy(app: &GovernedApp, plane: &ControlPlane, controller: &Controller, change: PolicyChange) -> Result<()> {
    match change {
        PolicyChange::Deleted => {
            plane.kubectl_text(&["delete", "gmp", "speech", "--namespace", &app.namespace.name], "")?;
            controller.wait_for_metric("hush_controller_policies", 2.0, SOON)
        }
        PolicyChange::Edited => {
            // This policy unloads no model for lack of memory.
            let spec = json!({"selector": {"matchLabels": {"app": "edited"}}, "residency": {"mode": "Resident"}});
            app.apply(plane, spec)?;
            app.wait_for_status(plane, "observedGeneration", 2)
        }
    }
}

/// The audit log has the command under the policy that was its reason.
fn expect_end_of_command(app: &GovernedApp, controller: &Controller) -> Result<()> {
    let record = wait_for("the command has ended", SOON, || {
        Ok(controller.sent()?.into_iter().find(|record| record["server"] == app.pod()))
    })?;

    assert_eq!((&record["outcome"], &record["reason"]), (&json!("Unloaded"), &json!("HardPressure")), "{record}");
    assert_eq!(record["policy"], format!("{}/speech", app.namespace.name));
    Ok(())
}

/// The end of the command is reported on every object that still exists.
fn expect_reports(app: &GovernedApp, plane: &ControlPlane, change: PolicyChange) -> Result<()> {
    let namespace = &app.namespace.name;
    let note = format!("unloaded {} of {namespace}/{POD} for {namespace}/speech (HardPressure)", fixtures::MODEL);
    let event = wait_for("an Event on the pod", SOON, || Ok(told(app, plane, "Pod")?.pop()))?;
    assert!(event.0 == "Unloaded" && event.1.starts_with(&note), "{event:?}");

    if change == PolicyChange::Deleted {
        let about_policy = told(app, plane, "GpuModelPolicy")?;
        assert!(about_policy.is_empty(), "there is no policy to tell of it: {about_policy:?}");
        return Ok(());
    }

    let policy = wait_for("the status tells of it", SOON, || {
        Ok(Some(app.policy(plane)?).filter(|policy| policy["status"]["lastActions"].is_array()))
    })?;
    let last = &policy["status"]["lastActions"][0];
    assert_eq!((&last["action"], &last["reason"]), (&json!("Unload"), &json!("HardPressure")), "{policy}");
    assert_eq!(policy["status"]["observedGeneration"], policy["metadata"]["generation"], "{policy}");
    Ok(())
}

/// As a person does it.
async fn unload(stage: &ClusterFixture<'_>, app: &GovernedApp) -> Result<()> {
    let token = stage.system.token(CONTROLLER, Some(&app.audience())).await?;
    let (ops, body, model) = (app.server.ops, "{}", fixtures::MODEL);
    let request = format!(
        "POST /admin/v1/models/{model}/unload HTTP/1.1\r\nHost: {ops}\r\nContent-Type: application/json\r\n\
         Authorization: Bearer {token}\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{body}",
        body.len()
    );
    let answer = http::exchange(ops, request.as_bytes()).context("unloading")?;
    ensure!(answer.status == 200, "{}", answer.text());
    Ok(())
}
