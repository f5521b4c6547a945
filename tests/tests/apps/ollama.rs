//! Ollama alone: the stand-in and, where it was built, the real one do the same.

use std::time::Duration;

use anyhow::{Context, Result};
use hush_tests::apps::standins::{StandInKind, ViolationKind};
use hush_tests::apps::{OllamaServer, RealApp, TestedApp, find_real_app, post};
use hush_tests::http;
use hush_tests::process;
use hush_tests::wait::wait_for;
use rustix::process::Signal;
use serde_json::{Value, json};

use crate::support::{SOON, begin_long_call, send, short, standin, violations};

fn real() -> Result<Option<OllamaServer>> {
    let Some(binary) = find_real_app(RealApp::Ollama)? else { return Ok(None) };
    let mut app = OllamaServer::new(&binary)?;
    app.start()?;
    Ok(Some(app))
}

/// The entry of the model in `/api/ps`.
fn listed(app: &dyn TestedApp) -> Result<Option<Value>> {
    let answer = http::get(app.address(), "/api/ps")?.json()?;
    Ok(answer["models"].as_array().context("no list")?.first().cloned())
}

fn wish_to_unload(app: &dyn TestedApp) -> Result<()> {
    let answer = send(app, "/api/generate", &json!({"model": app.model(), "keep_alive": 0}))?;
    assert_eq!((answer.status, &answer.json()?["done_reason"]), (200, &"unload".into()));
    Ok(())
}

fn unload_waits_for_a_stream(app: &dyn TestedApp) -> Result<()> {
    app.load_directly()?;
    let stream = begin_long_call(app)?;
    wish_to_unload(app)?;
    assert!(listed(app)?.is_some(), "the answer came before the act");
    let answer = stream.finish()?;
    assert!(app.is_complete(&answer)?, "{}", answer.text());
    wait_for("the model is gone", SOON, || Ok(listed(app)?.is_none().then_some(())))
}

fn later_keep_alive_takes_the_unload_back(app: &dyn TestedApp) -> Result<()> {
    app.load_directly()?;
    let stream = begin_long_call(app)?;
    wish_to_unload(app)?;
    let call = json!({"model": app.model(), "prompt": "x", "stream": false, "keep_alive": 600,
        "options": {"num_predict": 1}});
    assert_eq!(send(app, "/api/generate", &call)?.status, 200);
    stream.finish()?;
    std::thread::sleep(Duration::from_secs(1));
    assert!(listed(app)?.is_some(), "the model stays though its unload was answered with success");
    Ok(())
}

fn other_options_restart_the_runner(app: &dyn TestedApp) -> Result<()> {
    app.load_directly()?;
    let context = |app| Ok::<_, anyhow::Error>(listed(app)?.context("not loaded")?["context_length"].clone());
    let before = context(app)?;
    let call =
        json!({"model": app.model(), "prompt": "x", "stream": false, "options": {"num_predict": 1, "num_ctx": 512}});
    assert_eq!(send(app, "/api/generate", &call)?.status, 200);
    assert_ne!(before, 512);
    assert_eq!(context(app)?, 512);
    Ok(())
}

fn its_end_cuts_streams(app: &mut dyn TestedApp) -> Result<()> {
    app.load_directly()?;
    let stream = begin_long_call(app)?;
    app.terminate()?;
    // Whether the connection breaks off or ends is not the same in all versions; the last line is missing in each.
    let is_complete = stream.finish().is_ok_and(|answer| answer.text().contains("\"done\":true"));
    assert!(!is_complete);
    Ok(())
}

fn answers_the_loopback_alone(app: &dyn TestedApp) -> Result<()> {
    let foreign = "GET /api/version HTTP/1.1\r\nHost: example.org\r\nConnection: close\r\n\r\n";
    assert_eq!(http::exchange(app.address(), foreign.as_bytes())?.status, 403);
    assert_eq!(http::get(app.address(), "/api/version")?.status, 200);
    Ok(())
}

fn reads_load_nothing(app: &dyn TestedApp) -> Result<()> {
    for path in ["/", "/api/tags", "/api/ps", "/api/version", "/v1/models"] {
        assert_eq!(http::get(app.address(), path)?.status, 200, "{path}");
    }
    assert_eq!(send(app, "/api/show", &json!({"model": app.model()}))?.status, 200);
    assert!(listed(app)?.is_none());
    Ok(())
}

fn unknown_model_is_404(app: &dyn TestedApp) -> Result<()> {
    let answer = send(app, "/api/generate", &json!({"model": "nothing", "prompt": "x"}))?;
    assert_eq!(answer.status, 404);
    assert_eq!(answer.json()?["error"], "model 'nothing' not found");
    Ok(())
}

fn compatible_routes_ignore_keep_alive(app: &dyn TestedApp) -> Result<()> {
    app.load_directly()?;
    let call =
        json!({"model": app.model(), "max_tokens": 1, "keep_alive": 0, "messages": [{"role": "user", "content": "x"}]});
    let answer = send(app, "/v1/chat/completions", &call)?;
    assert_eq!(answer.status, 200, "{}", answer.text());
    std::thread::sleep(Duration::from_millis(500));
    assert!(listed(app)?.is_some());
    Ok(())
}

fn own_keep_alive_with_a_prompt_unloads(app: &dyn TestedApp) -> Result<()> {
    let call =
        json!({"model": app.model(), "prompt": "x", "stream": false, "keep_alive": 0, "options": {"num_predict": 1}});
    assert_eq!(send(app, "/api/generate", &call)?.status, 200);
    wait_for("the model is gone", SOON, || Ok(listed(app)?.is_none().then_some(())))
}

fn everything_alike(app: &mut dyn TestedApp) -> Result<()> {
    reads_load_nothing(app)?;
    answers_the_loopback_alone(app)?;
    unknown_model_is_404(app)?;
    unload_waits_for_a_stream(app)?;
    later_keep_alive_takes_the_unload_back(app)?;
    compatible_routes_ignore_keep_alive(app)?;
    other_options_restart_the_runner(app)?;
    own_keep_alive_with_a_prompt_unloads(app)?;
    its_end_cuts_streams(app)
}

#[test]
fn the_standin_has_the_manners_of_ollama() -> Result<()> {
    let mut app = standin(StandInKind::Ollama, &[])?;
    everything_alike(&mut app)?;
    let seen = violations(&app)?;
    for kind in
        [ViolationKind::ForeignHost, ViolationKind::UnloadWhileBusy, ViolationKind::ClientKeepAlive, ViolationKind::Cut]
    {
        assert!(seen.contains(&kind), "{kind:?} in {seen:?}");
    }
    Ok(())
}

#[test]
fn a_real_ollama_has_the_manners_of_the_standin() -> Result<()> {
    let Some(mut app) = real()? else { return Ok(()) };
    everything_alike(&mut app)
}

#[test]
fn a_killed_ollama_leaves_its_runner_with_the_memory() -> Result<()> {
    let mut app = standin(StandInKind::Ollama, &[])?;
    app.load_directly()?;
    let runner = *app.runners()?.first().context("no runner")?;
    app.kill()?;
    std::thread::sleep(Duration::from_millis(500));
    assert!(process::state(runner).is_some_and(|state| state != 'Z'), "the runner lives");
    Ok(())
}

#[test]
fn a_killed_real_ollama_leaves_its_runner_too() -> Result<()> {
    let Some(mut app) = real()? else { return Ok(()) };
    app.load_directly()?;
    let runners = app.runners()?;
    app.kill()?;
    std::thread::sleep(Duration::from_millis(500));
    let alive = runners.iter().filter(|runner| process::state(**runner).is_some_and(|state| state != 'Z')).count();
    for runner in &runners {
        // Those that have ended cannot be ended.
        let _ = process::send(*runner, Signal::KILL);
    }
    assert_eq!(alive, 1, "of {runners:?}");
    Ok(())
}

#[test]
fn work_that_reaches_an_ollama_without_its_model_loads_it_and_is_noted() -> Result<()> {
    let app = standin(StandInKind::Ollama, &[])?;
    assert_eq!(short(&app)?.status, 200);
    assert_eq!(violations(&app)?, [ViolationKind::RequestWhileAway]);
    Ok(())
}

#[test]
fn an_ollama_with_its_own_timeout_unloads_by_itself() -> Result<()> {
    let app = standin(StandInKind::Ollama, &["--own-idle-ms", "300"])?;
    let _ = short(&app)?;
    wait_for("the model leaves", SOON, || Ok(listed(&app)?.is_none().then_some(())))
}

#[test]
fn the_marker_and_the_checksum_of_a_request_are_noted() -> Result<()> {
    use hush_tests::apps::standins::JournalEvent;

    let app = standin(StandInKind::Ollama, &[])?;
    let _ = post(app.address(), &app.short_call(), &["X-Test-Marker: first"])?;
    let noted = app.entries()?.into_iter().find_map(|entry| match entry.event {
        JournalEvent::Request { marker: Some(marker), body_sha256, body_bytes, .. } => {
            Some((marker, body_sha256, body_bytes))
        }
        _ => None,
    });
    let (marker, sha256, bytes) = noted.context("not noted")?;
    let expected = ring::digest::digest(&ring::digest::SHA256, &app.short_call().body);
    let expected: String = expected.as_ref().iter().map(|byte| format!("{byte:02x}")).collect();
    assert_eq!((marker.as_str(), sha256, bytes), ("first", expected, app.short_call().body.len() as u64));
    Ok(())
}
