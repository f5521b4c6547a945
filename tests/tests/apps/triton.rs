//! Triton alone: the stand-in and the real one do the same.

use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use hush_tests::apps::standins::{StandInKind, ViolationKind};
use hush_tests::apps::{RealApp, TestedApp, TritonServer, find_real_app};
use hush_tests::http;
use hush_tests::wait::wait_for;
use serde_json::{Value, json};

use crate::support::{SOON, begin_long_call, command, in_background, joined, send, short, standin, violations};

const LOAD: Duration = Duration::from_millis(1500);
const UNLOAD: Duration = Duration::from_millis(700);

fn real() -> Result<Option<TritonServer>> {
    let Some(binary) = find_real_app(RealApp::Triton)? else { return Ok(None) };
    let mut app = TritonServer::new(&binary, LOAD, UNLOAD)?;
    app.start()?;
    Ok(Some(app))
}

fn entry(app: &dyn TestedApp) -> Result<Value> {
    let index = command(app, "/v2/repository/index")?.json()?;
    let entries = index.as_array().context("no list")?;
    entries.iter().find(|entry| entry["name"] == app.model().as_str()).cloned().context("not in the index")
}

fn wait_for_state(app: &dyn TestedApp, state: &str) -> Result<Value> {
    wait_for(&format!("the index says {state}"), SOON, || Ok(Some(entry(app)?).filter(|entry| entry["state"] == state)))
}

fn order(app: &dyn TestedApp, action: &str) -> Result<u16> {
    Ok(command(app, &format!("/v2/repository/models/{}/{action}", app.model()))?.status)
}

fn starts_with_nothing_and_says_ready(app: &dyn TestedApp) -> Result<()> {
    assert_eq!(http::get(app.address(), "/v2/health/ready")?.status, 200);
    assert_eq!(entry(app)?["state"], Value::Null);
    assert_eq!(http::get(app.address(), "/v2/repository/index")?.status, 405);
    assert_eq!(command(app, "/v2/repository/models/nothing/unload")?.status, 200, "an unknown model, and success");
    assert_ne!(command(app, "/v2/repository/models/nothing/load")?.status, 200);
    Ok(())
}

fn load_blocks(app: &dyn TestedApp) -> Result<()> {
    let begun = Instant::now();
    assert_eq!(order(app, "load")?, 200);
    assert!(begun.elapsed() >= LOAD, "{:?}", begun.elapsed());
    assert_eq!(entry(app)?["state"], "READY");
    let answer = short(app)?;
    assert_eq!(answer.status, 200, "{}", answer.text());
    Ok(())
}

fn unload_answers_at_once_and_waits_for_work(app: &dyn TestedApp) -> Result<()> {
    let work = begin_long_call(app)?;
    let begun = Instant::now();
    assert_eq!(order(app, "unload")?, 200);
    assert!(begun.elapsed() < Duration::from_secs(1), "{:?}", begun.elapsed());
    wait_for_state(app, "UNLOADING")?;
    assert_eq!(short(app)?.status, 404, "new work is refused");
    assert_eq!(entry(app)?["state"], "UNLOADING", "the old work still goes on");
    let answer = work.finish()?;
    assert!(app.is_complete(&answer)?, "{}", answer.text());
    let ended = wait_for_state(app, "UNAVAILABLE")?;
    assert_eq!(ended["reason"], "unloaded");
    Ok(())
}

fn unload_while_loading_waits_for_the_load(app: &dyn TestedApp) -> Result<()> {
    let load = in_background(
        app,
        hush_tests::apps::AppCall::json(&format!("/v2/repository/models/{}/load", app.model()), &json!({})),
    );
    wait_for_state(app, "LOADING")?;
    assert_eq!(order(app, "unload")?, 200);
    assert_eq!(joined(load)?.status, 200);
    wait_for_state(app, "UNAVAILABLE").map(|_| ())
}

fn everything_alike(app: &dyn TestedApp) -> Result<()> {
    starts_with_nothing_and_says_ready(app)?;
    load_blocks(app)?;
    unload_answers_at_once_and_waits_for_work(app)?;
    unload_while_loading_waits_for_the_load(app)
}

#[test]
fn the_standin_has_the_manners_of_triton() -> Result<()> {
    let app = standin(StandInKind::Triton, &["--load-ms", "1500", "--unload-ms", "700"])?;
    everything_alike(&app)?;
    let seen = violations(&app)?;
    assert!(
        seen.contains(&ViolationKind::UnloadWhileBusy) && seen.contains(&ViolationKind::RequestWhileAway),
        "{seen:?}"
    );
    Ok(())
}

#[test]
fn a_real_triton_has_the_manners_of_the_standin() -> Result<()> {
    let Some(app) = real()? else { return Ok(()) };
    everything_alike(&app)
}

#[test]
fn a_triton_without_model_control_refuses() -> Result<()> {
    let app = standin(StandInKind::Triton, &["--manner", "no-model-control"])?;
    assert_eq!(order(&app, "load")?, 400);
    let answer = send(&app, "/v2/repository/models/tiny/load", &json!({}))?;
    assert!(answer.text().contains("not allowed"), "{}", answer.text());
    Ok(())
}
