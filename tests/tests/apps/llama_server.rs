//! llama-server with its router alone: the stand-in and, where it was built, the real one do the same; and the server of the
//! wheel.

use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use hush_tests::apps::standins::{StandInKind, ViolationKind};
use hush_tests::apps::{AppCall, LlamaProcess, LlamaRouter, RealApp, TestedApp, find_real_app};
use hush_tests::wait::wait_for;
use hush_tests::{http, process};
use serde_json::{Value, json};

use crate::support::{SOON, begin_long_call, in_background, joined, send, short, standin, violations};

fn real(args: &[&str]) -> Result<Option<LlamaRouter>> {
    let Some(binary) = find_real_app(RealApp::LlamaServer)? else { return Ok(None) };
    let mut app = LlamaRouter::new(&binary, args)?;
    app.start()?;
    Ok(Some(app))
}

fn status(app: &dyn TestedApp) -> Result<Value> {
    let list = http::get(app.address(), "/models")?.json()?;
    let data = list["data"].as_array().context("no data")?;
    let entry = data.iter().find(|entry| entry["id"] == app.model().as_str()).context("not listed")?;
    Ok(entry["status"].clone())
}

fn wait_for_value(app: &dyn TestedApp, value: &str) -> Result<Value> {
    wait_for(&format!("the list says {value}"), SOON, || {
        Ok(Some(status(app)?).filter(|status| status["value"] == value))
    })
}

fn order(app: &dyn TestedApp, action: &str) -> Result<u16> {
    Ok(send(app, &format!("/models/{action}"), &json!({"model": app.model()}))?.status)
}

fn answers_come_before_the_acts(app: &dyn TestedApp) -> Result<()> {
    assert_eq!(order(app, "unload")?, 400, "not running");
    assert_eq!(order(app, "load")?, 200);
    assert_eq!(order(app, "load")?, 400, "already running");
    assert_ne!(status(app)?["value"], "unloaded");
    wait_for_value(app, "loaded")?;
    assert_eq!(send(app, "/models/load", &json!({"model": "nothing"}))?.status, 404);
    assert_eq!(order(app, "unload")?, 200);
    wait_for_value(app, "unloaded").map(|_| ())
}

fn work_without_its_model_is_refused(app: &dyn TestedApp) -> Result<()> {
    let answer = short(app)?;
    assert_eq!(answer.status, 400);
    assert_eq!(answer.json()?["error"]["message"], "model is not loaded");
    assert_eq!(http::get(app.address(), "/metrics?model=tiny&autoload=false")?.status, 400);
    assert_eq!(status(app)?["value"], "unloaded");
    Ok(())
}

fn props_tell_of_the_router(app: &dyn TestedApp, has_autoload: bool) -> Result<()> {
    let props = http::get(app.address(), "/props")?.json()?;
    assert_eq!((&props["role"], &props["models_autoload"]), (&"router".into(), &has_autoload.into()));
    assert!(props["build_info"].is_string());
    Ok(())
}

/// The client cannot tell that its answer is not whole, but for `[DONE]`; a second unload meanwhile says success too.
fn unload_cuts_a_stream_with_a_clean_end(app: &dyn TestedApp) -> Result<()> {
    app.load_directly()?;
    let stream = begin_long_call(app)?;
    assert_eq!(order(app, "unload")?, 200);
    std::thread::sleep(Duration::from_millis(50));
    let second = order(app, "unload")?;
    let answer = stream.finish()?;
    assert_eq!(answer.status, 200);
    assert!(!answer.text().contains("[DONE]"), "{}", answer.text());
    let ended = wait_for_value(app, "unloaded")?;
    // A child that ended at once was not killed; a later unload then says that the model is not running.
    assert!(second == 200 || second == 400 && ended["failed"].is_null(), "{second} {ended}");
    if ended["failed"] == true {
        // Killed by our unload: this is no failed load.
        assert_eq!(ended["exit_code"], 1, "{ended}");
    }
    Ok(())
}

fn everything_alike(app: &dyn TestedApp) -> Result<()> {
    props_tell_of_the_router(app, false)?;
    work_without_its_model_is_refused(app)?;
    answers_come_before_the_acts(app)?;
    app.load_directly()?;
    let answer = short(app)?;
    assert_eq!(answer.status, 200, "{}", answer.text());
    app.unload_directly()?;
    unload_cuts_a_stream_with_a_clean_end(app)
}

#[test]
fn the_standin_has_the_manners_of_llama_server() -> Result<()> {
    let app = standin(StandInKind::LlamaServer, &[])?;
    everything_alike(&app)?;
    let seen = violations(&app)?;
    for kind in [
        ViolationKind::RequestWhileAway,
        ViolationKind::UnloadWhileBusy,
        ViolationKind::Cut,
        ViolationKind::UnloadTwice,
    ] {
        assert!(seen.contains(&kind), "{kind:?} in {seen:?}");
    }
    Ok(())
}

#[test]
fn a_real_llama_server_has_the_manners_of_the_standin() -> Result<()> {
    let Some(app) = real(&[])? else { return Ok(()) };
    everything_alike(&app)
}

fn reads_load_the_model(app: &dyn TestedApp) -> Result<()> {
    props_tell_of_the_router(app, true)?;
    assert_eq!(http::get(app.address(), "/metrics?model=tiny&autoload=false")?.status, 400);
    assert_eq!(status(app)?["value"], "unloaded");
    assert_eq!(http::get(app.address(), "/metrics?model=tiny")?.status, 200);
    assert_eq!(status(app)?["value"], "loaded");
    app.unload_directly().map(|_| ())
}

/// A request that comes while the child stops waits for the next one: it would go past a hold.
fn parked_request_loads_the_next_instance(app: &dyn TestedApp) -> Result<()> {
    app.load_directly()?;
    let stream = begin_long_call(app)?;
    assert_eq!(order(app, "unload")?, 200);
    let parked = in_background(app, app.short_call());
    stream.finish()?;
    let answer = joined(parked)?;
    assert_eq!(answer.status, 200, "{}", answer.text());
    assert_eq!(status(app)?["value"], "loaded");
    Ok(())
}

#[test]
fn a_standin_of_llama_server_with_autoload_loads_for_whoever_asks() -> Result<()> {
    let app = standin(StandInKind::LlamaServer, &["--manner", "autoload"])?;
    reads_load_the_model(&app)?;
    assert_eq!(violations(&app)?, [ViolationKind::GetLoads]);
    parked_request_loads_the_next_instance(&app)
}

#[test]
fn a_real_llama_server_with_autoload_does_so_too() -> Result<()> {
    let Some(app) = real(&["--models-autoload"])? else { return Ok(()) };
    reads_load_the_model(&app)?;
    parked_request_loads_the_next_instance(&app)
}

#[test]
fn children_of_a_killed_router_end() -> Result<()> {
    let mut app = standin(StandInKind::LlamaServer, &[])?;
    app.load_directly()?;
    let runner = *app.runners()?.first().context("no runner")?;
    app.kill()?;
    wait_for("the child ends", SOON, || Ok(process::state(runner).is_none_or(|state| state == 'Z').then_some(())))
}

#[test]
fn children_of_a_killed_real_router_end_too() -> Result<()> {
    let Some(mut app) = real(&[])? else { return Ok(()) };
    app.load_directly()?;
    let children = process::children(app.pid()?)?;
    assert!(!children.is_empty());
    app.kill()?;
    wait_for("the children end", SOON, || {
        Ok(children.iter().all(|child| process::state(*child).is_none_or(|state| state == 'Z')).then_some(()))
    })
}

fn alone() -> Result<Option<LlamaProcess>> {
    let Some(package) = find_real_app(RealApp::Xllamacpp)? else { return Ok(None) };
    let mut app = LlamaProcess::new(&package)?;
    app.start_alone()?;
    Ok(Some(app))
}

#[test]
fn the_server_of_the_wheel_streams_for_seconds() -> Result<()> {
    let Some(app) = alone()? else { return Ok(()) };
    let begun = Instant::now();
    let answer = begin_long_call(&app)?.finish()?;
    assert!(app.is_complete(&answer)?, "{}", answer.text());
    assert!(begun.elapsed() > Duration::from_secs(1), "streams must last longer than an unload: {:?}", begun.elapsed());
    Ok(())
}

#[test]
fn the_server_of_the_wheel_stops_work_when_its_client_leaves() -> Result<()> {
    let Some(app) = alone()? else { return Ok(()) };
    let busy = || {
        let text = http::get(app.address(), "/metrics")?.text();
        let line =
            text.lines().find(|line| line.starts_with("llamacpp:requests_processing")).context("no such series")?;
        Ok::<_, anyhow::Error>(!line.ends_with(" 0"))
    };
    let long = AppCall::json(
        "/v1/chat/completions",
        &json!({"max_tokens": 4000, "stream": true, "ignore_eos": true,
        "messages": [{"role": "user", "content": "x"}]}),
    );
    let stream =
        hush_tests::apps::LiveAnswer::open(app.address(), &hush_tests::apps::post_bytes(app.address(), &long, &[]))?;
    stream.wait_for_body(SOON)?;
    assert!(busy()?);
    stream.leave()?;
    let left = Instant::now();
    wait_for("the slot is free", SOON, || Ok((!busy()?).then_some(())))?;
    assert!(left.elapsed() < Duration::from_secs(10), "it would have lasted much longer: {:?}", left.elapsed());
    Ok(())
}
